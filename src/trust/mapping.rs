//! Mapping rules: what the claims or attributes of a statement come to here.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::trust::config::MapRule;

/// A claim's values as texts: of a list each, of an object none.
pub type Facts = BTreeMap<String, Vec<String>>;

/// What starts a run by those alone who may change the repository, by GitHub's and GitLab's names. Whatever else starts one
/// may be a stranger's proposal, whose code runs.
const OWN_RUNS: [(&str, &[&str]); 2] = [
    ("event_name", &["push", "schedule", "workflow_dispatch", "repository_dispatch", "release"]),
    ("pipeline_source", &["push", "web", "schedule", "api", "trigger"]),
];
/// Where the code of proposed changes is.
const PROPOSED_REFS: [&str; 2] = ["refs/pull/", "refs/merge-requests/"];

/// What became of one rule.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub struct Tried {
    /// Which one, from 1.
    pub rule: usize,
    /// Whether it fits.
    pub fits: bool,
    /// Why not, or what it gives.
    pub because: String,
}

/// The facts that a claim set tells.
pub fn facts(claims: &Map<String, Value>) -> Facts {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let all = |value: &Value| match value {
        Value::Array(items) => items.iter().filter_map(one).collect(),
        other => one(other).into_iter().collect(),
    };
    claims.iter().map(|(name, value)| (name.clone(), all(value))).collect()
}

/// Tries each rule. The groups are those of all that fit; none fits: nothing is believed.
pub fn map(rules: &[MapRule], facts: &Facts) -> (Option<Vec<String>>, Vec<Tried>) {
    let mut groups = BTreeSet::new();
    let mut tried = Vec::new();
    for (i, rule) in rules.iter().enumerate() {
        let outcome = apply(rule, facts);
        let fits = outcome.is_ok();
        let because = match outcome {
            Ok(given) => {
                let told = if given.is_empty() { "no group".to_owned() } else { given.join(", ") };
                groups.extend(given);
                format!("gives {told}")
            }
            Err(why) => why,
        };
        tried.push(Tried { rule: i + 1, fits, because });
    }
    let fitting = tried.iter().any(|t| t.fits);
    (fitting.then(|| groups.into_iter().collect()), tried)
}

fn apply(rule: &MapRule, facts: &Facts) -> Result<Vec<String>, String> {
    let none = Vec::new();
    let of = |name: &str| facts.get(name).unwrap_or(&none);
    for (name, wanted) in &rule.claims {
        let fits = |have: &String| wanted.iter().any(|want| value_fits(want, have));
        if !of(name).iter().any(fits) {
            return Err(if of(name).is_empty() { format!("{name} is absent") } else { format!("{name} is another") });
        }
    }
    // A star does not name it: `*` would let in what nobody thought of.
    let named = |name: &str, have: &String| {
        let names = |want: &String| want == have || (want.len() > 1 && want.ends_with('*') && value_fits(want, have));
        rule.claims.get(name).is_some_and(|wanted| wanted.iter().any(names))
    };
    let foreign = |(name, own): &(&'static str, &[&str])| {
        of(name).iter().any(|have| !own.contains(&have.as_str()) && !named(name, have)).then_some(*name)
    };
    let proposed = |have: &String| PROPOSED_REFS.iter().any(|start| have.starts_with(start)) && !named("ref", have);
    let unnamed = OWN_RUNS.iter().find_map(foreign).or_else(|| of("ref").iter().any(proposed).then_some("ref"));
    if let Some(name) = unnamed {
        return Err(format!("it may be a run on a proposed change, and the rule does not name that {name}"));
    }
    let each = rule.each.as_ref().map_or(&none, |claim| of(claim));
    let sound = |value: &&String| !value.is_empty() && value.len() <= 256 && !value.chars().any(char::is_control);
    let each: Vec<String> = each.iter().filter(sound).map(|value| format!("{}{value}", rule.prefix)).collect();
    if let Some(claim) = rule.each.as_ref().filter(|_| each.is_empty()) {
        return Err(format!("{claim} names no group"));
    }
    Ok(rule.groups.iter().cloned().chain(each).collect())
}

fn value_fits(want: &str, have: &str) -> bool {
    match want.strip_suffix('*') {
        Some(start) => have.starts_with(start),
        None => want == have,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rules(text: &str) -> Vec<MapRule> {
        #[derive(serde::Deserialize)]
        struct Rules {
            map: Vec<MapRule>,
        }
        toml::from_str::<Rules>(text).expect("rules").map
    }

    fn groups(text: &str, claims: &Value) -> Option<Vec<String>> {
        map(&rules(text), &facts(claims.as_object().expect("an object"))).0
    }

    #[test]
    fn g3_all_claims_of_a_rule_must_fit_and_all_fitting_rules_count() {
        let text = r#"
            [[map]]
            claims = { repository_id = "74", ref = ["refs/heads/main", "refs/tags/*"] }
            groups = ["deployers"]
            [[map]]
            claims = { repository_id = "74" }
            groups = ["builders"]
        "#;
        let job = |r: &str, id: Value| json!({"repository_id": id, "ref": r});
        let both = Some(vec!["builders".to_owned(), "deployers".to_owned()]);
        assert_eq!(groups(text, &job("refs/heads/main", "74".into())), both);
        assert_eq!(groups(text, &job("refs/tags/v1", 74.into())), both);
        assert_eq!(groups(text, &job("refs/heads/x", "74".into())), Some(vec!["builders".to_owned()]));
        assert_eq!(groups(text, &job("refs/heads/main", "75".into())), None);
        assert_eq!(groups(text, &json!({})), None);
        assert_eq!(groups("map = []", &json!({"a": "b"})), None, "without a rule nothing is believed");
    }

    #[test]
    fn g3_each_value_of_a_claim_is_a_group_under_its_prefix() {
        let text = "[[map]]\neach = \"groups\"\nprefix = \"corp:\"\n";
        let claims = json!({"groups": ["a", "b", {"no": 1}, "x\u{7}"]});
        assert_eq!(groups(text, &claims), Some(vec!["corp:a".to_owned(), "corp:b".to_owned()]));
        assert_eq!(groups(text, &json!({"groups": "one"})), Some(vec!["corp:one".to_owned()]));
        for none in [json!({}), json!({"groups": []}), json!({"groups": {"a": 1}}), json!({"groups": ""})] {
            assert_eq!(
                groups(text, &none),
                None,
                "whoever is in no group is let in by another rule or not at all: {none}"
            );
        }
        let everybody = format!("{text}[[map]]\n");
        assert_eq!(groups(&everybody, &json!({})), Some(vec![]));
    }

    #[test]
    fn g3_a_run_on_a_proposed_change_counts_only_where_it_is_named() {
        let plain = "[[map]]\nclaims = { repository_id = \"74\" }\ngroups = [\"g\"]\n";
        let starred = "[[map]]\nclaims = { repository_id = \"74\", event_name = \"*\" }\ngroups = [\"g\"]\n";
        let named = "[[map]]\nclaims = { repository_id = \"74\", event_name = \"pull_request\" }\ngroups = [\"g\"]\n";
        let job = |event: &str| json!({"repository_id": "74", "event_name": event});
        for event in ["pull_request", "pull_request_target", "workflow_run", "issue_comment", "tomorrows"] {
            assert_eq!(groups(plain, &job(event)), None, "{event}");
            assert_eq!(groups(starred, &job(event)), None, "{event}");
        }
        assert!(groups(plain, &job("push")).is_some());
        assert!(groups(named, &job("pull_request")).is_some());
        let merge = json!({"repository_id": "74", "pipeline_source": "merge_request_event"});
        assert_eq!(groups(plain, &merge), None);
        for proposed in ["refs/pull/7/merge", "refs/merge-requests/7/head"] {
            let run = json!({"repository_id": "74", "ref": proposed});
            assert_eq!(groups(plain, &run), None, "{proposed}");
            let by_ref = |r: &str| format!("[[map]]\nclaims = {{ repository_id = \"74\", ref = \"{r}\" }}\n");
            assert_eq!(groups(&by_ref("*"), &run), None, "{proposed}");
            assert!(groups(&by_ref(proposed), &run).is_some(), "{proposed}");
        }
    }
}
