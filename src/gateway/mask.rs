//! Chooses how a response is masked, or refuses one that the mask cannot read.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, header};

use crate::domain::refusal::Refusal;
use crate::gateway::routes::Route;
use crate::protocol::masking::{Blocked, MaskRules, Masker, text::TextMasker};

/// How a response body is treated.
pub enum Treatment {
    /// Passed by reference.
    Plain,
    /// Masked.
    Masked(Box<Masker>),
}

/// Decides by the route's rules and the response's head.
pub fn treatment(
    route: &Route,
    method: &Method,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Treatment, Refusal> {
    let bodiless = *method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || status.is_informational();
    let secret = match &route.inject {
        None => None,
        Some(inject) => Some(inject.read().map_err(|e| Refusal::unavailable("the upstream's credential", e))?.1),
    };
    if bodiless || (route.mask.is_none() && secret.is_none()) {
        return Ok(Treatment::Plain);
    }
    let empty = headers.get(header::CONTENT_LENGTH).is_some_and(|v| v == "0");
    if empty {
        return Ok(Treatment::Plain);
    }
    let coded =
        headers.get_all(header::CONTENT_ENCODING).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"));
    if coded {
        return Err(unreadable(Blocked::Coding));
    }
    let Some(rules) = &route.mask else {
        let mut rules = MaskRules::detecting(&[]);
        rules.exact.extend(secret);
        return Ok(Treatment::Masked(Box::new(Masker::Text(TextMasker::new(Arc::new(rules))))));
    };
    if status == StatusCode::PARTIAL_CONTENT {
        return Err(unreadable(Blocked::ContentType));
    }
    let rules = match secret {
        None => rules.clone(),
        Some(secret) => {
            let mut rules = MaskRules::clone(rules);
            rules.exact.push(secret);
            Arc::new(rules)
        }
    };
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Masker::for_content_type(&rules, kind).map(|m| Treatment::Masked(Box::new(m))).map_err(unreadable)
}

/// A body that a rule must mask and cannot be read is refused, never passed.
fn unreadable(why: Blocked) -> Refusal {
    Refusal::new(502, "unmaskable", format!("the response is held back: {why}"))
}
