//! Refusals as `application/problem+json` (RFC 9457).

use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
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

/// What a refusal says, for those who cannot read its document.
#[derive(Clone)]
struct Said(String);

/// The answer of a refusal, without challenges: those are each plane's own.
pub fn response(refusal: &Refusal, request_id: &str) -> Response<AnyBody> {
    let mut response = Response::new(full(document(refusal, request_id).to_string()));
    *response.status_mut() = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fix = refusal.policy.as_ref().and_then(|policy| policy.fix.as_ref());
    let fix = fix.map(|fix| format!("; {fix}")).unwrap_or_default();
    response.extensions_mut().insert(Said(format!("{}{fix}", refusal.detail)));
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

/// A refusal as a client of gRPC reads it: a head with `grpc-status` and `grpc-message`, by gRPC's own mapping, and nothing behind it.
/// The HTTP status stays for those who follow challenges. Other answers stay as they are.
pub fn in_grpc(mut response: Response<AnyBody>, request_id: &str) -> Response<AnyBody> {
    let Some(Said(said)) = response.extensions_mut().remove() else { return response };
    let code = match response.status().as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 502 | 503 | 504 => "14",
        _ => "2",
    };
    let named = if request_id.is_empty() { String::new() } else { format!(" (request {request_id})") };
    *response.body_mut() = full("");
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(code));
    headers.extend(HeaderValue::from_str(&percent(&format!("{said}{named}"))).map(|v| (MESSAGE, v)));
    response
}

const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Percent-encodes what gRPC's messages must have so: all but printable ASCII, and the percent sign.
fn percent(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use hyper::body::Body as _;

    use super::*;

    #[test]
    fn a_client_of_grpc_reads_why_in_the_head() {
        let refusal = Refusal::new(403, "policy", "100 % no: naïve");
        let told = in_grpc(response(&refusal, "r1"), "r1");
        assert!(told.body().is_end_stream());
        assert_eq!(
            (told.status(), &told.headers()[CONTENT_TYPE]),
            (StatusCode::FORBIDDEN, &HeaderValue::from_static("application/grpc"))
        );
        assert_eq!(told.headers()["grpc-status"], "7");
        assert_eq!(told.headers()[MESSAGE], "100 %25 no: na%C3%AFve (request r1)");
        let answer = in_grpc(Response::new(full("ok")), "r1");
        assert!(!answer.body().is_end_stream() && !answer.headers().contains_key("grpc-status"), "upstream's stays");
    }
}
