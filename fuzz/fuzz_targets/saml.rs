//! Hostile SAML assertions: no panic, one reading, and what is believed is for us.

#![no_main]

use libfuzzer_sys::fuzz_target;
use popgate::domain::time::Timestamp;
use popgate::protocol::saml::{self, Expected, SAML};
use popgate::protocol::xml::Element;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const WANT: Expected<'static> =
    Expected { entity_id: "https://idp", audience: "https://gw", recipient: "https://gw/token" };

/// The target must reach the accepting path, or its assertions say nothing.
fn init() {
    let assertion = Element::parse(include_str!("../seeds/saml/assertion")).expect("the seed is accepted");
    assert_eq!(saml::issuer(&assertion).expect("an assertion"), "https://idp");
    saml::one_signature(&assertion).expect("one signature");
    assert_eq!(saml::read(&assertion, &WANT, NOW).expect("is for us").name, "bob");
}

fuzz_target!(init: init(), |text: &str| {
    let Ok(element) = Element::parse(text) else { return };
    // None of the things that two readers see in two ways.
    assert!(!["<!--", "<![", "<!D"].iter().any(|odd| text.contains(odd)), "{text}");
    let _ = saml::issuer(&element);
    if let Ok(id) = saml::one_signature(&element) {
        let all = element.walk();
        assert_eq!(all.iter().filter(|e| e.attribute("ID") == Some(&id)).count(), 1);
        assert_eq!(all.iter().filter(|e| e.name == "Assertion").count(), usize::from(element.name == "Assertion"));
    }
    if let Ok(said) = saml::read(&element, &WANT, NOW) {
        assert!(said.until.unix() + 60 > NOW.unix() && said.until <= said.shown_until);
        let named = element.walk().iter().any(|e| e.is(SAML, "Audience") && e.text.trim() == WANT.audience);
        assert!(named, "{text}");
    }
});
