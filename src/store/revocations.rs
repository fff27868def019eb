//! What is stopped.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::refusal::Refusal;
use crate::domain::revocation::{Revocation, RevocationKind, RevocationSet};
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// A stop that is asked for.
#[derive(Clone, Debug)]
pub struct NewRevocation {
    /// What kind of subject.
    pub kind: RevocationKind,
    /// The subject.
    pub value: String,
    /// Why.
    pub reason: String,
    /// Who asks.
    pub by: String,
    /// Until when; none: for good.
    pub until: Option<Timestamp>,
}

/// Stops a subject with everything that goes with it: the leaf in the log, and the approvals that it asked for or gave.
#[async_trait]
pub trait Stopper: Send + Sync {
    /// When this returns, no request of the subject passes any more; gives the leaf's index.
    async fn stop(&self, new: NewRevocation) -> Result<u64, Refusal>;
}

/// Revocations, ordered by number.
///
/// # Visibility
/// When `add` or `lift` returns, every [`Self::watch`] of this process shows the change.
#[async_trait]
pub trait Revocations: Send + Sync {
    /// Stops something.
    async fn add(&self, new: &NewRevocation, now: Timestamp) -> Result<Revocation, Unavailable>;
    /// Lifts a stop; none if there is no such stop in force.
    async fn lift(&self, id: i64, by: &str, now: Timestamp) -> Result<Option<Revocation>, Unavailable>;
    /// Stops in force.
    async fn list(&self) -> Result<Vec<Revocation>, Unavailable>;
    /// The set in force, now and after each change.
    fn watch(&self) -> watch::Receiver<Arc<RevocationSet>>;
}
