//! The queue of requests that wait for people.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::approval::{Approval, ApprovalState, may_approve};
use crate::domain::people::Role;
use crate::domain::refusal::Refusal;
use crate::store::approvals::Step;

/// How long the requester has to come back once approved.
const TO_CONSUME: Duration = Duration::from_mins(5);

/// What a person says to a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecideForm {
    /// True to approve, false to deny.
    approve: bool,
    /// Why.
    #[serde(default)]
    reason: String,
}

impl Console {
    /// The queue, newest first.
    pub async fn list_approvals(&self, actor: &Actor, all: bool) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        let now = self.stores.clock.now();
        let approvals = self.stores.approvals.list(!all).await?;
        Ok(approvals.iter().filter(|a| all || a.expires_at > now).map(view).collect())
    }

    /// One approval with its bound content.
    pub async fn show_approval(&self, actor: &Actor, id: &str) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        Ok(view(&self.approval(id).await?))
    }

    async fn approval(&self, id: &str) -> Result<Approval, Refusal> {
        let found = self.stores.approvals.get(id).await?;
        found.ok_or_else(|| Refusal::new(404, "not-found", format!("there is no approval {id}")))
    }

    /// A person approves or denies. Denied is final; an approval is good for one request, for five minutes.
    pub async fn decide(&self, actor: &Actor, id: &str, form: DecideForm) -> Result<Value, Refusal> {
        actor.need(Role::Approver)?;
        let Actor::Person { person, serial, .. } = actor else {
            return Err(Refusal::new(403, "role", "only a person decides"));
        };
        // One decision at a time: a leaf is written only for the one that takes effect.
        let _deciding = self.deciding.lock().await;
        // Who was stopped while this waited decides nothing.
        actor.stands(&self.stores)?;
        let approval = self.approval(id).await?;
        may_approve(person, &approval).map_err(|e| Refusal::new(403, "not-eligible", e.to_string()))?;
        let now = self.stores.clock.now();
        if approval.state != ApprovalState::Pending {
            return Err(Refusal::new(409, "decided", format!("the request is {} already", approval.state)));
        }
        let decided = Some((person.id.clone(), format!("certificate:{serial}"), form.reason));
        let (to, expires_at) = if approval.expires_at <= now {
            (ApprovalState::Expired, approval.expires_at)
        } else if form.approve {
            (ApprovalState::Approved, now.plus(TO_CONSUME))
        } else {
            (ApprovalState::Denied, now)
        };
        // The leaf comes before the state: nothing may consume an approval that the log does not have.
        let mut next = Approval { state: to, decided_by: Some(person.id.clone()), ..approval };
        next.proved_by = Some(format!("certificate:{serial}"));
        self.stores.log_approval(&next).await?;
        let step = Step { from: ApprovalState::Pending, to, expires_at, decided };
        let changed = self.stores.approvals.step(id, &step).await?;
        let changed = changed.ok_or_else(|| Refusal::new(409, "decided", "somebody else decided first"))?;
        if to == ApprovalState::Expired {
            return Err(Refusal::new(
                409,
                "approval-expired",
                "the time to decide has passed; the requester must ask again",
            ));
        }
        tracing::info!(approval = id, state = %changed.state, person = person.id, "approval decided");
        metrics::counter!("popgate_approvals_decided_total", "state" => changed.state.to_string()).increment(1);
        Ok(view(&changed))
    }
}

fn view(approval: &Approval) -> Value {
    json!({
        "id": approval.id,
        "state": approval.state,
        "requester": approval.requester,
        "operation": approval.shown.operation,
        "object": approval.shown.object,
        "method": approval.shown.method,
        "url": approval.shown.url,
        "content_type": approval.shown.content_type,
        "headers": approval.shown.headers.iter().map(|(n, v)| format!("{n}: {v}")).collect::<Vec<_>>(),
        "body": approval.shown.body,
        "on_behalf": approval.shown.on_behalf,
        "groups": approval.shown.groups,
        "rule": approval.rule,
        "policy_version": approval.policy_version,
        "group": approval.group,
        "request_sha256": approval.request_sha256,
        "created_at": approval.created_at.rfc3339(),
        "expires_at": approval.expires_at.rfc3339(),
        "decided_by": approval.decided_by,
        "proved_by": approval.proved_by,
        "reason": approval.reason,
        "if_nobody_decides": "the request expires and is not carried out",
    })
}
