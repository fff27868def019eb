//! How often a grant of exact operations was used.

use async_trait::async_trait;

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::SpiffeId;
use crate::store::Unavailable;

/// Counts uses.
///
/// # Atomicity
/// `take` is one compare-and-set over all replicas: a grant of `most` uses gives `true` that often and never again.
///
/// # Lifetime
/// Counts stay until the registration entry of their workload is deleted.
#[async_trait]
pub trait Uses: Send + Sync {
    /// Takes one use of a grant, unless `most` were taken.
    async fn take(&self, grant: Sha256, spiffe_id: &SpiffeId, most: u32) -> Result<bool, Unavailable>;
    /// Forgets the counts of a workload.
    async fn forget(&self, spiffe_id: &SpiffeId) -> Result<(), Unavailable>;
}
