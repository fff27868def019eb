//! Entries, people and join tokens.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::people::{Entry, Person, Role, Seconds, is_person_id};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationKind;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::{SpiffeId, is_segment};
use crate::domain::time::{Span, Timestamp, format_duration};
use crate::store::entries::ChangeError;
use crate::store::entropy;

/// Shortest and longest life of a certificate that an entry may ask for.
const SVID_TTL: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(4));
const JOIN_TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_hours(24));

/// An entry as people write it: lives as `"1h"`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryForm {
    spiffe_id: String,
    owner: String,
    #[serde(default)]
    sponsor: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    operations: Vec<String>,
    #[serde(default)]
    svid_ttl: Option<Span>,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    other_keys: bool,
    #[serde(default)]
    nonce_required: bool,
    #[serde(default)]
    expires_at: Option<String>,
}

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
    entry: Vec<EntryForm>,
    #[serde(default)]
    person: Vec<PersonForm>,
}

/// What `join-token create` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinForm {
    spiffe_id: String,
    #[serde(default)]
    ttl: Option<Span>,
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(400, "input", detail)
}

fn change(error: ChangeError) -> Refusal {
    match error {
        ChangeError::Exists(what) => {
            Refusal::new(409, "exists", format!("{what} exists already; delete it first, or choose another"))
        }
        ChangeError::Unavailable(e) => e.into(),
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

impl Console {
    fn spiffe_id(&self, text: &str) -> Result<SpiffeId, Refusal> {
        let id: SpiffeId = text.parse().map_err(|e| bad(format!("{text:?} is not a SPIFFE ID: {e}")))?;
        if !id.is_member_of(&self.trust_domain) {
            return Err(bad(format!("{id} is not of trust domain {}", self.trust_domain)));
        }
        Ok(id)
    }

    fn entry(&self, form: EntryForm) -> Result<Entry, Refusal> {
        let spiffe_id = self.spiffe_id(&form.spiffe_id)?;
        if spiffe_id.is_reserved() {
            return Err(bad("paths below /popgate are kept for popgate's own identities"));
        }
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
        let ttl = form.svid_ttl.map_or(self.default_ttl, |t| t.0);
        if ttl < SVID_TTL.0 || ttl > SVID_TTL.1 {
            return Err(bad(format!(
                "svid_ttl is from {} to {}",
                format_duration(SVID_TTL.0),
                format_duration(SVID_TTL.1)
            )));
        }
        if let Some(name) = form.dns_names.iter().find(|n| !is_dns_name(n)) {
            return Err(bad(format!(
                "dns name {name:?}: write a full name in lower case, without wildcard or final dot"
            )));
        }
        if let Some(name) = form.dns_names.iter().find(|n| self.server_names.contains(n)) {
            return Err(bad(format!("{name} is a name of popgate's own servers")));
        }
        let expires_at = form
            .expires_at
            .as_deref()
            .map(|t| Timestamp::parse_rfc3339(t).ok_or_else(|| bad("expires_at is a time as in 2030-01-31T12:00:00Z")))
            .transpose()?;
        Ok(Entry {
            spiffe_id,
            owner: form.owner,
            sponsor: form.sponsor,
            groups: form.groups,
            operations: form.operations,
            svid_ttl: Seconds(ttl.as_secs()),
            dns_names: form.dns_names,
            other_keys: form.other_keys,
            nonce_required: form.nonce_required,
            expires_at,
        })
    }

    /// Creates an entry.
    pub async fn create_entry(&self, actor: &Actor, form: EntryForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let entry = self.entry(form)?;
        self.stores.entries.create(&entry).await.map_err(change)?;
        self.log_registration(actor, "entry", "create", entry.spiffe_id.as_str()).await?;
        Ok(json!(entry))
    }

    /// Removes an entry: its workload gets no certificate and no token any more, and its requests are refused.
    pub async fn delete_entry(&self, actor: &Actor, id: &str) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let id = self.spiffe_id(id)?;
        if self.stores.entries.get(&id).is_none() {
            return Err(Refusal::new(404, "not-found", format!("there is no entry {id}")));
        }
        self.forget(actor, &id).await?;
        self.stores.entries.delete(&id).await?;
        // Again, for what was issued in between.
        self.forget(actor, &id).await?;
        self.log_registration(actor, "entry", "delete", id.as_str()).await?;
        Ok(json!({"deleted": id}))
    }

    /// Voids the open join tokens and stops the live certificates of a name, so that they never serve whoever is
    /// registered under it next.
    async fn forget(&self, actor: &Actor, id: &SpiffeId) -> Result<(), Refusal> {
        self.stores.join_tokens.void(id).await?;
        let now = self.stores.clock.now();
        let revoked = self.stores.revocations.watch().borrow().clone();
        for (serial, end) in self.stores.issued.live(id, now).await? {
            if !revoked.names_until(RevocationKind::Serial, &serial, end) {
                let reason = "its registration was deleted".to_owned();
                self.stop(actor, RevocationKind::Serial, serial, reason, Some(end)).await?;
            }
        }
        Ok(())
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
        let (token, expires_at) = self.join_token(&id, JOIN_TTL.1.min(Duration::from_mins(10))).await?;
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
        let entries = form.entry.into_iter().map(|e| self.entry(e)).collect::<Result<Vec<_>, _>>()?;
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
            self.stores.entries.put(entry).await?;
            self.log_registration(actor, "entry", "put", entry.spiffe_id.as_str()).await?;
        }
        Ok(json!({"entries": entries.len(), "people": people.len()}))
    }

    /// Makes a one-time join token for a registered identity.
    pub async fn create_join_token(&self, actor: &Actor, form: JoinForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let id = self.spiffe_id(&form.spiffe_id)?;
        let known = match id.person_name() {
            Some(name) => self.stores.people.by_name(name).is_some(),
            None => self.stores.entries.get(&id).is_some(),
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
        let token = JoinToken::new(hex::encode(entropy::random::<32>()), self.pin);
        let expires_at = self.stores.clock.now().plus(ttl);
        self.stores.join_tokens.create(token.digest(), id, expires_at).await?;
        Ok((token, expires_at))
    }
}
