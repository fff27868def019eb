//! Verified tokens, kept so that each costs its signature once.

use std::sync::Arc;

use crate::domain::digest::Sha256;
use crate::domain::time::Timestamp;
use crate::protocol::access_token::Claims;
use crate::protocol::dpop::ProofHeader;
use crate::store::cache::{Bounded, Texts};

/// A token whose signature has been verified.
#[derive(Debug)]
pub struct VerifiedToken {
    /// Its claims.
    pub claims: Claims,
    /// End of the workload's certificate with this key; for another key, the token's own end.
    pub svid_end: Timestamp,
}

/// The caches of the hot path.
pub struct Caches {
    tokens: Bounded<Sha256, Arc<VerifiedToken>>,
    /// Parsed proof headers.
    pub headers: Texts<Arc<ProofHeader>>,
}

impl Caches {
    /// Room for this many tokens.
    pub fn new(capacity: usize) -> Self {
        Self { tokens: Bounded::new(capacity), headers: Texts::new(capacity) }
    }

    /// A verified token that has not ended.
    pub fn token(&self, digest: &Sha256, now: Timestamp) -> Option<Arc<VerifiedToken>> {
        self.tokens.get(digest).filter(|t| t.claims.exp > now)
    }

    /// Keeps a verified token.
    pub fn keep_token(&self, digest: Sha256, token: Arc<VerifiedToken>) {
        self.tokens.put(digest, token);
    }
}
