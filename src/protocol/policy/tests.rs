use proptest::prelude::*;
use serde_json::{Map, json};

use super::*;
use crate::domain::intent::Principal;
use crate::protocol::operation::BodyField;
use crate::protocol::template::Template;

fn operation(name: &str, body: Vec<BodyField>) -> Operation {
    let path = |text| Template::parse(text).expect("a template");
    Operation { body, ..Operation::new(name, "POST", path("/v1/{run}"), path("/runs/{run}")) }
}

fn operations() -> Vec<Operation> {
    let n = BodyField { name: "n".into(), pointer: "/n".into(), kind: FieldType::Long, optional: false };
    vec![operation("a.run", vec![n]), operation("a.read", vec![]), operation("b.run", vec![])]
}

fn load(text: &str) -> Result<PolicyEngine, PolicyError> {
    PolicyEngine::load(&[PolicySource { name: "t.cedar".into(), text: text.into() }], &operations())
}

fn intent(operation: &str, groups: &[&str], n: i64) -> Intent {
    let mut context: Map<_, _> = [
        ("method".to_owned(), json!("POST")),
        ("time".to_owned(), json!(1)),
        ("scope".to_owned(), json!(["a.run"])),
        ("client_certificate".to_owned(), json!(false)),
        ("subject".to_owned(), json!("spiffe://example.org/a")),
        ("actors".to_owned(), json!([])),
        ("params".to_owned(), json!({"run": "r1"})),
    ]
    .into_iter()
    .collect();
    if operation == "a.run" {
        context.insert("body".into(), json!({"n": n}));
    }
    Intent {
        principal: Principal {
            spiffe_id: "spiffe://example.org/ci/solver".parse().expect("legal"),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            owner: "https://idp#bob".into(),
            sponsor: None,
        },
        operation: operation.into(),
        route: "tot".into(),
        object: "/runs/r1/nodes/n7".into(),
        context,
    }
}

const ALL: &str = r#"@id("all") permit (principal, action, resource);"#;

#[test]
fn nothing_permits_by_default_and_a_forbid_wins_over_a_permit() {
    let nothing = load("").expect("loads").decide(&intent("a.read", &["solvers"], 0));
    assert_eq!((nothing.decision, nothing.rules.len()), (Decision::Deny, 0));
    let both = format!(r#"{ALL} @id("no") @fix("ask") forbid (principal, action == Action::"a.run", resource);"#);
    let engine = load(&both).expect("loads");
    let denied = engine.decide(&intent("a.run", &[], 0));
    assert_eq!((denied.decision, denied.rules, denied.fix), (Decision::Deny, vec!["no".into()], Some("ask".into())));
    assert_eq!(engine.decide(&intent("a.read", &[], 0)).decision, Decision::Allow, "the other operation");
}

#[test]
fn a_policy_that_cannot_be_evaluated_denies_and_is_named() {
    let text = format!(
        r#"{ALL} @id("sum") forbid (principal, action == Action::"a.run", resource) when {{ context.body.n + 9223372036854775807 > 5 }};"#
    );
    let engine = load(&text).expect("loads");
    let denied = engine.decide(&intent("a.run", &[], 1));
    assert_eq!(denied.decision, Decision::Deny, "Cedar alone would skip the forbid and allow");
    assert!(denied.reason.is_some_and(|r| r.contains("sum")));
}

#[test]
fn the_route_and_each_level_of_the_object_can_be_named() {
    for (resource, holds) in [
        (r#"Route::"tot""#, true),
        (r#"Object::"tot/runs/r1""#, true),
        (r#"Object::"tot/runs/r1/nodes/n7""#, true),
        (r#"Object::"tot/runs/r2""#, false),
        (r#"Route::"mail""#, false),
    ] {
        let text = format!(r#"@id("x") permit (principal, action, resource in {resource});"#);
        let verdict = load(&text).expect("loads").decide(&intent("a.read", &[], 0));
        assert_eq!(verdict.decision == Decision::Allow, holds, "{resource}");
    }
}

#[test]
fn of_two_approvals_the_groups_must_agree() {
    let asking = |id: &str, group: &str| {
        format!(r#"@id("{id}") @approval("1 of {group}") permit (principal, action, resource);"#)
    };
    let decide = |text: String| load(&text).expect("loads").decide(&intent("a.read", &[], 0));
    let same = decide(asking("x", "security") + &asking("y", "security"));
    assert!(matches!(same.decision, Decision::AllowWithApproval(rule) if rule.group == "security"));
    let beside = decide(asking("x", "security") + ALL);
    assert!(matches!(beside.decision, Decision::AllowWithApproval(_)), "the stricter counts");
    let differing = decide(asking("x", "security") + &asking("y", "sales"));
    assert_eq!(differing.decision, Decision::Deny);
    assert!(differing.reason.is_some_and(|r| r.contains("different groups")));
}

#[test]
fn each_bad_set_is_refused_at_load() {
    for (text, says) in [
        ("permit (principal, action, resource)", "unexpected end"),
        ("permit (principal, action, resource);", "no @id"),
        (
            r#"@id("x") permit (principal, action, resource); @id("x") forbid (principal, action, resource);"#,
            "two policies",
        ),
        (r#"@id("x") permit (principal, action == Action::"a.rnu", resource);"#, "do not fit"),
        (
            r#"@id("x") permit (principal, action == Action::"a.read", resource) when { context.body.n > 1 };"#,
            "do not fit",
        ),
        (
            r#"@id("x") permit (principal, action == Action::"a.run", resource) when { context.body.n == "1" };"#,
            "do not fit",
        ),
        (r#"@id("x") @approval("2 of security") permit (principal, action, resource);"#, "one approver"),
        (r#"@id("x") @approval("security") permit (principal, action, resource);"#, "1 of GROUP"),
    ] {
        let refused = load(text).err().expect(text).to_string();
        assert!(refused.contains(says), "{text}: {refused}");
    }
}

#[test]
fn the_checker_warns_where_a_permit_with_approval_stands_beside_one_without() {
    let source = |text: &str| [PolicySource { name: "t.cedar".into(), text: text.into() }];
    let asking = r#"@id("ask") @approval("1 of security") permit (principal, action == Action::"a.run", resource);"#;
    assert_eq!(warnings(&source(&format!("{asking} {ALL}"))).len(), 1);
    let apart = r#"@id("read") permit (principal, action == Action::"a.read", resource);"#;
    assert_eq!(warnings(&source(&format!("{asking} {apart}"))).len(), 0);
}

#[test]
fn what_differs_in_anything_but_time_is_decided_anew() {
    let text = r#"@id("in") permit (principal in Group::"solvers", action == Action::"a.run", resource in Object::"tot/runs/r1") when { context.body.n > 2 };"#;
    let engine = load(text).expect("loads");
    let base = intent("a.run", &["solvers"], 3);
    let allowed = |intent: &Intent| engine.decide(intent).decision == Decision::Allow;
    for _ in 0..3 {
        assert!(allowed(&base));
        let mut later = base.clone();
        later.context.insert("time".into(), json!(2));
        assert!(allowed(&later));
        assert!(!allowed(&intent("a.run", &["solvers"], 2)), "a field");
        assert!(!allowed(&intent("a.run", &["sales"], 3)), "a group");
        assert!(!allowed(&Intent { object: "/runs/r2".into(), ..base.clone() }), "the object");
        assert!(!allowed(&Intent { route: "mail".into(), ..base.clone() }), "the route");
        assert!(!allowed(&Intent { operation: "b.run".into(), ..base.clone() }), "the operation");
    }
    let closed = load("").expect("loads");
    assert_eq!(closed.decide(&base).decision, Decision::Deny, "another set remembers nothing of it");
}

#[test]
fn a_policy_that_asks_for_the_time_is_asked_each_time_however_it_spells_it() {
    for condition in ["context.time < 10", r#"context["time"] < 10"#, r#"context["t\u{69}me"] < 10"#] {
        let text = format!(r#"@id("early") permit (principal, action, resource) when {{ {condition} }};"#);
        let engine = load(&text).expect("loads");
        let at = |time: i64| {
            let mut intent = intent("a.read", &[], 0);
            intent.context.insert("time".into(), json!(time));
            engine.decide(&intent).decision
        };
        for (time, want) in [(1, Decision::Allow), (20, Decision::Deny), (2, Decision::Allow)] {
            assert_eq!(at(time), want, "{condition} at {time}");
        }
    }
}

#[test]
fn what_is_remembered_is_bounded_and_still_right() {
    let text = r#"@id("odd") permit (principal, action == Action::"a.run", resource) when { context.body.n > 5000 };"#;
    let engine = load(text).expect("loads");
    for n in (0..9000).chain([0, 4999, 5000, 5001, 8999]) {
        let allowed = engine.decide(&intent("a.run", &[], n)).decision == Decision::Allow;
        assert_eq!(allowed, n > 5000, "{n}");
    }
    assert!((1000..=16 * 2 * 256).contains(&engine.memo.len()));
}

fn policy(n: usize) -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("permit"), Just("forbid")];
    let principal = prop_oneof![
        Just("principal"),
        Just(r#"principal in Group::"solvers""#),
        Just(r#"principal == Workload::"spiffe://example.org/ci/solver""#)
    ];
    let action = prop_oneof![
        Just("action"),
        Just(r#"action == Action::"a.run""#),
        Just(r#"action in [Action::"a.read", Action::"b.run"]"#),
        Just(r#"action == Action::"b.run""#)
    ];
    let when = prop_oneof![
        Just(""),
        Just(r#"when { action == Action::"a.read" }"#),
        Just("when { context.time > 0 }"),
        Just("when { context.time + 9223372036854775807 > 0 }")
    ];
    let annotation = prop_oneof![Just(""), Just(r#"@approval("1 of security")"#), Just(r#"@approval("1 of sales")"#)];
    (effect, principal, action, when, annotation).prop_map(move |(effect, principal, action, when, annotation)| {
        format!(r#"@id("p{n}") {annotation} {effect} ({principal}, {action}, resource) {when};"#)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_indexed_slice_decides_as_the_whole_set(
        policies in proptest::collection::vec(0..8usize, 0..6).prop_flat_map(|ns| {
            ns.iter().enumerate().map(|(i, _)| policy(i)).collect::<Vec<_>>()
        }),
        operation in prop_oneof![Just("a.run"), Just("a.read"), Just("b.run"), Just("c.none")],
        groups in prop_oneof![Just(vec![]), Just(vec!["solvers"])],
    ) {
        let engine = load(&policies.concat()).expect("loads");
        let intent = intent(operation, &groups, 3);
        prop_assert_eq!(engine.decide(&intent), engine.decide_unindexed(&intent));
        prop_assert_eq!(engine.decide(&intent), engine.decide_unindexed(&intent), "remembered");
    }
}
