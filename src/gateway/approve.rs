//! Verdict → Permit. A permit has one private constructor, here, and `forward` takes it by value.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::domain::approval::{Approval, ApprovalState, Shown, may_approve};
use crate::domain::digest::Sha256;
use crate::domain::intent::Intent;
use crate::domain::leaf::ConsumedApproval;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject;
use crate::domain::time::Timestamp;
use crate::domain::verdict::{ApprovalRule, Decision, Verdict};
use crate::gateway::authenticate::Caller;
use crate::gateway::authorize;
use crate::gateway::config::Access;
use crate::gateway::execution::Execution;
use crate::gateway::headers;
use crate::gateway::inject::Injected;
use crate::gateway::prefer;
use crate::gateway::read::Incoming;
use crate::gateway::routes::{MAX_HOLD, Route, Rules};
use crate::gateway::serve::Gateway;
use crate::protocol::canonical::CanonicalRequest;
use crate::protocol::masking;
use crate::protocol::operation::WebSocket;
use crate::store::approvals::{Asked, Step};
use crate::store::entropy;

/// How long people have to decide.
const TO_APPROVE: Duration = Duration::from_mins(15);

/// The right to forward one request, once.
pub struct Permit {
    verdict: Verdict,
    consumed: Option<ConsumedApproval>,
    execution: Option<Execution>,
    used: Option<Sha256>,
}

impl Permit {
    /// What anybody may do, by a route's own word; none for a route that demands a proof.
    pub fn public(route: &Route, policy_version: &str) -> Option<Self> {
        let verdict = Verdict {
            decision: Decision::Allow,
            rules: Vec::new(),
            policy_version: policy_version.to_owned(),
            fix: None,
            reason: None,
        };
        let permit = Self { verdict, consumed: None, execution: None, used: None };
        (route.access == Access::DangerPublic).then_some(permit)
    }

    /// The decision behind it.
    pub const fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// The approval it consumed.
    pub const fn consumed(&self) -> Option<&ConsumedApproval> {
        self.consumed.as_ref()
    }

    /// The grant of exact operations that a use was taken of.
    pub const fn used(&self) -> Option<Sha256> {
        self.used
    }

    /// The guard of that approval's end, for whoever sees the request through.
    pub const fn take_execution(&mut self) -> Option<Execution> {
        self.execution.take()
    }
}

/// Everything that a permit is decided on.
pub struct Asking<'a> {
    /// Rules in force.
    pub rules: &'a Rules,
    /// Where it goes.
    pub route: &'a Route,
    /// Who asks.
    pub caller: &'a Arc<Caller>,
    /// What for.
    pub intent: &'a Intent,
    /// The request.
    pub request: &'a Arc<Incoming>,
    /// Its whole body, where it was read.
    pub body: Option<&'a Bytes>,
    /// The upstream's own credential, where the route injects one.
    pub injected: Option<&'a Injected>,
    /// What its operation allows, if it opens a WebSocket.
    pub websocket: WebSocket,
    /// Whether another edge carries it out, so that nothing of it is recorded here.
    pub for_edge: bool,
}

impl Gateway {
    /// Permits at once, or holds for people; a counted token pays with a use.
    pub async fn permit(&self, asking: &Asking<'_>, verdict: Verdict) -> Result<Permit, Refusal> {
        let mut permit = self.allowed(asking, verdict).await?;
        match self.take_use(asking).await {
            Ok(used) => {
                permit.used = used;
                Ok(permit)
            }
            Err(refusal) => {
                if let Some(execution) = permit.take_execution() {
                    execution.end(ApprovalState::Failed).await;
                }
                Err(refusal)
            }
        }
    }

    async fn allowed(&self, asking: &Asking<'_>, verdict: Verdict) -> Result<Permit, Refusal> {
        let rule = match &verdict.decision {
            Decision::Allow => return Ok(Permit { verdict, consumed: None, execution: None, used: None }),
            Decision::AllowWithApproval(rule) => rule.clone(),
            Decision::Deny => return Err(Refusal::new(403, "policy", "policy denies this")),
        };
        let digest = digest(asking, &verdict);
        let named =
            asking.request.head.headers.get("popgate-approval").map(|v| v.to_str().unwrap_or_default().to_owned());
        match named {
            Some(id) => {
                let approval = self.named(asking, &id, digest).await?;
                self.consume(asking, verdict, &approval).await
            }
            None => self.hold(asking, verdict, &rule, digest).await,
        }
    }

    /// The approval that a request names, if it may be consumed by this very request.
    async fn named(&self, asking: &Asking<'_>, id: &str, digest: Sha256) -> Result<Approval, Refusal> {
        let refuse = |status, kind, detail: &str| Err(Refusal::new(status, kind, detail));
        let found = self.stores.approvals.get(id).await?;
        let Some(approval) =
            found.filter(|a| a.requester == asking.intent.principal.spiffe_id && a.jkt == asking.caller.jkt())
        else {
            return refuse(409, "approval-unknown", "this workload and key have asked for no such approval");
        };
        let expired = approval.expires_at <= self.stores.clock.now();
        match approval.state {
            ApprovalState::Pending if !expired => refuse(409, "approval-pending", "nobody has decided yet"),
            ApprovalState::Denied => refuse(403, "approval-denied", "a person denied it, which is final"),
            ApprovalState::Executing | ApprovalState::Done | ApprovalState::Failed | ApprovalState::Unknown => {
                Err(spent())
            }
            ApprovalState::Expired | ApprovalState::Withdrawn | ApprovalState::Pending => {
                refuse(403, "approval-expired", "the approval has ended; ask again")
            }
            ApprovalState::Approved if approval.request_sha256 != digest => refuse(
                403,
                "approval-mismatch",
                "the approval is for another request: something in this one, or the policy, differs",
            ),
            ApprovalState::Approved if expired => {
                refuse(403, "approval-expired", "the approval was not used in time; ask again")
            }
            ApprovalState::Approved => Ok(approval),
        }
    }

    /// Takes an approved request into execution: one compare-and-set, so it happens once.
    async fn consume(&self, asking: &Asking<'_>, verdict: Verdict, approval: &Approval) -> Result<Permit, Refusal> {
        let now = self.stores.clock.now();
        self.check_approver(approval, now)?;
        let step = Step {
            from: ApprovalState::Approved,
            to: ApprovalState::Executing,
            expires_at: now.plus(TO_APPROVE),
            decided: None,
        };
        // In a task of its own: a client that goes now must not leave the approval between two states.
        let (stores, tasks, id) = (self.stores.clone(), self.tasks.clone(), approval.id.clone());
        let taking = self.tasks.spawn(async move {
            let taken = stores.approvals.step(&id, &step).await?.ok_or_else(spent)?;
            let execution = Execution::new(stores.clone(), tasks, taken.clone());
            if let Err(error) = stores.log_approval(&taken).await {
                execution.end(ApprovalState::Failed).await;
                return Err(Refusal::from(error));
            }
            Ok((taken, execution))
        });
        let (taken, execution) = taking.await.map_err(|e| Refusal::unavailable("approvals", e))??;
        tracing::info!(approval = taken.id, requester = %asking.intent.principal.spiffe_id, "approval consumed");
        let consumed = Some(ConsumedApproval { id: taken.id, request_sha256: taken.request_sha256 });
        Ok(Permit { verdict, consumed, execution: Some(execution), used: None })
    }

    /// The approver's right counts when the approval is used, too.
    fn check_approver(&self, approval: &Approval, now: Timestamp) -> Result<(), Refusal> {
        let void = || Refusal::new(403, "approval-expired", "the approver may not approve this any more; ask again");
        let id = approval.decided_by.as_deref().ok_or_else(void)?;
        let person = self.stores.people.by_id(id).ok_or_else(void)?;
        let stopped = self.revoked.borrow().stops(&Subject::approver(approval, &person), now).is_some();
        if stopped || may_approve(&person, approval).is_err() {
            return Err(void());
        }
        Ok(())
    }

    async fn hold(
        &self,
        asking: &Asking<'_>,
        verdict: Verdict,
        rule: &ApprovalRule,
        digest: Sha256,
    ) -> Result<Permit, Refusal> {
        let now = self.stores.clock.now();
        let mut changes = self.stores.approvals.changes();
        let approval = self.ask(asking, &verdict, rule, digest, now).await?;
        let headers = &asking.request.head.headers;
        let wait = prefer::wait(headers);
        let preferred = wait.is_some() || prefer::respond_async(headers);
        // No longer than the certificate: nobody comes back with a key that has ended.
        let life = asking.caller.token.svid_end.since(now);
        let deadline = tokio::time::Instant::now() + wait.unwrap_or_default().min(MAX_HOLD).min(life);
        loop {
            let current = self.stores.approvals.get(&approval.id).await?.unwrap_or_else(|| approval.clone());
            match current.state {
                ApprovalState::Approved if wait.is_some() => {
                    let again = self.decide_again(asking)?;
                    return self.consume(asking, again, &current).await;
                }
                ApprovalState::Pending => {}
                ApprovalState::Denied => {
                    return Err(Refusal::new(403, "approval-denied", "a person denied it, which is final"));
                }
                ApprovalState::Withdrawn => {
                    return Err(Refusal::new(
                        403,
                        "approval-expired",
                        "the approval was withdrawn: somebody was stopped",
                    ));
                }
                _ => return Err(waiting(&current, &verdict, preferred)),
            }
            if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(waiting(&current, &verdict, preferred));
            }
        }
    }

    async fn ask(
        &self,
        asking: &Asking<'_>,
        verdict: &Verdict,
        rule: &ApprovalRule,
        digest: Sha256,
        now: Timestamp,
    ) -> Result<Approval, Refusal> {
        let principal = &asking.intent.principal;
        let new = Approval {
            id: entropy::random_id(),
            state: ApprovalState::Pending,
            version: 1,
            request_sha256: digest,
            requester: principal.spiffe_id.clone(),
            jkt: asking.caller.jkt(),
            answerable: self.answerable(asking),
            shown: shown(asking),
            rule: verdict.rule().to_owned(),
            policy_version: verdict.policy_version.clone(),
            group: rule.group.clone(),
            created_at: now,
            expires_at: now.plus(TO_APPROVE),
            decided_by: None,
            proved_by: None,
            reason: None,
        };
        match self.stores.approvals.ask(&new, now).await? {
            Asked::New(approval) => {
                self.stores.log_approval(&approval).await?;
                metrics::counter!("popgate_approvals_asked_total").increment(1);
                tracing::info!(approval = approval.id, requester = %approval.requester, operation = approval.shown.operation, "a request waits for approval");
                Ok(approval)
            }
            Asked::Folded(approval) => Ok(approval),
            Asked::QuotaReached => Err(Refusal {
                retry_after: Some(60),
                ..Refusal::new(429, "approval-quota", "too many requests of this workload wait for approval")
            }),
        }
    }

    /// The people who answer for whoever asks and whoever is acted for: none of them approves.
    fn answerable(&self, asking: &Asking<'_>) -> Vec<String> {
        let principal = &asking.intent.principal;
        let mut people: Vec<String> = std::iter::once(&principal.owner).chain(&principal.sponsor).cloned().collect();
        for party in asking.caller.token.claims.parties() {
            let workload = party.parse().ok().and_then(|id| self.stores.entries.get(&id));
            match workload {
                Some(entry) => people.extend(std::iter::once(entry.owner).chain(entry.sponsor)),
                None => people.push(party),
            }
        }
        people.sort();
        people.dedup();
        people
    }

    /// While a request was held, its token may have ended, its workload may have been stopped, and policy may have changed.
    fn decide_again(&self, asking: &Asking<'_>) -> Result<Verdict, Refusal> {
        let token = &asking.caller.token;
        let now = self.stores.clock.now();
        if token.claims.exp <= now {
            return Err(Refusal::unauthorized(
                OauthError::InvalidToken,
                "the token ended while the request was held; send it again",
            ));
        }
        let (entry, _) = self.standing(token, now)?;
        if entry != asking.caller.entry || self.acted_for(&token.claims) != asking.caller.acted_for {
            return Err(Refusal::new(
                403,
                "approval-mismatch",
                "a registration changed while the request was held; ask again",
            ));
        }
        let rules = self.rules.load();
        let verdict = authorize::decide(&rules.policy, asking.caller, asking.intent)?;
        if verdict.policy_version != asking.rules.policy.version() {
            return Err(Refusal::new(
                403,
                "approval-mismatch",
                "the policy changed while the request was held; ask again",
            ));
        }
        Ok(verdict)
    }
}

fn spent() -> Refusal {
    Refusal::new(403, "approval-spent", "the approval was used; it is good for one request")
}

/// Held no longer: 202 to a client that sent `Prefer`, else 403, so that no plain client takes it for done.
fn waiting(approval: &Approval, verdict: &Verdict, preferred: bool) -> Refusal {
    let (status, detail) = if preferred {
        (
            202,
            "accepted for approval; once approved, send the same request again with Popgate-Approval and a fresh proof",
        )
    } else {
        (403, "this needs approval; once approved, send the same request again with Popgate-Approval and a fresh proof")
    };
    Refusal {
        location: Some(format!("/.popgate/approvals/{}", approval.id)),
        retry_after: Some(5),
        policy: Some(authorize::reason(verdict)),
        ..Refusal::new(status, "approval-required", detail)
    }
}

fn digest(asking: &Asking<'_>, verdict: &Verdict) -> Sha256 {
    let request = asking.request;
    let claims = &asking.caller.token.claims;
    let headers = headers::bound(&request.head.headers);
    let content_type =
        request.head.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    CanonicalRequest {
        method: request.method().as_str(),
        authority: request.origin.authority(),
        path: request.path.as_str(),
        query: &request.target()[request.path.as_str().len()..],
        content_type,
        body: asking.body.map(|b| &b[..]).unwrap_or_default(),
        headers: &headers,
        principal: &asking.intent.principal.spiffe_id,
        jkt: asking.caller.jkt(),
        on_behalf: &claims.parties(),
        groups: &claims.groups,
        rule: verdict.rule(),
        policy_version: &verdict.policy_version,
    }
    .digest()
}

/// The bound content as an approver sees it: masked by the route's mask; what that cannot read is shown by its length.
fn shown(asking: &Asking<'_>) -> Shown {
    let request = asking.request;
    let content_type =
        request.head.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let body = asking.body.cloned().unwrap_or_default();
    let kind = content_type.as_deref().unwrap_or("application/json");
    let masked = match &asking.route.mask {
        Some(rules) => masking::mask_whole(rules, kind, &body).ok(),
        None => Some(body.to_vec()),
    };
    let body = match masked.map(String::from_utf8) {
        Some(Ok(text)) => text,
        _ => format!("[{} bytes that cannot be shown]", body.len()),
    };
    Shown {
        method: request.method().to_string(),
        url: format!("{}{}", request.origin.as_str(), request.target()),
        operation: asking.intent.operation.clone(),
        object: format!("{}{}", asking.intent.route, asking.intent.object),
        content_type,
        headers: headers::bound(&request.head.headers).into_iter().map(|h| told(asking.route, h)).collect(),
        body,
        on_behalf: asking.caller.token.claims.parties(),
        groups: asking.caller.token.claims.groups.clone(),
    }
}

/// A bound header as the approver sees it: of a credential the length alone, else masked as the body is.
fn told(route: &Route, (name, value): (String, Vec<u8>)) -> (String, String) {
    let shown = match &route.mask {
        _ if headers::is_secret(&name) => None,
        Some(rules) => masking::mask_whole(rules, "text/plain", &value).ok(),
        None => Some(value.clone()),
    };
    let shown = shown.and_then(|text| String::from_utf8(text).ok());
    (name, shown.unwrap_or_else(|| format!("[{} bytes]", value.len())))
}
