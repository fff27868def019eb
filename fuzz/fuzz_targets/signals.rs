//! Hostile security events and SCIM requests: no panic, a transmitter speaks of its own people alone, and who was
//! deactivated is not active.

#![no_main]

use libfuzzer_sys::fuzz_target;
use popgate::domain::time::Timestamp;
use popgate::protocol::security_event::{self, Effect};
use popgate::protocol::{json, scim};

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

/// The target must reach the accepting path, or its assertions say nothing.
fn init() {
    let event = json::parse_object(include_bytes!("../seeds/signals/event")).expect("JSON");
    let read = security_event::read(&event, "corp", "https://idp", NOW).expect("the seed is accepted");
    assert_eq!((read.person.as_deref(), read.effect), (Some("https://idp#bob"), Effect::Gone));
    let patch = json::parse(include_bytes!("../seeds/signals/patch")).expect("JSON");
    assert!(scim::deactivates(&patch["Operations"][0]));
}

fuzz_target!(init: init(), |bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = scim::filter(text);
    }
    let Ok(value) = json::parse(bytes) else { return };
    if let Some(claims) = value.as_object()
        && let Ok(event) = security_event::read(claims, "corp", "https://idp", NOW)
    {
        assert_eq!(event.person.is_some(), event.effect != Effect::None);
        assert!(event.person.is_none_or(|p| p.starts_with("https://idp#")));
    }
    for operation in value["Operations"].as_array().into_iter().flatten() {
        let mut user = serde_json::json!({"userName": "bob", "active": true});
        if scim::patched(&mut user, operation).is_ok() {
            assert_eq!(scim::deactivates(operation), !scim::is_active(&user), "{operation}");
        }
    }
    if let Ok(folded) = scim::folded(value) {
        assert_eq!(scim::folded(folded.clone()).expect("folds again"), folded);
    }
});
