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
    pub(super) jwt: Option<(String, Arc<SigningKey>)>,
    pub(super) bundle: Arc<TrustBundle>,
    /// SHA-256 of the SPKI of each CA that is trusted no more, and their key identifiers (RFC 5280 section 4.2.1.1).
    pub(super) revoked: HashSet<Vec<u8>>,
    pub(super) tainted: Vec<String>,
    /// What follows a server's leaf: every way to a root that somebody may know.
    pub(super) server_tail: Vec<Vec<u8>>,
    pub(super) pin: Sha256,
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
            tainted: Vec::new(),
            server_tail: Vec::new(),
            pin: Sha256([0; 32]),
        }
    }
}

impl Authority {
    /// Derives what requests read.
    pub(super) fn refresh(&self, state: &Authorities, now: Timestamp) -> Result<(), AuthorityError> {
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
                Some((id, key)) if *id == record.id => Some((id.clone(), key.clone())),
                _ => Some((record.id.clone(), Arc::new(self.jwt_key(&record.id)?))),
            },
        };
        let roots: Vec<&Record> = state.trusted(Root, now).collect();
        let mut jwt_keys = Vec::new();
        for record in state.trusted(JwtSvid, now) {
            let key = self.keys.open(&record.id)?;
            let public = PublicKey::from_spki(key.spki()).map_err(|_| KeyStoreError::Form(record.id.clone()))?;
            jwt_keys.push(JwtAuthority { kid: kid(&record.id), jwk: public.to_jwk() });
        }
        let active_root = state.find(Root, AuthorityState::Active).or_else(|| roots.first().copied());
        let pin = active_root.and_then(|r| svid::spki_sha256(&r.chain.first()?.bytes())).unwrap_or(Sha256([0; 32]));
        let bundle = TrustBundle {
            trust_domain: self.trust_domain.clone(),
            sequence: state.sequence,
            refresh_hint: profile::refresh_hint(self.policy.issuing_life),
            roots: roots.iter().filter_map(|r| r.chain.first().map(Der::bytes)).collect(),
            jwt_keys,
        };
        let ended = |s: AuthorityState| state.records.iter().filter(move |r| r.kind == Issuing && r.state == s);
        self.live.store(Arc::new(Live {
            server_tail: server_tail(state, &roots),
            issuer,
            jwt,
            bundle: Arc::new(bundle),
            revoked: ended(AuthorityState::Revoked).filter_map(|r| key_identifier(&r.chain.first()?.bytes())).collect(),
            tainted: ended(AuthorityState::Tainted).map(|r| r.id.clone()).collect(),
            pin,
        }));
        Ok(())
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

/// The name that issuing CAs, roots and leaves carry as their key identifier.
pub(super) fn key_identifier(der: &[u8]) -> Option<Vec<u8>> {
    svid::key_identifiers(der).and_then(|ids| ids.subject)
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
