//! How much of what masks look for they find, and what else they take for it: the table of `docs/masking.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use popgate::protocol::masking::{EntityKind, MaskRules, mask_counting};
use serde_json::Value;

use crate::documented::{self, Page};
use crate::interop::{row, script};
use crate::world::process::bounded;
use crate::world::{provided, stderr, stdout};

#[derive(Default)]
struct Tally {
    values: u64,
    /// Values of which nothing is left.
    gone: u64,
    /// Marks that a value of the kind explains.
    right: u64,
    /// All marks of the kind.
    marks: u64,
}

#[test]
fn precision_and_recall_of_each_entity_are_as_documented() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "clients in Python and Node, and a certificate linter") else {
        return;
    };
    let output = bounded(&python).arg(script("personal_data.py")).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let kinds = [EntityKind::Email, EntityKind::Card, EntityKind::Ssn, EntityKind::Iban, EntityKind::Secret];
    let rules = Arc::new(MaskRules::detecting(&kinds));
    let mut tallies: BTreeMap<String, Tally> = kinds.iter().map(|k| (k.to_string(), Tally::default())).collect();
    let (mut clean, mut touched) = (0_u64, 0_u64);
    for line in stdout(&output).lines() {
        let one: Value = serde_json::from_str(line).expect("JSON");
        let text = one["text"].as_str().expect("a text");
        let kind = if one["kind"].is_null() { "application/json" } else { "text/plain" };
        let (masked, counts) = mask_counting(&rules, kind, text.as_bytes()).expect("readable");
        let masked = String::from_utf8(masked).expect("text");
        for (kind, n) in &counts {
            tallies.get_mut(kind).expect("one of the kinds").marks += n;
        }
        let Some(kind) = one["kind"].as_str() else {
            clean += 1;
            touched += u64::from(masked != text);
            continue;
        };
        let value = one["value"].as_str().expect("a value");
        let tally = tallies.get_mut(kind).expect("one of the kinds");
        tally.values += 1;
        let left = value.as_bytes().windows(6).any(|w| masked.contains(std::str::from_utf8(w).expect("ASCII")));
        tally.gone += u64::from(!left);
        tally.right += u64::from(counts.get(kind).is_some_and(|n| *n > 0));
    }
    let percent = |part: u64, of: u64| format!("{:.1} % of {of}", 100.0 * part as f64 / of.max(1) as f64);
    let mut table =
        vec![row("entity", "recall: nothing of the value is left", "precision: marks that a value explains", "missed")];
    for (kind, t) in &tallies {
        table.push(row(kind, &percent(t.gone, t.values), &percent(t.right, t.marks), &(t.values - t.gone).to_string()));
    }
    table.push(row("documents without any", "", &format!("{touched} of {clean} changed"), ""));
    assert!(tallies.values().all(|t| t.gone * 100 >= t.values * 99), "{table:?}");
    assert!(touched * 100 <= clean, "{table:?}");
    documented::compare(Page::Masking, &table);
}
