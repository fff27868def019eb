//! Enrolment and renewal, step by step. Nothing is spent before everything else about the request holds, and nothing is
//! answered before it is recorded.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::domain::digest::Sha256;
use crate::domain::leaf::Staged;
use crate::domain::node::Node;
use crate::domain::people::Entry;
use crate::domain::refusal::Refusal;
use crate::domain::revocation::{RevocationKind, Subject};
use crate::domain::secret::JoinToken;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::attest::{self, Attested, Attestor, Evidence};
use crate::identity::authority::{Authority, Made};
use crate::identity::issue::{Order, Proof, proved_key};
use crate::protocol::svid::X509Svid;
use crate::store::issued::{Lineage, Of, Renewal};
use crate::store::join_tokens::JoinSpend;
use crate::store::revocations::NewRevocation;
use crate::store::{Stores, entropy};

/// Turns proofs of identity into certificates.
pub struct Enrolment {
    /// The CA.
    pub authority: Arc<Authority>,
    /// What is remembered.
    pub stores: Stores,
    /// Ways to attest besides join tokens.
    pub attestors: Vec<Arc<dyn Attestor>>,
    /// Shortest and longest life of a workload's certificate.
    pub bounds: (Duration, Duration),
    /// After how long a lineage of renewals ends.
    pub reattest_after: Duration,
    /// Identities whose certificates were cut short by the present issuing CA: each is told once.
    pub told: Mutex<HashSet<(String, String)>>,
}

/// A certificate and when to come for the next.
pub type Issued = (Made, Timestamp);

impl Enrolment {
    /// `POST /v1/attest` with a join token: for a workload, a person or a node.
    pub async fn join(&self, token: &JoinToken, csr: &[u8], as_node: bool) -> Result<Issued, Refusal> {
        let now = self.stores.clock.now();
        let key = proved_key(csr)?;
        let refused = |why: &str| {
            Refusal::new(401, "join-token", "the join token is unknown, spent or expired; ask for a new one")
                .because(why)
        };
        let named = self.stores.join_tokens.identity(token.digest()).await?.ok_or_else(|| refused("unknown"))?;
        let is_node = named.node_name().is_some();
        if as_node && !is_node {
            let detail = format!(
                "this join token is for {named}, which is no node: `popgate join-token create --node NAME` makes one for an agent"
            );
            return Err(Refusal::new(409, "node", detail));
        }
        if is_node {
            self.check_not_stopped(&Subject::of(&named), now)?;
        }
        let before = if is_node { None } else { Some(self.grant(&named, now)?) };
        self.check_key(&key, &named, now).await?;
        let proof = Proof { method: "join_token".into(), evidence: token.digest(), lineage: None, renewable: true };
        let spent = self.stores.join_tokens.spend(token.digest(), Sha256::of(csr), now).await?;
        let (id, again) = match spent {
            JoinSpend::First(id) => (id, false),
            JoinSpend::Again(id) => (id, true),
            JoinSpend::Refused(why) => return Err(refused(why)),
        };
        if is_node {
            self.keep_node(&node(&id, "join_token", now, true)).await?;
        }
        let grant = match before {
            Some(grant) => grant,
            None => self.grant(&id, now)?,
        };
        let order = Order { id, key, grant, proof, renewed: None };
        if again { self.again(order, now).await } else { self.issue(order, now).await }
    }

    /// `POST /v1/attest` by another method: for a workload whose entry has no parent, or for an agent's node.
    pub async fn attest(
        &self,
        method: &str,
        evidence: &Evidence<'_>,
        wanted: Option<&SpiffeId>,
        as_node: bool,
    ) -> Result<Issued, Refusal> {
        let key = proved_key(evidence.csr)?;
        let now = evidence.now;
        let attested = attest::attest(&self.attestors, method, evidence).await?;
        let id = if as_node {
            self.attested_node(&attested, now).await?
        } else {
            self.choose(&attested, wanted, now).await?
        };
        let grant = self.grant(&id, now)?;
        self.check_key(&key, &id, now).await?;
        let Attested { method, evidence, renewable, .. } = attested;
        let proof = Proof { method, evidence, lineage: None, renewable };
        self.issue(Order { id, key, grant, proof, renewed: None }, now).await
    }

    /// The one entry that fits what attestation found, or the wanted one of several. A template makes its entry here.
    async fn choose(
        &self,
        attested: &Attested,
        wanted: Option<&SpiffeId>,
        now: Timestamp,
    ) -> Result<SpiffeId, Refusal> {
        let found = &attested.selectors;
        let mut fitting: Vec<Entry> = self.stores.entries.direct(found);
        // What a template made counts as that template says now.
        fitting.retain(|e| e.template.is_none());
        for template in self.stores.templates.fitting(found) {
            let name = template.spiffe_id.as_str().to_owned();
            match template.spiffe_id.expand(found) {
                Ok(id) if fitting.iter().any(|e| e.spiffe_id == id) => {}
                Ok(id) => fitting.push(Entry { spiffe_id: id, template: Some(name), ..template.prototype.clone() }),
                Err(error) => tracing::info!(template = name, %error, "a template does not apply"),
            }
        }
        if let Some(wanted) = wanted {
            fitting.retain(|e| e.spiffe_id == *wanted);
        }
        fitting.retain(|e| !e.has_expired(now) && !e.spiffe_id.is_reserved());
        let facts = || found.iter().map(Selector::as_str).collect::<Vec<_>>().join(", ");
        match fitting.as_slice() {
            [] => Err(Refusal::new(403, "entry", format!("no registration entry fits what was attested: {}", facts()))),
            [one] => {
                self.keep_made(one).await?;
                Ok(one.spiffe_id.clone())
            }
            many => {
                let ids = many.iter().map(|e| e.spiffe_id.as_str()).collect::<Vec<_>>().join(", ");
                Err(Refusal::new(409, "entry", format!("several registration entries fit: ask for one of {ids}")))
            }
        }
    }

    /// Keeps the entry that a template makes, as the template says now.
    async fn keep_made(&self, entry: &Entry) -> Result<(), Refusal> {
        let Some(template) = &entry.template else { return Ok(()) };
        match self.stores.entries.get(&entry.spiffe_id) {
            Some(there) if there == *entry => return Ok(()),
            Some(there) if there.template.as_ref() != Some(template) => {
                return Err(Refusal::new(403, "entry", "another entry has the ID that the template makes"));
            }
            _ => {}
        }
        self.check_not_stopped(&Subject::workload(entry), self.stores.clock.now())?;
        self.stores.entries.put(entry).await?;
        // Whoever deletes the template lists its entries after that: either they see this one, or it is seen here.
        if !self.stores.templates.list().iter().any(|t| t.spiffe_id.as_str() == template) {
            self.stores.entries.delete(&entry.spiffe_id).await?;
            return Err(Refusal::new(403, "entry", "the template was deleted meanwhile"));
        }
        self.log_registration("entry", "template", entry.spiffe_id.as_str(), template).await
    }

    async fn attested_node(&self, attested: &Attested, now: Timestamp) -> Result<SpiffeId, Refusal> {
        if !attested.may_be_node {
            let detail =
                "what was attested may not be a node here: `nodes` of its [[trust.…]] names the selectors that one has";
            return Err(Refusal::new(403, "node", detail));
        }
        let id = crate::domain::node::node_id(self.authority.trust_domain(), &attested.node_name);
        let id =
            id.ok_or_else(|| Refusal::new(400, "attestation", "what was attested makes no SPIFFE ID of a node"))?;
        let selectors = attested.selectors.iter().cloned().collect();
        let node = Node { selectors, ..node(&id, &attested.method, now, attested.renewable) };
        self.check_not_stopped(&Subject::of(&node.spiffe_id), now)?;
        self.keep_node(&node).await?;
        Ok(id)
    }

    async fn keep_node(&self, node: &Node) -> Result<(), Refusal> {
        let known = self.stores.nodes.get(&node.spiffe_id);
        self.stores.nodes.put(node).await?;
        if known.is_none_or(|k| k.attestation != node.attestation || k.selectors != node.selectors) {
            self.log_registration("node", "attest", node.spiffe_id.as_str(), &node.attestation).await?;
        }
        Ok(())
    }

    async fn log_registration(&self, what: &str, action: &str, value: &str, by: &str) -> Result<(), Refusal> {
        let staged =
            Staged::registration(self.stores.clock.now(), what, action, entropy::seal(value), entropy::seal(by));
        Ok(self.stores.evidence.append(staged).await.map(drop)?)
    }

    /// `POST /v1/renew` over mTLS with the certificate that is renewed.
    pub async fn renew(&self, old: &X509Svid, csr: &[u8]) -> Result<Issued, Refusal> {
        let now = self.stores.clock.now();
        let mut grant = self.grant(&old.spiffe_id, now)?;
        grant.subject.serial = Some(old.serial.clone());
        grant.subject.jkt = Some(old.key.jkt());
        self.check_not_stopped(&grant.subject, now)?;
        let key = proved_key(csr)?;
        if key.jkt() == old.key.jkt() {
            return Err(Refusal::new(400, "csr", "a renewal needs a new key, and the CSR has the old one"));
        }
        let row = self.stores.issued.by_serial(&old.serial).await?;
        let lineage = row.ok_or_else(|| Refusal::new(403, "renewed", "this certificate is not known here"))?.lineage;
        self.check_lineage(&lineage, now)?;
        self.check_key(&key, &old.spiffe_id, now).await?;
        let evidence = Sha256::of(old.serial.as_bytes());
        let proof = Proof { method: "renewal".into(), evidence, lineage: Some(lineage.clone()), renewable: true };
        let claimed = self.stores.issued.claim_renewal(&old.serial, key.jkt()).await?;
        let keep = grant.keep_lineage;
        let renewed = Some((old.serial.clone(), old.key.jkt()));
        let order = Order { id: old.spiffe_id.clone(), key, grant, proof, renewed };
        match claimed {
            Renewal::First => self.issue(order, now).await,
            Renewal::Again => self.again(order, now).await,
            Renewal::Conflict => Err(self.second_key(old, &lineage, keep, now).await?),
        }
    }

    /// Whether a certificate renews: what has its proof at hand attests again, and every lineage ends.
    fn check_lineage(&self, lineage: &Lineage, now: Timestamp) -> Result<(), Refusal> {
        let refused = |detail: &str| Err(Refusal::new(403, "attest-again", detail));
        if lineage.node.is_some() {
            return refused("this certificate came through an agent, which gets the next one itself");
        }
        if !lineage.renewable {
            return refused("this identity attests anew, with a fresh token of its platform, instead of renewing");
        }
        if now.since(lineage.attested_at) >= self.reattest_after {
            return refused("this lineage of certificates has reached its end (identity.reattest_after): enrol again");
        }
        Ok(())
    }

    /// A certificate renewed with two keys was copied: its whole lineage is stopped, unless its entry says otherwise.
    async fn second_key(
        &self,
        old: &X509Svid,
        lineage: &Lineage,
        keep: bool,
        now: Timestamp,
    ) -> Result<Refusal, Refusal> {
        tracing::warn!(spiffe_id = %old.spiffe_id, serial = old.serial, "a certificate was renewed with two keys: was it copied?");
        metrics::counter!("popgate_renewal_conflicts_total").increment(1);
        if keep {
            return Ok(Refusal::new(
                409,
                "renewed",
                "this certificate was renewed with another key before; enrol again",
            ));
        }
        let mut stopped = HashSet::new();
        loop {
            // Again and again, for what was issued in between.
            let live = self.stores.issued.live(Of::Lineage(&old.spiffe_id, &lineage.first), now).await?;
            let Some(next) = live.into_iter().find(|l| !stopped.contains(&l.serial)) else { break };
            let new = NewRevocation {
                kind: RevocationKind::Serial,
                value: next.serial.clone(),
                reason: "a certificate of its lineage was renewed with two keys".into(),
                by: format!("{}/popgate/identity", self.authority.trust_domain().id()),
                until: Some(next.not_after),
            };
            self.stores.log_stop(&self.stores.revocations.add(&new, now).await?).await?;
            stopped.insert(next.serial);
        }
        let detail =
            "this certificate was renewed with another key before, so all of its lineage is revoked; enrol again";
        Ok(Refusal::new(409, "renewed", detail))
    }
}

fn node(id: &SpiffeId, attestation: &str, now: Timestamp, renewable: bool) -> Node {
    let attestation = attestation.to_owned();
    Node { spiffe_id: id.clone(), attestation, selectors: Vec::new(), attested_at: now, renewable }
}
