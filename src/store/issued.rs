//! Certificates issued: written before the certificate leaves the house.

use async_trait::async_trait;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// One certificate as the ledger keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IssuedCertificate {
    /// Lower-case hex.
    pub serial: String,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Its key.
    pub jkt: Jkt,
    /// Its end.
    pub not_after: Timestamp,
    /// Digest of what proved the workload: the join token's, or the renewed serial's.
    pub attestation_sha256: Sha256,
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// The CA certificate that it leads to, DER.
    pub issuer: Vec<u8>,
}

/// Whether a serial may be renewed with a key.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Renewal {
    /// The first renewal of this serial.
    First,
    /// The same new key asks again: a lost answer costs nothing.
    Again,
    /// Another key renewed it before.
    Conflict,
}

/// Certificates issued.
#[async_trait]
pub trait Issued: Send + Sync {
    /// Keeps a certificate, durably, before it is answered.
    async fn record(&self, certificate: &IssuedCertificate) -> Result<(), Unavailable>;
    /// Takes back a certificate that was recorded and never handed out.
    async fn withdraw(&self, serial: &str) -> Result<(), Unavailable>;
    /// The certificate that an attestation led to.
    async fn by_attestation(&self, attestation: Sha256, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable>;
    /// The latest certificate of an identity with this key.
    async fn by_key(&self, spiffe_id: &SpiffeId, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable>;
    /// Whether the key is in a live certificate of another identity.
    async fn held_by_another(&self, jkt: Jkt, spiffe_id: &SpiffeId, now: Timestamp) -> Result<bool, Unavailable>;
    /// Serials and ends of an identity's certificates that have not ended.
    async fn live(&self, spiffe_id: &SpiffeId, now: Timestamp) -> Result<Vec<(String, Timestamp)>, Unavailable>;
    /// Claims the one renewal of a serial: one compare-and-set.
    async fn claim_renewal(&self, serial: &str, jkt: Jkt) -> Result<Renewal, Unavailable>;
}
