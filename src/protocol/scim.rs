//! SCIM 2.0 users (RFC 7643, RFC 7644) as provisioning clients write them: names without case, truth values as texts, patches
//! of every shape.

use serde_json::{Map, Value, json};

/// Schema of users.
pub const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";

/// What is wrong with a request (RFC 7644 section 3.12).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Fault {
    /// `scimType`.
    pub kind: &'static str,
    /// For people.
    pub detail: String,
}

fn fault(kind: &'static str, detail: impl Into<String>) -> Fault {
    Fault { kind, detail: detail.into() }
}

/// A resource with its attributes' names as they are usually written (RFC 7643 section 2.1: names have no case; RFC 7644
/// section 3.10: they may begin with the schema's URN).
pub fn folded(resource: Value) -> Result<Value, Fault> {
    let Value::Object(members) = resource else { return Err(fault("invalidSyntax", "a user is a JSON object")) };
    let mut all = Map::new();
    for (name, value) in members {
        let name = known(&name);
        if all.insert(name.clone(), value).is_some() {
            return Err(fault("invalidSyntax", format!("{name} occurs twice")));
        }
    }
    Ok(Value::Object(all))
}

/// Some clients write truth values as texts.
pub fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

/// Whether a resource says that its user is active; one that says nothing does.
pub fn is_active(resource: &Value) -> bool {
    resource.get("active").is_none_or(|a| truth(a) != Some(false))
}

/// Whether an operation says that the user is no longer active, in any of the ways that clients write it.
pub fn deactivates(operation: &Value) -> bool {
    let value = operation.get("value").unwrap_or(&Value::Null);
    let removes = operation.get("op").and_then(Value::as_str).is_some_and(|op| op.eq_ignore_ascii_case("remove"));
    match operation.get("path").and_then(Value::as_str) {
        Some(path) => known(path) == "active" && (removes || truth(value) == Some(false)),
        None => value
            .as_object()
            .is_some_and(|members| members.iter().any(|(name, v)| known(name) == "active" && truth(v) == Some(false))),
    }
}

/// Applies one operation of a patch (RFC 7644 section 3.5.2).
pub fn patched(resource: &mut Value, operation: &Value) -> Result<(), Fault> {
    let op = operation.get("op").and_then(Value::as_str).unwrap_or_default().to_ascii_lowercase();
    let value = operation.get("value").cloned();
    let Some(members) = resource.as_object_mut() else { return Err(fault("invalidSyntax", "a user is a JSON object")) };
    let path = operation.get("path").and_then(Value::as_str).map(unprefixed);
    match (op.as_str(), path, value) {
        ("add" | "replace", None, Some(Value::Object(more))) => {
            for (name, value) in more {
                members.insert(known(&name), value);
            }
            Ok(())
        }
        ("add" | "replace", Some(path), Some(value)) => {
            match path.split('.').collect::<Vec<_>>().as_slice() {
                [one] if plain(one) => {
                    members.insert(known(one), value);
                }
                [one, two] if plain(one) && plain(two) => {
                    let inner = members.entry(known(one)).or_insert_with(|| json!({}));
                    let inner =
                        inner.as_object_mut().ok_or_else(|| fault("noTarget", format!("{one} has no {two}")))?;
                    inner.insert((*two).to_owned(), value);
                }
                _ => return Err(fault("invalidPath", "paths are ATTRIBUTE or ATTRIBUTE.PART here")),
            }
            Ok(())
        }
        ("remove", Some(path), _) if plain(path) => {
            members.remove(&known(path));
            if known(path) == "active" {
                members.insert("active".into(), false.into());
            }
            Ok(())
        }
        _ => Err(fault("invalidSyntax", "an operation is add, replace or remove, with a path or an object")),
    }
}

fn plain(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'$')
}

/// A name without the schema's URN.
fn unprefixed(name: &str) -> &str {
    match name.split_at_checked(USER.len()) {
        Some((urn, rest)) if urn.eq_ignore_ascii_case(USER) => rest.strip_prefix(':').unwrap_or(name),
        _ => name,
    }
}

/// An attribute's name as it is usually written.
fn known(name: &str) -> String {
    let name = unprefixed(name);
    let usual = ["active", "userName", "externalId", "displayName", "name", "emails", "id"];
    usual.iter().find(|u| u.eq_ignore_ascii_case(name)).map_or_else(|| name.to_owned(), |u| (*u).to_owned())
}

/// `userName eq "x"` and the like (RFC 7644 section 3.4.2.2).
pub fn filter(text: &str) -> Result<(&'static str, String), Fault> {
    let refuse = || fault("invalidFilter", "filters are: userName, externalId or id, eq, and a text in quotes");
    let (attribute, rest) = text.trim().split_once(' ').ok_or_else(refuse)?;
    let (operator, value) = rest.trim_start().split_once(' ').ok_or_else(refuse)?;
    let value: String = serde_json::from_str(value.trim()).map_err(|_| refuse())?;
    let known = ["username", "externalid", "id"].into_iter().find(|a| attribute.eq_ignore_ascii_case(a));
    match known {
        Some(attribute) if operator.eq_ignore_ascii_case("eq") => Ok((attribute, value)),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_saying_that_a_user_is_gone_is_heard() {
        let says = |operation: Value| deactivates(&operation);
        assert!(says(json!({"op": "replace", "path": "active", "value": false})));
        assert!(says(json!({"op": "Replace", "path": "active", "value": "False"})));
        assert!(says(json!({"op": "replace", "value": {"active": false}})));
        assert!(says(json!({"op": "add", "value": {"Active": "false", "x": 1}})));
        assert!(says(json!({"op": "remove", "path": "active"})));
        assert!(says(json!({"op": "replace", "path": format!("{USER}:active"), "value": false})));
        assert!(says(json!({"op": "replace", "value": {format!("{}:ACTIVE", USER.to_uppercase()): false}})));
        assert!(!says(json!({"op": "replace", "path": "active", "value": true})));
        assert!(!says(json!({"op": "replace", "path": "displayName", "value": "false"})));
        assert!(!says(json!({"op": "replace", "value": {"active": true}})));
    }

    #[test]
    fn a_patch_changes_what_it_names_and_a_filter_asks_for_equality() {
        let mut user = json!({"userName": "bob", "name": {"familyName": "B"}});
        patched(&mut user, &json!({"op": "replace", "path": "name.familyName", "value": "C"})).expect("patches");
        patched(&mut user, &json!({"op": "add", "path": "displayname", "value": "Bob"})).expect("patches");
        patched(&mut user, &json!({"op": "remove", "path": "displayName"})).expect("patches");
        assert_eq!(user, json!({"userName": "bob", "name": {"familyName": "C"}}));
        for odd in [
            json!({"op": "move"}),
            json!({"op": "replace", "path": "emails[type eq \"work\"].value", "value": "x"}),
            json!({"op": "add", "value": 7}),
        ] {
            assert!(patched(&mut user, &odd).is_err(), "{odd}");
        }
        assert_eq!(filter("userName Eq \"bob\"").expect("reads"), ("username", "bob".to_owned()));
        for odd in ["userName sw \"b\"", "name eq \"b\"", "userName eq bob", "", "userName eq \"a\" or id eq \"b\""] {
            assert!(filter(odd).is_err(), "{odd}");
        }
    }
}
