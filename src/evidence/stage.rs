//! The write-ahead files: entries become durable here, in one sync for a whole batch.
//!
//! Two files take turns. Each is laid out once, in zeros that are on disk: a batch then writes over blocks that are there, and
//! its sync waits for them alone, not for what the file system notes of everybody else's files (decision 31).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::domain::digest::Opening;
use crate::evidence::EvidenceError;
use crate::net::files::sync_dir;

/// Bytes of a file that is laid out.
const ROOM: u64 = 16 << 20;
/// Bytes after which a file that is not laid out is full: who writes little needs no room.
const SMALL: u64 = 256 << 10;
/// How much is laid out at a time.
const STEP: usize = 1 << 20;
/// What a frame begins with: length and CRC-32.
const HEAD: usize = 8;
/// Behind the last frame: what an earlier turn left there is not read.
const END: [u8; HEAD] = [0; HEAD];

/// One entry with its place and the openings of its commitments.
#[derive(Clone, Debug, PartialEq)]
pub struct StagedEntry {
    /// Index in the log.
    pub index: u64,
    /// The leaf's canonical bytes.
    pub entry: Vec<u8>,
    /// Openings by field name.
    pub openings: BTreeMap<String, Opening>,
}

/// One of the two files, open for as long as the service runs.
#[derive(Clone)]
struct Open {
    path: PathBuf,
    file: Arc<File>,
}

/// The file whose turn it is, and what is known of the other.
pub struct Stage {
    now: Open,
    /// Index of its last entry, if it has any.
    last: Option<u64>,
    /// Where its frames end.
    length: u64,
    /// Where it counts as full.
    full: u64,
    spare: Spare,
    /// Whether the other is given away to be laid out, or was.
    given: bool,
}

/// The file whose turn it is not.
#[derive(Clone)]
pub struct Spare {
    open: Open,
    /// Whether its turn may come.
    ready: Arc<AtomicBool>,
}

/// What a start finds.
pub struct Opened {
    /// The stage.
    pub stage: Stage,
    /// What it holds.
    pub entries: Vec<StagedEntry>,
    /// The other file, if it holds some of these: it is to be forgotten once they are under a synced checkpoint.
    pub spare: Option<Spare>,
}

impl Stage {
    /// Opens both files and reads their whole frames.
    pub fn open(paths: &[PathBuf; 2]) -> Result<Opened, EvidenceError> {
        let [one, two] = paths;
        let (one, two) = (Found::read(one)?, Found::read(two)?);
        let (now, other) = if first(&two.entries) > first(&one.entries) { (two, one) } else { (one, two) };
        let is_free = other.entries.is_empty();
        let ready = Arc::new(AtomicBool::new(is_free && other.size >= ROOM));
        let spare = Spare { open: other.open, ready };
        let (last, full) = (now.entries.last().map(|e| e.index), if now.size >= ROOM { ROOM } else { SMALL });
        let stage = Self { now: now.open, last, length: now.end, full, spare: spare.clone(), given: !is_free };
        let entries = joined(other.entries, now.entries);
        Ok(Opened { stage, entries, spare: (!is_free).then_some(spare) })
    }

    /// Goes on at this index. A file whose entries end before it is begun anew, since what follows in a file counts on: they
    /// are all under a synced checkpoint then.
    pub fn go_on_at(&mut self, index: u64) -> Result<(), EvidenceError> {
        match self.last {
            Some(last) if last + 1 < index => self.clear(),
            Some(last) if last + 1 > index => Err(EvidenceError::Damaged {
                path: self.now.path.clone(),
                what: format!("it holds entry {last}, and entry {index} is nowhere"),
            }),
            _ => Ok(()),
        }
    }

    /// Turns to the other file once this one is full and the other is ready. The file that is given back is to be laid out as
    /// soon as all that was staged so far is under a synced checkpoint.
    pub fn turn(&mut self) -> Option<Spare> {
        if self.length < self.full {
            return None;
        }
        if self.spare.ready.load(Ordering::Acquire) {
            let open = std::mem::replace(&mut self.now, self.spare.open.clone());
            self.spare = Spare { open, ready: Arc::default() };
            (self.last, self.length, self.full) = (None, 0, ROOM);
        } else if self.given {
            return None;
        }
        self.given = true;
        Some(self.spare.clone())
    }

    /// Writes a batch and syncs it. After a failed write the file reads as it did before.
    pub fn append(&mut self, entries: &[StagedEntry]) -> Result<(), EvidenceError> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| encode(entry, &mut bytes));
        let end = self.length + bytes.len() as u64;
        bytes.extend(END);
        let Open { path, file } = &self.now;
        if let Err(cause) = file.write_all_at(&bytes, self.length) {
            let _ = file.write_all_at(&END, self.length);
            return Err(EvidenceError::Io { doing: "write", path: path.clone(), cause });
        }
        synced(file.sync_data(), path);
        self.length = end;
        self.last = entries.last().map(|entry| entry.index).or(self.last);
        Ok(())
    }

    /// Forgets everything in the file of now: it is under a synced checkpoint.
    pub fn clear(&mut self) -> Result<(), EvidenceError> {
        self.now.end()?;
        (self.last, self.length) = (None, 0);
        Ok(())
    }
}

impl Open {
    /// Ends the file at its beginning.
    fn end(&self) -> Result<(), EvidenceError> {
        self.file.write_all_at(&END, 0).map_err(EvidenceError::io("end", &self.path))?;
        synced(self.file.sync_data(), &self.path);
        Ok(())
    }
}

impl Spare {
    /// Forgets what the file holds: it is under a synced checkpoint.
    pub fn forget(&self) -> Result<(), EvidenceError> {
        self.open.end()
    }

    /// Lays out the next of it, and says whether its turn may come now. Where there is no space it gets none, and grows when
    /// its turn has come.
    pub fn lay_out(&self) -> bool {
        let is_done = self.step().unwrap_or_else(|error| {
            let path = self.open.path.display();
            tracing::warn!(%error, %path, "a file of the stage gets no room; its syncs will take longer");
            let _ = self.open.file.set_len(0);
            true
        });
        if is_done {
            self.ready.store(true, Ordering::Release);
        }
        is_done
    }

    fn step(&self) -> std::io::Result<bool> {
        let Open { path, file } = &self.open;
        let size = file.metadata()?.len();
        if size < ROOM {
            let step = usize::try_from(ROOM - size).map_or(STEP, |rest| rest.min(STEP));
            file.write_all_at(&vec![0; step], size)?;
        } else {
            file.set_len(ROOM)?;
        }
        synced(file.sync_all(), path);
        Ok(size + STEP as u64 >= ROOM)
    }
}

/// One of the files as it lies there.
struct Found {
    open: Open,
    size: u64,
    entries: Vec<StagedEntry>,
    /// Where they end.
    end: u64,
}

impl Found {
    fn read(path: &Path) -> Result<Self, EvidenceError> {
        let io = |doing| EvidenceError::io(doing, path);
        let file = create(path).map_err(io("open"))?;
        let (entries, end) = decode(&file).map_err(io("read"))?;
        // What a killed process had written was perhaps not synced yet, and a checkpoint will rest on it.
        synced(file.sync_all().and_then(|()| path.parent().map_or(Ok(()), sync_dir)), path);
        let size = file.metadata().map_err(io("read"))?.len();
        Ok(Self { open: Open { path: path.to_owned(), file: Arc::new(file) }, size, entries, end })
    }
}

fn first(entries: &[StagedEntry]) -> Option<u64> {
    entries.first().map(|entry| entry.index)
}

/// The entries of both files. The one that begins later is right from there on: the other may hold what could not be written
/// whole before the turn came.
pub fn joined(one: Vec<StagedEntry>, two: Vec<StagedEntry>) -> Vec<StagedEntry> {
    let (mut before, after) = if first(&two) > first(&one) { (one, two) } else { (two, one) };
    let from = first(&after).unwrap_or(u64::MAX);
    before.retain(|entry| entry.index < from);
    before.extend(after);
    before
}

fn synced(result: std::io::Result<()>, path: &Path) {
    if let Err(error) = result {
        sync_failed(&error, path);
    }
}

/// After a failed sync nobody knows what is on disk: going on would be a guess.
pub fn sync_failed(error: &std::io::Error, path: &Path) -> ! {
    tracing::error!(%error, path = %path.display(), "sync failed; ending the process, the next start settles it");
    std::process::exit(1)
}

fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Length, CRC-32, index, entry length, entry, openings as JSON.
fn encode(staged: &StagedEntry, out: &mut Vec<u8>) {
    let head = out.len();
    out.extend([0; HEAD]);
    let payload = out.len();
    out.extend(staged.index.to_be_bytes());
    out.extend(u32::try_from(staged.entry.len()).expect("entries are at most 65,535 bytes").to_be_bytes());
    out.extend(&staged.entry);
    serde_json::to_writer(&mut *out, &staged.openings).expect("openings have string keys");
    let length = u32::try_from(out.len() - payload).expect("an entry and its openings are small");
    let checksum = crc32fast::hash(&out[payload..]);
    out[head..head + 4].copy_from_slice(&length.to_be_bytes());
    out[head + 4..payload].copy_from_slice(&checksum.to_be_bytes());
}

/// The whole frames that count on one by one, and where they end. What lies behind them is not read.
pub fn decode(file: impl Read) -> std::io::Result<(Vec<StagedEntry>, u64)> {
    let mut file = BufReader::with_capacity(64 << 10, file);
    let (mut entries, mut end) = (Vec::<StagedEntry>::new(), 0);
    while let Some((entry, length)) = decode_one(&mut file)? {
        if entries.last().is_some_and(|before| before.index + 1 != entry.index) {
            break;
        }
        entries.push(entry);
        end += length;
    }
    Ok((entries, end))
}

fn decode_one(file: &mut impl Read) -> std::io::Result<Option<(StagedEntry, u64)>> {
    let mut read = |length: u64| {
        let mut bytes = Vec::new();
        file.take(length).read_to_end(&mut bytes).map(|_| bytes)
    };
    let word = |bytes: &[u8], at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let head = read(HEAD as u64)?;
    let (Some(length), Some(checksum)) = (word(&head, 0), word(&head, 4)) else { return Ok(None) };
    let payload = read(length.into())?;
    if payload.len() as u64 != u64::from(length) || crc32fast::hash(&payload) != checksum {
        return Ok(None);
    }
    Ok(staged(&payload).map(|entry| (entry, HEAD as u64 + u64::from(length))))
}

fn staged(payload: &[u8]) -> Option<StagedEntry> {
    let (index, rest) = payload.split_first_chunk::<8>()?;
    let (entry_length, rest) = rest.split_first_chunk::<4>()?;
    let (entry, openings) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*entry_length)).ok()?)?;
    let openings = serde_json::from_slice(openings).ok()?;
    Some(StagedEntry { index: u64::from_be_bytes(*index), entry: entry.to_vec(), openings })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> StagedEntry {
        let openings = BTreeMap::from([("proof".to_owned(), Opening::new([7; 32], "x"))]);
        StagedEntry { index, entry: format!("entry {index}").into_bytes(), openings }
    }

    fn encoded(entries: impl IntoIterator<Item = StagedEntry>) -> Vec<u8> {
        let mut bytes = Vec::new();
        entries.into_iter().for_each(|entry| encode(&entry, &mut bytes));
        bytes
    }

    fn read(bytes: &[u8]) -> (Vec<StagedEntry>, u64) {
        decode(bytes).expect("reads")
    }

    /// Two files of a stage in a directory of its own.
    fn files() -> (tempfile::TempDir, [PathBuf; 2]) {
        let dir = tempfile::tempdir().expect("tempdir");
        let paths = ["1", "2"].map(|name| dir.path().join(name));
        (dir, paths)
    }

    #[test]
    fn cut_or_flipped_anywhere_only_whole_frames_are_read() {
        let bytes = encoded((0..3).map(entry));
        assert_eq!(read(&bytes), ((0..3).map(entry).collect(), bytes.len() as u64));
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at]).0.len() < 3);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let (read, _) = read(&flipped);
            assert!(read.len() < 3 && read.iter().enumerate().all(|(n, e)| *e == entry(n as u64)), "offset {at}");
        }
    }

    #[test]
    fn what_an_earlier_turn_left_is_not_read() {
        // Whole frames at the very place where those of now end, and no end between: a write that was torn there.
        let bytes = encoded([entry(7), entry(8), entry(3), entry(4)]);
        assert_eq!(read(&bytes).0, vec![entry(7), entry(8)]);
        let (_dir, paths) = files();
        std::fs::write(&paths[0], encoded([entry(3), entry(4), entry(5)])).expect("writes");
        let mut stage = Stage::open(&paths).expect("opens").stage;
        stage.clear().expect("clears");
        stage.append(&[entry(6)]).expect("appends");
        assert_eq!(Stage::open(&paths).expect("opens").entries, vec![entry(6)]);
        stage.clear().expect("clears");
        assert_eq!(Stage::open(&paths).expect("opens").entries, vec![]);
    }

    fn laid_out(spare: &Spare) {
        spare.forget().expect("forgets");
        while !spare.lay_out() {}
    }

    fn large(index: u64) -> StagedEntry {
        let value = "x".repeat(usize::try_from(SMALL).expect("small"));
        StagedEntry { openings: BTreeMap::from([("x".into(), Opening::new([7; 32], value))]), ..entry(index) }
    }

    #[test]
    fn a_file_that_is_full_stays_until_the_other_is_laid_out_and_its_own_entries_are_not_needed() {
        let (_dir, paths) = files();
        let mut opened = Stage::open(&paths).expect("opens");
        let stage = &mut opened.stage;
        assert!(opened.spare.is_none() && stage.turn().is_none(), "nothing is full");
        stage.append(&[large(0)]).expect("appends");
        let spare = stage.turn().expect("the other is wanted");
        assert!(stage.turn().is_none(), "and once is enough");
        stage.append(&[entry(1)]).expect("appends");
        laid_out(&spare);
        assert_eq!(std::fs::metadata(&paths[1]).expect("there").len(), ROOM);
        let full = stage.turn().expect("it is this one's turn now");
        stage.append(&[entry(2)]).expect("appends");
        let again = Stage::open(&paths).expect("opens");
        assert_eq!(again.entries, vec![large(0), entry(1), entry(2)], "in their order");
        assert!(again.spare.is_some(), "what is in the other is needed still");
        laid_out(&full);
        let again = Stage::open(&paths).expect("opens");
        assert_eq!((again.entries, again.spare.is_none()), (vec![entry(2)], true));
        assert_eq!(std::fs::metadata(&paths[0]).expect("there").len(), ROOM);
    }

    #[test]
    fn a_file_that_gets_no_room_has_its_turn_all_the_same() {
        let (_dir, paths) = files();
        std::fs::write(&paths[0], b"").expect("writes");
        // It can be read alone, so that no zero goes in.
        let open = Open { path: paths[0].clone(), file: Arc::new(File::open(&paths[0]).expect("opens")) };
        let spare = Spare { open, ready: Arc::default() };
        assert!(spare.forget().is_err(), "what cannot be ended is not forgotten");
        assert!(spare.lay_out() && spare.ready.load(Ordering::Acquire));
    }

    #[test]
    fn a_file_is_begun_anew_where_its_entries_do_not_lead_to_the_next() {
        let (_dir, paths) = files();
        let mut stage = Stage::open(&paths).expect("opens").stage;
        stage.append(&[entry(3), entry(4)]).expect("appends");
        let reopened = || Stage::open(&paths).expect("opens");
        // Those between are in tiles: what follows behind entry 4 would not be read.
        let mut stage = reopened().stage;
        stage.go_on_at(9).expect("goes on");
        stage.append(&[entry(9)]).expect("appends");
        assert_eq!(reopened().entries, vec![entry(9)]);
        reopened().stage.go_on_at(10).expect("goes on");
        assert_eq!(reopened().entries, vec![entry(9)], "nothing is forgotten where they do");
        let error = reopened().stage.go_on_at(7).expect_err("what is before them is lost");
        assert!(error.to_string().contains("holds entry 9, and entry 7 is nowhere"), "{error}");
    }

    #[test]
    fn the_file_that_begins_later_is_right_about_what_both_hold() {
        let other = |index| StagedEntry { entry: b"never acknowledged".to_vec(), ..entry(index) };
        for names in [[0, 1], [1, 0]] {
            let (_dir, paths) = files();
            std::fs::write(&paths[names[0]], encoded([entry(3), entry(4), other(5), other(6)])).expect("writes");
            std::fs::write(&paths[names[1]], encoded([entry(5)])).expect("writes");
            let mut opened = Stage::open(&paths).expect("opens");
            assert_eq!(opened.entries, vec![entry(3), entry(4), entry(5)]);
            opened.stage.append(&[entry(6)]).expect("appends");
            assert_eq!(Stage::open(&paths).expect("opens").entries.last(), Some(&entry(6)));
        }
    }

    #[test]
    fn a_torn_tail_is_written_over() {
        let (_dir, paths) = files();
        let mut torn = encoded([entry(0)]);
        torn.extend(&encoded([entry(1)])[..9]);
        std::fs::write(&paths[0], torn).expect("writes");
        let opened = Stage::open(&paths).expect("opens");
        assert_eq!(opened.entries, vec![entry(0)]);
        let mut stage = opened.stage;
        stage.append(&[entry(1)]).expect("appends");
        assert_eq!(Stage::open(&paths).expect("opens").entries, vec![entry(0), entry(1)]);
    }
}
