//! Remembers spent proofs, so that each one works once (RFC 9449 §11.1).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::proof::{Epoch, ProofId};
use crate::domain::time::{Clock, Timestamp};
use crate::store::{Unavailable, entropy};

/// What became of a claim.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spend {
    /// This caller spent it.
    First,
    /// It was spent before.
    Replay,
    /// The store has lost its memory since `judged`: judge the proof again, under the epoch that
    /// [`ReplayGuard::epoch`] gives now.
    Broken,
}

/// Remembers spent proofs.
///
/// # Atomicity
/// `spend` is one linearizable test-and-set for each [`ProofId`], over every process that shares the store: of any
/// number of concurrent calls exactly one gets [`Spend::First`]. There is deliberately no call that only asks.
///
/// # Lifetime
/// Kept until `until` at least; after that `dpop::verify` refuses the proof by age.
///
/// # Breaks
/// A store that forgot starts a new [`Epoch`]. A claim judged under an older one gets [`Spend::Broken`].
///
/// # Failure
/// `Err` leaves the outcome unknown: refuse the request; the client makes a new proof.
#[async_trait]
pub trait ReplayGuard: Send + Sync {
    /// The unbroken stretch that proofs are judged under.
    async fn epoch(&self) -> Result<Epoch, Unavailable>;
    /// Claims a proof that was judged under `judged`.
    async fn spend(&self, id: &ProofId, until: Timestamp, judged: &Epoch) -> Result<Spend, Unavailable>;
    /// Whether the store answers; what readiness asks.
    async fn ping(&self) -> Result<(), Unavailable>;
    /// `memory` or `redis`.
    fn name(&self) -> &'static str;
}

const PART: &str = "the replay store";
const SHARE: &str = "this key's share of the replay store, which its live proofs fill,";
const SHARDS: usize = 64;
/// Claims are dropped a generation at a time, so a claim lives up to this much longer than asked.
const GENERATION_SECONDS: u64 = 30;
/// A clock that steps back further than this breaks the store: what it dropped as old may count again.
const STEP_BACK: Duration = Duration::from_secs(2);

/// The guard of a single process: sharded sets in time generations. It refuses when full and never evicts a live
/// claim; no key may hold more than 1/64 of it.
pub struct MemoryReplayGuard {
    clock: Arc<dyn Clock>,
    shards: Vec<Mutex<Shard>>,
    keys: Vec<Mutex<Held>>,
    shard_capacity: usize,
    key_capacity: usize,
    epoch: Mutex<(Epoch, Timestamp)>,
}

/// By key: how many claims it holds in each generation.
type Held = HashMap<[u8; 16], BTreeMap<u64, usize>>;

#[derive(Default)]
struct Shard {
    generations: BTreeMap<u64, HashSet<[u8; 16]>>,
}

impl MemoryReplayGuard {
    /// A guard for up to `capacity` live claims. It begins a new epoch now.
    pub fn new(clock: Arc<dyn Clock>, capacity: usize) -> Self {
        let now = clock.now();
        let shards = || (0..SHARDS).map(|_| Mutex::default());
        Self {
            shards: shards().collect(),
            keys: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_capacity: (capacity / SHARDS).max(1),
            key_capacity: (capacity / SHARDS).max(1),
            epoch: Mutex::new((Epoch { id: entropy::random(), since: now }, now)),
            clock,
        }
    }

    /// The epoch now; a backward step of the clock begins a new one.
    fn current(&self) -> Epoch {
        let now = self.clock.now();
        let mut guard = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        let (epoch, seen) = &mut *guard;
        if now.plus(STEP_BACK) < *seen {
            *epoch = Epoch { id: entropy::random(), since: *seen };
            *seen = now;
        }
        *seen = now.max(*seen);
        *epoch
    }

    fn take_quota(&self, id: &ProofId, generation: u64, oldest: u64) -> bool {
        let key = half(&id.jkt.0);
        let mut keys = lock(&self.keys[usize::from(key[0]) % SHARDS]);
        if keys.len() > self.key_capacity {
            keys.retain(|_, held| held.keys().any(|g| *g >= oldest));
        }
        let held = keys.entry(key).or_default();
        held.retain(|g, _| *g >= oldest);
        if held.values().sum::<usize>() >= self.key_capacity {
            return false;
        }
        *held.entry(generation).or_default() += 1;
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn half(bytes: &[u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&bytes[..16]);
    half
}

#[async_trait]
impl ReplayGuard for MemoryReplayGuard {
    async fn epoch(&self) -> Result<Epoch, Unavailable> {
        Ok(self.current())
    }

    async fn spend(&self, id: &ProofId, until: Timestamp, judged: &Epoch) -> Result<Spend, Unavailable> {
        if self.current().id != judged.id {
            return Ok(Spend::Broken);
        }
        let oldest = self.clock.now().minus(STEP_BACK).unix() / GENERATION_SECONDS;
        let generation = until.unix() / GENERATION_SECONDS;
        let key = half(&id.digest.0);
        let mut shard = lock(&self.shards[usize::from(key[0]) % SHARDS]);
        shard.generations.retain(|g, _| *g >= oldest);
        if shard.generations.values().any(|g| g.contains(&key)) {
            return Ok(Spend::Replay);
        }
        if shard.generations.values().map(HashSet::len).sum::<usize>() >= self.shard_capacity {
            return Err(Unavailable::new(PART, "full of live claims"));
        }
        if !self.take_quota(id, generation, oldest) {
            return Err(Unavailable::new(SHARE, "this key holds its whole share of live claims"));
        }
        shard.generations.entry(generation).or_default().insert(key);
        Ok(Spend::First)
    }

    async fn ping(&self) -> Result<(), Unavailable> {
        Ok(())
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}
