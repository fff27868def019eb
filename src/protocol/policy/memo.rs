//! Decisions that were made before. A decision is a function of the policies and the question alone, so the same question has
//! the same answer for as long as the policies are in force: a new set begins with nothing remembered.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::domain::intent::Intent;
use crate::domain::verdict::Verdict;

const SHARDS: usize = 16;
/// Decisions of one generation of one shard; two generations are kept.
const EACH: usize = 256;
/// Longest context that is remembered, in bytes of its names and strings.
const LONGEST: usize = 2048;
/// The one part of a question that differs each time. Policies that ask for it are not remembered.
pub(super) const TIME: &str = "time";

/// Remembers decisions by their questions, without their time.
#[derive(Default)]
pub struct Memo {
    /// Unpredictable, so that nobody can aim at one place.
    hasher: RandomState,
    shards: [Mutex<Generations>; SHARDS],
}

#[derive(Default)]
struct Generations {
    young: HashMap<u64, (Intent, Verdict)>,
    old: HashMap<u64, (Intent, Verdict)>,
}

impl Memo {
    /// The decision of this question: remembered, or made now.
    pub fn of(&self, intent: &Intent, decide: impl FnOnce() -> Verdict) -> Verdict {
        let key = self.key(intent);
        let shard = &self.shards[usize::try_from(key % SHARDS as u64).unwrap_or_default()];
        if let Some(known) = lock(shard).get(key, intent) {
            return known;
        }
        let verdict = decide();
        if intent.context.iter().map(|(name, value)| name.len() + size(value)).sum::<usize>() <= LONGEST {
            lock(shard).keep(key, intent.clone(), verdict.clone());
        }
        verdict
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        let of = |shard: &Mutex<Generations>| {
            let kept = lock(shard);
            kept.young.len() + kept.old.len()
        };
        self.shards.iter().map(of).sum()
    }

    fn key(&self, intent: &Intent) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        let principal = &intent.principal;
        principal.spiffe_id.as_str().hash(&mut hasher);
        (&principal.groups, &principal.owner, &principal.sponsor).hash(&mut hasher);
        (&intent.operation, &intent.route, &intent.object).hash(&mut hasher);
        timeless(intent).for_each(|member| member.hash(&mut hasher));
        hasher.finish()
    }
}

impl Generations {
    fn get(&mut self, key: u64, intent: &Intent) -> Option<Verdict> {
        let same = |known: &&(Intent, Verdict)| is_same(&known.0, intent);
        if let Some((_, verdict)) = self.young.get(&key).filter(same) {
            return Some(verdict.clone());
        }
        // What is asked for stays.
        self.old.get(&key).filter(same)?;
        let (intent, verdict) = self.old.remove(&key)?;
        self.keep(key, intent, verdict.clone());
        Some(verdict)
    }

    fn keep(&mut self, key: u64, intent: Intent, verdict: Verdict) {
        if self.young.len() >= EACH {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, (intent, verdict));
    }
}

fn timeless(intent: &Intent) -> impl Iterator<Item = (&String, &Value)> {
    intent.context.iter().filter(|(name, _)| *name != TIME)
}

fn is_same(a: &Intent, b: &Intent) -> bool {
    a.principal == b.principal
        && (&a.operation, &a.route, &a.object) == (&b.operation, &b.route, &b.object)
        && timeless(a).eq(timeless(b))
}

fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|v| size(v) + 16).sum(),
        Value::Object(members) => members.iter().map(|(name, v)| name.len() + size(v) + 16).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
    }
}

fn lock(shard: &Mutex<Generations>) -> std::sync::MutexGuard<'_, Generations> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
