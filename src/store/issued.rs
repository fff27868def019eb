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
    /// Where it stands in the life of its workload.
    pub lineage: Lineage,
}

/// What a certificate has in common with those that it was renewed from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lineage {
    /// Serial of the first of them.
    pub first: String,
    /// When the workload last proved itself by more than a certificate.
    pub attested_at: Timestamp,
    /// Whether it renews: what proved itself by a token of its platform attests again instead.
    pub renewable: bool,
    /// The node whose agent asked for it.
    pub node: Option<SpiffeId>,
}

/// A certificate that has not ended, as revocation lists need it.
#[derive(Clone, Debug)]
pub struct LiveCertificate {
    /// Lower-case hex.
    pub serial: String,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// Its key.
    pub jkt: Jkt,
    /// Its end.
    pub not_after: Timestamp,
    /// SHA-256 of the CA certificate that it leads to.
    pub issuer_sha256: Sha256,
    /// The node whose agent asked for it.
    pub node: Option<SpiffeId>,
}

/// Of which certificates [`Issued::live`] tells.
#[derive(Clone, Copy, Debug)]
pub enum Of<'a> {
    /// All.
    Everybody,
    /// One identity's.
    Identity(&'a SpiffeId),
    /// Those that a node's agent asked for, and its own.
    Node(&'a SpiffeId),
    /// Those of an identity that were renewed from the first with this serial, and it.
    Lineage(&'a SpiffeId, &'a str),
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
    /// Keeps a certificate, durably, before it is answered; false if its key is in a live certificate of another identity,
    /// and nothing was kept.
    async fn record(&self, certificate: &IssuedCertificate, now: Timestamp) -> Result<bool, Unavailable>;
    /// Takes back a certificate that was recorded and never handed out.
    async fn withdraw(&self, serial: &str) -> Result<(), Unavailable>;
    /// The certificate that an attestation led to.
    async fn by_attestation(&self, attestation: Sha256, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable>;
    /// The latest certificate of an identity with this key.
    async fn by_key(&self, spiffe_id: &SpiffeId, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable>;
    /// Whether the key is in a live certificate of another identity.
    async fn held_by_another(&self, jkt: Jkt, spiffe_id: &SpiffeId, now: Timestamp) -> Result<bool, Unavailable>;
    /// The certificate with a serial.
    async fn by_serial(&self, serial: &str) -> Result<Option<IssuedCertificate>, Unavailable>;
    /// Certificates that have not ended.
    async fn live(&self, of: Of<'_>, now: Timestamp) -> Result<Vec<LiveCertificate>, Unavailable>;
    /// Forgets certificates that ended before.
    async fn prune(&self, before: Timestamp) -> Result<u64, Unavailable>;
    /// Claims the one renewal of a serial: one compare-and-set.
    async fn claim_renewal(&self, serial: &str, jkt: Jkt) -> Result<Renewal, Unavailable>;
}
