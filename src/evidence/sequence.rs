//! The sequencer: one writer, many waiters, one sync for a batch. What is durable goes on to the publisher, which nobody
//! waits for.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use tokio::sync::oneshot;

use crate::domain::leaf::{Event, Leaf, Staged};
use crate::domain::time::Clock;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::publish::Publisher;
use crate::evidence::reader::LogReader;
use crate::evidence::recording::Recorder;
use crate::evidence::settle::OpenExchanges;
use crate::evidence::stage::{Stage, StagedEntry};
use crate::evidence::tiles::TileWriter;
use crate::net::files;
use crate::protocol::checkpoint::{Checkpoint, Vkey};
use crate::protocol::tile::{MAX_ENTRY, WIDTH};
use crate::store::evidence::{EvidenceLog, Recording};
use crate::store::{Unavailable, entropy};

const PART: &str = "the evidence log";
const QUEUE: usize = 16_384;
const BATCH: usize = 1024;
/// How long an entry that nobody waits for may wait for a sync to share.
const SHARE: Duration = Duration::from_millis(20);
/// How long an entry waits for others to share its sync, where several shared the last one: about what a sync takes.
const TOGETHER: Duration = Duration::from_micros(100);
/// How often an idle writer looks whether a heartbeat is due.
const LOOK: Duration = Duration::from_millis(200);
const HEARTBEAT: Duration = Duration::from_mins(1);
/// Refusals beyond this many a second are counted instead of logged one by one.
const REFUSALS_EACH: u64 = 200;

enum Message {
    Append(Box<Staged>, Option<oneshot::Sender<Result<u64, Unavailable>>>),
    Publish(oneshot::Sender<Result<(), Unavailable>>),
    Stop,
}

/// Endings that found the queue full. They wait here: each closes an exchange that is open, so they are bounded by those.
type Spilt = Arc<Mutex<Vec<Staged>>>;

/// The evidence log of one replica.
pub struct Sequencer {
    queue: SyncSender<Message>,
    recorder: Recorder,
    dropped: Arc<AtomicU64>,
    spilt: Spilt,
    failing: Arc<AtomicBool>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Sequencer {
    /// Opens the log under `data_dir`, settles what a crash left, and starts the writer.
    pub fn open(data_dir: &Path, trust_domain: &str, clock: Arc<dyn Clock>) -> Result<Self, EvidenceError> {
        let dir = EvidenceDir::of_data_dir(data_dir);
        std::fs::create_dir_all(dir.recordings()).map_err(EvidenceError::io("create", dir.root()))?;
        let key = open_key(&data_dir.join("keys/log.key"))?;
        let vkey = open_vkey(&dir, trust_domain, &key)?;
        let mut opened = Stage::open(&dir.stages())?;
        let mut open = OpenExchanges::default();
        let tiles = recover(&dir, &vkey, opened.entries, &mut open)?;
        opened.stage.go_on_at(tiles.size())?;
        let settled = open.settle(&dir, clock.now())?;
        let (queue, messages) = sync_channel(QUEUE);
        let (dropped, spilt, failing) = (Arc::new(AtomicU64::new(0)), Spilt::default(), Arc::<AtomicBool>::default());
        let recorder = Recorder::new(dir.clone())?;
        let size = tiles.size();
        let publisher = Publisher::start(dir, key, vkey.name().to_owned(), tiles, opened.spare)?;
        let mut writer = Writer {
            stage: opened.stage,
            publisher,
            size,
            clock,
            refusals: (0, 0),
            dropped: dropped.clone(),
            spilt: spilt.clone(),
            failing: failing.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("evidence".into())
            .spawn(move || writer.run(&messages))
            .map_err(EvidenceError::io("start the writer of", data_dir))?;
        let log = Self { queue, recorder, dropped, spilt, failing, writer: Mutex::new(Some(thread)) };
        if !settled.is_empty() {
            tracing::warn!(exchanges = settled.len(), "exchanges were interrupted when the service ended");
        }
        settled.into_iter().for_each(|leaf| log.note(leaf));
        Ok(log)
    }

    /// Publishes everything and ends the writer.
    pub fn close(&self) {
        let _ = self.queue.send(Message::Stop);
        let thread = self.writer.lock().ok().and_then(|mut writer| writer.take());
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn open_key(path: &Path) -> Result<Ed25519KeyPair, EvidenceError> {
    let bad = |what: String| EvidenceError::Key { path: path.to_owned(), what };
    if !path.exists() {
        let key = Ed25519KeyPair::generate().map_err(|e| bad(e.to_string()))?;
        let pkcs8 = key.to_pkcs8v1().map_err(|e| bad(e.to_string()))?;
        files::write_private(path, hex::encode(pkcs8.as_ref()).as_bytes()).map_err(|e| bad(e.to_string()))?;
    }
    let text = files::read_secret(path).map_err(|e| bad(e.to_string()))?;
    let pkcs8 = zeroize::Zeroizing::new(hex::decode(text.as_str()).map_err(|e| bad(e.to_string()))?);
    Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|e| bad(e.to_string()))
}

/// The origin is drawn once: each replica's log has its own name.
fn open_vkey(dir: &EvidenceDir, trust_domain: &str, key: &Ed25519KeyPair) -> Result<Vkey, EvidenceError> {
    let path = dir.vkey();
    let bad = |what: String| EvidenceError::Key { path: path.clone(), what };
    if !path.exists() {
        let name = format!("{trust_domain}/popgate/{}", hex::encode(entropy::random::<4>()));
        let vkey = Vkey::new(&name, key.public_key().as_ref());
        files::write_public(&path, format!("{}\n", vkey.text()).as_bytes()).map_err(|e| bad(e.to_string()))?;
    }
    let text = files::read(&path).map_err(|e| bad(e.to_string()))?;
    let vkey = Vkey::parse(&text).map_err(|e| bad(e.to_string()))?;
    if vkey != Vkey::new(vkey.name(), key.public_key().as_ref()) {
        return Err(bad("it is not the key in keys/log.key".into()));
    }
    Ok(vkey)
}

/// Reads the tree back: what is staged counts, and before it what the bundles hold. It must lead to the published
/// checkpoint. All that was read is synced then, and what a crash kept from the tiles is written.
fn recover(
    dir: &EvidenceDir,
    vkey: &Vkey,
    staged: Vec<StagedEntry>,
    open: &mut OpenExchanges,
) -> Result<TileWriter, EvidenceError> {
    let damaged = |what: String| EvidenceError::Damaged { path: dir.checkpoint(), what };
    let reader = LogReader::new(dir.clone());
    let mut tiles = TileWriter::new(dir.clone());
    let published = if dir.checkpoint().exists() {
        Checkpoint::verify(&reader.checkpoint_note()?, vkey).map_err(|e| damaged(e.to_string()))?
    } else {
        Checkpoint { origin: vkey.name().to_owned(), size: 0, root: crate::domain::digest::Sha256::of(b"") }
    };
    let mut staged: BTreeMap<u64, StagedEntry> = staged.into_iter().map(|e| (e.index, e)).collect();
    let (mut bundle, mut known) = ((u64::MAX, Vec::new()), (u64::MAX, BTreeMap::new()));
    check_root(&tiles, &published).map_err(damaged)?;
    loop {
        let index = tiles.size();
        let of = index / WIDTH;
        let next = if let Some(entry) = staged.remove(&index) {
            if known.0 != of {
                known = (of, reader.openings(of));
                tiles.rests_on_openings(of);
            }
            let openings = if known.1.contains_key(&index) { BTreeMap::new() } else { entry.openings };
            StagedEntry { openings, ..entry }
        } else if index < published.size {
            if bundle.0 != of {
                bundle = (of, reader.most_of_bundle(of));
            }
            let at = usize::try_from(index % WIDTH).unwrap_or(usize::MAX);
            let Some(entry) = bundle.1.get_mut(at).map(std::mem::take) else { break };
            StagedEntry { index, entry, openings: BTreeMap::new() }
        } else {
            break;
        };
        open.see(&next.entry);
        tiles.push(&next)?;
        check_root(&tiles, &published).map_err(damaged)?;
    }
    if tiles.size() < published.size {
        return Err(damaged(format!(
            "the checkpoint counts {} entries and {} can be read",
            published.size,
            tiles.size()
        )));
    }
    tiles.write_partial()?;
    tiles.sync(Duration::ZERO);
    Ok(tiles)
}

fn check_root(tiles: &TileWriter, published: &Checkpoint) -> Result<(), String> {
    if tiles.size() == published.size && tiles.root() != published.root {
        return Err("the entries do not lead to the published root".into());
    }
    Ok(())
}

#[async_trait]
impl EvidenceLog for Sequencer {
    async fn append(&self, staged: Staged) -> Result<u64, Unavailable> {
        let (answer, wait) = oneshot::channel();
        self.queue.try_send(Message::Append(Box::new(staged), Some(answer))).map_err(|e| match e {
            TrySendError::Full(_) => Unavailable::new(PART, "its queue is full"),
            TrySendError::Disconnected(_) => Unavailable::new(PART, "it is closed"),
        })?;
        wait.await.map_err(|_| Unavailable::new(PART, "it is closed"))?
    }

    fn note(&self, staged: Staged) {
        let refusal = matches!(staged.leaf.event, Event::Refusal { .. });
        match self.queue.try_send(Message::Append(Box::new(staged), None)) {
            Ok(()) => {}
            Err(_) if refusal => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
            Err(TrySendError::Full(Message::Append(staged, _))) => lock(&self.spilt).push(*staged),
            Err(_) => tracing::error!("an entry came after the log was closed"),
        }
    }

    fn record(&self, request_id: &str) -> Result<Box<dyn Recording>, Unavailable> {
        self.recorder.begin(request_id)
    }

    fn ping(&self) -> Result<(), Unavailable> {
        if self.failing.load(Ordering::Relaxed) {
            return Err(Unavailable::new(PART, "the last entries could not be written"));
        }
        Ok(())
    }

    async fn publish(&self) -> Result<(), Unavailable> {
        // The endings of recordings first: they are entries, too.
        self.recorder.flush().await;
        let (answer, wait) = oneshot::channel();
        self.queue.try_send(Message::Publish(answer)).map_err(|e| Unavailable::new(PART, e))?;
        wait.await.map_err(|_| Unavailable::new(PART, "it is closed"))?
    }
}

fn lock(spilt: &Spilt) -> std::sync::MutexGuard<'_, Vec<Staged>> {
    spilt.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has come, or comes next. Entries that nobody waits for share the sync of one that somebody does, if that comes soon.
/// `crowded`: several waited for the last sync, and so more will come.
fn gather(messages: &Receiver<Message>, crowded: bool) -> Vec<Message> {
    let mut batch = Vec::new();
    let mut patience = LOOK;
    let mut until = None;
    loop {
        match messages.recv_timeout(patience) {
            Ok(message) => batch.push(message),
            Err(RecvTimeoutError::Timeout) => return batch,
            Err(RecvTimeoutError::Disconnected) => {
                batch.push(Message::Stop);
                return batch;
            }
        }
        batch.extend(messages.try_iter().take(BATCH));
        let until = *until.get_or_insert_with(|| Instant::now() + SHARE);
        patience = until.saturating_duration_since(Instant::now());
        let awaited = batch.iter().any(|m| !matches!(m, Message::Append(_, None)));
        if awaited && crowded {
            std::thread::sleep(TOGETHER);
            batch.extend(messages.try_iter().take(BATCH));
        }
        if awaited || patience.is_zero() || batch.len() >= BATCH {
            return batch;
        }
    }
}

struct Writer {
    stage: Stage,
    publisher: Publisher,
    /// Number of entries.
    size: u64,
    clock: Arc<dyn Clock>,
    /// Second, and how many refusals it has seen.
    refusals: (u64, u64),
    dropped: Arc<AtomicU64>,
    spilt: Spilt,
    failing: Arc<AtomicBool>,
}

impl Writer {
    fn run(&mut self, messages: &Receiver<Message>) {
        let (mut last_entry, mut crowded) = (Instant::now(), false);
        loop {
            let mut batch = gather(messages, crowded);
            crowded = batch.iter().filter(|m| matches!(m, Message::Append(_, Some(_)))).nth(1).is_some();
            let spilt = std::mem::take(&mut *lock(&self.spilt));
            batch.splice(0..0, spilt.into_iter().map(|staged| Message::Append(Box::new(staged), None)));
            if batch.is_empty() && last_entry.elapsed() >= HEARTBEAT {
                batch.push(Message::Append(Box::new(Staged::plain(self.clock.now(), Event::Heartbeat {})), None));
            }
            if !batch.is_empty() {
                last_entry = Instant::now();
            }
            let (stop, publish) = self.take(batch);
            for waiter in publish {
                self.publisher.publish(waiter);
            }
            if stop {
                return self.end();
            }
            if let Some(spare) = self.stage.turn() {
                self.publisher.lay_out(spare);
            }
        }
    }

    /// Everything is published and synced, so that nothing is staged any more.
    fn end(&mut self) {
        if self.publisher.end()
            && let Err(error) = self.stage.clear()
        {
            tracing::warn!(%error, "the stage is kept; the next start settles it");
        }
    }

    /// Stages a batch and answers its waiters. Returns whether to stop and who waits for a checkpoint.
    fn take(&mut self, batch: Vec<Message>) -> (bool, Vec<oneshot::Sender<Result<(), Unavailable>>>) {
        let (mut stop, mut publish, mut entries, mut waiters) = (false, Vec::new(), Vec::new(), Vec::new());
        for message in batch {
            match message {
                Message::Stop => stop = true,
                Message::Publish(waiter) => publish.push(waiter),
                Message::Append(staged, waiter) => {
                    if let Some(staged) = self.thin(*staged) {
                        self.add(staged, waiter, &mut entries, &mut waiters);
                    }
                }
            }
        }
        if let Some(summary) = self.summary(stop) {
            self.add(summary, None, &mut entries, &mut waiters);
        }
        if !entries.is_empty() {
            self.commit(entries, waiters);
        }
        (stop, publish)
    }

    fn add(
        &self,
        staged: Staged,
        waiter: Option<oneshot::Sender<Result<u64, Unavailable>>>,
        entries: &mut Vec<StagedEntry>,
        waiters: &mut Vec<(u64, oneshot::Sender<Result<u64, Unavailable>>)>,
    ) {
        let entry = staged.leaf.canonical();
        if entry.len() > MAX_ENTRY {
            tracing::error!(bytes = entry.len(), "an entry is longer than the log takes");
            if let Some(waiter) = waiter {
                let _ = waiter.send(Err(Unavailable::new(PART, "the entry is too long")));
            }
            return;
        }
        let index = self.size + entries.len() as u64;
        entries.push(StagedEntry { index, entry, openings: staged.openings });
        waiters.extend(waiter.map(|w| (index, w)));
    }

    fn commit(&mut self, entries: Vec<StagedEntry>, waiters: Vec<(u64, oneshot::Sender<Result<u64, Unavailable>>)>) {
        let staged = self.stage.append(&entries);
        self.failing.store(staged.is_err(), Ordering::Relaxed);
        match staged {
            Ok(()) => {
                self.size += entries.len() as u64;
                for (index, waiter) in waiters {
                    let _ = waiter.send(Ok(index));
                }
                self.publisher.staged(entries);
            }
            Err(error) => {
                tracing::error!(%error, "entries could not be written; requests are refused until they can");
                for (_, waiter) in waiters {
                    let _ = waiter.send(Err(Unavailable::new(PART, &error)));
                }
            }
        }
    }

    /// Lets a limited number of refusals through each second and counts the rest.
    fn thin(&mut self, staged: Staged) -> Option<Staged> {
        if !matches!(staged.leaf.event, Event::Refusal { .. }) {
            return Some(staged);
        }
        let second = staged.leaf.time.unix();
        if self.refusals.0 != second {
            self.refusals = (second, 0);
        }
        self.refusals.1 += 1;
        if self.refusals.1 <= REFUSALS_EACH {
            return Some(staged);
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        None
    }

    fn summary(&self, stop: bool) -> Option<Staged> {
        let now = self.clock.now();
        let quiet = stop || self.refusals.0 != now.unix();
        let count = if quiet { self.dropped.swap(0, Ordering::Relaxed) } else { 0 };
        (count > 0).then(|| Staged {
            leaf: Leaf { time: now, event: Event::RefusalsSummarised { count } },
            openings: BTreeMap::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::digest::Opening;
    use crate::store::clock::SystemClock;

    /// The stage first, then the checkpoint, then what it rests on: as if all had been seen at one moment.
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).expect("creates");
        let mut paths: Vec<_> = std::fs::read_dir(from).expect("reads").map(|e| e.expect("reads").path()).collect();
        let rank = |path: &std::path::PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            (!name.starts_with("stage"), name != "checkpoint")
        };
        paths.sort_by_key(rank);
        for path in paths.into_iter().filter(|p| p.extension().is_none_or(|e| e != "new")) {
            let target = to.join(path.file_name().expect("named"));
            if path.is_dir() {
                copy(&path, &target);
            } else if let Err(error) = std::fs::copy(&path, target) {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "what is retired meanwhile is not needed");
            }
        }
    }

    /// What a power cut may take: every form of a bundle but the oldest that holds what is staged no more.
    fn lose_what_is_not_synced(dir: &EvidenceDir) {
        let staged = Stage::open(&dir.stages()).expect("opens").entries;
        let Some(first) = staged.first().map(|e| e.index).filter(|first| *first > 0) else { return };
        let last = (first - 1) / WIDTH;
        let needed = usize::try_from((first - 1) % WIDTH + 1).expect("small");
        let full = dir.root().join(crate::protocol::tile::entries_path(last, WIDTH));
        let partial = std::fs::read_dir(crate::evidence::tiles::partial_dir(&full)).into_iter().flatten();
        let forms = partial.map(|e| e.expect("reads").path()).chain([full]).filter(|p| p.exists());
        let count = |path: &std::path::PathBuf| {
            crate::protocol::tile::split_entries(&std::fs::read(path).expect("reads")).map_or(0, |e| e.len())
        };
        let mut forms: Vec<_> = forms.map(|path| (count(&path), path)).filter(|(n, _)| *n >= needed).collect();
        forms.sort();
        for (_, path) in forms.iter().skip(1) {
            std::fs::write(path, b"").expect("writes");
        }
    }

    fn open(dir: &Path) -> Sequencer {
        std::fs::create_dir_all(dir.join("keys")).expect("creates");
        Sequencer::open(dir, "example.org", Arc::new(SystemClock)).expect("opens")
    }

    /// Index of the first entry in a file of the stage.
    fn first_of(path: &Path) -> Option<u64> {
        let start = std::io::Read::take(std::fs::File::open(path).ok()?, 64 << 10);
        crate::evidence::stage::decode(start).expect("reads").0.first().map(|entry| entry.index)
    }

    /// Large enough that a few hundred fill a file of the stage.
    fn entry() -> Staged {
        let openings = BTreeMap::from([("target".to_owned(), Opening::new([7; 32], "x".repeat(50_000)))]);
        Staged { leaf: Leaf { time: SystemClock.now(), event: Event::Heartbeat {} }, openings }
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_whatever_the_stage_is_at() {
        let (dir, copies) = (tempfile::tempdir().expect("tempdir"), tempfile::tempdir().expect("tempdir"));
        let log = open(dir.path());
        let stages = EvidenceDir::of_data_dir(dir.path()).stages();
        let holding = || stages.iter().filter(|path| first_of(path).is_some()).count();
        let (mut turned, mut both) = (std::collections::BTreeSet::new(), false);
        let mut count = 0;
        while turned.len() < 3 || count < 700 {
            let n = count;
            count += 1;
            assert_eq!(log.append(entry()).await.expect("appends"), n);
            let now = holding() == 2;
            turned.extend(stages.iter().filter_map(|path| first_of(path)));
            // What a kill here would leave, with and without a file that waits to be forgotten.
            if n % 100 == 99 || (now && !both) {
                let crashed = copies.path().join(n.to_string());
                copy(dir.path(), &crashed);
                lose_what_is_not_synced(&EvidenceDir::of_data_dir(&crashed));
                let again = open(&crashed);
                assert_eq!(again.append(entry()).await.expect("appends"), n + 1);
                again.close();
            }
            both |= now;
        }
        assert!(both, "one waited for its entries to be published while the other had its turn: {turned:?}");
        // What waits is forgotten before the second.
        log.publish().await.expect("publishes");
        log.publish().await.expect("publishes");
        assert!(holding() < 2, "what waited is forgotten");
        log.close();
        assert_eq!(holding(), 0);
        let reader = LogReader::new(EvidenceDir::of_data_dir(dir.path()));
        assert_eq!(reader.checkpoint().expect("reads").size, count);
        let opened = reader.entries(0).expect("reads").iter().filter(|e| e.openings.contains_key("target")).count();
        assert_eq!(opened as u64, count);
    }
}
