//! The evidence plane: a durable Merkle log, recordings, and what auditors do with both.

pub mod chain;
pub mod export;
pub mod files;
pub mod publish;
pub mod reader;
pub mod recording;
pub mod replay;
pub mod segments;
pub mod sequence;
pub mod settle;
pub mod stage;
pub mod tiles;
pub mod verify;

use std::path::PathBuf;

/// Why evidence cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    #[error("cannot {doing} {}: {cause}", path.display())]
    Io { doing: &'static str, path: PathBuf, cause: std::io::Error },
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: String },
    #[error("{0}")]
    NotFound(String),
    #[error("the log key {} cannot be used: {what}", path.display())]
    Key { path: PathBuf, what: String },
}

impl EvidenceError {
    fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { doing, path, cause }
    }
}
