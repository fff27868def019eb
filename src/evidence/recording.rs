//! Writes recordings. Frames go to the segment that all share before their bytes go to the client; a syncer follows within
//! 50 ms, with one sync for all that came meanwhile.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::recording::FrameKind;
use crate::evidence::files::EvidenceDir;
use crate::evidence::{EvidenceError, segments};
use crate::net::files::sync_dir;
use crate::protocol::transcript::{MAX_PAYLOAD, Mark, RecordingId, encode};
use crate::store::evidence::{Finished, Recording};
use crate::store::{Unavailable, entropy};

const PART: &str = "the recorder";
/// Frames of this long share a sync.
const GATHER: Duration = Duration::from_millis(15);
/// A segment of this many bytes is full.
const FULL: u64 = 64 << 20;

/// Begins recordings and keeps them synced.
pub struct Recorder {
    writer: Arc<Mutex<Writer>>,
    mark: Mark,
    syncer: Sender<Message>,
}

/// What the syncer is told.
enum Message {
    /// A segment has frames that are not synced.
    Written(Written),
    /// A recording ended, all of it told before: its digest, and what waits for it.
    Ended(Sha256, Finished),
    /// Answered once everything told before is synced and its endings are written.
    Flush(oneshot::Sender<()>),
}

struct Written {
    file: Arc<File>,
    dirty: Arc<AtomicBool>,
    /// Whether its name is new in the directory.
    created: bool,
}

impl Recorder {
    /// A recorder under `dir`, with its syncer. It begins a segment of its own: the last one may be torn.
    pub fn new(dir: EvidenceDir) -> Result<Self, EvidenceError> {
        let (syncer, messages) = channel();
        let recordings = dir.recordings();
        let number = |path: &Path| path.file_stem().and_then(|n| n.to_str()).and_then(|n| n.parse::<u64>().ok());
        let last = segments::list(&dir)?.iter().filter_map(|p| number(p)).max().unwrap_or(0);
        std::thread::Builder::new()
            .name("recording-sync".into())
            .spawn(move || sync_loop(&messages, &recordings))
            .map_err(EvidenceError::io("start the syncer of", dir.root()))?;
        let mark = Mark(entropy::random());
        let writer = Writer { dir, mark, last, segment: None, syncer: syncer.clone() };
        Ok(Self { writer: Arc::new(Mutex::new(writer)), mark, syncer })
    }

    /// Returns once every recording that has ended is synced.
    pub async fn flush(&self) {
        let (told, wait) = oneshot::channel();
        if self.syncer.send(Message::Flush(told)).is_ok() {
            let _ = wait.await;
        }
    }

    /// Begins the recording of one request.
    pub fn begin(&self, request_id: &str) -> Result<Box<dyn Recording>, Unavailable> {
        let id = RecordingId::parse(request_id).ok_or_else(|| Unavailable::new(PART, "not a request id"))?;
        let (writer, syncer, mark) = (self.writer.clone(), self.syncer.clone(), self.mark);
        let (digest, began) = (Hasher::default(), Instant::now());
        Ok(Box::new(OpenRecording { id, writer, mark, syncer, digest, place: 0, began }))
    }
}

/// Syncs, each round, the segments that were written since the last. A failed sync ends the process: see the stage.
fn sync_loop(messages: &Receiver<Message>, dir: &Path) {
    while let Ok(first) = messages.recv() {
        std::thread::sleep(GATHER);
        let (mut written, mut ended, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match message {
                Message::Written(segment) => written.push(segment),
                Message::Ended(digest, then) => ended.push((digest, then)),
                Message::Flush(waiter) => waiting.push(waiter),
            }
        }
        if let Err(error) = sync(&written, dir) {
            tracing::error!(%error, "a recording could not be synced; ending the process");
            std::process::exit(1);
        }
        for (digest, then) in ended {
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

/// Appends frames to the segment of now.
struct Writer {
    dir: EvidenceDir,
    mark: Mark,
    /// Number of the last segment.
    last: u64,
    segment: Option<Segment>,
    syncer: Sender<Message>,
}

struct Segment {
    file: Arc<File>,
    /// Bytes of whole frames.
    length: u64,
    dirty: Arc<AtomicBool>,
    created: bool,
}

impl Writer {
    fn write(&mut self, frame: &[u8]) -> Result<(), Unavailable> {
        if self.segment.as_ref().is_none_or(|s| s.length >= FULL) {
            self.segment = Some(self.begin().map_err(|e| Unavailable::new(PART, e))?);
        }
        let Some(segment) = &mut self.segment else { return Err(Unavailable::new(PART, "it has no segment")) };
        if let Err(error) = (&*segment.file).write_all(frame) {
            // Half a frame is skipped by whoever reads, and costs space.
            if segment.file.set_len(segment.length).is_err() {
                self.segment = None;
            }
            return Err(Unavailable::new(PART, error));
        }
        segment.length += frame.len() as u64;
        if !segment.dirty.swap(true, Ordering::SeqCst) {
            let created = std::mem::take(&mut segment.created);
            let written = Written { file: segment.file.clone(), dirty: segment.dirty.clone(), created };
            self.syncer.send(Message::Written(written)).map_err(|e| Unavailable::new(PART, e))?;
        }
        Ok(())
    }

    fn begin(&mut self) -> std::io::Result<Segment> {
        self.last += 1;
        let path = self.dir.segment(self.last);
        let mut file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        let head = self.mark.head();
        if let Err(error) = file.write_all(&head) {
            let _ = std::fs::remove_file(&path);
            self.last -= 1;
            return Err(error);
        }
        Ok(Segment { file: Arc::new(file), length: head.len() as u64, dirty: Arc::default(), created: true })
    }
}

struct OpenRecording {
    id: RecordingId,
    writer: Arc<Mutex<Writer>>,
    mark: Mark,
    syncer: Sender<Message>,
    digest: Hasher,
    place: u32,
    began: Instant,
}

impl OpenRecording {
    fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        let at_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let bytes = encode(self.mark, self.id, self.place, kind, at_ms, payload);
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes)?;
        self.place += 1;
        self.digest.update(&bytes);
        Ok(())
    }
}

impl Recording for OpenRecording {
    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        payload.chunks(MAX_PAYLOAD).try_for_each(|piece| self.write(kind, piece))
    }

    fn finish(mut self: Box<Self>, how: &str, then: Finished) {
        if let Err(error) = self.write(FrameKind::End, how.as_bytes()) {
            return then(Err(error));
        }
        if let Err(SendError(Message::Ended(_, then))) = self.syncer.send(Message::Ended(self.digest.so_far(), then)) {
            then(Err(Unavailable::new(PART, "its syncer is gone")));
        }
    }
}
