//! Hostile token requests: forms and authorization details. No panic, and what is accepted reads back as itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use popgate::protocol::access_token;
use popgate::protocol::authorization_details::{self, Detail};
use popgate::protocol::form;

const AUDIENCE: &str = "https://gw.example/v1";

/// The target must reach the accepting path, or its assertions say nothing.
fn init() {
    let seed = include_str!("../seeds/grants/details");
    assert_eq!(authorization_details::parse(seed, AUDIENCE).expect("the seed is accepted").len(), 1);
    assert!(!form::parse(include_bytes!("../seeds/grants/form")).expect("the seed is accepted").is_empty());
}

fn details(text: &str) {
    let Ok(details) = authorization_details::parse(text, AUDIENCE) else { return };
    let written = serde_json::to_string(&details).expect("writes");
    let again = authorization_details::parse(&written, AUDIENCE).expect("what was accepted is accepted again");
    assert_eq!(again, details);
    // A detail never reaches beyond itself, and what it covers it names.
    assert!(authorization_details::all_within(&details, &details));
    for detail in &details {
        let object = detail.identifier.as_deref().unwrap_or("/x").trim_end_matches('/');
        let exact = |action: &&String| !action.ends_with('*');
        assert!(detail.actions.iter().filter(exact).all(|action| detail.covers(action, object)));
        let elsewhere = format!("{object}x");
        assert!(detail.identifier.is_none() || object.is_empty() || !detail.covers(&detail.actions[0], &elsewhere));
        let more = Detail { uses: Some(7), ..detail.clone() };
        assert_eq!(more.grant("a", AUDIENCE), detail.grant("a", AUDIENCE), "the count is one, however many are asked");
    }
}

fn forms(bytes: &[u8]) {
    let Ok(read) = form::parse(bytes) else { return };
    let pairs: Vec<(&str, &str)> =
        read.iter().flat_map(|(n, vs)| vs.iter().map(move |v| (n.as_str(), v.as_str()))).collect();
    assert_eq!(form::parse(form::write(&pairs).as_bytes()).expect("what was written reads"), read);
}

fuzz_target!(init: init(), |bytes: &[u8]| {
    forms(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        details(text);
        let _ = access_token::key_id(text);
    }
});
