//! `mask(any chunking) == mask(whole)`: the same bytes, the same counts, the same refusal.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use popgate::protocol::masking::path::FieldPath;
use popgate::protocol::masking::{Blocked, Counts, EntityKind, FieldAction, FieldRule, MaskRules, Masker, Strategy};

const TYPES: [&str; 4] = ["application/json", "text/event-stream", "text/plain", "application/x-ndjson"];

fn rules(bits: u8) -> Arc<MaskRules> {
    let path = |text| FieldPath::parse(text).expect("a path");
    let mut rules = MaskRules::detecting(&[
        EntityKind::Email,
        EntityKind::Card,
        EntityKind::Ssn,
        EntityKind::Iban,
        EntityKind::Secret,
    ]);
    rules.strategy = if bits & 1 == 0 { Strategy::Redact } else { Strategy::KeepLast(4) };
    if bits & 2 != 0 {
        rules.fields = vec![
            FieldRule { path: path("$.ssn"), action: FieldAction::Redact },
            FieldRule { path: path("$..secret"), action: FieldAction::Drop },
        ];
    }
    if bits & 4 != 0 {
        rules.exact = vec![b"hunter2".to_vec()];
    }
    Arc::new(rules)
}

fn run<'a>(
    rules: &Arc<MaskRules>,
    kind: &str,
    chunks: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Result<Counts, Blocked>) {
    let mut masker = Masker::for_content_type(rules, kind).expect("a type that masks read");
    let mut out = Vec::new();
    for chunk in chunks {
        if let Err(blocked) = masker.push(chunk, &mut out) {
            return (out, Err(blocked));
        }
    }
    match masker.finish(&mut out) {
        Ok(()) => (out, Ok(masker.counts())),
        Err(blocked) => (out, Err(blocked)),
    }
}

/// The target must find something, or it compares bodies that no mask touches.
fn init() {
    let seed = include_bytes!("../seeds/mask/json");
    let (masked, ended) = run(&rules(seed[0] >> 2), TYPES[0], std::iter::once(&seed[2..]));
    assert!(ended.is_ok_and(|counts| counts.len() >= 3) && !masked.windows(3).any(|w| w == b"ada"));
}

// The first byte chooses the type and the rules, the second seeds the cuts, the rest is the body.
fuzz_target!(init: init(), |data: &[u8]| {
    let [choice, seed, body @ ..] = data else { return };
    let (kind, rules) = (TYPES[usize::from(choice & 3)], rules(choice >> 2));
    let (whole, ended) = run(&rules, kind, std::iter::once(body));
    let mut rest = body;
    let mut state = u32::from(*seed) + 1;
    let cuts = std::iter::from_fn(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = if seed & 1 == 0 { 1 } else { (state >> 24) as usize % 17 };
        (!rest.is_empty()).then(|| rest.split_off(..length.min(rest.len())).expect("within the body"))
    });
    let (chunked, chunked_ended) = run(&rules, kind, cuts);
    assert_eq!(ended, chunked_ended, "the same end");
    if ended.is_ok() {
        assert!(whole == chunked, "another chunking, other bytes: {whole:?} {chunked:?}");
    } else {
        assert!(whole.starts_with(&chunked) || chunked.starts_with(&whole), "before the end, the same bytes");
    }
});
