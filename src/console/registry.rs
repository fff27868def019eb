//! People, join tokens, and what an import brings.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::entries::{Checked, EntryForm};
use crate::console::server::Console;
use crate::domain::node::node_id;
use crate::domain::people::{Person, Role, is_person_id};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationKind;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::{SpiffeId, is_segment};
use crate::domain::time::{Span, Timestamp, format_duration};
use crate::store::entries::ChangeError;
use crate::store::entropy;
use crate::store::issued::Of;
use crate::store::revocations::NewRevocation;

const JOIN_TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_hours(24));

/// A person as people write them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersonForm {
    id: String,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    roles: Vec<String>,
}

/// What `entry import` reads.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportForm {
    #[serde(default)]
    pub(super) entry: Vec<EntryForm>,
    #[serde(default)]
    person: Vec<PersonForm>,
}

/// What `join-token create` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinForm {
    #[serde(default)]
    spiffe_id: Option<String>,
    /// A node's name, for an agent.
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    ttl: Option<Span>,
}

pub(super) fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(400, "input", detail)
}

pub(super) fn change(error: ChangeError) -> Refusal {
    match error {
        ChangeError::Exists(what) => {
            Refusal::new(409, "exists", format!("{what} exists already; delete it first, or choose another"))
        }
        ChangeError::Unavailable(e) => e.into(),
    }
}

impl Console {
    pub(super) fn spiffe_id(&self, text: &str) -> Result<SpiffeId, Refusal> {
        let id: SpiffeId = text.parse().map_err(|e| bad(format!("{text:?} is not a SPIFFE ID: {e}")))?;
        if !id.is_member_of(&self.trust_domain) {
            return Err(bad(format!("{id} is not of trust domain {}", self.trust_domain)));
        }
        Ok(id)
    }

    /// Of ours, or of one whose bundle is known: its workloads may be registered here, and ask for tokens.
    pub(super) fn spiffe_id_or_federated(&self, text: &str) -> Result<SpiffeId, Refusal> {
        let id: SpiffeId = text.parse().map_err(|e| bad(format!("{text:?} is not a SPIFFE ID: {e}")))?;
        let federated = self.stores.bundles.list().into_iter().any(|b| id.is_member_of(&b.trust_domain));
        if federated { Ok(id) } else { self.spiffe_id(text) }
    }

    /// Voids the open join tokens and stops the live certificates of a name, so that they never serve whoever is
    /// registered under it next.
    pub(super) async fn forget(&self, actor: &Actor, id: &SpiffeId) -> Result<(), Refusal> {
        self.stores.join_tokens.void(id).await?;
        self.stores.uses.forget(id).await?;
        self.stop_certificates(actor, Of::Identity(id), "its registration was deleted").await
    }

    /// Stops live certificates, each to its end, until none is left: also those issued in between.
    pub(super) async fn stop_certificates(&self, actor: &Actor, of: Of<'_>, reason: &str) -> Result<(), Refusal> {
        loop {
            let now = self.stores.clock.now();
            let revoked = self.stores.revocations.watch().borrow().clone();
            let stopped = |serial: &str, end| revoked.names_until(RevocationKind::Serial, serial, end);
            let mut live = self.stores.issued.live(of, now).await?;
            live.retain(|l| !stopped(&l.serial, l.not_after));
            if live.is_empty() {
                return Ok(());
            }
            for one in live {
                let (kind, until) = (RevocationKind::Serial, Some(one.not_after));
                let (value, reason, by) = (one.serial, reason.to_owned(), actor.name());
                self.stop_subject(NewRevocation { kind, value, reason, by, until }).await?;
            }
        }
    }

    fn person(form: PersonForm) -> Result<Person, Refusal> {
        if !is_person_id(&form.id) {
            return Err(bad(format!("{:?} does not name a person: write issuer#subject", form.id)));
        }
        let subject = form.id.split_once('#').map(|(_, s)| s.to_owned()).unwrap_or_default();
        let name = form.name.unwrap_or(subject);
        if !is_segment(&name) || name.len() > 128 {
            let form = "letters, digits, `.`, `_`, `-`, at most 128";
            return Err(bad(format!("name {name:?} is not one SPIFFE path segment: {form}")));
        }
        let role = |r: &String| {
            use strum::VariantNames as _;
            r.parse::<Role>().map_err(|_| bad(format!("role {r:?} is not one of: {}", Role::VARIANTS.join(", "))))
        };
        let roles = form.roles.iter().map(role).collect::<Result<_, _>>()?;
        Ok(Person { id: form.id, name, groups: form.groups, roles })
    }

    /// Creates a person and the one-time token that `login` turns into a certificate.
    pub async fn create_person(&self, actor: &Actor, form: PersonForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let person = Self::person(form)?;
        self.stores.people.create(&person).await.map_err(change)?;
        self.log_registration(actor, "person", "create", &person.id).await?;
        let id = person.spiffe_id(&self.trust_domain);
        let (token, expires_at) = self.join_token(&id, Duration::from_mins(10)).await?;
        Ok(
            json!({"person": person, "spiffe_id": id, "join_token": token.expose().as_str(), "expires_at": expires_at.rfc3339()}),
        )
    }

    /// Removes a person; their certificate is refused from now on.
    pub async fn delete_person(&self, actor: &Actor, id: &str) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let Some(person) = self.stores.people.by_id(id) else {
            return Err(Refusal::new(404, "not-found", format!("there is no person {id}")));
        };
        let own = person.spiffe_id(&self.trust_domain);
        self.forget(actor, &own).await?;
        self.stores.people.delete(id).await?;
        self.forget(actor, &own).await?;
        self.log_registration(actor, "person", "delete", id).await?;
        Ok(json!({"deleted": id}))
    }

    /// Adds and replaces entries and people; nothing is changed unless all of it is sound.
    pub async fn import(&self, actor: &Actor, form: ImportForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let entries = form.entry.into_iter().map(|e| self.check_entry(e)).collect::<Result<Vec<_>, _>>()?;
        let people = form.person.into_iter().map(Self::person).collect::<Result<Vec<_>, _>>()?;
        for person in &people {
            let action = match self.stores.people.by_id(&person.id) {
                None => {
                    self.stores.people.create(person).await.map_err(change)?;
                    "create"
                }
                Some(known) if known.name != person.name => {
                    return Err(bad(format!("{} is {} here; a person's name does not change", person.id, known.name)));
                }
                Some(_) => {
                    self.stores.people.update(person).await?;
                    "update"
                }
            };
            self.log_registration(actor, "person", action, &person.id).await?;
        }
        for entry in &entries {
            match entry {
                Checked::Entry(entry) => self.stores.entries.put(entry).await?,
                Checked::Template(template) => self.stores.templates.put(template).await?,
            }
            self.log_registration(actor, "entry", "put", entry.name()).await?;
        }
        Ok(json!({"entries": entries.len(), "people": people.len()}))
    }

    /// Makes a one-time join token for a registered identity.
    pub async fn create_join_token(&self, actor: &Actor, form: JoinForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let id = match (&form.spiffe_id, &form.node) {
            (Some(id), None) => self.spiffe_id(id)?,
            (None, Some(name)) => node_id(&self.trust_domain, name)
                .ok_or_else(|| bad(format!("node {name:?} is not one or more SPIFFE path segments")))?,
            _ => return Err(bad("name either a spiffe_id or a node")),
        };
        let known = match id.person_name() {
            Some(name) => self.stores.people.by_name(name).is_some(),
            None => id.node_name().is_some() || self.stores.entries.get(&id).is_some(),
        };
        if !known {
            let first = match id.person_name() {
                Some(name) => format!("`popgate person create ISSUER#SUBJECT --name {name}`"),
                None => format!("`popgate entry create {id} --owner ISSUER#SUBJECT`"),
            };
            return Err(Refusal::new(404, "not-found", format!("{id} is not registered: {first} first")));
        }
        let ttl = form.ttl.map_or(Duration::from_mins(10), |t| t.0);
        if ttl < JOIN_TTL.0 || ttl > JOIN_TTL.1 {
            return Err(bad(format!("ttl is from {} to {}", format_duration(JOIN_TTL.0), format_duration(JOIN_TTL.1))));
        }
        let (token, expires_at) = self.join_token(&id, ttl).await?;
        self.log_registration(actor, "join token", "create", id.as_str()).await?;
        Ok(json!({"join_token": token.expose().as_str(), "spiffe_id": id, "expires_at": expires_at.rfc3339()}))
    }

    async fn join_token(&self, id: &SpiffeId, ttl: Duration) -> Result<(JoinToken, Timestamp), Refusal> {
        let token = JoinToken::new(hex::encode(entropy::random::<32>()), (self.pin)());
        let expires_at = self.stores.clock.now().plus(ttl);
        self.stores.join_tokens.create(token.digest(), id, expires_at).await?;
        Ok((token, expires_at))
    }
}
