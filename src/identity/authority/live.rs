//! What requests read of the authorities, derived from their state after each change.

use std::collections::HashSet;
use std::sync::Arc;

use rcgen::Issuer;

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::identity::authority::keys::{KeyStoreError, Remote};
use crate::identity::authority::state::{Authorities, AuthorityKind, AuthorityState, Der, Record};
use crate::identity::authority::{Authority, AuthorityError};
use crate::identity::profile;
use crate::protocol::bundle::{JwtAuthority, TrustBundle};
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::protocol::svid;

/// What requests read: derived from the state after each change.
pub(super) struct Live {
    pub(super) issuer: Option<Active>,
    pub(super) jwt: Option<JwtSigner>,
    pub(super) bundle: Arc<TrustBundle>,
    /// SHA-256 of the SPKI of each CA that is trusted no more.
    pub(super) revoked: HashSet<String>,
    /// SHA-256 of the SPKI of each of our own issuing CAs that is trusted.
    pub(super) own: HashSet<String>,
    pub(super) tainted: Vec<String>,
    /// What follows a server's leaf: every way to a root that somebody may know.
    pub(super) server_tail: Vec<Vec<u8>>,
    pub(super) pin: Sha256,
}

/// The key that signs JWT-SVIDs.
#[derive(Clone)]
pub struct JwtSigner {
    /// Its `kid`.
    pub kid: String,
    /// The key.
    pub key: Arc<SigningKey>,
    /// Its end: no JWT-SVID outlives it.
    pub not_after: Timestamp,
}

pub(super) struct Active {
    pub(super) issuer: Issuer<'static, Remote>,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) id: String,
    pub(super) not_after: Timestamp,
}

impl Live {
    pub(super) fn empty(trust_domain: &TrustDomain) -> Self {
        Self {
            issuer: None,
            jwt: None,
            bundle: Arc::new(TrustBundle::empty(trust_domain.clone())),
            revoked: HashSet::new(),
            own: HashSet::new(),
            tainted: Vec::new(),
            server_tail: Vec::new(),
            pin: Sha256([0; 32]),
        }
    }
}

impl Authority {
    /// Derives what requests read.
    pub(super) fn derive(&self, state: &Authorities, now: Timestamp) -> Result<Live, AuthorityError> {
        use AuthorityKind::{Issuing, JwtSvid, Root};
        let old = self.live.load();
        let issuer = match state.find(Issuing, AuthorityState::Active).filter(|r| r.is_trusted(now)) {
            None => None,
            Some(record) => Some(Active {
                issuer: self.issuer(record)?,
                chain: record.chain.iter().map(Der::bytes).collect(),
                id: record.id.clone(),
                not_after: record.not_after,
            }),
        };
        let jwt = match state.find(JwtSvid, AuthorityState::Active).filter(|r| r.is_trusted(now)) {
            None => None,
            Some(record) => match &old.jwt {
                Some(held) if held.kid == kid(&record.id) => Some(held.clone()),
                _ => Some(JwtSigner {
                    kid: kid(&record.id),
                    key: Arc::new(self.jwt_key(&record.id)?),
                    not_after: record.not_after,
                }),
            },
        };
        let roots: Vec<&Record> = state.trusted(Root, now).collect();
        let mut jwt_keys = Vec::new();
        for record in state.trusted(JwtSvid, now) {
            let key = self.keys.open(&record.id)?;
            let public = PublicKey::from_spki(key.spki()).map_err(|_| KeyStoreError::Form(record.id.clone()))?;
            jwt_keys.push(JwtAuthority { kid: kid(&record.id), jwk: public.to_jwk() });
        }
        let active_root = state.find(Root, AuthorityState::Active).filter(|r| r.is_trusted(now));
        let active_root = active_root.or_else(|| roots.first().copied());
        let pin = active_root.and_then(|r| svid::spki_sha256(&r.chain.first()?.bytes())).unwrap_or(Sha256([0; 32]));
        let bundle = TrustBundle {
            trust_domain: self.trust_domain.clone(),
            sequence: state.sequence,
            refresh_hint: profile::refresh_hint(self.policy.issuing_life),
            roots: roots.iter().filter_map(|r| r.chain.first().map(Der::bytes)).collect(),
            jwt_keys,
        };
        let in_state = |s: AuthorityState| state.records.iter().filter(move |r| r.kind != JwtSvid && r.state == s);
        Ok(Live {
            server_tail: server_tail(state, &roots),
            issuer,
            jwt,
            bundle: Arc::new(bundle),
            revoked: in_state(AuthorityState::Revoked).map(|r| r.id.clone()).collect(),
            own: state.trusted(Issuing, now).map(|r| r.id.clone()).collect(),
            tainted: in_state(AuthorityState::Tainted).map(|r| r.id.clone()).collect(),
            pin,
        })
    }

    fn jwt_key(&self, id: &str) -> Result<SigningKey, AuthorityError> {
        let key = self.keys.open(id)?;
        let public = PublicKey::from_spki(key.spki()).map_err(|_| KeyStoreError::Form(id.to_owned()))?;
        // A remote key that fails to sign gives a signature that verifies nowhere; the signer has told the log.
        Ok(SigningKey::new(public, move |message| {
            key.sign(message).unwrap_or_else(|error| {
                tracing::error!(%error, "a JWT-SVID could not be signed");
                vec![0; 64]
            })
        }))
    }
}

/// The active issuing CA with its root, then each bridge with its root.
fn server_tail(state: &Authorities, roots: &[&Record]) -> Vec<Vec<u8>> {
    let Some(active) = state.find(AuthorityKind::Issuing, AuthorityState::Active) else { return Vec::new() };
    let root = |id: &str| roots.iter().find(|r| r.id == id).and_then(|r| r.chain.first()).map(Der::bytes);
    let mut tail: Vec<Vec<u8>> = active.chain.iter().map(Der::bytes).collect();
    tail.extend(active.root.as_deref().and_then(root));
    for (id, bridge) in &active.bridges {
        tail.extend(root(id).map(|der| [bridge.bytes(), der]).into_iter().flatten());
    }
    tail
}

/// `kid` of a JWT-SVID key: enough of its identifier to be unique.
pub(super) fn kid(id: &str) -> String {
    id.chars().take(32).collect()
}
