//! The registration entries in memory, filed so that each question looks at a handful of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::id_template::EntryTemplate;
use crate::domain::people::Entry;
use crate::domain::selector::{Selector, SelectorIndex};
use crate::domain::spiffe_id::SpiffeId;

/// All entries and templates of a trust domain.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    direct: SelectorIndex<String>,
    by_parent: HashMap<String, BTreeSet<String>>,
    by_pattern: BTreeMap<String, BTreeSet<String>>,
    templates: BTreeMap<String, EntryTemplate>,
    template_index: SelectorIndex<String>,
}

impl Registry {
    /// The entry of an identity.
    pub fn get(&self, id: &str) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// All entries, by identity.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds or replaces an entry.
    pub fn insert(&mut self, entry: Entry) {
        let id = entry.spiffe_id.to_string();
        self.remove(&id);
        match &entry.parent {
            None => self.direct.insert(id.clone(), &entry.selectors),
            Some(parent) => {
                self.children(parent.as_str(), parent.is_pattern()).insert(id.clone());
            }
        }
        self.entries.insert(id, entry);
    }

    fn children(&mut self, parent: &str, pattern: bool) -> &mut BTreeSet<String> {
        if pattern {
            self.by_pattern.entry(parent.to_owned()).or_default()
        } else {
            self.by_parent.entry(parent.to_owned()).or_default()
        }
    }

    /// Takes an entry out.
    pub fn remove(&mut self, id: &str) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        match &entry.parent {
            None => self.direct.remove(&id.to_owned(), &entry.selectors),
            Some(parent) => {
                self.children(parent.as_str(), parent.is_pattern()).remove(id);
                self.by_parent.retain(|p, ids| p != parent.as_str() || !ids.is_empty());
                self.by_pattern.retain(|_, ids| !ids.is_empty());
            }
        }
        Some(entry)
    }

    /// Entries without a parent that fit what attestation found.
    pub fn direct(&self, found: &BTreeSet<Selector>) -> Vec<&Entry> {
        self.direct.matching(found).iter().filter_map(|id| self.entries.get(id)).collect()
    }

    /// Entries that the agent of a node serves.
    pub fn of_node(&self, node: &SpiffeId) -> Vec<&Entry> {
        let one = self.by_parent.get(node.as_str()).into_iter().flatten();
        let covers = |pattern: &str| node.as_str().starts_with(pattern.trim_end_matches('*'));
        let many = self.by_pattern.iter().filter(|(p, _)| covers(p)).flat_map(|(_, ids)| ids);
        one.chain(many).filter_map(|id| self.entries.get(id)).collect()
    }

    /// All templates.
    pub fn templates(&self) -> impl Iterator<Item = &EntryTemplate> {
        self.templates.values()
    }

    /// Adds or replaces a template.
    pub fn insert_template(&mut self, template: EntryTemplate) {
        let name = template.spiffe_id.as_str().to_owned();
        self.remove_template(&name);
        self.template_index.insert(name.clone(), &template.prototype.selectors);
        self.templates.insert(name, template);
    }

    /// Takes a template out; the entries that it made stay.
    pub fn remove_template(&mut self, name: &str) -> Option<EntryTemplate> {
        let template = self.templates.remove(name)?;
        self.template_index.remove(&name.to_owned(), &template.prototype.selectors);
        Some(template)
    }

    /// Templates that fit what attestation found.
    pub fn fitting_templates(&self, found: &BTreeSet<Selector>) -> Vec<&EntryTemplate> {
        self.template_index.matching(found).iter().filter_map(|name| self.templates.get(name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::{Parent, node_id};
    use crate::domain::people::Seconds;
    use crate::domain::spiffe_id::TrustDomain;

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").expect("legal")
    }

    fn entry(path: &str, parent: Option<&str>, selectors: &[&str]) -> Entry {
        Entry {
            parent: parent.map(|p| Parent::parse(p, &domain()).expect("a parent")),
            selectors: selectors.iter().map(|s| s.parse().expect("a selector")).collect(),
            ..Entry::new(domain().workload(path).expect("legal"), "https://idp#bob".into(), Seconds(3600))
        }
    }

    fn paths(entries: Vec<&Entry>) -> Vec<&str> {
        entries.into_iter().map(|e| e.spiffe_id.path()).collect()
    }

    #[test]
    fn a4_an_agent_is_told_of_its_own_entries_alone() {
        let mut registry = Registry::default();
        registry.insert(entry("/a", Some("spiffe://example.org/popgate/node/n1"), &["unix:uid:1"]));
        registry.insert(entry("/b", Some("spiffe://example.org/popgate/node/n2"), &["unix:uid:1"]));
        registry.insert(entry("/c", Some("spiffe://example.org/popgate/node/k8s/*"), &["unix:uid:1"]));
        registry.insert(entry("/d", None, &["github:repository:a"]));
        let node = |name: &str| node_id(&domain(), name).expect("legal");
        assert_eq!(paths(registry.of_node(&node("n1"))), ["/a"]);
        assert_eq!(paths(registry.of_node(&node("k8s/x"))), ["/c"]);
        assert!(registry.of_node(&node("n3")).is_empty());
        registry.insert(entry("/a", Some("spiffe://example.org/popgate/node/n2"), &["unix:uid:1"]));
        assert!(registry.of_node(&node("n1")).is_empty(), "the entry moved");
        assert_eq!(paths(registry.of_node(&node("n2"))), ["/a", "/b"]);
        let found = ["github:repository:a".parse().expect("a selector")].into();
        assert_eq!(paths(registry.direct(&found)), ["/d"]);
        assert!(registry.remove("spiffe://example.org/d").is_some());
        assert!(registry.direct(&found).is_empty());
        let none = ["unix:uid:1".parse().expect("a selector")].into();
        assert!(registry.direct(&none).is_empty(), "an agent's entries are nobody else's");
    }
}
