//! Writes the log's tiles and entry bundles as the tree grows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::domain::digest::{Opening, Sha256};
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::stage::{StagedEntry, sync_failed};
use crate::net::files::sync_dir;
use crate::protocol::merkle::{Frontier, leaf_hash};
use crate::protocol::tile::{WIDTH, entries_path, hash_path, push_entry};

const HASH_LEVELS_PER_TILE: u32 = 8;
/// Most files that are synced between two checkpoints, which wait for it.
const AT_ONCE: usize = 24;

/// The growing tree and the parts of it that are not in a full tile yet.
pub struct TileWriter {
    dir: EvidenceDir,
    frontier: Frontier,
    bundle: Vec<u8>,
    /// By tile level: the hashes of its last, partial tile.
    partial: BTreeMap<u32, Vec<Sha256>>,
    openings: Vec<(u64, String)>,
    /// Files that are written and not synced, and directories that name such as are.
    unsynced: BTreeSet<PathBuf>,
    unsynced_dirs: BTreeSet<PathBuf>,
    /// Partial tiles of the last checkpoints, newest last: a reader may still follow the one before.
    generations: VecDeque<Vec<PathBuf>>,
    /// Partial tiles that are synced: entries may be nowhere else, until what replaces these is synced, too.
    synced: Vec<PathBuf>,
    /// Directories of partial tiles whose full tile is written.
    completed: Vec<PathBuf>,
}

impl TileWriter {
    /// An empty tree under `dir`.
    pub fn new(dir: EvidenceDir) -> Self {
        Self {
            dir,
            frontier: Frontier::default(),
            bundle: Vec::new(),
            partial: BTreeMap::new(),
            openings: Vec::new(),
            unsynced: BTreeSet::new(),
            unsynced_dirs: BTreeSet::new(),
            generations: VecDeque::new(),
            synced: Vec::new(),
            completed: Vec::new(),
        }
    }

    /// Number of leaves.
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Root over them.
    pub fn root(&self) -> Sha256 {
        self.frontier.root()
    }

    /// Takes an entry into the tree. A tile that is on disk as it should be is not written again, but synced.
    pub fn push(&mut self, staged: &StagedEntry) -> Result<(), EvidenceError> {
        let mut complete = Vec::new();
        self.frontier.push(leaf_hash(&staged.entry), |level, index, hash| complete.push((level, index, hash)));
        push_entry(&mut self.bundle, &staged.entry);
        if !staged.openings.is_empty() {
            let line = OpeningsLine { index: staged.index, openings: &staged.openings };
            let line = serde_json::to_string(&line).expect("openings have string keys");
            self.openings.push((staged.index / WIDTH, line + "\n"));
        }
        for (level, index, hash) in complete {
            if level % HASH_LEVELS_PER_TILE == 0 {
                self.tile_hash(level / HASH_LEVELS_PER_TILE, index, hash)?;
            }
        }
        if self.size().is_multiple_of(WIDTH) {
            let bundle = std::mem::take(&mut self.bundle);
            let path = self.write(&entries_path(self.size() / WIDTH - 1, WIDTH), &bundle)?;
            self.completed.push(partial_dir(&path));
        }
        Ok(())
    }

    fn tile_hash(&mut self, level: u32, index: u64, hash: Sha256) -> Result<(), EvidenceError> {
        let tile = self.partial.entry(level).or_default();
        tile.push(hash);
        if tile.len() as u64 == WIDTH {
            let bytes: Vec<u8> = flattened(&std::mem::take(tile));
            let path = self.write(&hash_path(level, index / WIDTH, WIDTH), &bytes)?;
            self.completed.push(partial_dir(&path));
        }
        Ok(())
    }

    /// Writes partial tiles and openings for the present size. The checkpoint may be published after it.
    pub fn write_partial(&mut self) -> Result<(), EvidenceError> {
        let (size, width) = (self.size(), self.size() % WIDTH);
        let mut written = Vec::new();
        if width > 0 {
            let bundle = self.bundle.clone();
            written.push(self.write(&entries_path(size / WIDTH, width), &bundle)?);
        }
        let tiles: Vec<(u32, Vec<u8>)> = self
            .partial
            .iter()
            .filter(|(_, hashes)| !hashes.is_empty())
            .map(|(level, hashes)| (*level, flattened(hashes)))
            .collect();
        for (level, bytes) in tiles {
            let complete = size >> (HASH_LEVELS_PER_TILE * level);
            written.push(self.write(&hash_path(level, complete / WIDTH, complete % WIDTH), &bytes)?);
        }
        // A publication that is tried again writes the same.
        if self.generations.back() != Some(&written) {
            self.generations.push_back(written);
        }
        self.write_openings()
    }

    /// Removes what no checkpoint needs any more. Call it once the new checkpoint is on disk: a crash before leaves
    /// both, and a reader of the one before finds its tiles.
    pub fn retire(&mut self) {
        while self.generations.len() > 2 {
            let old = self.generations.pop_front().unwrap_or_default();
            let needed =
                |path: &PathBuf| self.synced.contains(path) || self.generations.iter().any(|g| g.contains(path));
            for path in old.into_iter().filter(|p| !needed(p)) {
                let _ = fs::remove_file(&path);
                self.unsynced.remove(&path);
            }
        }
        let rests = |dir: &PathBuf| self.synced.iter().any(|p| p.starts_with(dir));
        let (kept, gone) = std::mem::take(&mut self.completed).into_iter().partition(rests);
        self.completed = kept;
        for dir in gone {
            let _ = fs::remove_dir_all(&dir);
            self.unsynced.retain(|p| !p.starts_with(&dir));
            self.unsynced_dirs.retain(|p| !p.starts_with(&dir));
        }
    }

    fn write_openings(&mut self) -> Result<(), EvidenceError> {
        let mut by_bundle: BTreeMap<u64, String> = BTreeMap::new();
        for (bundle, line) in &self.openings {
            by_bundle.entry(*bundle).or_default().push_str(line);
        }
        for (bundle, lines) in by_bundle {
            let path = self.dir.openings(bundle);
            append_lines(&path, &lines).map_err(EvidenceError::io("write", &path))?;
            self.openings.retain(|(b, _)| *b != bundle);
            self.unsynced.insert(path);
        }
        Ok(())
    }

    fn write(&mut self, relative: &str, bytes: &[u8]) -> Result<PathBuf, EvidenceError> {
        let path = self.dir.root().join(relative);
        let write = || {
            // A checkpoint may rest on what is there: it is never opened for writing, and replaced only whole.
            if fs::read(&path).is_ok_and(|there| there == bytes) {
                return Ok(());
            }
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            let beside = path.with_extension("new");
            fs::write(&beside, bytes)?;
            fs::rename(&beside, &path)
        };
        write().map_err(EvidenceError::io("write", &path))?;
        self.unsynced.insert(path.clone());
        Ok(path)
    }

    /// What is on disk of a bundle's openings is synced the next time, whoever wrote it.
    pub fn rests_on_openings(&mut self, bundle: u64) {
        let path = self.dir.openings(bundle);
        if path.exists() {
            self.unsynced.insert(path);
        }
    }

    /// Syncs some of what is written and will not be written again, so that little is left for [`Self::sync`]. `pause` comes between
    /// two syncs.
    pub fn sync_full(&mut self, pause: Duration) {
        let growing = self.dir.openings(self.size() / WIDTH);
        let partial = |path: &PathBuf| path.parent().is_some_and(|dir| dir.extension().is_some_and(|e| e == "p"));
        let full = |path: &PathBuf| *path != growing && !partial(path);
        let full: BTreeSet<PathBuf> = self.unsynced.iter().filter(|p| full(p)).take(AT_ONCE).cloned().collect();
        self.unsynced.retain(|path| !full.contains(path));
        self.sync_files(full, pause);
    }

    fn sync_files(&mut self, paths: BTreeSet<PathBuf>, pause: Duration) {
        for path in paths {
            if let Err(error) = File::open(&path).and_then(|file| file.sync_all()) {
                sync_failed(&error, &path);
            }
            self.unsynced_dirs.extend(path.parent().map(ToOwned::to_owned));
            std::thread::sleep(pause);
        }
    }

    /// Syncs everything written, files and directories, so that what is staged may be forgotten.
    pub fn sync(&mut self, pause: Duration) {
        let paths = std::mem::take(&mut self.unsynced);
        self.sync_files(paths, pause);
        for dir in std::mem::take(&mut self.unsynced_dirs) {
            if let Err(error) = sync_dir(&dir) {
                sync_failed(&error, &dir);
            }
            std::thread::sleep(pause);
        }
        let before = std::mem::replace(&mut self.synced, self.generations.back().cloned().unwrap_or_default());
        let needed = |path: &PathBuf| self.synced.contains(path) || self.generations.iter().any(|g| g.contains(path));
        for path in before.into_iter().filter(|p| !needed(p)) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What a file of openings has of one entry.
#[derive(Serialize)]
struct OpeningsLine<'a> {
    index: u64,
    openings: &'a BTreeMap<String, Opening>,
}

/// Where the partial forms of a full tile lie.
pub fn partial_dir(full: &Path) -> PathBuf {
    let mut dir = full.as_os_str().to_owned();
    dir.push(".p");
    dir.into()
}

/// Appends whole lines; a line that a crash left torn is ended first, so that it spoils no other.
fn append_lines(path: &Path, lines: &str) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let end = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{end}{lines}").as_bytes())
}

/// The hashes one after the other.
fn flattened(hashes: &[Sha256]) -> Vec<u8> {
    hashes.iter().map(|h| h.0).collect::<Vec<_>>().into_flattened()
}
