//! Writes recordings. Frames go to the file before their bytes go to the client; a syncer follows within 50 ms.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::recording::FrameKind;
use crate::evidence::files::EvidenceDir;
use crate::protocol::transcript::{MAGIC, MAX_PAYLOAD, encode};
use crate::store::Unavailable;
use crate::store::evidence::Recording;

const PART: &str = "the recorder";
const SYNC_EVERY: Duration = Duration::from_millis(25);

/// Begins recordings and keeps them synced.
pub struct Recorder {
    dir: EvidenceDir,
    dirty: Sender<File>,
}

impl Recorder {
    /// A recorder under `dir`, with its syncer.
    pub fn new(dir: EvidenceDir) -> Self {
        let (dirty, files) = channel();
        std::thread::Builder::new()
            .name("recording-sync".into())
            .spawn(move || sync_loop(&files))
            .expect("a thread can be started, or the service cannot run");
        Self { dir, dirty }
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
        Ok(Box::new(OpenRecording { file, digest, began: Instant::now(), dirty: self.dirty.clone(), told: None }))
    }
}

/// Syncs each file that was written since the last round. A failed sync ends the process: see the stage.
fn sync_loop(files: &Receiver<File>) {
    loop {
        let mut round = Vec::new();
        match files.recv_timeout(SYNC_EVERY) {
            Ok(file) => round.push(file),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        }
        round.extend(files.try_iter());
        for file in round {
            if let Err(error) = file.sync_data() {
                tracing::error!(%error, "a recording could not be synced; ending the process");
                std::process::exit(1);
            }
        }
    }
}

struct OpenRecording {
    file: File,
    digest: Hasher,
    began: Instant,
    dirty: Sender<File>,
    told: Option<Instant>,
}

impl OpenRecording {
    fn write(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        let at_ms = u32::try_from(self.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        let bytes = encode(kind, at_ms, payload);
        self.file.write_all(&bytes).map_err(|e| Unavailable::new(PART, e))?;
        self.digest.update(&bytes);
        Ok(())
    }

    fn tell_syncer(&mut self) -> Result<(), Unavailable> {
        if self.told.is_some_and(|at| at.elapsed() < SYNC_EVERY) {
            return Ok(());
        }
        self.told = Some(Instant::now());
        let handle = self.file.try_clone().map_err(|e| Unavailable::new(PART, e))?;
        self.dirty.send(handle).map_err(|e| Unavailable::new(PART, e))
    }
}

impl Recording for OpenRecording {
    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        for piece in payload.chunks(MAX_PAYLOAD) {
            self.write(kind, piece)?;
        }
        self.tell_syncer()
    }

    fn finish(mut self: Box<Self>, how: &str) -> Result<Sha256, Unavailable> {
        self.write(FrameKind::End, how.as_bytes())?;
        self.told = None;
        self.tell_syncer()?;
        Ok(self.digest.so_far())
    }
}
