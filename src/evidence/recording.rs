//! Writes recordings. Frames go to the file before their bytes go to the client; a syncer follows within 50 ms.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::recording::FrameKind;
use crate::evidence::files::EvidenceDir;
use crate::net::files::sync_dir;
use crate::protocol::transcript::{MAGIC, MAX_PAYLOAD, encode};
use crate::store::Unavailable;
use crate::store::evidence::{Finished, Recording};

const PART: &str = "the recorder";
/// Frames of this long share a sync.
const GATHER: Duration = Duration::from_millis(15);

/// Begins recordings and keeps them synced.
pub struct Recorder {
    dir: EvidenceDir,
    syncer: Sender<Message>,
}

/// What the syncer is told.
enum Message {
    /// A file has frames that are not synced.
    Written(Written),
    /// Answered once everything told before is synced and its endings are written.
    Flush(oneshot::Sender<()>),
}

struct Written {
    file: File,
    dirty: Arc<AtomicBool>,
    /// Whether its name is new in the directory.
    created: bool,
    /// The digest of the whole file, and what waits for it.
    ended: Option<(Sha256, Finished)>,
}

impl Recorder {
    /// A recorder under `dir`, with its syncer.
    pub fn new(dir: EvidenceDir) -> Self {
        let (syncer, messages) = channel();
        let recordings = dir.recordings();
        std::thread::Builder::new()
            .name("recording-sync".into())
            .spawn(move || sync_loop(&messages, &recordings))
            .expect("a thread can be started, or the service cannot run");
        Self { dir, syncer }
    }

    /// Returns once every recording that has ended is synced.
    pub async fn flush(&self) {
        let (told, wait) = oneshot::channel();
        if self.syncer.send(Message::Flush(told)).is_ok() {
            let _ = wait.await;
        }
    }

    /// Creates the recording of one request.
    pub fn begin(&self, request_id: &str) -> Result<Box<dyn Recording>, Unavailable> {
        let path = self.dir.recording(request_id).ok_or_else(|| Unavailable::new(PART, "not a request id"))?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| Unavailable::new(PART, e))?;
        file.write_all(MAGIC).map_err(|e| Unavailable::new(PART, e))?;
        let mut digest = Hasher::default();
        digest.update(MAGIC);
        Ok(Box::new(OpenRecording {
            file,
            digest,
            length: MAGIC.len() as u64,
            began: Instant::now(),
            syncer: self.syncer.clone(),
            dirty: Arc::default(),
            created: true,
        }))
    }
}

/// Syncs, each round, the files that were written since the last. A failed sync ends the process: see the stage.
fn sync_loop(messages: &Receiver<Message>, dir: &Path) {
    while let Ok(first) = messages.recv() {
        std::thread::sleep(GATHER);
        let (mut round, mut waiting) = (Vec::new(), Vec::new());
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Written(written) => round.push(written),
                Message::Flush(waiter) => waiting.push(waiter),
            }
        }
        if let Err(error) = sync(&round, dir) {
            tracing::error!(%error, "a recording could not be synced; ending the process");
            std::process::exit(1);
        }
        for (digest, then) in round.into_iter().filter_map(|w| w.ended) {
            then(Ok(digest));
        }
        for waiter in waiting {
            let _ = waiter.send(());
        }
    }
}

fn sync(round: &[Written], dir: &Path) -> std::io::Result<()> {
    if round.iter().any(|w| w.created) {
        sync_dir(dir)?;
    }
    round.iter().try_for_each(|written| {
        // Before the sync: a frame that comes during it is told again.
        written.dirty.store(false, Ordering::SeqCst);
        written.file.sync_data()
    })
}

struct OpenRecording {
    file: File,
    digest: Hasher,
    /// Bytes of whole frames.
    length: u64,
    began: Instant,
    syncer: Sender<Message>,
    dirty: Arc<AtomicBool>,
    created: bool,
}

impl OpenRecording {
    fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        let at_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let bytes = encode(kind, at_ms, payload);
        if let Err(error) = self.file.write_all(&bytes) {
            // Half a frame would hide the frames after it.
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(Unavailable::new(PART, error));
        }
        self.length += bytes.len() as u64;
        self.digest.update(&bytes);
        Ok(())
    }

    fn tell_syncer(&mut self) -> Result<(), Unavailable> {
        if self.dirty.load(Ordering::SeqCst) {
            return Ok(());
        }
        let file = self.file.try_clone().map_err(|e| Unavailable::new(PART, e))?;
        self.dirty.store(true, Ordering::SeqCst);
        let created = std::mem::take(&mut self.created);
        let written = Written { file, dirty: self.dirty.clone(), created, ended: None };
        self.syncer.send(Message::Written(written)).map_err(|e| Unavailable::new(PART, e))
    }
}

impl Recording for OpenRecording {
    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        for piece in payload.chunks(MAX_PAYLOAD) {
            self.write(kind, piece)?;
        }
        self.tell_syncer()
    }

    fn finish(mut self: Box<Self>, how: &str, then: Finished) {
        if let Err(error) = self.write(FrameKind::End, how.as_bytes()) {
            return then(Err(error));
        }
        let ended = Some((self.digest.so_far(), then));
        let written = Written { file: self.file, dirty: self.dirty, created: self.created, ended };
        if let Err(SendError(Message::Written(Written { ended: Some((_, then)), .. }))) =
            self.syncer.send(Message::Written(written))
        {
            then(Err(Unavailable::new(PART, "its syncer is gone")));
        }
    }
}
