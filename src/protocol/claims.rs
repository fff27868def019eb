//! Reads registered JWT claims (RFC 7519 §4.1) without believing them.

use serde_json::{Map, Value};

use crate::domain::time::Timestamp;

/// A NumericDate (RFC 7519 §2): a fraction is legal and its floor is taken; a string, a negative
/// number or one beyond any date is not a date.
pub fn numeric_date(claims: &Map<String, Value>, name: &str) -> Option<Timestamp> {
    let value = claims.get(name)?;
    let seconds = match value.as_u64() {
        Some(whole) => whole,
        None => whole_seconds(value.as_f64()?)?,
    };
    (seconds <= Timestamp::MAX_SECONDS).then(|| Timestamp::from_unix(seconds))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
fn whole_seconds(value: f64) -> Option<u64> {
    (0.0..=253_402_300_799.0).contains(&value).then_some(value.floor() as u64)
}

/// A string claim.
pub fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name).and_then(Value::as_str)
}
