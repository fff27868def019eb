//! Bundles of federated trust domains.

use async_trait::async_trait;
use tokio::sync::watch;

use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// One foreign bundle as the ledger keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ForeignBundle {
    /// Whose it is.
    pub trust_domain: TrustDomain,
    /// The JWK Set as it was read: it parsed whole.
    pub document: String,
    /// Where it came from: a URL, a file, or `set` by hand.
    pub source: String,
    /// When.
    pub read_at: Timestamp,
}

impl ForeignBundle {
    /// Whether a person set it, and not the configuration.
    pub fn by_hand(&self) -> bool {
        self.source.starts_with("set by ")
    }
}

/// Foreign bundles. Reads answer from memory, kept current by each change.
#[async_trait]
pub trait Bundles: Send + Sync {
    /// All of them, by trust domain.
    fn list(&self) -> Vec<ForeignBundle>;
    /// Adds or replaces one.
    async fn put(&self, bundle: &ForeignBundle) -> Result<(), Unavailable>;
    /// Removes one; false if there was none.
    async fn delete(&self, trust_domain: &TrustDomain) -> Result<bool, Unavailable>;
    /// Counts the changes.
    fn changes(&self) -> watch::Receiver<u64>;
}
