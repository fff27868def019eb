//! Refusals as `application/problem+json` (RFC 9457).

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Response, StatusCode};
use serde_json::json;

use crate::domain::refusal::Refusal;
use crate::net::body::{AnyBody, full};

/// What every problem's `type` begins with.
const TYPE_BASE: &str = "urn:popgate:problem:";

/// The document of a refusal: its type ends in the kind, its detail names the check.
pub fn document(refusal: &Refusal, request_id: &str) -> serde_json::Value {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut document = json!({
        "type": format!("{TYPE_BASE}{}", refusal.kind),
        "title": status.canonical_reason().unwrap_or("Refused"),
        "status": refusal.status,
        "detail": refusal.detail,
        "request_id": request_id,
    });
    if let Some(error) = refusal.error {
        document["error"] = error.to_string().into();
    }
    if let Some(policy) = &refusal.policy {
        document["rule"] = policy.rule.clone().into();
        document["policy_version"] = policy.policy_version.clone().into();
        document["fix"] = policy.fix.clone().into();
    }
    document
}

/// The answer of a refusal, without challenges: those are each plane's own.
pub fn response(refusal: &Refusal, request_id: &str) -> Response<AnyBody> {
    let mut response = Response::new(full(document(refusal, request_id).to_string()));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(location) = refusal.location.as_deref().and_then(|l| HeaderValue::from_str(l).ok()) {
        headers.insert(LOCATION, location);
    }
    if refusal.status == 405 {
        // What answers 405 here is a document of our own.
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
