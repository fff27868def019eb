//! Enrolment and renewal, step by step. Nothing is spent before everything else about the request holds, and nothing is
//! answered before it is recorded.

use std::sync::Arc;
use std::time::Duration;

use crate::domain::digest::Sha256;
use crate::domain::leaf::{Event, Issuance, Staged};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::authority::{Authority, Made};
use crate::identity::profile;
use crate::protocol::csr;
use crate::protocol::jwk::PublicKey;
use crate::protocol::svid::X509Svid;
use crate::store::Stores;
use crate::store::issued::{IssuedCertificate, Renewal};
use crate::store::join_tokens::JoinSpend;

/// Turns proofs of identity into certificates.
pub struct Enrolment {
    /// The CA.
    pub authority: Arc<Authority>,
    /// What is remembered.
    pub stores: Stores,
}

/// What an identity may have, from its entry or its person.
struct Grant {
    life: Duration,
    dns: Vec<String>,
    subject: Subject,
}

impl Enrolment {
    /// `POST /v1/attest` with a join token.
    pub async fn attest(&self, token: &JoinToken, csr: &[u8]) -> Result<(Made, Timestamp), Refusal> {
        let now = self.stores.clock.now();
        let key = csr::verify(csr).map_err(|e| Refusal::new(400, "csr", e.to_string()))?;
        let refused = |why: &str| {
            Refusal::new(401, "join-token", "the join token is unknown, spent or expired; ask for a new one")
                .because(why)
        };
        let named = self.stores.join_tokens.identity(token.digest()).await?.ok_or_else(|| refused("unknown"))?;
        let grant = self.grant(&named, now)?;
        self.check_key(&key, &named, now).await?;
        match self.stores.join_tokens.spend(token.digest(), Sha256::of(csr), now).await? {
            JoinSpend::First(id) => self.issue(&id, &key, &grant, "join_token", token.digest(), now).await,
            JoinSpend::Again(id) => self.again(&id, &key, &grant, "join_token", token.digest(), now).await,
            JoinSpend::Refused(why) => Err(refused(why)),
        }
    }

    /// `POST /v1/renew` over mTLS with the certificate that is renewed.
    pub async fn renew(&self, old: &X509Svid, csr: &[u8]) -> Result<(Made, Timestamp), Refusal> {
        let now = self.stores.clock.now();
        let mut grant = self.grant(&old.spiffe_id, now)?;
        grant.subject.serial = Some(old.serial.clone());
        grant.subject.jkt = Some(old.key.jkt());
        self.check_not_stopped(&grant.subject, now)?;
        let key = csr::verify(csr).map_err(|e| Refusal::new(400, "csr", e.to_string()))?;
        if key.jkt() == old.key.jkt() {
            return Err(Refusal::new(400, "csr", "a renewal needs a new key, and the CSR has the old one"));
        }
        self.check_key(&key, &old.spiffe_id, now).await?;
        let attestation = Sha256::of(old.serial.as_bytes());
        match self.stores.issued.claim_renewal(&old.serial, key.jkt()).await? {
            Renewal::First => self.issue(&old.spiffe_id, &key, &grant, "renewal", attestation, now).await,
            Renewal::Again => self.again(&old.spiffe_id, &key, &grant, "renewal", attestation, now).await,
            Renewal::Conflict => {
                tracing::warn!(spiffe_id = %old.spiffe_id, serial = old.serial, "a certificate was renewed with two keys: was it copied?");
                metrics::counter!("popgate_renewal_conflicts_total").increment(1);
                Err(Refusal::new(409, "renewed", "this certificate was renewed with another key before; enrol again"))
            }
        }
    }

    fn grant(&self, id: &SpiffeId, now: Timestamp) -> Result<Grant, Refusal> {
        let subject = |person, groups| Subject {
            spiffe_id: id.clone(),
            person: Some(person),
            groups,
            serial: None,
            jkt: None,
            jti: None,
        };
        let grant = if let Some(name) = id.person_name() {
            let person = self.stores.people.by_name(name).ok_or_else(|| not_registered(id))?;
            Grant { life: profile::person_life(), dns: Vec::new(), subject: subject(person.id, person.groups) }
        } else {
            let entry = self.stores.entries.get(id).ok_or_else(|| not_registered(id))?;
            if entry.expires_at.is_some_and(|end| end <= now) {
                return Err(Refusal::new(403, "entry", "the registration entry has expired"));
            }
            let (least, most) = profile::workload_bounds();
            let life = entry.svid_ttl.duration().clamp(least, most);
            Grant { life, dns: entry.dns_names, subject: subject(entry.owner, entry.groups) }
        };
        self.check_not_stopped(&grant.subject, now)?;
        Ok(grant)
    }

    fn check_not_stopped(&self, subject: &Subject, now: Timestamp) -> Result<(), Refusal> {
        match self.stores.revocations.watch().borrow().stops(subject, now) {
            None => Ok(()),
            Some(kind) => {
                Err(Refusal::new(403, "revoked", "this identity is revoked; no certificate is issued").because(kind))
            }
        }
    }

    async fn check_key(&self, key: &PublicKey, id: &SpiffeId, now: Timestamp) -> Result<(), Refusal> {
        if self.stores.issued.held_by_another(key.jkt(), id, now).await? {
            return Err(Refusal::new(
                409,
                "key-in-use",
                "the CSR's key is in a live certificate of another identity; make a new key",
            ));
        }
        Ok(())
    }

    async fn issue(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        grant: &Grant,
        attestation: &str,
        evidence: Sha256,
        now: Timestamp,
    ) -> Result<(Made, Timestamp), Refusal> {
        let made = self
            .authority
            .issue(id, key, &grant.dns, grant.life, now)
            .map_err(|e| Refusal::unavailable("the certificate authority", e))?;
        let svid = &made.svid;
        let row = IssuedCertificate {
            serial: svid.serial.clone(),
            spiffe_id: id.clone(),
            jkt: svid.key.jkt(),
            not_after: svid.not_after,
            attestation_sha256: evidence,
            der: made.chain[0].clone(),
            issuer: made.chain[1].clone(),
        };
        let event = Event::Issuance(Issuance {
            spiffe_id: id.clone(),
            serial: svid.serial.clone(),
            jkt: svid.key.jkt(),
            not_before: svid.not_before,
            not_after: svid.not_after,
            issuer_key_id: made.issuer_key_id.clone(),
            certificate_sha256: svid.sha256,
            attestation: attestation.to_owned(),
            attestation_sha256: evidence,
        });
        // The leaf first: no certificate is in the ledger, and so none is handed out, that the log does not have.
        self.stores.evidence.append(Staged::plain(now, event)).await?;
        self.stores.issued.record(&row).await?;
        // A change of the registration meanwhile either sees this row and stops it, or is seen here.
        let same = |now: &Grant| now.subject.person == grant.subject.person && now.dns == grant.dns;
        if !self.grant(id, now).as_ref().is_ok_and(same) {
            self.stores.issued.withdraw(&row.serial).await?;
            return Err(Refusal::new(403, "entry", format!("the registration of {id} changed meanwhile; try again")));
        }
        metrics::counter!("popgate_certificates_issued_total", "attestation" => attestation.to_owned()).increment(1);
        tracing::info!(spiffe_id = %id, serial = svid.serial, not_after = %svid.not_after, attestation, "certificate issued");
        let renew_after = halfway(now, svid.not_after);
        Ok((made, renew_after))
    }

    /// The same request again gets the certificate that it led to; where a crash came between, it is issued now.
    async fn again(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        grant: &Grant,
        attestation: &str,
        evidence: Sha256,
        now: Timestamp,
    ) -> Result<(Made, Timestamp), Refusal> {
        let Some(row) = self.stores.issued.by_attestation(evidence, key.jkt()).await? else {
            return self.issue(id, key, grant, attestation, evidence, now).await;
        };
        let broken = |e| Refusal::unavailable("the ledger", format!("a certificate does not read back: {e}"));
        let svid = X509Svid::parse(&row.der).map_err(broken)?;
        let renew_after = halfway(svid.not_before, svid.not_after);
        Ok((Made { chain: vec![row.der, row.issuer], svid, issuer_key_id: String::new() }, renew_after))
    }
}

fn halfway(from: Timestamp, to: Timestamp) -> Timestamp {
    from.plus(to.since(from) / 2)
}

fn not_registered(id: &SpiffeId) -> Refusal {
    Refusal::new(403, "entry", format!("{id} is not registered any more"))
}
