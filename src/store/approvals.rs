//! Requests that wait for people.

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::approval::{Approval, ApprovalState};
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// Most requests that one workload may have waiting.
pub const QUOTA: usize = 100;

/// What became of a request for approval.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// It waits now.
    New(Approval),
    /// The same request waits already, or is approved and not carried out.
    Folded(Approval),
    /// The requester has too many waiting.
    QuotaReached,
}

/// One step of the state machine.
#[derive(Clone, Debug)]
pub struct Step {
    /// The state it must be in.
    pub from: ApprovalState,
    /// The state it gets.
    pub to: ApprovalState,
    /// When the new state ends by itself.
    pub expires_at: Timestamp,
    /// Who decided, how they were proved, and their words.
    pub decided: Option<(String, String, String)>,
}

/// Approvals.
///
/// # Atomicity
/// `step` is one compare-and-set on (id, state): of any number of racing steps exactly one gets the new approval.
#[async_trait]
pub trait Approvals: Send + Sync {
    /// Asks, unless an open approval of the same digest is there to fold into.
    async fn ask(&self, approval: &Approval, now: Timestamp) -> Result<Asked, Unavailable>;
    /// One approval.
    async fn get(&self, id: &str) -> Result<Option<Approval>, Unavailable>;
    /// The newest thousand approvals, newest first; or every open one.
    async fn list(&self, open: bool) -> Result<Vec<Approval>, Unavailable>;
    /// Takes one step; none if the approval is not in `from` any more.
    async fn step(&self, id: &str, step: &Step) -> Result<Option<Approval>, Unavailable>;
    /// Counts every change, so that a held request looks again.
    fn changes(&self) -> watch::Receiver<u64>;
}
