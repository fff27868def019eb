//! Reads a log from its files: bundles, openings, and what is staged behind the checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::domain::digest::Opening;
use crate::domain::leaf::Leaf;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::stage;
use crate::evidence::tiles::partial_dir;
use crate::protocol::checkpoint::Checkpoint;
use crate::protocol::tile::{WIDTH, entries_path, split_entries, width_at};

/// One entry as it was read.
#[derive(Clone, Debug)]
pub struct ReadEntry {
    /// Index in the log.
    pub index: u64,
    /// Canonical bytes.
    pub bytes: Vec<u8>,
    /// What they say.
    pub leaf: Leaf,
    /// Openings that lie beside it, believed only once they are held against it: see [`Self::opened`].
    pub openings: BTreeMap<String, Opening>,
}

impl ReadEntry {
    /// The openings that hold: their values are what the leaf committed to.
    pub fn opened(&self) -> impl Iterator<Item = (&str, &str)> {
        let commitments = self.leaf.event.commitments();
        self.openings.iter().filter_map(move |(name, opening)| {
            let held = commitments.iter().any(|(n, c)| n == name && *c == opening.commitment());
            held.then_some((name.as_str(), opening.value.as_str()))
        })
    }
}

/// A log's files.
#[derive(Clone, Debug)]
pub struct LogReader {
    dir: EvidenceDir,
}

#[derive(Deserialize)]
struct OpeningLine {
    index: u64,
    openings: BTreeMap<String, Opening>,
}

impl LogReader {
    /// A reader over a directory.
    pub const fn new(dir: EvidenceDir) -> Self {
        Self { dir }
    }

    /// The directory.
    pub const fn dir(&self) -> &EvidenceDir {
        &self.dir
    }

    /// The published note.
    pub fn checkpoint_note(&self) -> Result<String, EvidenceError> {
        let path = self.dir.checkpoint();
        fs::read_to_string(&path).map_err(EvidenceError::io("read", &path))
    }

    /// The published checkpoint, unverified.
    pub fn checkpoint(&self) -> Result<Checkpoint, EvidenceError> {
        let what = |e: crate::protocol::checkpoint::CheckpointError| EvidenceError::Damaged {
            path: self.dir.checkpoint(),
            what: e.to_string(),
        };
        Checkpoint::parse(&self.checkpoint_note()?).map_err(what)
    }

    /// The bytes of a tile: full, of exactly the width that is asked, or any wider one, whose front is the same.
    pub fn tile(&self, full: &str, exact: &str) -> Result<(PathBuf, Vec<u8>), EvidenceError> {
        let (full, exact) = (self.dir.root().join(full), self.dir.root().join(exact));
        let wider = || {
            let width = |path: &PathBuf| path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<u64>().ok());
            let wanted = width(&exact);
            let others = fs::read_dir(partial_dir(&full)).ok()?.filter_map(|e| Some(e.ok()?.path()));
            let path = others.filter(|p| width(p) >= wanted).max_by_key(width)?;
            Some((path.clone(), fs::read(&path).ok()?))
        };
        let read = |path: &PathBuf| fs::read(path).map(|bytes| (path.clone(), bytes));
        match read(&full).or_else(|_| read(&exact)) {
            Ok(found) => Ok(found),
            // A publication may have moved on between two looks.
            Err(cause) => wider().or_else(|| read(&full).ok()).ok_or_else(|| EvidenceError::io("read", &exact)(cause)),
        }
    }

    /// The raw entries of one bundle in a tree of `size`.
    pub fn bundle(&self, index: u64, size: u64) -> Result<Vec<Vec<u8>>, EvidenceError> {
        let width = width_at(index, size);
        let (path, bytes) = self.tile(&entries_path(index, WIDTH), &entries_path(index, width))?;
        let entries = split_entries(&bytes).ok_or_else(|| EvidenceError::Damaged {
            path: path.clone(),
            what: "its entry lengths do not add up".into(),
        })?;
        if (entries.len() as u64) < width {
            let what =
                format!("it has {} entries where the checkpoint counts {width}: a record was removed", entries.len());
            return Err(EvidenceError::Damaged { path, what });
        }
        let width = usize::try_from(width).unwrap_or(usize::MAX);
        Ok(entries.into_iter().take(width).map(<[u8]>::to_vec).collect())
    }

    /// The entries of one bundle, from whichever of its forms on disk is whole and has most: a power cut may have left an
    /// empty file where an older, synced one has what is wanted.
    pub fn most_of_bundle(&self, index: u64) -> Vec<Vec<u8>> {
        let full = self.dir.root().join(entries_path(index, WIDTH));
        let partial = fs::read_dir(partial_dir(&full)).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
        let read = |path: PathBuf| {
            let bytes = fs::read(path).ok()?;
            Some(split_entries(&bytes)?.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        let forms = std::iter::once(full.clone()).chain(partial).filter_map(read);
        forms.max_by_key(Vec::len).unwrap_or_default()
    }

    /// Openings of one bundle, by index.
    pub fn openings(&self, bundle: u64) -> BTreeMap<u64, BTreeMap<String, Opening>> {
        let text = fs::read_to_string(self.dir.openings(bundle)).unwrap_or_default();
        let lines = text.lines().filter_map(|l| serde_json::from_str::<OpeningLine>(l).ok());
        lines.map(|l| (l.index, l.openings)).collect()
    }

    /// All entries from `from` on, published and staged, in order.
    pub fn entries(&self, from: u64) -> Result<Vec<ReadEntry>, EvidenceError> {
        let size = if self.dir.checkpoint().exists() { self.checkpoint()?.size } else { 0 };
        let mut found = Vec::new();
        for bundle in from / WIDTH..size.div_ceil(WIDTH) {
            let mut openings = self.openings(bundle);
            for (offset, bytes) in self.bundle(bundle, size)?.into_iter().enumerate() {
                let index = bundle * WIDTH + offset as u64;
                if index >= from {
                    let openings = openings.remove(&index).unwrap_or_default();
                    found.push(self.entry(index, bytes, openings)?);
                }
            }
        }
        for staged in self.staged(size.max(from)) {
            found.push(self.entry(staged.index, staged.entry, staged.openings)?);
        }
        Ok(found)
    }

    /// Entries that are durable and behind the checkpoint.
    pub fn staged(&self, from: u64) -> Vec<stage::StagedEntry> {
        let read = |path| fs::File::open(path).and_then(stage::decode).map(|(entries, _)| entries).unwrap_or_default();
        let [one, two] = self.dir.stages().map(read);
        let mut entries = stage::joined(one, two);
        let mut next = from;
        let mut is_next = |entry: &stage::StagedEntry| {
            let is = entry.index == next;
            next += u64::from(is);
            is
        };
        entries.retain(|entry| is_next(entry));
        entries
    }

    fn entry(
        &self,
        index: u64,
        bytes: Vec<u8>,
        openings: BTreeMap<String, Opening>,
    ) -> Result<ReadEntry, EvidenceError> {
        let leaf = serde_json::from_slice(&bytes).map_err(|e| EvidenceError::Damaged {
            path: self.dir.root().to_owned(),
            what: format!("entry {index} is not a leaf of ours: {e}"),
        })?;
        Ok(ReadEntry { index, bytes, leaf, openings })
    }
}
