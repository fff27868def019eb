//! Where evidence lies under the data directory.

use std::path::{Path, PathBuf};

/// Paths of one evidence directory.
#[derive(Clone, Debug)]
pub struct EvidenceDir(PathBuf);

impl EvidenceDir {
    /// `DATA/evidence`.
    pub fn of_data_dir(data_dir: &Path) -> Self {
        Self(data_dir.join("evidence"))
    }

    /// An evidence directory itself, or a data directory that has one.
    pub fn locate(path: &Path) -> Self {
        let inner = path.join("evidence");
        if inner.join("log.vkey").exists() { Self(inner) } else { Self(path.to_owned()) }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// The signed tree head.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint")
    }

    /// The log's verification key.
    pub fn vkey(&self) -> PathBuf {
        self.0.join("log.vkey")
    }

    /// Entries that are durable and not yet under a checkpoint, in two files that take turns.
    pub fn stages(&self) -> [PathBuf; 2] {
        ["stage-1.log", "stage-2.log"].map(|name| self.0.join(name))
    }

    /// Openings of the entries of one bundle.
    pub fn openings(&self, bundle: u64) -> PathBuf {
        self.0.join("openings").join(format!("{bundle:06}.jsonl"))
    }

    /// The directory of segments of recordings.
    pub fn recordings(&self) -> PathBuf {
        self.0.join("recordings")
    }

    /// One of the segments that recordings share.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.recordings().join(format!("{number:08}.seg"))
    }
}
