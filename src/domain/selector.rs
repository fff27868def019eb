//! Selectors: what attestation found out about a node or a workload, and the index that finds the entries that fit.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

const MAX: usize = 1024;

/// One fact, written `TYPE:VALUE` as in `unix:uid:1000`.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Selector(String);

/// Why a text is no selector.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a selector is TYPE:VALUE as in unix:uid:1000: the type of a-z, 0-9 and _, the value without control characters, at most 1024 bytes"
)]
pub struct SelectorError;

impl Selector {
    /// A fact that an attestor found; none if its value could not be written down.
    pub fn found(kind: &str, value: &str) -> Option<Self> {
        format!("{kind}:{value}").parse().ok()
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value of `TYPE:NAME:VALUE` where type and name are these: what `{TYPE:NAME}` stands for in a template.
    pub fn value_of(&self, name: &str) -> Option<&str> {
        self.0.strip_prefix(name)?.strip_prefix(':')
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let (kind, value) = text.split_once(':').ok_or(SelectorError)?;
        let named = !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let sound = !value.is_empty() && text.len() <= MAX && !value.chars().any(char::is_control);
        (named && sound).then(|| Self(text.to_owned())).ok_or(SelectorError)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Finds the keys whose selectors are all among those found, looking at a handful of candidates however many there are.
///
/// Each key is filed under one of its selectors: the one that fewest others are filed under when it comes.
#[derive(Clone, Debug)]
pub struct SelectorIndex<K> {
    filed: HashMap<Selector, Vec<(K, Vec<Selector>)>>,
}

impl<K> Default for SelectorIndex<K> {
    fn default() -> Self {
        Self { filed: HashMap::new() }
    }
}

impl<K: Clone + Eq> SelectorIndex<K> {
    /// Files a key. Without selectors it fits nothing: an entry that anybody fits is never meant.
    pub fn insert(&mut self, key: K, selectors: &[Selector]) {
        let rarest = selectors.iter().min_by_key(|s| self.filed.get(s).map_or(0, Vec::len));
        if let Some(rarest) = rarest {
            self.filed.entry(rarest.clone()).or_default().push((key, selectors.to_vec()));
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K, selectors: &[Selector]) {
        for selector in selectors {
            let Some(bucket) = self.filed.get_mut(selector) else { continue };
            bucket.retain(|(filed, _)| filed != key);
            if bucket.is_empty() {
                self.filed.remove(selector);
            }
        }
    }

    /// The keys whose selectors are all among `found`.
    pub fn matching(&self, found: &BTreeSet<Selector>) -> Vec<K> {
        let buckets = found.iter().filter_map(|s| self.filed.get(s)).flatten();
        buckets.filter(|(_, wanted)| wanted.iter().all(|s| found.contains(s))).map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn selector(text: &str) -> Selector {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn a2_a_selector_is_a_type_and_a_value() {
        assert_eq!(selector("unix:uid:0").as_str(), "unix:uid:0");
        assert_eq!(selector("github:repository:a/b").value_of("github:repository"), Some("a/b"));
        assert_eq!(selector("github:repository_owner:a").value_of("github:repository"), None);
        for bad in ["", "unix", "unix:", ":x", "Unix:uid:0", "unix:a\nb", &format!("unix:{}", "a".repeat(1024))] {
            assert!(bad.parse::<Selector>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a4_all_selectors_must_match_and_none_match_nothing() {
        let mut index = SelectorIndex::default();
        index.insert("both", &[selector("unix:uid:1"), selector("unix:gid:1")]);
        index.insert("one", &[selector("unix:uid:1")]);
        index.insert("none", &[]);
        let found = |texts: &[&str]| {
            let mut keys = index.matching(&texts.iter().map(|t| selector(t)).collect());
            keys.sort_unstable();
            keys
        };
        assert_eq!(found(&["unix:uid:1"]), ["one"]);
        assert_eq!(found(&["unix:uid:1", "unix:gid:1", "unix:path:/x"]), ["both", "one"]);
        assert!(found(&["unix:gid:1"]).is_empty());
        assert!(found(&[]).is_empty());
    }

    proptest! {
        #[test]
        fn a4_the_index_agrees_with_looking_at_every_entry(
            entries in proptest::collection::vec(proptest::collection::btree_set(0_u8..6, 0..4), 0..30),
            found in proptest::collection::btree_set(0_u8..6, 0..6),
            gone in 0_usize..30,
        ) {
            let named = |set: &BTreeSet<u8>| set.iter().map(|n| selector(&format!("t:{n}"))).collect::<Vec<_>>();
            let mut index = SelectorIndex::default();
            for (i, wanted) in entries.iter().enumerate() {
                index.insert(i, &named(wanted));
            }
            if let Some(wanted) = entries.get(gone) {
                index.remove(&gone, &named(wanted));
            }
            let mut got = index.matching(&named(&found).into_iter().collect());
            got.sort_unstable();
            let fits = |i: usize, w: &BTreeSet<u8>| i != gone && !w.is_empty() && w.is_subset(&found);
            let want: Vec<usize> =
                entries.iter().enumerate().filter(|(i, w)| fits(*i, w)).map(|(i, _)| i).collect();
            prop_assert_eq!(got, want);
        }
    }
}
