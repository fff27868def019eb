//! Authorization details (RFC 9396) of type `popgate_operation`: a token for exact operations on exact objects, and for a
//! number of uses.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::digest::Sha256;
use crate::domain::people::operation_matches;
use crate::protocol::json;

/// The one type.
pub const TYPE: &str = "popgate_operation";
/// Details of one token.
const MAX_DETAILS: usize = 16;
/// Actions or locations of one detail.
const MAX_NAMES: usize = 64;
/// Most uses that one detail may ask for.
const MAX_USES: u32 = 1_000_000;

/// Why authorization details are refused. The text is for the client.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("authorization_details: {0}")]
pub struct DetailError(String);

fn refuse<T>(why: impl Into<String>) -> Result<T, DetailError> {
    Err(DetailError(why.into()))
}

/// One detail (RFC 9396 section 2).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detail {
    /// Always [`TYPE`].
    #[serde(rename = "type")]
    pub kind: String,
    /// The resource, by its URL; absent: the token's audience.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
    /// Operation names; `*` stands at the end alone.
    pub actions: Vec<String>,
    /// The object, without the route's name; what is inside it counts with it. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
    /// How often it may be used, over all tokens of the client that carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
}

impl Detail {
    /// Whether it covers an operation on an object.
    pub fn covers(&self, operation: &str, object: &str) -> bool {
        let inside = |identifier: &String| {
            let identifier = identifier.trim_end_matches('/');
            object.strip_prefix(identifier).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.actions.iter().any(|a| operation_matches(a, operation)) && self.identifier.as_ref().is_none_or(inside)
    }

    /// What its uses are counted under: who asks and for what; not how often, or a client would begin anew by asking for
    /// more.
    pub fn grant(&self, client_id: &str, audience: &str) -> Sha256 {
        let mut actions = self.actions.clone();
        actions.sort();
        actions.dedup();
        let identifier = self.identifier.as_deref().map(|i| i.trim_end_matches('/'));
        let named = serde_json::json!([client_id, audience, actions, identifier]);
        Sha256::of_parts(&[b"uses\0", named.to_string().as_bytes()])
    }

    /// Whether it asks for no more than `bound` does.
    fn within(&self, bound: &Self) -> bool {
        let object = match (&self.identifier, &bound.identifier) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(_)) => self.actions.iter().all(|a| bound.covers(a, own.trim_end_matches('/'))),
        };
        let actions = self.actions.iter().all(|a| bound.actions.iter().any(|b| operation_matches(b, a)));
        let uses = match (self.uses, bound.uses) {
            (_, None) => true,
            (None, Some(_)) => false,
            // Counted as one: the same grant, or the exchange would begin anew.
            (Some(own), Some(most)) => {
                own <= most && self.actions == bound.actions && self.identifier == bound.identifier
            }
        };
        actions && object && uses
    }
}

/// Reads the parameter of RFC 9396 section 2 for a token with this audience.
pub fn parse(text: &str, audience: &str) -> Result<Vec<Detail>, DetailError> {
    let value = json::parse(text.as_bytes()).or_else(|e| refuse(format!("not strict JSON: {e}")))?;
    let Value::Array(items) = value else { return refuse("not an array") };
    if items.is_empty() || items.len() > MAX_DETAILS {
        return refuse(format!("from one to {MAX_DETAILS} of them"));
    }
    items.into_iter().map(|item| one(item, audience)).collect()
}

fn one(item: Value, audience: &str) -> Result<Detail, DetailError> {
    match item.get("type").and_then(Value::as_str) {
        Some(TYPE) => {}
        _ => return refuse(format!("the type that is offered is {TYPE}")),
    }
    let detail: Detail = serde_json::from_value(item)
        .or_else(|e| refuse(format!("{e}; a {TYPE} has locations, actions, identifier and uses")))?;
    if detail.locations.len() > MAX_NAMES || detail.locations.iter().any(|l| l != audience) {
        return refuse("a location is not the resource of this token");
    }
    let sound = |a: &String| {
        !a.is_empty()
            && !a.trim_end_matches('*').contains('*')
            && !a.ends_with("**")
            && a.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    };
    if detail.actions.is_empty() || detail.actions.len() > MAX_NAMES || !detail.actions.iter().all(sound) {
        return refuse("actions are operation names, `*` at the end only; at least one");
    }
    let clean = |i: &String| {
        i.starts_with('/')
            && i.len() <= 1024
            && !i.contains("//")
            && !i.chars().any(|c| c.is_control() || c.is_whitespace())
            && !i.split('/').any(|s| s == "." || s == "..")
    };
    if detail.identifier.as_ref().is_some_and(|i| !clean(i)) {
        return refuse("identifier is an object's path, as in /runs/r1");
    }
    if detail.uses.is_some_and(|n| n == 0 || n > MAX_USES) {
        return refuse(format!("uses is from 1 to {MAX_USES}"));
    }
    Ok(detail)
}

/// Whether each of `asked` lies within one of `bounds`.
pub fn all_within(asked: &[Detail], bounds: &[Detail]) -> bool {
    asked.iter().all(|a| bounds.iter().any(|b| a.within(b)))
}

/// The names of the operations that details allow, each once.
pub fn actions(details: &[Detail]) -> Vec<String> {
    let mut names = Vec::new();
    for action in details.iter().flat_map(|d| &d.actions) {
        if !names.contains(action) {
            names.push(action.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AUDIENCE: &str = "https://gw/v1";

    fn read(text: &str) -> Result<Vec<Detail>, DetailError> {
        parse(text, AUDIENCE)
    }

    fn detail(fields: &str) -> Detail {
        read(&format!(r#"[{{"type":"popgate_operation",{fields}}}]"#)).expect(fields).remove(0)
    }

    #[test]
    fn t4_unknown_types_and_fields_and_odd_values_are_refused() {
        let good = r#"[{"type":"popgate_operation","locations":["https://gw/v1"],"actions":["tot.prune"],"identifier":"/runs/r1","uses":1}]"#;
        assert_eq!(read(good).expect("reads").len(), 1);
        for (what, with) in [
            ("popgate_operation", "payment_initiation"),
            ("\"uses\":1", "\"uses\":0"),
            ("\"uses\":1", "\"uses\":-1"),
            ("\"uses\":1", "\"uses\":1.5"),
            ("\"uses\":1", "\"uses\":\"1\""),
            ("\"uses\":1", "\"uses\":1000001"),
            ("\"uses\":1", "\"uses\":1,\"uses\":2"),
            ("\"uses\":1", "\"limit\":1"),
            ("\"/runs/r1\"", "\"runs/r1\""),
            ("\"/runs/r1\"", "\"/runs/../x\""),
            ("\"/runs/r1\"", "\"/runs//x\""),
            ("\"/runs/r1\"", "\"/runs/ x\""),
            ("\"/runs/r1\"", "7"),
            ("[\"tot.prune\"]", "[]"),
            ("[\"tot.prune\"]", "[\"\"]"),
            ("[\"tot.prune\"]", "[\"*.prune\"]"),
            ("[\"tot.prune\"]", "[\"a b\"]"),
            ("[\"tot.prune\"]", "\"tot.prune\""),
            ("\"actions\":[\"tot.prune\"],", ""),
            ("https://gw/v1", "https://gw/v2"),
        ] {
            assert!(good.contains(what), "{what}");
            assert!(read(&good.replacen(what, with, 1)).is_err(), "{what} -> {with}");
        }
        let item = good.trim_matches(['[', ']']);
        for bad in ["[]", "{}", "", "null", "[1]", &format!("[{item}]x"), &format!("[{}]", vec![item; 17].join(","))] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn t4_a_detail_covers_its_object_and_what_is_inside() {
        let run = detail(r#""actions":["tot.*"],"identifier":"/runs/r1""#);
        assert!(run.covers("tot.prune", "/runs/r1/nodes/n7"));
        assert!(run.covers("tot.read", "/runs/r1"));
        assert!(!run.covers("tot.read", "/runs/r10"));
        assert!(!run.covers("tot.read", "/runs"));
        assert!(!run.covers("mail.send", "/runs/r1"));
        assert!(detail(r#""actions":["tot.read"]"#).covers("tot.read", "/anything"));
    }

    #[test]
    fn t5_uses_are_counted_by_who_and_what_and_not_by_how_often() {
        let once = detail(r#""actions":["a","b"],"identifier":"/x","uses":1"#);
        let twice = detail(r#""actions":["b","a","a"],"identifier":"/x/","uses":2"#);
        let other = detail(r#""actions":["a"],"identifier":"/x","uses":1"#);
        assert_eq!(once.grant("c", AUDIENCE), twice.grant("c", AUDIENCE));
        assert_ne!(once.grant("c", AUDIENCE), other.grant("c", AUDIENCE));
        assert_ne!(once.grant("c", AUDIENCE), once.grant("d", AUDIENCE));
        assert_ne!(once.grant("c", AUDIENCE), once.grant("c", "https://gw/v2"));
    }

    #[test]
    fn g2_an_exchange_never_widens() {
        let bound = detail(r#""actions":["tot.*"],"identifier":"/runs/r1""#);
        let within = |fields: &str| all_within(&[detail(fields)], std::slice::from_ref(&bound));
        assert!(within(r#""actions":["tot.prune"],"identifier":"/runs/r1/nodes/n7","uses":1"#));
        assert!(within(r#""actions":["tot.*"],"identifier":"/runs/r1""#));
        assert!(!within(r#""actions":["tot.prune"]"#));
        assert!(!within(r#""actions":["tot.prune"],"identifier":"/runs/r2""#));
        assert!(!within(r#""actions":["*"],"identifier":"/runs/r1""#));
        let counted = detail(r#""actions":["a"],"identifier":"/x","uses":2"#);
        let of = |fields: &str| all_within(&[detail(fields)], std::slice::from_ref(&counted));
        assert!(of(r#""actions":["a"],"identifier":"/x","uses":1"#));
        assert!(!of(r#""actions":["a"],"identifier":"/x""#), "uncounted is wider");
        assert!(!of(r#""actions":["a"],"identifier":"/x","uses":3"#));
        assert!(!of(r#""actions":["a"],"identifier":"/x/y","uses":1"#), "another count would begin");
    }

    proptest! {
        #[test]
        fn t4_reading_never_panics_and_writes_what_it_reads(text in ".{0,200}") {
            if let Ok(details) = read(&text) {
                let written = serde_json::to_string(&details).expect("writes");
                prop_assert_eq!(read(&written).expect("own form"), details);
            }
        }
    }
}
