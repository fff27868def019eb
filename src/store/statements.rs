//! Statements of others that were used here: each once, or again for the key that came with it first.

use async_trait::async_trait;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// What became of a claim.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Tie {
    /// The statement was never seen, and is tied to this key now.
    First,
    /// It is tied to this key.
    Again,
    /// It is tied to another key: somebody else had it first.
    Another,
}

/// Remembers statements.
///
/// # Atomicity
/// `tie` is one test-and-set for each digest: of any number of concurrent calls exactly one gets [`Tie::First`].
#[async_trait]
pub trait Statements: Send + Sync {
    /// Ties a statement to a key until the statement ends.
    async fn tie(&self, digest: Sha256, jkt: Jkt, until: Timestamp, now: Timestamp) -> Result<Tie, Unavailable>;
    /// Whether a statement was tied before and has not ended.
    async fn known(&self, digest: Sha256, now: Timestamp) -> Result<bool, Unavailable>;
    /// Keeps when a person's provider last spoke of them.
    async fn confirm(&self, person: &str, at: Timestamp) -> Result<(), Unavailable>;
    /// When a person's provider last spoke of them.
    async fn confirmed(&self, person: &str) -> Result<Option<Timestamp>, Unavailable>;
}
