//! Registration entries and templates: created, imported whole, compared.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::registry::{bad, change};
use crate::console::server::Console;
use crate::domain::id_template::{EntryTemplate, IdTemplate};
use crate::domain::node::Parent;
use crate::domain::people::{Entry, Role, Seconds, is_person_id};
use crate::domain::refusal::Refusal;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::{Span, Timestamp, format_duration};

/// Longest life of a JWT-SVID that an entry may ask for.
const LONGEST_JWT: Duration = Duration::from_hours(1);

/// An entry as people write it: lives as `"1h"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EntryForm {
    /// With `{TYPE:NAME}` in it, a template.
    pub spiffe_id: String,
    pub owner: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svid_ttl: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt_svid_ttl: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_lineage: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other_keys: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub may_act: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nonce_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

impl EntryForm {
    /// How an entry is written.
    fn of(entry: &Entry) -> Self {
        Self {
            spiffe_id: entry.spiffe_id.to_string(),
            owner: entry.owner.clone(),
            parent: entry.parent.as_ref().map(|p| p.as_str().to_owned()),
            selectors: entry.selectors.iter().map(ToString::to_string).collect(),
            sponsor: entry.sponsor.clone(),
            groups: entry.groups.clone(),
            operations: entry.operations.clone(),
            svid_ttl: Some(Span(entry.svid_ttl.duration())),
            jwt_svid_ttl: entry.jwt_svid_ttl.map(|t| Span(t.duration())),
            hint: entry.hint.clone(),
            dns_names: entry.dns_names.clone(),
            downstream: entry.downstream,
            keep_lineage: entry.keep_lineage,
            other_keys: entry.other_keys,
            may_act: entry.may_act.as_ref().map(ToString::to_string),
            nonce_required: entry.nonce_required,
            expires_at: entry.expires_at.map(Timestamp::rfc3339),
        }
    }

    /// How a template is written.
    fn of_template(template: &EntryTemplate) -> Self {
        Self { spiffe_id: template.spiffe_id.as_str().to_owned(), ..Self::of(&template.prototype) }
    }
}

/// A checked entry or template.
pub(super) enum Checked {
    Entry(Box<Entry>),
    Template(Box<EntryTemplate>),
}

impl Checked {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Entry(entry) => entry.spiffe_id.as_str(),
            Self::Template(template) => template.spiffe_id.as_str(),
        }
    }
}

/// RFC 1123 labels in lower case; what looks like an address is none.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let numeric = |l: &str| l.bytes().all(|b| b.is_ascii_digit()) || l.starts_with("0x");
    name.len() <= 253 && name.split('.').all(label) && !name.rsplit('.').next().is_none_or(numeric)
}

fn reserved() -> Refusal {
    bad("paths below /popgate are kept for popgate's own identities")
}

fn between(name: &str, life: Duration, (least, most): (Duration, Duration)) -> Result<Seconds, Refusal> {
    if (least..=most).contains(&life) {
        return Ok(Seconds(life.as_secs()));
    }
    Err(bad(format!("{name} is from {} to {}", format_duration(least), format_duration(most))))
}

impl Console {
    /// Holds an entry or template to the rules; changes nothing.
    pub(super) fn check_entry(&self, form: EntryForm) -> Result<Checked, Refusal> {
        if !IdTemplate::is_template(&form.spiffe_id) {
            let spiffe_id = self.registrable(&form.spiffe_id)?;
            return Ok(Checked::Entry(Box::new(self.entry(spiffe_id, form)?)));
        }
        let template = IdTemplate::parse(&form.spiffe_id);
        let template = template.map_err(|e| bad(format!("template {:?}: {e}", form.spiffe_id)))?;
        // With a harmless value in each field it must be an ID that may be registered.
        let sample: Vec<&str> = form.spiffe_id.split('/').map(|s| if s.contains('{') { "x" } else { s }).collect();
        // Of ours alone: another trust domain issues for its workloads itself.
        if self.spiffe_id(&sample.join("/"))?.is_reserved() {
            return Err(reserved());
        }
        if form.selectors.is_empty() || form.parent.is_some() {
            return Err(bad(
                "a template has selectors and no parent: its workloads attest by a token of their platform",
            ));
        }
        let placeholder = self.spiffe_id(&format!("{}/popgate/template", self.trust_domain.id()))?;
        let prototype = self.entry(placeholder, form)?;
        Ok(Checked::Template(Box::new(EntryTemplate { spiffe_id: template, prototype })))
    }

    fn registrable(&self, text: &str) -> Result<SpiffeId, Refusal> {
        let spiffe_id = self.spiffe_id_or_federated(text)?;
        if spiffe_id.is_reserved() {
            return Err(reserved());
        }
        Ok(spiffe_id)
    }

    fn entry(&self, spiffe_id: SpiffeId, form: EntryForm) -> Result<Entry, Refusal> {
        for person in std::iter::once(&form.owner).chain(&form.sponsor) {
            if !is_person_id(person) {
                return Err(bad(format!("{person:?} does not name a person: write issuer#subject")));
            }
        }
        if let Some(odd) =
            form.operations.iter().find(|o| o.is_empty() || o.trim_end_matches('*').contains(['*', ' ', '"', '\\']))
        {
            return Err(bad(format!("operation {odd:?}: write a name, with `*` at the end only")));
        }
        self.check_dns_names(&form.dns_names)?;
        let hint = form.hint.filter(|h| !h.is_empty());
        if hint.as_ref().is_some_and(|h| h.len() > 256 || h.chars().any(char::is_control)) {
            return Err(bad("hint is one line of at most 256 bytes"));
        }
        let parent =
            form.parent.map(|p| Parent::parse(&p, &self.trust_domain).map_err(|e| bad(format!("parent {p:?}: {e}"))));
        let parent = parent.transpose()?;
        let selector = |s: &String| s.parse::<Selector>().map_err(|e| bad(format!("selector {s:?}: {e}")));
        let mut selectors = form.selectors.iter().map(selector).collect::<Result<Vec<_>, _>>()?;
        selectors.sort();
        selectors.dedup();
        if parent.is_some() && selectors.is_empty() {
            return Err(bad("an entry with a parent needs selectors: without them no workload of that node is meant"));
        }
        if !spiffe_id.is_member_of(&self.trust_domain) && (parent.is_some() || !selectors.is_empty() || form.downstream)
        {
            return Err(bad(format!(
                "{spiffe_id} gets its certificates from its own trust domain: no parent and no selectors"
            )));
        }
        let time =
            |t: &str| Timestamp::parse_rfc3339(t).ok_or_else(|| bad("expires_at is a time as in 2030-01-31T12:00:00Z"));
        let expires_at = form.expires_at.as_deref().map(time).transpose()?;
        let jwt = |t: Span| between("jwt_svid_ttl", t.0, (Duration::from_secs(10), LONGEST_JWT));
        let svid_ttl = between("svid_ttl", form.svid_ttl.map_or(self.default_ttl, |t| t.0), self.svid_bounds)?;
        Ok(Entry {
            parent,
            selectors,
            sponsor: form.sponsor,
            groups: form.groups,
            operations: form.operations,
            jwt_svid_ttl: form.jwt_svid_ttl.map(jwt).transpose()?,
            hint,
            downstream: form.downstream,
            keep_lineage: form.keep_lineage,
            dns_names: form.dns_names,
            other_keys: form.other_keys,
            may_act: form.may_act.as_deref().map(|id| self.registrable(id)).transpose()?,
            nonce_required: form.nonce_required,
            expires_at,
            ..Entry::new(spiffe_id, form.owner, svid_ttl)
        })
    }

    fn check_dns_names(&self, names: &[String]) -> Result<(), Refusal> {
        if let Some(name) = names.iter().find(|n| !is_dns_name(n)) {
            return Err(bad(format!(
                "dns name {name:?}: write a full name in lower case, without wildcard or final dot"
            )));
        }
        match names.iter().find(|n| self.server_names.contains(n)) {
            Some(name) => Err(bad(format!("{name} is a name of popgate's own servers"))),
            None => Ok(()),
        }
    }

    /// Creates an entry or a template; with `dry` it is checked alone.
    pub async fn create_entry(&self, actor: &Actor, form: EntryForm, dry: bool) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let checked = self.check_entry(form)?;
        let known = match &checked {
            Checked::Entry(entry) => self.stores.entries.get(&entry.spiffe_id).is_some(),
            Checked::Template(template) => {
                self.stores.templates.list().iter().any(|t| t.spiffe_id == template.spiffe_id)
            }
        };
        if known {
            return Err(change(crate::store::entries::ChangeError::Exists(format!("the entry {}", checked.name()))));
        }
        let shown = match &checked {
            Checked::Entry(entry) => json!(entry),
            Checked::Template(template) => json!(template),
        };
        if dry {
            return Ok(json!({"would_create": shown}));
        }
        match &checked {
            Checked::Entry(entry) => self.stores.entries.create(entry).await.map_err(change)?,
            Checked::Template(template) => self.stores.templates.put(template).await?,
        }
        self.log_registration(actor, "entry", "create", checked.name()).await?;
        Ok(shown)
    }

    /// Removes an entry: its workload gets no certificate and no token any more, and its requests are refused. With a
    /// template go the entries that it made.
    pub async fn delete_entry(&self, actor: &Actor, id: &str) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        if IdTemplate::is_template(id) {
            return self.delete_template(actor, id).await;
        }
        let id: SpiffeId = id.parse().map_err(|e| bad(format!("{id:?} is not a SPIFFE ID: {e}")))?;
        if self.stores.entries.get(&id).is_none() {
            return Err(Refusal::new(404, "not-found", format!("there is no entry {id}")));
        }
        self.remove(actor, &id).await?;
        Ok(json!({"deleted": id}))
    }

    async fn remove(&self, actor: &Actor, id: &SpiffeId) -> Result<(), Refusal> {
        self.forget(actor, id).await?;
        self.stores.entries.delete(id).await?;
        // Again, for what was issued in between.
        self.forget(actor, id).await?;
        self.log_registration(actor, "entry", "delete", id.as_str()).await
    }

    async fn delete_template(&self, actor: &Actor, name: &str) -> Result<Value, Refusal> {
        let known = self.stores.templates.delete(name).await?;
        let made = |e: &Entry| e.template.as_deref() == Some(name);
        let made: Vec<Entry> = self.stores.entries.list().into_iter().filter(made).collect();
        if !known && made.is_empty() {
            return Err(Refusal::new(404, "not-found", format!("there is no template {name}")));
        }
        for entry in &made {
            self.remove(actor, &entry.spiffe_id).await?;
        }
        self.log_registration(actor, "entry", "delete", name).await?;
        Ok(json!({"deleted": name, "entries": made.iter().map(|e| &e.spiffe_id).collect::<Vec<_>>()}))
    }

    /// A template by its name.
    pub fn template(&self, name: &str) -> Option<Value> {
        self.stores.templates.list().iter().find(|t| t.spiffe_id.as_str() == name).map(|t| json!(t))
    }

    /// All entries and templates, as `entry import` reads them; what templates made is left out.
    pub fn export_entries(&self, actor: &Actor) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        Ok(json!({"entry": self.written()}))
    }

    fn written(&self) -> Vec<EntryForm> {
        let entries = self.stores.entries.list();
        let own = entries.iter().filter(|e| e.template.is_none()).map(EntryForm::of);
        own.chain(self.stores.templates.list().iter().map(EntryForm::of_template)).collect()
    }

    /// What an import would change: entries that it would add, those it would alter, with each member, and those that it
    /// does not mention. Changes nothing.
    pub fn compare_entries(&self, actor: &Actor, forms: Vec<EntryForm>) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        let present = self.written();
        let (mut added, mut changed, mut same) = (Vec::new(), Vec::new(), 0);
        let mut mentioned = Vec::new();
        for form in forms {
            let wanted = match self.check_entry(form)? {
                Checked::Entry(entry) => EntryForm::of(&entry),
                Checked::Template(template) => EntryForm::of_template(&template),
            };
            mentioned.push(wanted.spiffe_id.clone());
            match present.iter().find(|p| p.spiffe_id == wanted.spiffe_id) {
                None => added.push(json!(wanted)),
                Some(there) if *there == wanted => same += 1,
                Some(there) => changed.push(difference(there, &wanted)),
            }
        }
        let absent: Vec<&str> =
            present.iter().map(|p| p.spiffe_id.as_str()).filter(|id| !mentioned.iter().any(|m| m == id)).collect();
        Ok(json!({"added": added, "changed": changed, "unchanged": same, "only_here": absent}))
    }
}

/// Each member that differs, as it is and as it would be.
fn difference(there: &EntryForm, wanted: &EntryForm) -> Value {
    let (there, wanted) = (json!(there), json!(wanted));
    let (empty, mut members) = (serde_json::Map::new(), serde_json::Map::new());
    let (old, new) = (there.as_object().unwrap_or(&empty), wanted.as_object().unwrap_or(&empty));
    for name in old.keys().chain(new.keys()).filter(|n| old.get(*n) != new.get(*n)) {
        members.insert(name.clone(), json!({"here": old.get(name), "file": new.get(name)}));
    }
    json!({"spiffe_id": wanted["spiffe_id"], "members": members})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a4_a_difference_names_each_member_with_both_values() {
        let there = EntryForm { spiffe_id: "spiffe://e/a".into(), groups: vec!["x".into()], ..EntryForm::default() };
        let wanted = EntryForm { groups: vec![], hint: Some("h".into()), ..there.clone() };
        let shown = difference(&there, &wanted);
        assert_eq!(
            shown["members"],
            json!({"groups": {"here": ["x"], "file": null}, "hint": {"here": null, "file": "h"}})
        );
    }
}
