//! One-time enrolment tokens.

use async_trait::async_trait;

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// How long the same request with the same token gets the same answer again.
pub const RETRY_WINDOW: std::time::Duration = std::time::Duration::from_mins(1);

/// What became of an attempt to spend a token.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum JoinSpend {
    /// This caller spent it; it enrols this identity.
    First(SpiffeId),
    /// The same CSR spent it moments ago: answer the same certificate.
    Again(SpiffeId),
    /// Unknown, spent or expired. The text is for the log; the client is not told which.
    Refused(&'static str),
}

/// Tokens are kept as digests only.
///
/// # Atomicity
/// `spend` is one compare-and-set: of any number of concurrent attempts exactly one gets [`JoinSpend::First`].
#[async_trait]
pub trait JoinTokens: Send + Sync {
    /// Registers a token for one identity.
    async fn create(&self, digest: Sha256, spiffe_id: &SpiffeId, expires_at: Timestamp) -> Result<(), Unavailable>;
    /// Whom a token enrols, spent or not; decides nothing.
    async fn identity(&self, digest: Sha256) -> Result<Option<SpiffeId>, Unavailable>;
    /// Makes every token of an identity useless, also one spent moments ago whose request comes again.
    async fn void(&self, spiffe_id: &SpiffeId) -> Result<(), Unavailable>;
    /// Spends a token for the CSR with this digest.
    async fn spend(&self, digest: Sha256, csr: Sha256, now: Timestamp) -> Result<JoinSpend, Unavailable>;
}
