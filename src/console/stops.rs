//! Revocation and offboarding, with receipts.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::approval::{Approval, ApprovalState};
use crate::domain::id_template::IdTemplate;
use crate::domain::leaf::{Event, Leaf, Staged};
use crate::domain::people::{Role, is_person_id};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::{Revocation, RevocationKind, RevocationSet, Subject};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::approvals::Step;
use crate::store::issued::Of;
use crate::store::revocations::{NewRevocation, Stopper};
use crate::store::{Unavailable, entropy};

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

/// The change is made and the rest of its work is not: say so, for "try again" alone would hide that it is in force.
pub(super) fn in_force(error: Unavailable) -> Refusal {
    let detail = format!("the change is in force, but {} did not take its record; see the service's log", error.part);
    Refusal { retry_after: Some(1), ..Refusal::new(503, "unrecorded", detail) }.because(error)
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
        let value = canonical(kind, &form.value)?;
        if form.reason.trim().is_empty() {
            return Err(bad("a reason is needed: it is what the log tells others later"));
        }
        let until = form
            .until
            .as_deref()
            .map(|t| Timestamp::parse_rfc3339(t).ok_or_else(|| bad("until is a time as in 2030-01-31T12:00:00Z")))
            .transpose()?;
        if until.is_some_and(|t| t <= self.stores.clock.now()) {
            return Err(bad("until is in the past: nothing would be stopped"));
        }
        if until.is_some() && kind == RevocationKind::Person {
            return Err(bad("a person's stop has no until: it is lifted by a person"));
        }
        let receipt = self
            .stop_subject(NewRevocation { kind, value: value.clone(), reason: form.reason, by: actor.name(), until })
            .await?;
        if kind == RevocationKind::Node {
            // What came through it is in many hands that know nothing of nodes: each certificate is stopped to its end.
            let node: SpiffeId = value.parse().map_err(|e| bad(format!("{value:?}: {e}")))?;
            self.stop_certificates(actor, Of::Node(&node), "its node was revoked").await?;
        }
        Ok(receipt)
    }

    /// Stops a subject and voids the open approvals that it asked for or decided.
    pub(super) async fn stop_subject(&self, new: NewRevocation) -> Result<Value, Refusal> {
        let kind = new.kind;
        let revocation = self.stores.revocations.add(&new, self.stores.clock.now()).await?;
        let effective = self.stores.clock.now();
        let index = self.stores.log_stop(&revocation).await;
        let withdrawn = self.withdraw(&revocation).await;
        metrics::counter!("popgate_revocations_total", "kind" => kind.to_string()).increment(1);
        tracing::warn!(kind = %kind, value = revocation.value, by = revocation.by, "revoked");
        let (index, withdrawn) = (index.map_err(in_force)?, withdrawn.map_err(in_force)?);
        Ok(json!({
            "revocation": view(&revocation),
            "withdrawn_approvals": withdrawn,
            "receipt": {"index": index, "replicas": [{"replica": "this", "effective_at": effective.rfc3339()}]},
        }))
    }

    /// Voids the open approvals of a requester or approver that has been stopped.
    async fn withdraw(&self, revocation: &Revocation) -> Result<Vec<String>, Unavailable> {
        // No decision may fall between a look at an approval and its step.
        let _deciding = self.deciding.lock().await;
        let now = self.stores.clock.now();
        let set = RevocationSet::new(revocation.id, std::slice::from_ref(revocation));
        let (mut withdrawn, mut failed) = (Vec::new(), None);
        for open in self.stores.approvals.list(true).await? {
            let requester = self.requester(&open).await?;
            let stopped = |subject: &Subject| set.stops(subject, now).is_some();
            if !stopped(&requester) && !self.approver(&open).as_ref().is_some_and(stopped) {
                continue;
            }
            let step = Step { from: open.state, to: ApprovalState::Withdrawn, expires_at: now, decided: None };
            if let Some(void) = self.stores.approvals.step(&open.id, &step).await? {
                // One that cannot be logged keeps none of the others open.
                failed = self.stores.log_approval(&void).await.err().or(failed);
                withdrawn.push(void.id);
            }
        }
        failed.map_or(Ok(withdrawn), Err)
    }

    async fn requester(&self, approval: &Approval) -> Result<Subject, Unavailable> {
        let entry = self.stores.entries.get(&approval.requester);
        let certificate = self.stores.issued.by_key(&approval.requester, approval.jkt).await?;
        let itself = entry.as_ref().map_or_else(|| Subject::of(&approval.requester), Subject::workload);
        let subject = Subject {
            serial: certificate.map(|c| c.serial),
            jkt: Some(approval.jkt),
            groups: itself.groups.iter().chain(&approval.shown.groups).cloned().collect(),
            ..itself
        };
        let parties = approval.shown.on_behalf.clone();
        let registered = |id: &SpiffeId| self.stores.entries.get(id);
        let acting = subject.clone().acting_for(parties, approval.created_at, registered);
        // Of a party whose registration is gone only the name is left.
        Ok(acting.unwrap_or_else(|| Subject { on_behalf: approval.shown.on_behalf.clone(), ..subject }))
    }

    fn approver(&self, approval: &Approval) -> Option<Subject> {
        let person = self.stores.people.by_id(approval.decided_by.as_ref()?)?;
        Some(Subject::approver(approval, &person))
    }

    /// Stops a person and every workload that names them as owner, for good.
    pub async fn offboard(&self, actor: &Actor, form: OffboardForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        canonical(RevocationKind::Person, &form.person)?;
        let known = self.stores.people.by_id(&form.person).is_some()
            || self.stores.entries.list().iter().any(|e| e.owner == form.person);
        if !known {
            return Err(Refusal::new(
                404,
                "not-found",
                format!("no person and no owner of a workload here is {}; see `popgate person list`", form.person),
            ));
        }
        let owned: Vec<SpiffeId> =
            self.stores.entries.list().into_iter().filter(|e| e.owner == form.person).map(|e| e.spiffe_id).collect();
        let reason = form.reason.unwrap_or_else(|| "offboarded".into());
        let (kind, value) = (RevocationKind::Person, form.person.clone());
        let mut receipt =
            self.stop_subject(NewRevocation { kind, value, reason, by: actor.name(), until: None }).await?;
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
        let leaf = Leaf { time: self.stores.clock.now(), event };
        let index = self.stores.evidence.append(Staged { leaf, openings }).await.map_err(in_force)?;
        Ok(json!({"lifted": view(&lifted), "receipt": {"index": index}}))
    }
}

#[async_trait]
impl Stopper for Console {
    async fn stop(&self, new: NewRevocation) -> Result<u64, Refusal> {
        let receipt = self.stop_subject(new).await?;
        Ok(receipt["receipt"]["index"].as_u64().unwrap_or_default())
    }
}

/// The subject as the ledger and everybody else writes it.
fn canonical(kind: RevocationKind, value: &str) -> Result<String, Refusal> {
    let id = |text: &str| text.parse::<SpiffeId>().ok();
    let plain = |sound: bool| sound.then(|| value.to_owned());
    let found = match kind {
        RevocationKind::SpiffeId => id(value).map(|id| id.to_string()),
        RevocationKind::Node => id(value).filter(|id| id.node_name().is_some()).map(|id| id.to_string()),
        RevocationKind::Entry => id(value).map(|id| id.to_string()).or_else(|| plain(IdTemplate::parse(value).is_ok())),
        RevocationKind::Person | RevocationKind::Session => plain(is_person_id(value)),
        RevocationKind::Serial => {
            let hex = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            plain(hex)
        }
        RevocationKind::Jkt => plain(value.parse::<crate::domain::key::Jkt>().is_ok()),
        RevocationKind::Jti | RevocationKind::Group => plain(!value.is_empty() && !value.chars().any(char::is_control)),
    };
    found.ok_or_else(|| bad(format!("{value:?} is not a {kind}")))
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
