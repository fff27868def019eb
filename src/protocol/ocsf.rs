//! OCSF JSON lines of the log's leaves: 3002 Authentication, 4002 HTTP Activity, 6003 API Activity.

use serde_json::{Value, json};

use crate::domain::leaf::{Completion, Event, LEFT_TO_EDGE, Leaf};
use crate::domain::spiffe_id::SpiffeId;

/// Version of the schema that the lines follow.
pub const VERSION: &str = "1.5.0";

struct Class {
    uid: u32,
    name: &'static str,
    category: u32,
    category_name: &'static str,
}

const AUTHENTICATION: Class =
    Class { uid: 3002, name: "Authentication", category: 3, category_name: "Identity & Access Management" };
const HTTP: Class = Class { uid: 4002, name: "HTTP Activity", category: 4, category_name: "Network Activity" };
const API: Class = Class { uid: 6003, name: "API Activity", category: 6, category_name: "Application Activity" };

/// What one leaf is in OCSF's words.
struct Reading {
    class: Class,
    activity: u32,
    activity_name: String,
    actor: String,
    allowed: Option<bool>,
    details: Value,
}

/// One line: `leaf` at `index` of the log `origin`; `by` is who did it, where the log's openings or its certificates tell.
pub fn line(leaf: &Leaf, index: u64, origin: &str, trust_domain: &str, by: Option<String>) -> Value {
    let mut reading = read(leaf, trust_domain);
    if let Some(by) = by {
        reading.actor = by;
    }
    let (action, disposition) = match reading.allowed {
        Some(true) => (1, 1),
        Some(false) => (2, 2),
        None => (3, 17),
    };
    let failed = reading.allowed == Some(false);
    let mut line = json!({
        "metadata": {
            "version": VERSION,
            "product": {"name": "popgate", "vendor_name": "popgate", "version": env!("CARGO_PKG_VERSION")},
            "profiles": ["security_control"],
            "uid": format!("{origin}#{index}"),
        },
        "time": leaf.time.millis(),
        "class_uid": reading.class.uid,
        "class_name": reading.class.name,
        "category_uid": reading.class.category,
        "category_name": reading.class.category_name,
        "activity_id": reading.activity,
        "activity_name": reading.activity_name,
        "type_uid": reading.class.uid * 100 + reading.activity,
        "severity_id": if failed { 3 } else { 1 },
        "status_id": if failed { 2 } else { 1 },
        "action_id": action,
        "disposition_id": disposition,
        "actor": {"user": {"uid": reading.actor, "name": reading.actor, "type_id": 3}},
        "unmapped": {"popgate": {"origin": origin, "index": index, "entry": leaf}},
    });
    if let (Some(line), Value::Object(details)) = (line.as_object_mut(), reading.details) {
        line.extend(details);
    }
    line
}

/// The actor of what a public route lets through: nobody was proved.
const ANYBODY: &str = "anybody";

fn read(leaf: &Leaf, trust_domain: &str) -> Reading {
    let own = |role: &str| format!("spiffe://{trust_domain}/popgate/{role}");
    let api = |operation: &str, actor: String, allowed: Option<bool>| Reading {
        class: API,
        activity: 99,
        activity_name: operation.to_owned(),
        actor,
        allowed,
        details: json!({"api": {"operation": operation, "service": {"name": "popgate"}}, "src_endpoint": {"name": "popgate"}}),
    };
    match &leaf.event {
        Event::Issuance(i) => {
            let details = json!({"certificate": {"serial_number": i.serial}});
            authentication("issue certificate", i.spiffe_id.to_string(), details)
        }
        Event::JwtIssuance(j) => {
            let through = j.node.as_ref().map_or("direct", SpiffeId::as_str);
            authentication("issue JWT-SVID", j.spiffe_id.to_string(), json!({"service": {"name": through}}))
        }
        Event::Mint(m) => {
            authentication("mint token", m.spiffe_id.to_string(), json!({"service": {"name": m.audience}}))
        }
        Event::Admission(a) => admitted(
            &a.spiffe_id.to_string(),
            [&a.operation, &a.route, &a.request_id],
            &json!({"uid": a.policy_version, "name": a.rules.first()}),
        ),
        Event::PublicAdmission(a) => {
            admitted(ANYBODY, [&a.operation, &a.route, &a.request_id], &json!({"uid": a.policy_version}))
        }
        Event::Denial(d) => Reading {
            details: json!({
                "api": {"operation": d.operation.as_deref().unwrap_or("unlisted"), "request": {"uid": d.request_id}, "response": {"code": d.status, "message": d.reason}},
                "src_endpoint": {"name": d.spiffe_id},
                "policy": {"uid": d.policy_version, "name": d.rules.first()},
            }),
            ..api("denied", d.spiffe_id.to_string(), Some(false))
        },
        Event::Completion(c) => Reading {
            class: HTTP,
            activity: 99,
            activity_name: "exchange completed".into(),
            actor: c.spiffe_id.as_ref().map_or(ANYBODY, SpiffeId::as_str).to_owned(),
            allowed: Some(true),
            details: exchange(c),
        },
        Event::Refusal { request_id, plane, status, check, .. } => Reading {
            class: HTTP,
            activity: 99,
            activity_name: "refused before proof".into(),
            actor: own(plane),
            allowed: Some(false),
            details: json!({"http_request": {"uid": request_id}, "http_response": {"code": status, "message": check}, "src_endpoint": {"name": "unproved"}}),
        },
        other => own_act(other, &own, &api),
    }
}

fn admitted(actor: &str, [operation, route, request]: [&str; 3], policy: &Value) -> Reading {
    Reading {
        class: API,
        activity: 99,
        activity_name: operation.to_owned(),
        actor: actor.to_owned(),
        allowed: Some(true),
        details: json!({
            "api": {"operation": operation, "service": {"name": route}, "request": {"uid": request}},
            "src_endpoint": {"name": actor},
            "policy": policy,
        }),
    }
}

fn exchange(c: &Completion) -> Value {
    let mut details = json!({"http_request": {"uid": c.request_id}, "src_endpoint": {"name": c.spiffe_id.as_ref().map_or(ANYBODY, SpiffeId::as_str)}});
    // Of what another edge carries out nothing was seen here.
    if c.ended != LEFT_TO_EDGE {
        details["http_request"]["body_length"] = c.request_bytes.into();
        details["http_response"] = json!({"code": c.status, "body_length": c.response_bytes, "latency": c.duration_ms});
    }
    details
}

/// What the service or an administrator did.
fn own_act(
    event: &Event,
    own: &dyn Fn(&str) -> String,
    api: &dyn Fn(&str, String, Option<bool>) -> Reading,
) -> Reading {
    match event {
        Event::ApprovalChanged(a) => api(&format!("approval {}", a.state), a.requester.to_string(), Some(true)),
        Event::Revoked { .. } => api("revoke", own("identity"), Some(true)),
        Event::Lifted { .. } => api("lift revocation", own("identity"), Some(true)),
        Event::Registration { what, action, .. } => api(&format!("{action} {what}"), own("identity"), Some(true)),
        Event::Authority { role, state, .. } => {
            api(&format!("authority {role} {}", state.as_deref().unwrap_or("active")), own("identity"), Some(true))
        }
        Event::RefusalsSummarised { .. } => api("refusals summarised", own("gateway"), Some(false)),
        Event::Started { .. } => api("started", own("gateway"), None),
        _ => api("heartbeat", own("gateway"), None),
    }
}

fn authentication(what: &str, actor: String, mut details: Value) -> Reading {
    details["user"] = json!({"uid": actor, "name": actor, "type_id": 3});
    details["auth_protocol"] = "mutual TLS".into();
    Reading { class: AUTHENTICATION, activity: 1, activity_name: what.into(), actor, allowed: Some(true), details }
}
