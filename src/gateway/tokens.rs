//! Verified tokens and parsed proof headers, kept so that each costs its signature once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::domain::digest::Sha256;
use crate::domain::time::Timestamp;
use crate::protocol::access_token::Claims;
use crate::protocol::dpop::ProofHeader;

const SHARDS: usize = 16;
/// Longest proof header that is kept; ours have about 200 bytes.
const MAX_HEADER: usize = 1024;

/// A token whose signature has been verified.
#[derive(Debug)]
pub struct VerifiedToken {
    /// Its claims.
    pub claims: Claims,
    /// End of the workload's certificate with this key; for another key, the token's own end.
    pub svid_end: Timestamp,
}

/// A bounded map in shards: when a shard is full it is emptied, which costs a verification and forgets no refusal.
struct Bounded<K, V> {
    shards: Vec<Mutex<HashMap<K, V>>>,
    each: usize,
}

impl<K: std::hash::Hash + Eq, V: Clone> Bounded<K, V> {
    fn new(capacity: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), each: (capacity / SHARDS).max(1) }
    }

    fn shard(&self, spread: u8) -> std::sync::MutexGuard<'_, HashMap<K, V>> {
        self.shards[usize::from(spread) % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, spread: u8, key: K, value: V) {
        let mut shard = self.shard(spread);
        if shard.len() >= self.each {
            shard.clear();
        }
        shard.insert(key, value);
    }
}

/// The caches of the hot path.
pub struct Caches {
    tokens: Bounded<Sha256, Arc<VerifiedToken>>,
    headers: Bounded<Box<str>, Arc<ProofHeader>>,
}

impl Caches {
    /// Room for this many tokens.
    pub fn new(capacity: usize) -> Self {
        Self { tokens: Bounded::new(capacity), headers: Bounded::new(capacity) }
    }

    /// A verified token that has not ended.
    pub fn token(&self, digest: &Sha256, now: Timestamp) -> Option<Arc<VerifiedToken>> {
        self.tokens.shard(digest.0[0]).get(digest).filter(|t| t.claims.exp > now).cloned()
    }

    /// Keeps a verified token.
    pub fn keep_token(&self, digest: Sha256, token: Arc<VerifiedToken>) {
        self.tokens.put(digest.0[0], digest, token);
    }

    /// A parsed proof header with these bytes.
    pub fn header(&self, bytes: &str) -> Option<Arc<ProofHeader>> {
        self.headers.shard(spread(bytes)).get(bytes).cloned()
    }

    /// Keeps a parsed proof header whose signature held, so that strangers cannot fill the cache.
    pub fn keep_header(&self, bytes: &str, header: Arc<ProofHeader>) {
        if bytes.len() <= MAX_HEADER {
            self.headers.put(spread(bytes), bytes.into(), header);
        }
    }
}

/// The end of a header's base64 has the key's last bytes, which are spread evenly.
fn spread(bytes: &str) -> u8 {
    bytes.bytes().rev().take(16).fold(0, |a, b| a.wrapping_mul(31).wrapping_add(b))
}
