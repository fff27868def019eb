//! The mini-CA: roots, issuing CAs and JWT-SVID keys, each prepared before it signs and trusted until what it signed has
//! ended. Their state is one file, written before a change takes effect.

pub mod certificates;
mod change;
pub mod keys;
pub mod live;
pub mod revoked;
pub mod state;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;
use crate::identity::authority::certificates::{ProvedKey, ca, leaf};
use crate::identity::authority::keys::{KeyStore, KeyStoreError};
use crate::identity::authority::live::{Active, JwtSigner, Live};
use crate::identity::authority::state::{Authorities, AuthorityKind, AuthorityState, Record, StateError};
use crate::identity::profile;
use crate::net::files;
use crate::net::keys::P256Key;
use crate::protocol::bundle::TrustBundle;
use crate::protocol::jwk::PublicKey;
use crate::protocol::svid::{self, X509Svid};

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Key(#[from] KeyStoreError),
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{0} holds no authorities of trust domain {1}; restore it, or start with a fresh data_dir")]
    Unreadable(String, TrustDomain),
    #[error(
        "{0} is missing, and keys of authorities lie beside it: restore it, or everybody would have to enrol anew; to begin anew, move the directory away"
    )]
    Lost(String),
    #[error("the certificate made does not read back as an SVID: {0}")]
    Profile(#[from] svid::SvidError),
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
    #[error("{0} is of another trust domain, which issues for it itself")]
    Foreign(SpiffeId),
    #[error("no issuing CA is active: {0}")]
    NoIssuer(&'static str),
    #[error("the chain is not installed: {0}")]
    Chain(String),
    #[error("{0}")]
    Upstream(&'static str),
}

/// How long authorities live, and who signs issuing CAs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Life of an issuing CA.
    pub issuing_life: Duration,
    /// Life of a JWT-SVID key.
    pub jwt_life: Duration,
    /// Longest life of a JWT-SVID: how long a retired key stays in the bundle.
    pub longest_jwt: Duration,
    /// Whether an upstream CA signs issuing CAs.
    pub upstream: bool,
    /// Whether issuing CAs may have CAs below them.
    pub downstream: bool,
}

/// A certificate just made.
pub struct Made {
    /// Leaf first, then the issuing CA and what leads to the root; the root only where a server serves it.
    pub chain: Vec<Vec<u8>>,
    /// The leaf, read back.
    pub svid: X509Svid,
    /// Key of the issuing CA.
    pub issuer_key_id: String,
    /// Whether the issuing CA's end cut its life short.
    pub cut: bool,
}

/// A change of the authorities, for the log.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Change {
    /// What it signs.
    pub kind: AuthorityKind,
    /// Its identifier.
    pub id: String,
    /// What became of it.
    pub state: AuthorityState,
    /// Its certificate.
    pub certificate_sha256: Option<Sha256>,
    /// Its end.
    #[serde(serialize_with = "Timestamp::written")]
    pub not_after: Timestamp,
}

impl Change {
    fn of(record: &Record) -> Self {
        Self {
            kind: record.kind,
            id: record.id.clone(),
            state: record.state,
            certificate_sha256: record.chain.first().map(|c| Sha256::of(&c.bytes())),
            not_after: record.not_after,
        }
    }
}

/// The authority of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    file: PathBuf,
    keys: Box<dyn KeyStore>,
    policy: Policy,
    state: Mutex<Authorities>,
    live: ArcSwap<Live>,
    changes: watch::Sender<u64>,
}

impl Authority {
    /// Reads the authorities under `dir`, or makes them.
    pub fn open(
        dir: &Path,
        trust_domain: &TrustDomain,
        keys: Box<dyn KeyStore>,
        policy: Policy,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        files::private_dir(dir)?;
        let file = dir.join("authorities.json");
        let refuse = || AuthorityError::Unreadable(file.display().to_string(), trust_domain.clone());
        let mut state = Authorities::default();
        if !file.exists() && holds_keys(dir) {
            return Err(AuthorityError::Lost(file.display().to_string()));
        }
        if file.exists() {
            state = serde_json::from_str(&files::read(&file)?).map_err(|_| refuse())?;
        }
        let ours = |r: &Record| r.chain.first().is_none_or(|der| svid::is_ca_of(&der.bytes(), &trust_domain.id()));
        if !state.records.iter().filter(|r| r.kind != AuthorityKind::Root || !policy.upstream).all(ours) {
            return Err(refuse());
        }
        let policy_upstream = policy.upstream;
        let authority = Self {
            trust_domain: trust_domain.clone(),
            file,
            keys,
            policy,
            live: ArcSwap::from_pointee(Live::empty(trust_domain)),
            state: Mutex::new(state),
            changes: watch::channel(0).0,
        };
        // Each key now, not when it is wanted: one that is missing or not its own is told here, and one that lies open is
        // sealed where that is configured.
        let held =
            |r: &&Record| r.kind != AuthorityKind::Downstream && !(policy_upstream && r.kind == AuthorityKind::Root);
        for record in authority.state().records.iter().filter(|r| r.state != AuthorityState::Revoked).filter(held) {
            authority.keys.open(&record.id)?;
        }
        let live = authority.derive(&authority.state(), now)?;
        authority.live.store(Arc::new(live));
        authority.tick(now)?;
        Ok(authority)
    }

    fn state(&self) -> MutexGuard<'_, Authorities> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the changes of bundle and authorities.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Makes a change durable and then effective.
    fn commit(
        &self,
        state: &mut MutexGuard<'_, Authorities>,
        next: Authorities,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let text = serde_json::to_string_pretty(&next).expect("strings and numbers");
        let live = self.derive(&next, now)?;
        files::write_private(&self.file, text.as_bytes())?;
        self.live.store(Arc::new(live));
        **state = next;
        self.changes.send_modify(|n| *n += 1);
        Ok(())
    }

    /// The active ones, for the log.
    pub fn active(&self) -> Vec<Change> {
        self.state().records.iter().filter(|r| r.state == AuthorityState::Active).map(Change::of).collect()
    }

    /// All authorities, for an operator.
    pub fn list(&self) -> Vec<Record> {
        self.state().records.clone()
    }

    /// The key that signs JWT-SVIDs.
    pub fn jwt_signer(&self) -> Option<JwtSigner> {
        self.live.load().jwt.clone()
    }

    /// The chain of an issuing CA's certificate: itself, and with an upstream CA what leads to its root.
    pub fn chain_of(&self, issuer: &[u8]) -> Vec<Vec<u8>> {
        let state = self.state();
        let known = state.records.iter().find(|r| r.chain.first().is_some_and(|c| c.bytes() == issuer));
        known.map_or_else(|| vec![issuer.to_vec()], |r| r.chain.iter().map(state::Der::bytes).collect())
    }

    /// The pin of join tokens: SHA-256 of the active root's public key.
    pub fn pin(&self) -> Sha256 {
        self.live.load().pin
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The trust bundle.
    pub fn bundle(&self) -> Arc<TrustBundle> {
        self.live.load().bundle.clone()
    }

    /// Issuing CAs whose certificates are to be replaced at once.
    pub fn tainted(&self) -> Vec<String> {
        self.live.load().tainted.clone()
    }

    /// Whether a CA is revoked that has not ended.
    pub fn has_revoked(&self) -> bool {
        !self.live.load().revoked.is_empty()
    }

    /// Holds the verified way from a leaf of ours to its root to what a library does not know: no CA on it is revoked, and
    /// popgate's own identities come from its own issuing CAs, never from one below them.
    pub fn check_path(&self, leaf: &SpiffeId, cas: &[&[u8]]) -> Result<(), &'static str> {
        let live = self.live.load();
        let ids: Vec<String> = cas.iter().filter_map(|ca| svid::spki_sha256(ca)).map(|d| d.to_string()).collect();
        if ids.len() != cas.len() || ids.iter().any(|id| live.revoked.contains(id)) {
            return Err("its issuing CA is trusted no more");
        }
        let own = ids.first().is_some_and(|id| live.own.contains(id));
        if leaf.is_reserved() && !own {
            Err("only popgate's own issuing CAs name popgate's own identities")
        } else {
            Ok(())
        }
    }

    /// Issues a leaf for a key that its holder has proved.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        dns: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<Made, AuthorityError> {
        if !id.is_member_of(&self.trust_domain) {
            return Err(AuthorityError::Foreign(id.clone()));
        }
        let live = self.live.load();
        let active = active(&live, now)?;
        let wanted = now.plus(life);
        let params = leaf(id, dns, now, wanted.min(active.not_after))?;
        let der = params.signed_by(&ProvedKey(key), &active.issuer)?.der().to_vec();
        let svid = X509Svid::parse(&der)?;
        let chain = std::iter::once(der).chain(active.chain.iter().cloned()).collect();
        Ok(Made { chain, svid, issuer_key_id: active.id.clone(), cut: wanted > active.not_after })
    }

    /// Issues a CA certificate for a server that issues in this trust domain with a key of its own.
    pub fn issue_ca(&self, key: &PublicKey, life: Duration, now: Timestamp) -> Result<Vec<Vec<u8>>, AuthorityError> {
        if !self.policy.downstream {
            return Err(AuthorityError::Upstream(
                "identity.downstream is off, so that no CA may stand below this one's",
            ));
        }
        let live = self.live.load();
        let active = active(&live, now)?;
        let params = ca(
            &profile::downstream(),
            &self.trust_domain,
            &hex::encode(key.jkt().0),
            0,
            true,
            now,
            now.plus(life).min(active.not_after),
        );
        let der = params.signed_by(&ProvedKey(key), &active.issuer)?.der().to_vec();
        Ok(std::iter::once(der).chain(active.chain.iter().cloned()).collect())
    }

    /// Issues a server certificate: its chain shows every root that a client may have pinned.
    pub fn issue_server(&self, key: &P256Key, names: &[String], now: Timestamp) -> Result<Made, AuthorityError> {
        let id = self.trust_domain.workload("/popgate/server").expect("a constant path");
        let public = PublicKey::from_spki(key.spki()).expect("our own key is P-256");
        let mut made = self.issue(&id, &public, names, profile::server_life(), now)?;
        made.chain.truncate(1);
        made.chain.extend(self.live.load().server_tail.iter().cloned());
        Ok(made)
    }
}

fn holds_keys(dir: &Path) -> bool {
    let key = |e: std::io::Result<std::fs::DirEntry>| e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "key"));
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.any(key))
}

fn active(live: &Live, now: Timestamp) -> Result<&Active, AuthorityError> {
    let active = live.issuer.as_ref().ok_or(AuthorityError::NoIssuer(
        "`popgate ca csr` makes a request for the upstream CA, `popgate ca install FILE` takes its answer",
    ))?;
    if now >= active.not_after {
        return Err(AuthorityError::NoIssuer("the last one has ended and its successor is not there yet"));
    }
    Ok(active)
}
