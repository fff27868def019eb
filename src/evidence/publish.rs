//! Puts durable entries into tiles and signs checkpoints over them, on a thread of its own: what it writes and syncs holds
//! up nobody's request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::Ed25519KeyPair;
use tokio::sync::oneshot;

use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::stage::{Spare, StagedEntry};
use crate::evidence::tiles::TileWriter;
use crate::net::files;
use crate::protocol::checkpoint::Checkpoint;
use crate::store::Unavailable;

const PART: &str = "the evidence log";
const EVERY: Duration = Duration::from_millis(200);
/// Between two syncs of tiles: requests wait for the same disk.
const PAUSE: Duration = Duration::from_millis(4);
/// Entries that may wait; beyond them the writer does, and with it whoever asks. They are a few kilobytes each.
const BEHIND: usize = 32_768;

enum Message {
    Staged(Vec<StagedEntry>),
    Publish(oneshot::Sender<Result<(), Unavailable>>),
    /// A file of the stage, to be laid out once all that is staged so far is under a synced checkpoint.
    LayOut(Spare),
    End,
}

/// The publishing thread's handle.
pub struct Publisher {
    queue: Sender<Message>,
    /// Entries that are not in a tile yet.
    behind: Arc<AtomicUsize>,
    thread: Option<JoinHandle<bool>>,
}

impl Publisher {
    /// Starts it over a tree; `spare`: what is to be laid out already.
    pub fn start(
        dir: EvidenceDir,
        key: Ed25519KeyPair,
        origin: String,
        tiles: TileWriter,
        spare: Option<Spare>,
    ) -> Result<Self, EvidenceError> {
        let (queue, messages) = channel();
        let behind = Arc::<AtomicUsize>::default();
        let root = dir.root().to_owned();
        let mut work =
            Work { dir, key, origin, tiles, published: None, tried: None, spare, laying: None, behind: behind.clone() };
        let thread = std::thread::Builder::new().name("publish".into()).spawn(move || work.run(&messages));
        Ok(Self { queue, behind, thread: Some(thread.map_err(EvidenceError::io("start the publisher of", &root))?) })
    }

    /// Takes entries that are durable.
    pub fn staged(&self, entries: Vec<StagedEntry>) {
        let works = || !self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        while self.behind.load(Ordering::Relaxed) > BEHIND && works() {
            std::thread::sleep(PAUSE);
        }
        self.behind.fetch_add(entries.len(), Ordering::Relaxed);
        self.tell(Message::Staged(entries));
    }

    /// Answers once everything taken so far is under a checkpoint.
    pub fn publish(&self, waiter: oneshot::Sender<Result<(), Unavailable>>) {
        self.tell(Message::Publish(waiter));
    }

    /// Lays a file of the stage out once all that is staged so far is under a synced checkpoint.
    pub fn lay_out(&self, spare: Spare) {
        self.tell(Message::LayOut(spare));
    }

    /// Publishes and syncs everything and ends; whether that went well.
    pub fn end(&mut self) -> bool {
        self.tell(Message::End);
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or(false)
    }

    fn tell(&self, message: Message) {
        if self.queue.send(message).is_err() {
            // It has panicked; entries would be staged that nothing ever publishes.
            tracing::error!("the publisher has ended; ending the process, the next start settles it");
            std::process::exit(1);
        }
    }
}

struct Work {
    dir: EvidenceDir,
    key: Ed25519KeyPair,
    origin: String,
    tiles: TileWriter,
    /// Size of the last checkpoint.
    published: Option<u64>,
    /// When one was last tried.
    tried: Option<Instant>,
    /// What the next publication makes forgettable.
    spare: Option<Spare>,
    /// What is being laid out since.
    laying: Option<Spare>,
    behind: Arc<AtomicUsize>,
}

impl Work {
    fn run(&mut self, messages: &Receiver<Message>) -> bool {
        loop {
            let since = self.tried.map_or(EVERY, |at| at.elapsed());
            let mut waiting = None;
            match messages.recv_timeout(EVERY.saturating_sub(since).max(Duration::from_millis(1))) {
                Ok(Message::Staged(entries)) => self.take(&entries),
                Ok(Message::Publish(waiter)) => waiting = Some(waiter),
                Ok(Message::LayOut(spare)) => self.spare = Some(spare),
                Ok(Message::End) => return self.publish_or_tell(true).is_ok() && self.forget(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            let due = self.tried.is_none_or(|at| at.elapsed() >= EVERY);
            if due || waiting.is_some() {
                let result = self.publish_or_tell(false);
                let is_published = result.is_ok();
                if let Some(waiter) = waiting {
                    let _ = waiter.send(result.map_err(|e| Unavailable::new(PART, e)));
                }
                if is_published {
                    self.forget();
                }
                if self.laying.as_ref().is_some_and(Spare::lay_out) {
                    self.laying = None;
                }
                self.tiles.sync_full(PAUSE);
            }
        }
    }

    fn take(&mut self, entries: &[StagedEntry]) {
        self.behind.fetch_sub(entries.len(), Ordering::Relaxed);
        for entry in entries {
            if let Err(error) = self.tiles.push(entry) {
                tracing::error!(%error, "a tile could not be written; ending the process, the next start settles it");
                std::process::exit(1);
            }
        }
    }

    /// Forgets the file of the stage whose entries are under a synced checkpoint; whether none is left that should be.
    fn forget(&mut self) -> bool {
        match self.spare.as_ref().map_or(Ok(()), Spare::forget) {
            Ok(()) => {
                self.laying = self.spare.take().or(self.laying.take());
                true
            }
            Err(error) => {
                tracing::error!(%error, "what is under a checkpoint stays in the stage; trying again");
                false
            }
        }
    }

    fn publish_or_tell(&mut self, end: bool) -> Result<(), EvidenceError> {
        let result = self.publish(end);
        if let Err(error) = &result {
            tracing::error!(%error, "the checkpoint could not be published");
        }
        result
    }

    fn publish(&mut self, end: bool) -> Result<(), EvidenceError> {
        let size = self.tiles.size();
        self.tried = Some(Instant::now());
        if self.published == Some(size) && !end && self.spare.is_none() {
            return Ok(());
        }
        self.tiles.write_partial()?;
        let checkpoint = Checkpoint { origin: self.origin.clone(), size, root: self.tiles.root() };
        let pause = if end { Duration::ZERO } else { PAUSE };
        if end || self.spare.is_some() {
            self.tiles.sync(pause);
        }
        let path = self.dir.checkpoint();
        files::write_public(&path, checkpoint.sign(&self.key).as_bytes())
            .map_err(|e| EvidenceError::Damaged { path, what: e.to_string() })?;
        self.published = Some(size);
        self.tiles.retire();
        Ok(())
    }
}
