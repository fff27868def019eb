//! What the service remembers: few traits, each an operation with its promise, and the handle that carries them.

pub mod approvals;
pub mod bundles;
pub mod cache;
pub mod clock;
pub mod entries;
pub mod entropy;
pub mod evidence;
pub mod issued;
pub mod join_tokens;
pub mod keys;
pub mod nodes;
pub mod redis;
pub mod replay;
pub mod revocations;
pub mod scim_users;
pub mod sql;
pub mod statements;
pub mod uses;

#[cfg(test)]
mod contract;

use std::sync::Arc;

use crate::domain::approval::Approval;
use crate::domain::leaf::{Event, Leaf, Staged};
use crate::domain::revocation::Revocation;
use crate::domain::time::Clock;

/// A store could not answer. The outcome is unknown: refuse, and let the caller try again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{part} is not available: {cause}")]
pub struct Unavailable {
    /// Which store.
    pub part: &'static str,
    /// What it said; for the log alone.
    pub cause: String,
}

impl Unavailable {
    /// Names the store and keeps its error's text.
    pub fn new(part: &'static str, cause: impl std::fmt::Display) -> Self {
        Self { part, cause: cause.to_string() }
    }
}

impl From<Unavailable> for crate::domain::refusal::Refusal {
    fn from(e: Unavailable) -> Self {
        Self::unavailable(e.part, e.cause)
    }
}

/// Everything that planes share. Cloning is cheap.
#[derive(Clone)]
pub struct Stores {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Spent proofs.
    pub replay: Arc<dyn replay::ReplayGuard>,
    /// One-time enrolment.
    pub join_tokens: Arc<dyn join_tokens::JoinTokens>,
    /// Registration entries.
    pub entries: Arc<dyn entries::Entries>,
    /// Templates of entries.
    pub templates: Arc<dyn entries::Templates>,
    /// Attested nodes.
    pub nodes: Arc<dyn nodes::Nodes>,
    /// Bundles of federated trust domains.
    pub bundles: Arc<dyn bundles::Bundles>,
    /// People.
    pub people: Arc<dyn entries::People>,
    /// Certificates issued.
    pub issued: Arc<dyn issued::Issued>,
    /// Requests that wait for people.
    pub approvals: Arc<dyn approvals::Approvals>,
    /// What is stopped.
    pub revocations: Arc<dyn revocations::Revocations>,
    /// Statements of others that were used.
    pub statements: Arc<dyn statements::Statements>,
    /// Uses of exact grants.
    pub uses: Arc<dyn uses::Uses>,
    /// People as SCIM clients tell of them.
    pub scim_users: Arc<dyn scim_users::ScimUsers>,
    /// Public halves of the service's keys.
    pub keys: Arc<dyn keys::PublicKeys>,
    /// The evidence log.
    pub evidence: Arc<dyn evidence::EvidenceLog>,
}

impl Stores {
    /// Makes a stop durable in the log; gives its index.
    pub async fn log_stop(&self, revocation: &Revocation) -> Result<u64, Unavailable> {
        let [value, reason, by] =
            [&revocation.value, &revocation.reason, &revocation.by].map(|v| entropy::seal(v.clone()));
        let event = Event::Revoked {
            id: revocation.id,
            subject: revocation.kind,
            value: value.commitment(),
            reason: reason.commitment(),
            by: by.commitment(),
            until: revocation.until,
        };
        let openings = [("value".to_owned(), value), ("reason".to_owned(), reason), ("by".to_owned(), by)].into();
        self.evidence.append(Staged { leaf: Leaf { time: revocation.at, event }, openings }).await
    }

    /// Makes an approval's present state durable in the log.
    pub async fn log_approval(&self, approval: &Approval) -> Result<(), Unavailable> {
        let person = approval.decided_by.clone().map(entropy::seal);
        self.evidence.append(Staged::approval(self.clock.now(), approval, person)).await.map(drop)
    }
}
