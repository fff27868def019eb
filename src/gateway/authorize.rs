//! Caller → Intent → Verdict: which operation on which object, and what policy says.

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::json;

use crate::domain::intent::{Intent, Principal};
use crate::domain::people::operation_matches;
use crate::domain::refusal::{OauthError, PolicyReason, Refusal};
use crate::domain::time::Timestamp;
use crate::domain::verdict::{Decision, Verdict};
use crate::gateway::authenticate::Caller;
use crate::gateway::details;
use crate::gateway::routes::Route;
use crate::protocol::access_token;
use crate::protocol::form;
use crate::protocol::operation::{self, BodyError, Matched, Seen};
use crate::protocol::policy::PolicyEngine;

/// The named operation of a request, or of a part of one; what no operation lists is denied.
pub fn classify<'a>(route: &'a Route, seen: &Seen<'_>, policy: &PolicyEngine) -> Result<Matched<'a>, Refusal> {
    let found = operation::classify(&route.operations, seen);
    let found = found.map_err(|e| Refusal::new(400, "body", e.to_string()))?;
    found.ok_or_else(|| unlisted(policy, "no operation of this route has this method, path and content"))
}

/// A refusal of what no operation lists.
pub fn unlisted(policy: &PolicyEngine, detail: &str) -> Refusal {
    Refusal {
        policy: Some(PolicyReason {
            rule: "unlisted".into(),
            policy_version: policy.version().to_owned(),
            fix: Some("ask the operator to list this as an operation of the route".into()),
        }),
        ..Refusal::new(403, "unlisted", detail)
    }
}

/// The one value of a header, as an operation reads it.
pub fn one_header(headers: &HeaderMap, name: &str) -> Result<Option<String>, BodyError> {
    let bad = || BodyError::Header { name: name.to_owned() };
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|v| Some(v.to_owned())).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// The names of all headers that begin with a prefix.
pub fn headers_named(headers: &HeaderMap, prefix: &str) -> Vec<String> {
    headers.keys().map(http::HeaderName::as_str).filter(|n| n.starts_with(prefix)).map(ToOwned::to_owned).collect()
}

/// Fields are read from a body that every reader reads alike: JSON in UTF-8, uncoded, and named as such once.
pub fn readable(headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |detail: &str| Err(Refusal::new(415, "body", detail));
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (types.next().and_then(|v| v.to_str().ok()), types.next()) else {
        return refuse("policy reads this body: send it with one Content-Type, application/json");
    };
    let mut parts = kind.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        return refuse("policy reads this body: its Content-Type must be application/json");
    }
    let utf8 = |p: &str| match p.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    };
    if !parts.all(utf8) {
        return refuse("policy reads this body: its charset must be utf-8");
    }
    let coded =
        headers.get_all(header::CONTENT_ENCODING).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"));
    if coded { refuse("policy reads this body: send it without Content-Encoding") } else { Ok(()) }
}

/// Whether the body is a form.
pub fn is_form(headers: &HeaderMap) -> bool {
    let form = b"application/x-www-form-urlencoded";
    headers
        .get_all(header::CONTENT_TYPE)
        .iter()
        .any(|v| v.as_bytes().get(..form.len()).is_some_and(|start| start.eq_ignore_ascii_case(form)))
}

/// Whether a form or query has a parameter `access_token`, however it is spelt.
pub fn names_token(form: &[u8]) -> bool {
    form.split(|b| *b == b'&' || *b == b';').any(|pair| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default();
        form::decode(name).is_ok_and(|name| name.trim().eq_ignore_ascii_case("access_token"))
    })
}

/// A form that carries an access token is refused: upstream would get it, and it may be somebody's.
pub fn without_token(body: Option<&Bytes>) -> Result<(), Refusal> {
    if body.is_some_and(|b| names_token(b)) {
        return Err(Refusal::new(400, "credential", "an access token in a form is never accepted")
            .with_error(OauthError::InvalidRequest));
    }
    Ok(())
}

/// Builds the question. Of the body policy sees what the operation reads.
pub fn intent(caller: &Caller, route: &Route, matched: &Matched<'_>, method: &str, now: Timestamp) -> Intent {
    let mut context = matched.context.clone();
    context.insert("method".into(), method.into());
    context.insert("time".into(), now.unix().into());
    context.insert("scope".into(), caller.token.claims.scopes().collect::<Vec<_>>().into());
    context.insert("client_certificate".into(), caller.token.claims.x5t_s256.is_some().into());
    let claims = &caller.token.claims;
    context.insert("subject".into(), claims.sub.as_str().into());
    context.insert("actors".into(), access_token::actors(claims.act.as_ref()).into());
    context.insert("params".into(), json!(matched.params));
    Intent {
        principal: Principal {
            spiffe_id: caller.token.claims.client_id.clone(),
            groups: caller.entry.groups.iter().chain(&claims.groups).cloned().collect(),
            owner: caller.entry.owner.clone(),
            sponsor: caller.entry.sponsor.clone(),
        },
        operation: matched.operation.name.clone(),
        route: route.name.clone(),
        object: matched.object.clone(),
        context,
    }
}

/// Decides. A `forbid` is answered before a scope that is too small; both before anything is done.
pub fn decide(policy: &PolicyEngine, caller: &Caller, intent: &Intent) -> Result<Verdict, Refusal> {
    let verdict = policy.decide(intent);
    let forbidden = verdict.decision == Decision::Deny;
    if forbidden && !verdict.rules.is_empty() {
        return Err(denied(&verdict));
    }
    let in_scope = caller.token.claims.scopes().any(|s| operation_matches(s, &intent.operation));
    // The registration as it is now: one that was narrowed narrows the tokens that there are.
    let mut entries = std::iter::once(&caller.entry).chain(&caller.acted_for);
    let registered = entries.all(|entry| entry.covers(&intent.operation));
    if !in_scope || !registered {
        let what = if in_scope { "registration entry" } else { "token's scope" };
        let detail = format!("the {what} does not cover {}", intent.operation);
        return Err(Refusal { policy: Some(reason(&verdict)), ..Refusal::new(403, "insufficient-scope", detail) }
            .with_error(OauthError::InsufficientScope));
    }
    details::check(&caller.token.claims, intent)
        .map_err(|refusal| Refusal { policy: Some(reason(&verdict)), ..refusal })?;
    if forbidden { Err(denied(&verdict)) } else { Ok(verdict) }
}

fn denied(verdict: &Verdict) -> Refusal {
    let detail = match &verdict.reason {
        Some(reason) => format!("policy denies this: {reason}"),
        None => format!("policy denies this by rule {}", verdict.rule()),
    };
    Refusal { policy: Some(reason(verdict)), ..Refusal::new(403, "policy", detail) }
}

/// What a refusal tells of the decision.
pub fn reason(verdict: &Verdict) -> PolicyReason {
    PolicyReason {
        rule: verdict.rule().to_owned(),
        policy_version: verdict.policy_version.clone(),
        fix: verdict.fix.clone(),
    }
}
