//! Turns a method and a canonical path into a named operation on an object, with the body fields that policy reads.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::protocol::json;
use crate::protocol::template::Template;

/// The type of a body field, as Cedar sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize, strum::Display)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum FieldType {
    /// A whole number that fits 64 bits.
    Long,
    /// A string.
    String,
    /// A boolean.
    Bool,
    /// An array of strings, read as a set.
    Strings,
}

/// One field of the body that policy may read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BodyField {
    /// Its name in `context.body`.
    pub name: String,
    /// JSON pointer (RFC 6901) to it.
    pub pointer: String,
    /// What it must be.
    pub kind: FieldType,
    /// Whether it may be absent.
    pub optional: bool,
}

/// One named operation of a route.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Name, which policies and scopes use.
    pub name: String,
    /// Method, case-sensitive.
    pub method: String,
    /// Path.
    pub path: Template,
    /// Object, filled from the path's parameters.
    pub object: Template,
    /// Body fields.
    pub body: Vec<BodyField>,
}

/// An operation that fits a request.
#[derive(Clone, Debug)]
pub struct Matched<'a> {
    /// Which one.
    pub operation: &'a Operation,
    /// Values of the path's parameters.
    pub params: BTreeMap<String, String>,
    /// The object, such as `/runs/r1`.
    pub object: String,
}

/// The first operation that fits; none means the request is unlisted.
pub fn classify<'a>(operations: &'a [Operation], method: &str, path: &str) -> Option<Matched<'a>> {
    operations.iter().filter(|o| o.method == method).find_map(|operation| {
        let params = operation.path.matches(path)?;
        let object = operation.object.fill(&params);
        Some(Matched { operation, params, object })
    })
}

/// Why a body cannot be judged.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is not strict JSON: {0}")]
    Json(json::JsonError),
    #[error("the body is not a JSON object")]
    NotObject,
    #[error("the body has {found:?} where {pointer} is read: names that differ in case alone are read in two ways")]
    CaseVariant { pointer: String, found: String },
    #[error("the body has no {pointer}, which must be of type {kind}")]
    Absent { pointer: String, kind: FieldType },
    #[error("{pointer} of the body is not of type {kind}")]
    WrongType { pointer: String, kind: FieldType },
}

/// Reads the declared fields of a body into `context.body`.
pub fn body_fields(fields: &[BodyField], body: &[u8]) -> Result<Map<String, Value>, BodyError> {
    let document = json::parse(body).map_err(BodyError::Json)?;
    if !document.is_object() {
        return Err(BodyError::NotObject);
    }
    let mut found = Map::new();
    for field in fields {
        one_reading(&document, &field.pointer)?;
        match document.pointer(&field.pointer) {
            None if field.optional => {}
            None => return Err(BodyError::Absent { pointer: field.pointer.clone(), kind: field.kind }),
            Some(value) if fits(value, field.kind) => {
                found.insert(field.name.clone(), value.clone());
            }
            Some(_) => return Err(BodyError::WrongType { pointer: field.pointer.clone(), kind: field.kind }),
        }
    }
    Ok(found)
}

/// Some readers take member names without regard to case: along the pointer no name may differ in case alone.
fn one_reading(document: &Value, pointer: &str) -> Result<(), BodyError> {
    let mut value = document;
    for token in pointer.split('/').skip(1) {
        let name = token.replace("~1", "/").replace("~0", "~");
        let mut names = value.as_object().into_iter().flat_map(Map::keys);
        if let Some(found) = names.find(|k| **k != name && fold(k) == fold(&name)) {
            return Err(BodyError::CaseVariant { pointer: pointer.to_owned(), found: found.clone() });
        }
        let next = match value {
            Value::Object(members) => members.get(&name),
            Value::Array(items) => name.parse().ok().and_then(|n: usize| items.get(n)),
            _ => None,
        };
        let Some(next) = next else { return Ok(()) };
        value = next;
    }
    Ok(())
}

/// As the most generous readers fold: `ſ` is an `s` to them, and the Kelvin sign a `k`.
fn fold(name: &str) -> String {
    name.to_uppercase().to_lowercase()
}

fn fits(value: &Value, kind: FieldType) -> bool {
    match kind {
        FieldType::Long => value.as_i64().is_some(),
        FieldType::String => value.is_string(),
        FieldType::Bool => value.is_boolean(),
        FieldType::Strings => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: FieldType, optional: bool) -> Vec<BodyField> {
        vec![BodyField { name: "v".into(), pointer: "/a/v".into(), kind, optional }]
    }

    #[test]
    fn a_declared_field_must_be_there_and_of_its_type() {
        let read = |kind, optional, body: &str| body_fields(&field(kind, optional), body.as_bytes());
        assert_eq!(read(FieldType::Long, false, r#"{"a":{"v":3}}"#).expect("fits")["v"], 3);
        assert!(matches!(read(FieldType::Long, false, r#"{"a":{}}"#), Err(BodyError::Absent { .. })));
        assert!(read(FieldType::Long, true, r#"{"a":{}}"#).expect("optional").is_empty());
        for (kind, value) in [
            (FieldType::Long, "1.5"),
            (FieldType::Long, "\"1\""),
            (FieldType::Long, "9223372036854775808"),
            (FieldType::String, "1"),
            (FieldType::Bool, "0"),
            (FieldType::Strings, "[1]"),
            (FieldType::Strings, "\"a\""),
        ] {
            let body = format!(r#"{{"a":{{"v":{value}}}}}"#);
            assert!(matches!(read(kind, true, &body), Err(BodyError::WrongType { .. })), "{body}");
        }
        assert!(matches!(read(FieldType::Long, true, r#"{"a":{"v":1,"v":2}}"#), Err(BodyError::Json(_))));
    }

    #[test]
    fn a_body_with_two_readings_is_refused() {
        let read = |body: &str| body_fields(&field(FieldType::Long, true), body.as_bytes());
        for body in [r#"{"A":{"v":1}}"#, r#"{"a":{"v":1},"A":{"v":2}}"#, r#"{"a":{"V":1}}"#, r#"{"a":{"v":1,"V":2}}"#] {
            assert!(matches!(read(body), Err(BodyError::CaseVariant { .. })), "{body}");
        }
        let long_s = body_fields(
            &[BodyField { name: "s".into(), pointer: "/risk".into(), kind: FieldType::Long, optional: true }],
            "{\"risk\":1,\"ri\u{17f}\u{212a}\":0}".as_bytes(),
        );
        assert!(matches!(long_s, Err(BodyError::CaseVariant { .. })), "letters that only look other");
        for body in [r#"[{"a":{"v":1}}]"#, "1", "null", r#""a""#] {
            assert_eq!(read(body), Err(BodyError::NotObject), "{body}");
        }
        assert_eq!(read(r#"{"b":{"V":1},"a":{"v":7}}"#).expect("one reading")["v"], 7);
    }
}
