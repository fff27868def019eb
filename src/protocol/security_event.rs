//! Security event tokens (RFC 8417) that tell of people: CAEP and RISC events of OpenID Shared Signals.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::domain::people::is_person_id;
use crate::domain::time::Timestamp;
use crate::protocol::claims::text;
use crate::protocol::jwt::LEEWAY;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";

/// How long an event is remembered, so that it counts once.
pub const REMEMBERED: Duration = Duration::from_hours(90 * 24);

/// What an event asks for. Events only stop; nothing of theirs lifts a stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// The person is gone: everything of theirs stops, for good.
    Gone,
    /// What was begun on the person's word ends; a new word begins anew.
    SessionEnds,
    /// Nothing.
    None,
}

/// A verified event token.
#[derive(Clone, Debug)]
pub struct SecurityEvent {
    /// Name of the trust entry.
    pub provider: String,
    /// Its identifier: it counts once.
    pub jti: String,
    /// The person, where an event has an effect.
    pub person: Option<String>,
    /// The strongest of its events' effects.
    pub effect: Effect,
    /// The event types, shortened to their last part.
    pub kinds: Vec<String>,
}

/// What the claims of a verified event token ask for.
pub fn read(
    claims: &Map<String, Value>,
    provider: &str,
    issuer: &str,
    now: Timestamp,
) -> Result<SecurityEvent, String> {
    let made = claims.get("iat").and_then(Value::as_u64).ok_or("iat is missing")?;
    if made > now.unix() + LEEWAY {
        return Err("iat is in the future".into());
    }
    if now.since(Timestamp::from_unix(made)) >= REMEMBERED {
        return Err("it is older than events are remembered, so nobody could say whether it was done".into());
    }
    let jti = text(claims, "jti").filter(|j| !j.is_empty() && j.len() <= 256).ok_or("jti is missing")?;
    let events =
        claims.get("events").and_then(Value::as_object).filter(|e| !e.is_empty()).ok_or("events is missing")?;
    let mut effect = Effect::None;
    let mut person = None;
    for (kind, body) in events {
        let this = effect_of(kind);
        if this == Effect::None {
            continue;
        }
        // RFC 9493: the subject is the token's, or in older events the event's own.
        let subject = claims.get("sub_id").or_else(|| body.get("subject")).ok_or("the event has no subject")?;
        let named = person_of(subject, issuer)?;
        if person.as_ref().is_some_and(|p| *p != named) {
            return Err("its events speak of two people".into());
        }
        person = Some(named);
        if effect == Effect::None || this == Effect::Gone {
            effect = this;
        }
    }
    let kinds = events.keys().map(|k| k.rsplit('/').next().unwrap_or_default().chars().take(64).collect()).collect();
    Ok(SecurityEvent { provider: provider.to_owned(), jti: jti.to_owned(), person, effect, kinds })
}

fn effect_of(kind: &str) -> Effect {
    match (kind.strip_prefix(RISC), kind.strip_prefix(CAEP)) {
        (
            Some(
                "account-disabled" | "account-purged" | "account-credential-change-required" | "credential-compromise",
            ),
            _,
        ) => Effect::Gone,
        (Some("sessions-revoked"), _) | (_, Some("session-revoked" | "credential-change")) => Effect::SessionEnds,
        _ => Effect::None,
    }
}

/// A subject by `iss_sub`, plain or as the `user` of a complex subject (RFC 9493 section 3). A subject that cannot be read
/// is an error: a stop that is silently dropped would be none. A transmitter speaks of its own people alone.
fn person_of(subject: &Value, issuer: &str) -> Result<String, String> {
    let subject = subject.get("user").unwrap_or(subject);
    let member = |name: &str| subject.get(name).and_then(Value::as_str);
    let (Some("iss_sub"), Some(iss), Some(sub)) = (member("format"), member("iss"), member("sub")) else {
        return Err("its subject is not of format iss_sub, which is what people are known by here".into());
    };
    if iss != issuer {
        return Err("its subject is another issuer's".into());
    }
    let person = format!("{iss}#{sub}");
    if is_person_id(&person) { Ok(person) } else { Err("its subject names no person".into()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

    fn event(kind: &str, subject: Value) -> Result<SecurityEvent, String> {
        let claims = json!({"iat": NOW.unix(), "jti": "1", "sub_id": subject, "events": {kind: {}}});
        read(claims.as_object().expect("an object"), "corp", "https://idp", NOW)
    }

    fn bob() -> Value {
        json!({"format": "iss_sub", "iss": "https://idp", "sub": "bob"})
    }

    #[test]
    fn events_stop_a_person_or_end_a_session_or_do_nothing() {
        let rows = [
            (format!("{RISC}account-disabled"), Effect::Gone),
            (format!("{RISC}account-purged"), Effect::Gone),
            (format!("{CAEP}session-revoked"), Effect::SessionEnds),
            (format!("{CAEP}token-claims-change"), Effect::None),
            ("https://schemas.openid.net/secevent/ssf/event-type/verification".to_owned(), Effect::None),
            ("account-disabled".to_owned(), Effect::None),
        ];
        for (kind, effect) in rows {
            let read = event(&kind, bob()).expect("reads");
            assert_eq!(read.effect, effect, "{kind}");
            assert_eq!(read.person.is_some(), effect != Effect::None, "{kind}");
        }
        let complex = json!({"format": "complex", "user": bob(), "device": {"format": "opaque", "id": "d"}});
        let read = event(&format!("{RISC}account-disabled"), complex).expect("reads");
        assert_eq!(read.person.as_deref(), Some("https://idp#bob"));
    }

    #[test]
    fn a_stop_whose_subject_cannot_be_read_is_an_error() {
        let kind = format!("{RISC}account-disabled");
        for subject in [
            json!({"format": "email", "email": "bob@example.org"}),
            json!({"format": "opaque", "id": "7"}),
            json!({"format": "iss_sub", "iss": "https://idp"}),
            json!({"format": "iss_sub", "iss": "https://idp", "sub": "b b"}),
            json!({"format": "iss_sub", "iss": "https://other", "sub": "bob"}),
            json!("bob"),
            Value::Null,
        ] {
            assert!(event(&kind, subject.clone()).is_err(), "{subject}");
        }
        let no_subject = json!({"iat": NOW.unix(), "jti": "1", "events": {kind: {}}});
        assert!(read(no_subject.as_object().expect("an object"), "corp", "https://idp", NOW).is_err());
        for broken in [
            json!({"jti": "1", "events": {"x": {}}}),
            json!({"iat": NOW.unix() + 500, "jti": "1", "events": {"x": {}}}),
            json!({"iat": NOW.unix() - 90 * 86_400, "jti": "1", "events": {"x": {}}}),
            json!({"iat": 1, "events": {"x": {}}}),
            json!({"iat": 1, "jti": "1", "events": {}}),
        ] {
            assert!(read(broken.as_object().expect("an object"), "corp", "https://idp", NOW).is_err(), "{broken}");
        }
    }
}
