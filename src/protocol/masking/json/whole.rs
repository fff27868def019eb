//! Values that are replaced once they are whole: by a token of themselves, or scanned inside their base64.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::protocol::masking::rules::{Counts, FieldAction, MaskRules};
use crate::protocol::masking::token::Keyed;
use crate::protocol::masking::{Blocked, mask_counting, sniffed};

/// What takes the place of a value, whose bytes may have its colon before them.
pub(super) fn instead(
    action: FieldAction,
    bytes: &[u8],
    rules: &Arc<MaskRules>,
    counts: &mut Counts,
) -> Result<Vec<u8>, Blocked> {
    let text = bytes.trim_ascii_start();
    let text = text.strip_prefix(b":").unwrap_or(text).trim_ascii();
    let value: Value = serde_json::from_slice(text).map_err(|_| Blocked::Malformed)?;
    match (action, &value) {
        (FieldAction::Base64, Value::String(coded)) => {
            let masked = inside(coded, rules, counts)?;
            serde_json::to_vec(&masked).map_err(|_| Blocked::Malformed)
        }
        // Nothing is coded in it, so it is scanned as it is.
        (FieldAction::Base64, _) => {
            let plain = Arc::new(MaskRules { fields: Vec::new(), ..MaskRules::clone(rules) });
            let (masked, more) = mask_counting(&plain, "application/json", text)?;
            add(counts, more);
            Ok(masked)
        }
        (_, Value::Null) => Ok(b"null".to_vec()),
        _ => {
            *counts.entry("field".into()).or_default() += 1;
            let mut keyed = Keyed::begin(&rules.key, "field");
            keyed.add(value.as_str().map_or(text, str::as_bytes));
            let token = keyed.token("field");
            Ok([b"\"", &token[..], b"\""].concat())
        }
    }
}

/// One level of base64, bare or in a `data:` URI (RFC 2397).
fn inside(coded: &str, rules: &Arc<MaskRules>, counts: &mut Counts) -> Result<String, Blocked> {
    let uri = coded.strip_prefix("data:").and_then(|u| u.split_once(','));
    let (before, kind, body) = match uri {
        Some((about, body)) => {
            let kind = about.strip_suffix(";base64").ok_or(Blocked::Coding)?;
            (format!("data:{about},"), Some(if kind.is_empty() { "text/plain" } else { kind }), body)
        }
        None => (String::new(), None, coded),
    };
    for engine in [&BASE64_STANDARD, &BASE64_STANDARD_NO_PAD, &BASE64_URL_SAFE, &BASE64_URL_SAFE_NO_PAD] {
        if let Ok(plain) = engine.decode(body) {
            let (masked, more) = mask_counting(rules, kind.unwrap_or_else(|| sniffed(&plain)), &plain)?;
            add(counts, more);
            return Ok(format!("{before}{}", engine.encode(masked)));
        }
    }
    Err(Blocked::Coding)
}

fn add(counts: &mut Counts, more: Counts) {
    for (kind, n) in more {
        *counts.entry(kind).or_default() += n;
    }
}
