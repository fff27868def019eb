//! What an identity may have: from its entry, its person or its node, and only while nothing stops it.

use std::time::Duration;

use crate::domain::people::Entry;
use crate::domain::refusal::Refusal;
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::enrol::Enrolment;
use crate::identity::profile;
use crate::protocol::jwk::PublicKey;

/// What an identity may have, from its entry, its person or its node.
pub(super) struct Grant {
    pub(super) life: Duration,
    pub(super) dns: Vec<String>,
    pub(super) subject: Subject,
    /// Whether its lineage goes on after a renewal with a second key.
    pub(super) keep_lineage: bool,
}

impl Enrolment {
    pub(super) fn grant(&self, id: &SpiffeId, now: Timestamp) -> Result<Grant, Refusal> {
        let grant = if let Some(name) = id.person_name() {
            let person = self.stores.people.by_name(name).ok_or_else(|| not_registered(id))?;
            let subject = Subject { person: Some(person.id), groups: person.groups, ..Subject::of(id) };
            Grant { life: profile::person_life(), dns: Vec::new(), subject, keep_lineage: false }
        } else if id.node_name().is_some() {
            self.stores
                .nodes
                .get(id)
                .ok_or_else(|| Refusal::new(403, "node", format!("{id} is evicted: attest again")))?;
            Grant {
                life: self.bounds.1.min(profile::node_life()),
                dns: Vec::new(),
                subject: Subject::of(id),
                keep_lineage: false,
            }
        } else {
            let entry = self.stores.entries.get(id).ok_or_else(|| not_registered(id))?;
            self.entry_grant(entry, now)?
        };
        self.check_not_stopped(&grant.subject, now)?;
        Ok(grant)
    }

    fn entry_grant(&self, entry: Entry, now: Timestamp) -> Result<Grant, Refusal> {
        if entry.has_expired(now) {
            return Err(Refusal::new(403, "entry", "the registration entry has expired"));
        }
        let life = entry.svid_ttl.duration().clamp(self.bounds.0, self.bounds.1);
        let subject = Subject::workload(&entry);
        Ok(Grant { life, dns: entry.dns_names, subject, keep_lineage: entry.keep_lineage })
    }

    /// What the agent of a node may have for one of its entries.
    pub(super) fn grant_through(
        &self,
        node: &SpiffeId,
        id: &SpiffeId,
        now: Timestamp,
    ) -> Result<(Grant, Entry), Refusal> {
        if self.stores.nodes.get(node).is_none() {
            return Err(Refusal::new(403, "node", format!("{node} is evicted: its agent must attest again")));
        }
        let entry = self.stores.entries.get(id).filter(|e| e.parent.as_ref().is_some_and(|p| p.covers(node)));
        let entry = entry.ok_or_else(|| Refusal::new(403, "entry", format!("{id} is no entry of {node}")))?;
        let mut grant = self.entry_grant(entry.clone(), now)?;
        grant.subject.node = Some(node.clone());
        self.check_not_stopped(&grant.subject, now)?;
        Ok((grant, entry))
    }

    pub(super) fn check_not_stopped(&self, subject: &Subject, now: Timestamp) -> Result<(), Refusal> {
        match self.stores.revocations.watch().borrow().stops(subject, now) {
            None => Ok(()),
            Some(kind) => {
                Err(Refusal::new(403, "revoked", "this identity is revoked; no certificate is issued").because(kind))
            }
        }
    }

    pub(super) async fn check_key(&self, key: &PublicKey, id: &SpiffeId, now: Timestamp) -> Result<(), Refusal> {
        if self.stores.issued.held_by_another(key.jkt(), id, now).await? {
            return Err(key_in_use());
        }
        Ok(())
    }
}

fn not_registered(id: &SpiffeId) -> Refusal {
    Refusal::new(403, "entry", format!("{id} is not registered any more"))
}

pub(super) fn key_in_use() -> Refusal {
    let detail = "the CSR's key is in a live certificate of another identity; make a new key";
    Refusal::new(409, "key-in-use", detail)
}
