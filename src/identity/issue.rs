//! A certificate made, recorded and only then handed out.

use std::sync::PoisonError;
use std::time::Duration;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::leaf::{Event, Issuance, Staged};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::authority::Made;
use crate::identity::enrol::{Enrolment, Issued};
use crate::identity::grant::{Grant, key_in_use};
use crate::protocol::csr;
use crate::protocol::jwk::PublicKey;
use crate::protocol::svid::X509Svid;
use crate::store::entropy;
use crate::store::issued::{IssuedCertificate, Lineage};

/// What a certificate is issued on.
#[derive(Clone)]
pub(super) struct Proof {
    /// For the log: `join_token`, `renewal`, `agent`, `oidc:github`.
    pub(super) method: String,
    /// Digest of the evidence.
    pub(super) evidence: Sha256,
    /// The lineage that it continues; none: it begins one.
    pub(super) lineage: Option<Lineage>,
    /// Whether a lineage that begins here renews.
    pub(super) renewable: bool,
}

/// A certificate that may be issued: everything about it holds.
pub(super) struct Order {
    pub(super) id: SpiffeId,
    pub(super) key: PublicKey,
    pub(super) grant: Grant,
    pub(super) proof: Proof,
    /// Serial and key of the certificate that it replaces: whoever stops those stops this.
    pub(super) renewed: Option<(String, Jkt)>,
}

/// Reads a CSR and verifies that its key signed it.
pub(super) fn proved_key(csr: &[u8]) -> Result<PublicKey, Refusal> {
    csr::verify(csr).map_err(|e| Refusal::new(400, "csr", e.to_string()))
}

impl Enrolment {
    pub(super) async fn issue(&self, order: Order, now: Timestamp) -> Result<Issued, Refusal> {
        let Order { id, key, grant, proof, .. } = &order;
        let made = self
            .authority
            .issue(id, key, &grant.dns, grant.life, now)
            .map_err(|e| Refusal::unavailable("the certificate authority", e))?;
        let row = row(&made, proof, grant.subject.node.as_ref(), now);
        // The leaf first: no certificate is in the ledger, and so none is handed out, that the log does not have.
        self.stores.evidence.append(Staged::plain(now, Event::Issuance(issuance(&made, proof)))).await?;
        if !self.stores.issued.record(&row, now).await? {
            return Err(key_in_use());
        }
        // A change of the registration meanwhile either sees this row and stops it, or is seen here.
        let present = match &grant.subject.node {
            Some(node) => self.grant_through(node, id, now).map(|(g, _)| g),
            None => self.grant(id, now),
        };
        let stands = |present: &Grant| {
            let (serial, jkt) = order.renewed.clone().unzip();
            let subject = Subject { serial, jkt, ..present.subject.clone() };
            self.check_not_stopped(&subject, self.stores.clock.now()).is_ok()
        };
        let same = |now: &Grant| now.subject.person == grant.subject.person && now.dns == grant.dns && stands(now);
        if !present.as_ref().is_ok_and(same) {
            self.stores.issued.withdraw(&row.serial).await?;
            return Err(Refusal::new(403, "entry", format!("the registration of {id} changed meanwhile; try again")));
        }
        self.tell(&made, grant, &proof.method);
        let renew_after = renewal(now, made.svid.not_after);
        Ok((made, renew_after))
    }

    fn tell(&self, made: &Made, grant: &Grant, method: &str) {
        let svid = &made.svid;
        metrics::counter!("popgate_certificates_issued_total", "attestation" => method.to_owned()).increment(1);
        tracing::info!(spiffe_id = %svid.spiffe_id, serial = svid.serial, not_after = %svid.not_after, method, "certificate issued");
        if made.cut {
            let key = (svid.spiffe_id.to_string(), made.issuer_key_id.clone());
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.retain(|(_, issuer)| *issuer == made.issuer_key_id);
            if told.insert(key) {
                tracing::warn!(
                    spiffe_id = %svid.spiffe_id, wanted = ?grant.life, not_after = %svid.not_after,
                    "the life of its certificates is cut short by the end of the issuing CA"
                );
            }
        }
    }

    /// The same request again gets the certificate that it led to; where a crash came between, it is issued now.
    pub(super) async fn again(&self, order: Order, now: Timestamp) -> Result<Issued, Refusal> {
        let Some(row) = self.stores.issued.by_attestation(order.proof.evidence, order.key.jkt()).await? else {
            return self.issue(order, now).await;
        };
        let broken = |e| Refusal::unavailable("the ledger", format!("a certificate does not read back: {e}"));
        let svid = X509Svid::parse(&row.der).map_err(broken)?;
        let renew_after = renewal(svid.not_before, svid.not_after);
        let chain = std::iter::once(row.der).chain(self.authority.chain_of(&row.issuer)).collect();
        Ok((Made { chain, svid, issuer_key_id: String::new(), cut: false }, renew_after))
    }
}

fn issuance(made: &Made, proof: &Proof) -> Issuance {
    let svid = &made.svid;
    Issuance {
        spiffe_id: svid.spiffe_id.clone(),
        serial: svid.serial.clone(),
        jkt: svid.key.jkt(),
        not_before: svid.not_before,
        not_after: svid.not_after,
        issuer_key_id: made.issuer_key_id.clone(),
        certificate_sha256: svid.sha256,
        attestation: proof.method.clone(),
        attestation_sha256: proof.evidence,
    }
}

fn row(made: &Made, proof: &Proof, node: Option<&SpiffeId>, now: Timestamp) -> IssuedCertificate {
    let svid = &made.svid;
    let begun =
        || Lineage { first: svid.serial.clone(), attested_at: now, renewable: proof.renewable, node: node.cloned() };
    IssuedCertificate {
        serial: svid.serial.clone(),
        spiffe_id: svid.spiffe_id.clone(),
        jkt: svid.key.jkt(),
        not_after: svid.not_after,
        attestation_sha256: proof.evidence,
        der: made.chain[0].clone(),
        issuer: made.chain[1].clone(),
        lineage: proof.lineage.clone().unwrap_or_else(begun),
    }
}

/// Half of a life, a tenth of it earlier or later, so that what was issued together does not renew together.
fn renewal(from: Timestamp, to: Timestamp) -> Timestamp {
    let life = u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX);
    let spread = u64::from(u16::from_be_bytes(entropy::random())) * (life / 5) / u64::from(u16::MAX);
    from.plus(Duration::from_millis(life / 5 * 2 + spread))
}
