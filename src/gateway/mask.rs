//! Chooses how a response is masked, or refuses one that the mask cannot read.

use std::sync::Arc;

use http::response::Parts;
use http::{HeaderMap, Method, StatusCode, header};

use crate::domain::refusal::Refusal;
use crate::gateway::routes::Route;
use crate::protocol::masking::{self, Blocked, MaskRules, Masker};
use crate::protocol::operation::calls::{CallGate, ToolCall};

/// Decides about a tool call in an answer.
pub type CallJudge = Box<dyn FnMut(&ToolCall) -> Result<(), Refusal> + Send>;

/// How a response body is treated.
#[derive(Default)]
pub struct Treatment {
    /// Tool calls are judged before they pass.
    pub calls: Option<(CallGate, CallJudge)>,
    /// The body is masked; none: passed by reference.
    pub masker: Option<Box<Masker>>,
    /// Trailers are masked.
    pub trailers: Option<Arc<MaskRules>>,
    /// Trailers that wait for the body's end.
    pub last: Option<HeaderMap>,
}

/// The mask of a route, with the injected credential among its exact values.
pub fn rules(route: &Route, secret: Option<&[u8]>) -> Option<Arc<MaskRules>> {
    match (&route.mask, secret) {
        (None, None) => None,
        (Some(rules), None) => Some(rules.clone()),
        (rules, Some(secret)) => {
            let mut rules = rules.as_ref().map_or_else(|| MaskRules::detecting(&[]), |r| MaskRules::clone(r));
            rules.exact.push(secret.to_vec());
            Some(Arc::new(rules))
        }
    }
}

/// Decides by the route's rules and the response's head; `secret` is the injected credential, which must not come back.
pub fn treatment(route: &Route, method: &Method, parts: &Parts, secret: Option<&[u8]>) -> Result<Treatment, Refusal> {
    let (status, headers) = (parts.status, &parts.headers);
    if status.is_informational() {
        return Err(Refusal::new(502, "upstream", "the protected service switched protocols, which nobody asked for"));
    }
    let bodiless = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|v| v == "0");
    let Some(rules) = rules(route, secret).filter(|_| !bodiless) else { return Ok(Treatment::default()) };
    if is_coded(headers) {
        return Err(unreadable(Blocked::Coding));
    }
    if route.mask.is_some() && headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
        return Err(unreadable(Blocked::ContentType));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let partial = status == StatusCode::PARTIAL_CONTENT;
    let masker = match &route.mask {
        None => Ok(credential_alone(&rules, if partial { "" } else { kind })),
        Some(_) if partial => Err(Blocked::ContentType),
        Some(_) => Masker::for_content_type(&rules, kind),
    };
    let masker = masker.map_err(unreadable)?;
    Ok(Treatment { masker: Some(Box::new(masker)), trailers: Some(rules), ..Treatment::default() })
}

/// Trailers as the client may see them: a value that the mask blocks, or that is no text, goes.
pub fn trailers(rules: &Arc<MaskRules>, trailers: &HeaderMap) -> HeaderMap {
    let mut masked = HeaderMap::new();
    for (name, value) in trailers {
        let text = masking::mask_whole(rules, "text/plain", value.as_bytes()).ok();
        if let Some(value) = text.and_then(|t| http::HeaderValue::from_bytes(&t).ok()) {
            masked.append(name, value);
        }
    }
    masked
}

/// Looks for the injected credential alone: in JSON as its strings read, for they may spell it with escapes; else, events
/// too, in the bytes.
fn credential_alone(rules: &Arc<MaskRules>, kind: &str) -> Masker {
    // Events would be held whole and have a limit, which a route without a mask did not ask for.
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let kind = if essence.eq_ignore_ascii_case("text/event-stream") { "" } else { kind };
    Masker::for_content_type(rules, kind).unwrap_or_else(|_| Masker::bytes(rules.clone()))
}

/// Whether the body is in a coding: as content, or as a transfer coding besides the framing itself.
fn is_coded(headers: &HeaderMap) -> bool {
    let codings = |name, plain: &'static str| {
        let values = headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("?"));
        values.flat_map(|v| v.split(',')).any(move |c| !c.trim().eq_ignore_ascii_case(plain))
    };
    codings(header::CONTENT_ENCODING, "identity") || codings(header::TRANSFER_ENCODING, "chunked")
}

/// A body that a rule must mask and cannot be read is refused, never passed.
fn unreadable(why: Blocked) -> Refusal {
    Refusal::new(502, "unmaskable", format!("the response is held back: {why}"))
}
