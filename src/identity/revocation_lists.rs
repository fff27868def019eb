//! The signed lists of revoked certificates, made anew when something is stopped and before they run out.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::domain::refusal::Refusal;
use crate::domain::revocation::{Revocation, RevocationSet, Subject};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::authority::Authority;
use crate::identity::authority::revoked::{LIST_LIFE, RevokedCertificate};
use crate::store::Stores;
use crate::store::issued::{LiveCertificate, Of};

/// Makes and keeps the lists.
pub struct RevocationLists {
    authority: Arc<Authority>,
    stores: Stores,
    made: Mutex<Option<Made>>,
}

struct Made {
    set: Arc<RevocationSet>,
    bundle_sequence: u64,
    at: Timestamp,
    any_revoked: bool,
    lists: Vec<Vec<u8>>,
}

impl RevocationLists {
    /// Nothing is made before it is asked for.
    pub fn new(authority: Arc<Authority>, stores: Stores) -> Self {
        Self { authority, stores, made: Mutex::default() }
    }

    /// The lists, DER, the active issuing CA's first.
    pub async fn lists(&self) -> Result<Vec<Vec<u8>>, Refusal> {
        Ok(self.fresh().await?.1)
    }

    /// The lists if anything is revoked: what workloads are told. None while they cannot be made.
    pub async fn current(&self) -> Vec<Vec<u8>> {
        match self.fresh().await {
            Ok((true, lists)) => lists,
            Ok((false, _)) => Vec::new(),
            Err(error) => {
                tracing::error!(%error, "revocation lists cannot be made; the last ones serve on");
                self.made.lock().await.as_ref().filter(|m| m.any_revoked).map(|m| m.lists.clone()).unwrap_or_default()
            }
        }
    }

    async fn fresh(&self) -> Result<(bool, Vec<Vec<u8>>), Refusal> {
        let mut made = self.made.lock().await;
        let now = self.stores.clock.now();
        let set = self.stores.revocations.watch().borrow().clone();
        let sequence = self.authority.bundle().sequence;
        let fits = |m: &&Made| {
            Arc::ptr_eq(&m.set, &set) && m.bundle_sequence == sequence && now >= m.at && now.since(m.at) < LIST_LIFE / 2
        };
        if let Some(fresh) = made.as_ref().filter(fits) {
            return Ok((fresh.any_revoked, fresh.lists.clone()));
        }
        let revoked = self.revoked(&set, now).await?;
        // Milliseconds only grow, over restarts, too.
        let number = made.as_ref().map_or(now.millis(), |m| now.millis().max(m.at.millis() + 1));
        let lists = self.authority.revocation_lists(&revoked, number, now);
        let lists = lists.map_err(|e| Refusal::unavailable("the certificate authority", e))?;
        let any_revoked = !revoked.is_empty() || self.authority.has_revoked();
        *made = Some(Made { set: set.clone(), bundle_sequence: sequence, at: now, any_revoked, lists: lists.clone() });
        Ok((any_revoked, lists))
    }

    async fn revoked(&self, set: &RevocationSet, now: Timestamp) -> Result<Vec<RevokedCertificate>, Refusal> {
        let rows = self.stores.revocations.list().await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let live = self.stores.issued.live(Of::Everybody, now).await?;
        let stopped = |c: &LiveCertificate| {
            set.stops(&self.subject(c), now)?;
            let at = rows.iter().filter(|r| names(r, &self.subject(c))).map(|r| r.at).min().unwrap_or(now);
            Some(RevokedCertificate { issuer_sha256: c.issuer_sha256, serial: c.serial.clone(), at })
        };
        Ok(live.iter().filter_map(stopped).collect())
    }

    fn subject(&self, certificate: &LiveCertificate) -> Subject {
        let id: &SpiffeId = &certificate.spiffe_id;
        let registered = match id.person_name().and_then(|name| self.stores.people.by_name(name)) {
            Some(person) => Subject { person: Some(person.id), groups: person.groups, ..Subject::of(id) },
            None => self.stores.entries.get(id).as_ref().map_or_else(|| Subject::of(id), Subject::workload),
        };
        Subject {
            serial: Some(certificate.serial.clone()),
            jkt: Some(certificate.jkt),
            node: certificate.node.clone(),
            ..registered
        }
    }
}

fn names(row: &Revocation, subject: &Subject) -> bool {
    RevocationSet::new(row.id, std::slice::from_ref(row)).stops(subject, row.at).is_some()
}
