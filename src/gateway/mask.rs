//! Chooses how a response is masked, or refuses one that the mask cannot read.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};

use crate::domain::refusal::Refusal;
use crate::gateway::routes::Route;
use crate::protocol::masking::{Blocked, MaskRules, Masker};

/// How a response body is treated.
pub enum Treatment {
    /// Passed by reference.
    Plain,
    /// Masked.
    Masked(Box<Masker>),
}

/// Decides by the route's rules and the response's head; `secret` is the injected credential, which must not come back.
pub fn treatment(
    route: &Route,
    method: &Method,
    status: StatusCode,
    headers: &HeaderMap,
    secret: Option<&[u8]>,
) -> Result<Treatment, Refusal> {
    if status.is_informational() {
        return Err(Refusal::new(502, "upstream", "the protected service switched protocols, which nobody asked for"));
    }
    let bodiless = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|v| v == "0");
    if bodiless || (route.mask.is_none() && secret.is_none()) {
        return Ok(Treatment::Plain);
    }
    if is_coded(headers) {
        return Err(unreadable(Blocked::Coding));
    }
    if route.mask.is_some() && headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
        return Err(unreadable(Blocked::ContentType));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let partial = status == StatusCode::PARTIAL_CONTENT;
    let masker = match (&route.mask, secret) {
        (None, _) => Ok(credential_alone(secret, if partial { "" } else { kind })),
        (Some(_), _) if partial => Err(Blocked::ContentType),
        (Some(rules), None) => Masker::for_content_type(rules, kind),
        (Some(rules), Some(secret)) => {
            let mut rules = MaskRules::clone(rules);
            rules.exact.push(secret.to_vec());
            Masker::for_content_type(&Arc::new(rules), kind)
        }
    };
    masker.map(|m| Treatment::Masked(Box::new(m))).map_err(unreadable)
}

/// Looks for the injected credential alone: in JSON as its strings read, for they may spell it with escapes; else, events
/// too, in the bytes.
fn credential_alone(secret: Option<&[u8]>, kind: &str) -> Masker {
    let mut rules = MaskRules::detecting(&[]);
    rules.exact.extend(secret.map(<[u8]>::to_vec));
    let rules = Arc::new(rules);
    // Events would be held whole and have a limit, which a route without a mask did not ask for.
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let kind = if essence.eq_ignore_ascii_case("text/event-stream") { "" } else { kind };
    Masker::for_content_type(&rules, kind).unwrap_or_else(|_| Masker::bytes(rules))
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
