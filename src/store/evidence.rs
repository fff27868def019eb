//! The evidence log and recordings, as the planes see them.

use async_trait::async_trait;

use crate::domain::digest::Sha256;
use crate::domain::leaf::Staged;
use crate::domain::recording::FrameKind;
use crate::store::Unavailable;

/// The log.
///
/// # Durability
/// When `append` returns, the leaf is on disk and synced.
#[async_trait]
pub trait EvidenceLog: Send + Sync {
    /// Appends a leaf and returns its index once it is durable.
    async fn append(&self, staged: Staged) -> Result<u64, Unavailable>;
    /// Appends a leaf in the background, for refusals and endings: nothing waits for it, but it is not lost while the
    /// service stops orderly.
    fn note(&self, staged: Staged);
    /// Begins a recording under this name.
    fn record(&self, request_id: &str) -> Result<Box<dyn Recording>, Unavailable>;
    /// Whether the last entries could be written.
    fn ping(&self) -> Result<(), Unavailable>;
    /// Waits until everything appended is published under a signed checkpoint.
    async fn publish(&self) -> Result<(), Unavailable>;
}

/// One exchange being recorded. Each frame is written before its bytes are released, and synced within 50 ms.
pub trait Recording: Send {
    /// Adds a frame.
    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable>;
    /// Ends the recording. `then` gets the digest of the whole file once that is synced, on another thread: an entry
    /// that names the digest must not be durable before the file is.
    fn finish(self: Box<Self>, how: &str, then: Finished);
}

/// What waits for the end of a recording.
pub type Finished = Box<dyn FnOnce(Result<Sha256, Unavailable>) + Send>;
