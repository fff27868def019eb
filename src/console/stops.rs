//! Revocation and offboarding, with receipts.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::leaf::{Event, Leaf, Staged};
use crate::domain::people::{Role, is_person_id};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::{Revocation, RevocationKind};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::entropy;
use crate::store::revocations::NewRevocation;

/// What `revoke` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeForm {
    kind: String,
    value: String,
    reason: String,
    #[serde(default)]
    until: Option<String>,
}

/// What `offboard` asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffboardForm {
    person: String,
    #[serde(default)]
    reason: Option<String>,
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(400, "input", detail)
}

impl Console {
    /// Stops something; when this answers, no request of it passes any more and its open streams are being cut.
    pub async fn revoke(&self, actor: &Actor, form: RevokeForm) -> Result<Value, Refusal> {
        use strum::VariantNames as _;
        actor.need(Role::Admin)?;
        let kind: RevocationKind = form
            .kind
            .parse()
            .map_err(|_| bad(format!("kind {:?} is not one of: {}", form.kind, RevocationKind::VARIANTS.join(", "))))?;
        check_value(kind, &form.value)?;
        if form.reason.trim().is_empty() {
            return Err(bad("a reason is needed: it is what the log tells others later"));
        }
        let until = form
            .until
            .as_deref()
            .map(|t| Timestamp::parse_rfc3339(t).ok_or_else(|| bad("until is a time as in 2030-01-31T12:00:00Z")))
            .transpose()?;
        self.stop(actor, kind, form.value, form.reason, until).await
    }

    async fn stop(
        &self,
        actor: &Actor,
        kind: RevocationKind,
        value: String,
        reason: String,
        until: Option<Timestamp>,
    ) -> Result<Value, Refusal> {
        let new = NewRevocation { kind, value, reason, by: actor.name(), until };
        let revocation = self.stores.revocations.add(&new, self.stores.clock.now()).await?;
        let effective = self.stores.clock.now();
        let index = self.log_stop(&revocation).await?;
        metrics::counter!("popgate_revocations_total", "kind" => kind.to_string()).increment(1);
        tracing::warn!(kind = %kind, value = revocation.value, by = revocation.by, "revoked");
        Ok(json!({
            "revocation": view(&revocation),
            "receipt": {"index": index, "replicas": [{"replica": "this", "effective_at": effective.rfc3339()}]},
        }))
    }

    async fn log_stop(&self, revocation: &Revocation) -> Result<u64, Refusal> {
        let [value, reason, by] =
            [&revocation.value, &revocation.reason, &revocation.by].map(|v| entropy::seal(v.clone()));
        let event = Event::Revoked {
            id: revocation.id,
            subject: revocation.kind,
            value: value.commitment(),
            reason: reason.commitment(),
            by: by.commitment(),
            until: revocation.until,
        };
        let openings = [("value".to_owned(), value), ("reason".to_owned(), reason), ("by".to_owned(), by)].into();
        Ok(self.stores.evidence.append(Staged { leaf: Leaf { time: revocation.at, event }, openings }).await?)
    }

    /// Stops a person and every workload that names them as owner, for good.
    pub async fn offboard(&self, actor: &Actor, form: OffboardForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        check_value(RevocationKind::Person, &form.person)?;
        let owned: Vec<SpiffeId> =
            self.stores.entries.list().into_iter().filter(|e| e.owner == form.person).map(|e| e.spiffe_id).collect();
        let reason = form.reason.unwrap_or_else(|| "offboarded".into());
        let mut receipt = self.stop(actor, RevocationKind::Person, form.person.clone(), reason, None).await?;
        receipt["person"] = form.person.into();
        receipt["workloads"] = json!(owned);
        Ok(receipt)
    }

    /// Stops in force.
    pub async fn list_revocations(&self, actor: &Actor) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        Ok(self.stores.revocations.list().await?.iter().map(view).collect())
    }

    /// Lifts a stop.
    pub async fn lift(&self, actor: &Actor, id: i64) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let lifted = self.stores.revocations.lift(id, &actor.name(), self.stores.clock.now()).await?;
        let lifted = lifted.ok_or_else(|| Refusal::new(404, "not-found", format!("no revocation {id} is in force")))?;
        let by = entropy::seal(actor.name());
        let event = Event::Lifted { id, by: by.commitment() };
        let openings = [("by".to_owned(), by)].into();
        let index = self
            .stores
            .evidence
            .append(Staged { leaf: Leaf { time: self.stores.clock.now(), event }, openings })
            .await?;
        Ok(json!({"lifted": view(&lifted), "receipt": {"index": index}}))
    }
}

fn check_value(kind: RevocationKind, value: &str) -> Result<(), Refusal> {
    let sound = match kind {
        RevocationKind::SpiffeId => value.parse::<SpiffeId>().is_ok(),
        RevocationKind::Person => is_person_id(value),
        RevocationKind::Serial => {
            !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        }
        RevocationKind::Jkt => value.parse::<crate::domain::key::Jkt>().is_ok(),
        RevocationKind::Jti | RevocationKind::Group => !value.is_empty() && !value.chars().any(char::is_control),
    };
    if sound { Ok(()) } else { Err(bad(format!("{value:?} is not a {kind}"))) }
}

fn view(revocation: &Revocation) -> Value {
    json!({
        "id": revocation.id,
        "kind": revocation.kind,
        "value": revocation.value,
        "reason": revocation.reason,
        "by": revocation.by,
        "at": revocation.at.rfc3339(),
        "until": revocation.until.map(Timestamp::rfc3339),
    })
}
