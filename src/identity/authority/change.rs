//! Changes of authorities: made, activated, tainted, revoked, brought by an upstream CA.

use std::sync::Arc;

use rcgen::{CertificateParams, Issuer};
use rustls::pki_types::CertificateDer;

use crate::domain::time::Timestamp;
use crate::identity::authority::certificates::{ProvedKey, ca, leaf};
use crate::identity::authority::keys::{AuthorityKey, Remote, key_id};
use crate::identity::authority::state::{Authorities, AuthorityKind, AuthorityState, Der, Record, StateError};
use crate::identity::authority::{Authority, AuthorityError, Change, revoked};
use crate::identity::profile;
use crate::net::keys::P256Key;
use crate::net::tls;
use crate::protocol::jwk::PublicKey;
use crate::protocol::svid;

impl Authority {
    /// What the timer does: forgets what has ended, prepares and activates what is due.
    pub fn tick(&self, now: Timestamp) -> Result<Vec<Change>, AuthorityError> {
        self.forget(now)?;
        let mut done = Vec::new();
        for kind in [AuthorityKind::Root, AuthorityKind::Issuing, AuthorityKind::JwtSvid] {
            if kind == AuthorityKind::Root && self.policy.upstream {
                continue;
            }
            let due = self.state().prepare_due(kind, now);
            if due {
                done.push(self.prepare(kind, now)?);
            }
            let due = self.state().activate_due(kind, now);
            if due {
                done.extend(self.activate(kind, now)?);
            }
        }
        Ok(done)
    }

    fn forget(&self, now: Timestamp) -> Result<(), AuthorityError> {
        let mut state = self.state();
        let mut next = state.clone();
        let gone = next.forget(now);
        if !gone.is_empty() {
            self.commit(&mut state, next, now)?;
            for id in &gone {
                // A key that stays is of no use to anybody: nothing that it signs is trusted.
                if let Err(error) = self.keys.destroy(id) {
                    tracing::warn!(%error, id, "the key of an authority that has ended could not be destroyed");
                }
            }
        }
        Ok(())
    }

    /// Makes an authority that will sign when it is activated.
    pub fn prepare(&self, kind: AuthorityKind, now: Timestamp) -> Result<Change, AuthorityError> {
        if self.policy.upstream && kind == AuthorityKind::Root {
            return Err(AuthorityError::Upstream("roots come with `popgate ca install`: an upstream CA signs here"));
        }
        let mut state = self.state();
        let mut next = state.clone();
        if let Some(there) = next.waiting(kind) {
            return Err(StateError::PreparedAlready(kind, there.id.clone()).into());
        }
        let key = self.keys.create()?;
        let prepared = self.prepared(&mut next, kind, &key, now).and_then(|change| {
            self.commit(&mut state, next, now)?;
            Ok(change)
        });
        if prepared.is_err() {
            // Nobody knows of it.
            self.keys.destroy(&key_id(&*key))?;
        }
        prepared
    }

    /// Adds an authority for a key.
    fn prepared(
        &self,
        next: &mut Authorities,
        kind: AuthorityKind,
        key: &Arc<dyn AuthorityKey>,
        now: Timestamp,
    ) -> Result<Change, AuthorityError> {
        let record = match kind {
            AuthorityKind::Root => self.new_root(key, now)?,
            AuthorityKind::Issuing if self.policy.upstream => {
                let far = now.plus(profile::root().life.0);
                Record { state: AuthorityState::Requested, ..Self::record(kind, key, now, far) }
            }
            AuthorityKind::Issuing => self.new_issuing(next, key, now)?,
            AuthorityKind::JwtSvid => Self::record(kind, key, now, now.plus(self.policy.jwt_life)),
            AuthorityKind::Downstream => {
                return Err(AuthorityError::Upstream("a downstream CA asks for its certificate itself"));
            }
        };
        let change = Change::of(&record);
        next.add(record)?;
        Ok(change)
    }

    /// The prepared authority signs from now on. A new root brings a new issuing CA with it, in the same change.
    pub fn activate(&self, kind: AuthorityKind, now: Timestamp) -> Result<Vec<Change>, AuthorityError> {
        let mut state = self.state();
        let mut next = state.clone();
        if next.find(kind, AuthorityState::Prepared).is_none() && next.find(kind, AuthorityState::Requested).is_some() {
            return Err(AuthorityError::Upstream(
                "its certificate is not here yet: `popgate ca install FILE` brings it",
            ));
        }
        next.activate(kind, now)?;
        match kind {
            AuthorityKind::JwtSvid => {
                let until = now.plus(self.policy.longest_jwt);
                let retired = |r: &&mut Record| r.kind == kind && r.retired_at == Some(now);
                next.records.iter_mut().filter(retired).for_each(|r| r.signed_until = until);
            }
            AuthorityKind::Root => {
                if let Some(waiting) = next.waiting(AuthorityKind::Issuing).map(|r| r.id.clone()) {
                    // It was prepared under the root that has just retired.
                    next.revoke(&waiting)?;
                }
                let key = self.keys.create()?;
                self.prepared(&mut next, AuthorityKind::Issuing, &key, now)?;
                next.activate(AuthorityKind::Issuing, now)?;
            }
            AuthorityKind::Issuing if self.policy.upstream => next.follow_upstream(now),
            _ => {}
        }
        let active = |k| next.find(k, AuthorityState::Active).map(Change::of);
        let mut done: Vec<Change> = active(kind).into_iter().collect();
        if kind == AuthorityKind::Root {
            done.extend(active(AuthorityKind::Issuing));
        }
        self.commit(&mut state, next, now)?;
        Ok(done)
    }

    /// What an old authority signed is to be replaced at once.
    pub fn taint(&self, id: &str, now: Timestamp) -> Result<Change, AuthorityError> {
        self.end(id, now, Authorities::taint)
    }

    /// An authority is trusted no more.
    pub fn revoke(&self, id: &str, now: Timestamp) -> Result<Change, AuthorityError> {
        self.end(id, now, Authorities::revoke)
    }

    fn end(
        &self,
        id: &str,
        now: Timestamp,
        step: impl Fn(&mut Authorities, &str) -> Result<(), StateError>,
    ) -> Result<Change, AuthorityError> {
        let mut state = self.state();
        let mut next = state.clone();
        step(&mut next, id)?;
        let change = Change::of(next.by_id(id)?);
        self.commit(&mut state, next, now)?;
        Ok(change)
    }

    fn record(kind: AuthorityKind, key: &Arc<dyn AuthorityKey>, now: Timestamp, end: Timestamp) -> Record {
        Record {
            id: key_id(&**key),
            kind,
            state: AuthorityState::Prepared,
            created_at: now,
            not_after: end,
            signed_until: end,
            retired_at: None,
            chain: Vec::new(),
            root: None,
            bridges: Vec::new(),
        }
    }

    fn new_root(&self, key: &Arc<dyn AuthorityKey>, now: Timestamp) -> Result<Record, AuthorityError> {
        let profile = profile::root();
        let end = now.plus(profile.life.0).min(Timestamp::from_unix(Timestamp::MAX_SECONDS));
        let params = ca(&profile, &self.trust_domain, &key_id(&**key), profile.path_length, false, now, end);
        let der = params.self_signed(&Remote(key.clone()))?.der().to_vec();
        let record = Self::record(AuthorityKind::Root, key, now, end);
        Ok(Record { chain: vec![Der::new(&der)], signed_until: now, ..record })
    }

    /// An issuing CA under the active root, and under those that have retired within the life of an issuing CA: a peer that
    /// last looked before then, or holds a join token with their pin, still finds its root.
    fn new_issuing(
        &self,
        state: &mut Authorities,
        key: &Arc<dyn AuthorityKey>,
        now: Timestamp,
    ) -> Result<Record, AuthorityError> {
        let profile = profile::issuing();
        let root = state.find(AuthorityKind::Root, AuthorityState::Active);
        let root = root.ok_or(AuthorityError::NoIssuer("there is no root"))?;
        let (root_id, root_end) = (root.id.clone(), root.not_after);
        let end = now.plus(self.policy.issuing_life).min(root_end);
        let path_length = profile.path_length + u8::from(self.policy.downstream);
        let by = |root: &Record| -> Result<Vec<u8>, AuthorityError> {
            let params =
                ca(&profile, &self.trust_domain, &key_id(&**key), path_length, true, now, end.min(root.not_after));
            self.signed_by(root, params, key)
        };
        let recent = |r: &&Record| {
            r.state == AuthorityState::Old
                && r.retired_at.is_some_and(|at| now < at.plus(self.policy.issuing_life))
                && r.is_trusted(now)
        };
        let chain = vec![Der::new(&by(root)?)];
        let mut bridges = Vec::new();
        for old in state.records.iter().filter(|r| r.kind == AuthorityKind::Root).filter(recent) {
            bridges.push((old.id.clone(), Der::new(&by(old)?)));
        }
        for record in &mut state.records {
            if record.id == root_id || bridges.iter().any(|(id, _)| *id == record.id) {
                record.signed_until = record.signed_until.max(end);
            }
        }
        let record = Self::record(AuthorityKind::Issuing, key, now, end);
        Ok(Record { chain, bridges, root: Some(root_id), ..record })
    }

    fn signed_by(
        &self,
        signer: &Record,
        params: CertificateParams,
        key: &Arc<dyn AuthorityKey>,
    ) -> Result<Vec<u8>, AuthorityError> {
        Ok(params.signed_by(&Remote(key.clone()), &self.issuer(signer)?)?.der().to_vec())
    }

    pub(super) fn issuer(&self, record: &Record) -> Result<Issuer<'static, Remote>, AuthorityError> {
        let der = record.chain.first().map(Der::bytes).unwrap_or_default();
        Ok(Issuer::from_ca_cert_der(&CertificateDer::from(der), Remote(self.keys.open(&record.id)?))?)
    }

    /// The CSR of the issuing CA that waits for an upstream CA, DER; one is prepared if none waits.
    pub fn upstream_csr(&self, now: Timestamp) -> Result<Vec<u8>, AuthorityError> {
        if !self.policy.upstream {
            return Err(AuthorityError::Upstream("identity.upstream is off: the root here signs issuing CAs itself"));
        }
        let waiting = self.state().find(AuthorityKind::Issuing, AuthorityState::Requested).map(|r| r.id.clone());
        let id = match waiting {
            Some(id) => id,
            None => self.prepare(AuthorityKind::Issuing, now)?.id,
        };
        let profile = profile::issuing();
        let length = profile.path_length + u8::from(self.policy.downstream);
        let mut params = ca(&profile, &self.trust_domain, &id, length, false, now, now.plus(profile.life.0));
        params.serial_number = None;
        Ok(params.serialize_request(&Remote(self.keys.open(&id)?))?.der().to_vec())
    }

    /// Takes the certificate of the issuing CA from an upstream CA: the chain, its root last. The first one signs at once.
    pub fn install(&self, chain: &[Vec<u8>], now: Timestamp) -> Result<Vec<Change>, AuthorityError> {
        let bad = |why: &str| AuthorityError::Chain(why.to_owned());
        let (first, root) =
            (chain.first().ok_or_else(|| bad("it is empty"))?, chain.last().ok_or_else(|| bad("it is empty"))?);
        let end = revoked::check_upstream(chain, &self.trust_domain, now).map_err(AuthorityError::Chain)?;
        let id = svid::spki_sha256(first).map(|d| d.to_string()).unwrap_or_default();
        let root_id = svid::spki_sha256(root).map(|d| d.to_string()).unwrap_or_default();
        let mut state = self.state();
        let mut next = state.clone();
        let ders = |list: &[Vec<u8>]| list.iter().map(|d| Der::new(d)).collect::<Vec<_>>();
        let waiting = next.records.iter_mut().find(|r| r.id == id && r.state == AuthorityState::Requested);
        let waiting = waiting.ok_or_else(|| bad("its first certificate is not for the key of `popgate ca csr`"))?;
        waiting.chain = ders(&chain[..chain.len() - 1]);
        (waiting.state, waiting.created_at, waiting.not_after) = (AuthorityState::Prepared, now, end);
        (waiting.signed_until, waiting.root) = (end, Some(root_id.clone()));
        let prepared = Change::of(waiting);
        let root_end = revoked::end_of(root).ok_or_else(|| bad("its root has no end"))?;
        if !next.records.iter().any(|r| r.id == root_id) {
            let record = next.by_id(&id)?.clone();
            next.records.push(Record {
                id: root_id,
                kind: AuthorityKind::Root,
                state: AuthorityState::Prepared,
                chain: ders(&chain[chain.len() - 1..]),
                root: None,
                ..record
            });
        }
        for known in next
            .records
            .iter_mut()
            .filter(|r| r.kind == AuthorityKind::Root && r.chain == ders(&chain[chain.len() - 1..]))
        {
            known.not_after = root_end;
            known.signed_until = known.signed_until.max(end);
        }
        self.try_out(next.by_id(&id)?, root, now)?;
        next.sequence += 1;
        let first_ever = next.find(AuthorityKind::Issuing, AuthorityState::Active).is_none_or(|a| a.not_after <= now);
        self.commit(&mut state, next, now)?;
        drop(state);
        let mut done = vec![prepared];
        if first_ever {
            done.extend(self.activate(AuthorityKind::Issuing, now)?);
        }
        Ok(done)
    }

    /// A leaf of a new issuing CA must be one that a peer accepts: rules of the upstream CA may forbid it.
    fn try_out(&self, issuing: &Record, root: &[u8], now: Timestamp) -> Result<(), AuthorityError> {
        let probe = P256Key::generate();
        let id = self.trust_domain.workload("/popgate/probe").expect("a constant path");
        let public = PublicKey::from_spki(probe.spki()).expect("our own key is P-256");
        let params = leaf(&id, &[], now, issuing.not_after)?;
        let der = params.signed_by(&ProvedKey(&public), &self.issuer(issuing)?)?.der().to_vec();
        let chain: Vec<Vec<u8>> = std::iter::once(der).chain(issuing.chain.iter().map(Der::bytes)).collect();
        let chain: Vec<CertificateDer<'_>> = chain.iter().map(|d| CertificateDer::from(d.as_slice())).collect();
        let refused = |e| AuthorityError::Chain(format!("a certificate that it signs is not accepted by a peer: {e}"));
        tls::verify_chain(&chain, &[root.to_vec()], now).map_err(refused)
    }

    /// Keeps what a downstream CA was given: so it can be revoked and is in the revocation lists.
    pub fn keep_downstream(&self, der: &[u8], now: Timestamp) -> Result<Change, AuthorityError> {
        let bad = || AuthorityError::Chain("a downstream certificate does not read back".into());
        let (id, end) = svid::spki_sha256(der).zip(revoked::end_of(der)).ok_or_else(bad)?;
        let mut state = self.state();
        let mut next = state.clone();
        let under = next.find(AuthorityKind::Issuing, AuthorityState::Active).map(|r| r.id.clone());
        next.records.retain(|r| r.id != id.to_string());
        let record = Record {
            id: id.to_string(),
            kind: AuthorityKind::Downstream,
            state: AuthorityState::Active,
            created_at: now,
            not_after: end,
            signed_until: end,
            retired_at: None,
            chain: vec![Der::new(der)],
            root: under,
            bridges: Vec::new(),
        };
        let change = Change::of(&record);
        next.records.push(record);
        self.commit(&mut state, next, now)?;
        Ok(change)
    }
}
