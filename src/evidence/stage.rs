//! The write-ahead file: entries become durable here, in one sync for a whole batch.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::domain::digest::Opening;
use crate::evidence::EvidenceError;
use crate::net::files::sync_dir;

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

/// The open stage file, and the one before it, which waits for its entries to be under a synced checkpoint.
pub struct Stage {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Stage {
    /// Opens the file, reads the whole frames of both, and cuts what a crash left behind them.
    pub fn open(path: &Path) -> Result<(Self, Vec<StagedEntry>), EvidenceError> {
        let io = |doing| EvidenceError::io(doing, path);
        let mut file = create(path).map_err(io("open"))?;
        let bytes = std::fs::read(path).map_err(io("read"))?;
        let (now, whole) = decode(&bytes);
        file.set_len(whole as u64).map_err(io("cut"))?;
        file.seek(SeekFrom::End(0)).map_err(io("read"))?;
        // What a killed process had written, or renamed, was perhaps not synced yet, and a checkpoint will rest on it.
        if let Err(error) = file.sync_all().and_then(|()| path.parent().map_or(Ok(()), sync_dir)) {
            sync_failed(&error, path);
        }
        let before = match std::fs::read(before(path)) {
            Ok(bytes) => decode(&bytes).0,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io("read")(e)),
        };
        let entries = before.into_iter().chain(now).collect();
        Ok((Self { path: path.to_owned(), file, length: whole as u64 }, entries))
    }

    /// Begins a new file. The one so far is kept beside it until [`forget`] is called for it.
    pub fn rotate(&mut self) -> Result<(), EvidenceError> {
        let io = |doing| EvidenceError::io(doing, &self.path);
        // All that may fail for want of space comes first: half a rotation would be none.
        let next = self.path.with_extension("next.log");
        let file = create(&next).and_then(|file| file.set_len(0).map(|()| file)).map_err(io("open"))?;
        std::fs::rename(&self.path, before(&self.path)).map_err(io("rename"))?;
        if let Err(cause) = std::fs::rename(&next, &self.path) {
            let _ = std::fs::rename(before(&self.path), &self.path);
            return Err(io("rename")(cause));
        }
        self.file = file;
        self.length = 0;
        // Both names, before an entry rests on them.
        if let Err(error) = self.path.parent().map_or(Ok(()), sync_dir) {
            sync_failed(&error, &self.path);
        }
        Ok(())
    }

    /// Whether the file before this one is still there.
    pub fn has_before(&self) -> bool {
        before(&self.path).exists()
    }

    /// Writes a batch and syncs it. After a failed write the file is as it was before.
    pub fn append(&mut self, entries: &[StagedEntry]) -> Result<(), EvidenceError> {
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| bytes.extend_from_slice(&encode(entry)));
        if let Err(cause) = self.file.write_all(&bytes) {
            let _ = self.file.set_len(self.length);
            let _ = self.file.seek(SeekFrom::Start(self.length));
            return Err(EvidenceError::Io { doing: "write", path: self.path.clone(), cause });
        }
        if let Err(error) = self.file.sync_data() {
            sync_failed(&error, &self.path);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Bytes in the file.
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Forgets everything: it is under a synced checkpoint.
    pub fn clear(&mut self) -> Result<(), EvidenceError> {
        let path = self.path.clone();
        self.file.set_len(0).map_err(EvidenceError::io("cut", &path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(EvidenceError::io("cut", &path))?;
        self.length = 0;
        Ok(())
    }
}

/// The file before the present one.
pub fn before(path: &Path) -> PathBuf {
    path.with_extension("before.log")
}

/// Removes the file before: its entries are under a synced checkpoint.
pub fn forget(path: &Path) -> Result<(), EvidenceError> {
    std::fs::remove_file(before(path)).map_err(EvidenceError::io("remove", path))
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
fn encode(staged: &StagedEntry) -> Vec<u8> {
    let openings = serde_json::to_vec(&staged.openings).expect("openings have string keys");
    let mut payload = Vec::with_capacity(12 + staged.entry.len() + openings.len());
    payload.extend(staged.index.to_be_bytes());
    payload.extend(u32::try_from(staged.entry.len()).expect("entries are at most 65,535 bytes").to_be_bytes());
    payload.extend(&staged.entry);
    payload.extend(openings);
    let mut frame = u32::try_from(payload.len()).expect("an entry and its openings are small").to_be_bytes().to_vec();
    frame.extend(crc32fast::hash(&payload).to_be_bytes());
    frame.extend(payload);
    frame
}

/// The whole frames and where they end.
pub fn decode(bytes: &[u8]) -> (Vec<StagedEntry>, usize) {
    let mut entries = Vec::new();
    let mut at = 0;
    while let Some((entry, length)) = decode_one(&bytes[at..]) {
        entries.push(entry);
        at += length;
    }
    (entries, at)
}

fn decode_one(bytes: &[u8]) -> Option<(StagedEntry, usize)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(word(0)?).ok()?;
    let payload = bytes.get(8..8_usize.checked_add(length)?)?;
    if crc32fast::hash(payload) != word(4)? {
        return None;
    }
    let (index, rest) = payload.split_first_chunk::<8>()?;
    let (entry_length, rest) = rest.split_first_chunk::<4>()?;
    let (entry, openings) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*entry_length)).ok()?)?;
    let openings = serde_json::from_slice(openings).ok()?;
    Some((StagedEntry { index: u64::from_be_bytes(*index), entry: entry.to_vec(), openings }, 8 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64) -> StagedEntry {
        let openings = BTreeMap::from([("proof".to_owned(), Opening::new([7; 32], "x"))]);
        StagedEntry { index, entry: format!("entry {index}").into_bytes(), openings }
    }

    #[test]
    fn cut_or_flipped_anywhere_only_whole_frames_are_read() {
        let bytes: Vec<u8> = (0..3).flat_map(|n| encode(&entry(n))).collect();
        assert_eq!(decode(&bytes), ((0..3).map(entry).collect(), bytes.len()));
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at]).0.len() < 3);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            let (read, _) = decode(&flipped);
            assert!(read.len() < 3 && read.iter().enumerate().all(|(n, e)| *e == entry(n as u64)), "offset {at}");
        }
    }

    #[test]
    fn a_file_that_is_full_stays_until_it_is_forgotten() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("stage.log");
        let (mut stage, _) = Stage::open(&path).expect("opens");
        stage.append(&[entry(0), entry(1)]).expect("appends");
        stage.rotate().expect("rotates");
        stage.append(&[entry(2)]).expect("appends");
        assert!(stage.has_before() && stage.length() < encode(&entry(0)).len() as u64 * 2);
        let read = |path: &Path| Stage::open(path).expect("opens").1;
        assert_eq!(read(&path), vec![entry(0), entry(1), entry(2)]);
        forget(&path).expect("forgets");
        assert_eq!(read(&path), vec![entry(2)]);
    }

    #[test]
    fn a_torn_tail_is_cut_and_written_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("stage.log");
        let mut torn = encode(&entry(0));
        torn.extend(&encode(&entry(1))[..9]);
        std::fs::write(&path, torn).expect("writes");
        let (mut stage, read) = Stage::open(&path).expect("opens");
        assert_eq!(read, vec![entry(0)]);
        stage.append(&[entry(1)]).expect("appends");
        assert_eq!(Stage::open(&path).expect("opens").1, vec![entry(0), entry(1)]);
    }
}
