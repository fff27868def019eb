//! What costs a signature or a look into the ledger once and never changes, kept within bounds.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;
/// Longest text that is kept: a proof header has about 200 bytes.
const LONGEST: usize = 1024;

/// A bounded map in shards: when a shard is full it is emptied, which costs a verification and forgets no refusal.
pub struct Bounded<K, V> {
    shards: Vec<Mutex<HashMap<K, V>>>,
    each: usize,
    spread: RandomState,
}

impl<K: Hash + Eq, V: Clone> Bounded<K, V> {
    /// Room for this many.
    pub fn new(capacity: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, each: (capacity / SHARDS).max(1), spread: RandomState::new() }
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> MutexGuard<'_, HashMap<K, V>> {
        let at = usize::try_from(self.spread.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is kept under a key.
    pub fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.shard(key).get(key).cloned()
    }

    /// Keeps a value.
    pub fn put(&self, key: K, value: V) {
        let mut shard = self.shard(&key);
        if shard.len() >= self.each {
            shard.clear();
        }
        shard.insert(key, value);
    }
}

/// What was read from a text, by that text.
pub struct Texts<V>(Bounded<Box<str>, V>);

impl<V: Clone> Texts<V> {
    /// Room for this many.
    pub fn new(capacity: usize) -> Self {
        Self(Bounded::new(capacity))
    }

    /// What was read from this text before.
    pub fn get(&self, text: &str) -> Option<V> {
        self.0.get(text)
    }

    /// Keeps what was read from a text, unless that is long. Only of what was proved, so that strangers cannot fill the cache.
    pub fn keep(&self, text: &str, value: V) {
        if text.len() <= LONGEST {
            self.0.put(text.into(), value);
        }
    }
}
