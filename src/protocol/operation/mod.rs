//! Turns a method and a canonical path into a named operation on an object, with what policy reads of the body.

pub mod calls;
mod chat;
mod graphql;
mod mcp;
#[cfg(test)]
mod tests;

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

/// How the body of an operation is read, besides its declared fields.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reads {
    /// Not at all, or as a JSON object for the fields that are declared.
    #[default]
    Json,
    /// An OpenAI-compatible chat completion: `context.chat`.
    Chat,
    /// One JSON-RPC message of the Model Context Protocol: `context.mcp`.
    Mcp,
    /// A GraphQL request (GraphQL over HTTP): `context.graphql`.
    Graphql,
    /// gRPC: the body passes unread, and the path names service and method.
    Grpc,
}

/// Whether an operation opens a WebSocket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WebSocket {
    /// It does not.
    #[default]
    Off,
    /// It does, and messages pass.
    Pass,
    /// It does, and each message of the client is an operation of its own, with the method `MESSAGE`.
    Judge,
}

/// The method of operations that are messages of a WebSocket.
pub const MESSAGE: &str = "MESSAGE";
/// The method of operations that are tool calls in the answer to a chat completion.
pub const CALL: &str = "CALL";

/// One named operation of a route.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Name, which policies and scopes use.
    pub name: String,
    /// Method, case-sensitive; [`MESSAGE`] and [`CALL`] are no methods of HTTP.
    pub method: String,
    /// Path.
    pub path: Template,
    /// Object, filled from the parameters of path and body.
    pub object: Template,
    /// Body fields.
    pub body: Vec<BodyField>,
    /// How the body is read.
    pub reads: Reads,
    /// Strings of the body that must have one of these values for the operation to fit, by JSON pointer.
    pub select: BTreeMap<String, Vec<String>>,
    /// Further parameters: strings of the body, by JSON pointer.
    pub params: BTreeMap<String, String>,
    /// Whether it opens a WebSocket.
    pub websocket: WebSocket,
}

impl Operation {
    /// An operation that reads no body.
    pub fn new(name: &str, method: &str, path: Template, object: Template) -> Self {
        Self {
            name: name.to_owned(),
            method: method.to_owned(),
            path,
            object,
            body: Vec::new(),
            reads: Reads::Json,
            select: BTreeMap::new(),
            params: BTreeMap::new(),
            websocket: WebSocket::Off,
        }
    }

    /// Whether the body must be held to know that the operation fits, and what it asks.
    pub fn reads_body(&self) -> bool {
        !self.body.is_empty()
            || !self.select.is_empty()
            || !self.params.is_empty()
            || matches!(self.reads, Reads::Chat | Reads::Mcp | Reads::Graphql)
    }

    /// Names of all parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.path.parameters().chain(self.params.keys().map(String::as_str)).chain(
            match self.reads {
                Reads::Grpc => &["service", "method"][..],
                _ => &[],
            }
            .iter()
            .copied(),
        )
    }
}

/// An operation that fits a request.
#[derive(Clone, Debug)]
pub struct Matched<'a> {
    /// Which one.
    pub operation: &'a Operation,
    /// Values of the parameters.
    pub params: BTreeMap<String, String>,
    /// The object, such as `/runs/r1`.
    pub object: String,
    /// What policy reads of the body: `body`, `chat`, `mcp`, `graphql`.
    pub context: Map<String, Value>,
}

/// What a request is judged by, besides method and path.
pub struct Seen<'a> {
    /// Method, or [`MESSAGE`] or [`CALL`].
    pub method: &'a str,
    /// Canonical path.
    pub path: &'a str,
    /// The query, without its question mark.
    pub query: &'a str,
    /// The body, where it is held.
    pub body: Option<&'a [u8]>,
    /// One header of the request by its name in lower case; an error if it has several.
    pub header: &'a (dyn Fn(&str) -> Result<Option<String>, BodyError> + Sync),
    /// Names of the headers that begin with a prefix.
    pub headers_named: &'a (dyn Fn(&str) -> Vec<String> + Sync),
}

/// The operations that method and path leave, in order.
fn candidates<'a>(
    operations: &'a [Operation],
    method: &str,
    path: &str,
) -> impl Iterator<Item = (&'a Operation, BTreeMap<String, String>)> {
    let fitting = operations.iter().filter(move |o| o.method == method);
    fitting.filter_map(move |o| o.path.matches(path).map(|params| (o, params)))
}

/// Whether the body must be held before it is known which operation fits.
pub fn needs_body(operations: &[Operation], method: &str, path: &str) -> bool {
    let mut undecided = true;
    candidates(operations, method, path)
        .take_while(|(o, _)| std::mem::replace(&mut undecided, !o.select.is_empty() || o.reads == Reads::Grpc))
        .any(|(o, _)| o.reads_body())
}

/// Whether an answer to this method and path holds tool calls that are judged.
pub fn judges_calls(operations: &[Operation], path: &str) -> bool {
    candidates(operations, CALL, path).next().is_some()
}

/// The first operation that fits; none means the request is unlisted.
pub fn classify<'a>(operations: &'a [Operation], seen: &Seen<'_>) -> Result<Option<Matched<'a>>, BodyError> {
    let mut document = None;
    for (operation, mut params) in candidates(operations, seen.method, seen.path) {
        let mut context = Map::new();
        if operation.reads == Reads::Grpc && !grpc(seen, &mut params) {
            continue;
        }
        if operation.reads_body() {
            let document = match &mut document {
                Some(document) => document,
                empty => empty.insert(parse(seen.body.unwrap_or_default())?),
            };
            if !selected(operation, document)? {
                continue;
            }
            context = read(operation, document, seen)?;
            for (name, pointer) in &operation.params {
                params.insert(name.clone(), parameter(document, pointer)?);
            }
        }
        let object = operation.object.fill(&params);
        return Ok(Some(Matched { operation, params, object, context }));
    }
    Ok(None)
}

/// `/package.Service/Method` and a content type of gRPC; anything else is none of it.
fn grpc(seen: &Seen<'_>, params: &mut BTreeMap<String, String>) -> bool {
    let Some((service, method)) = seen.path.strip_prefix('/').and_then(|p| p.split_once('/')) else { return false };
    let kind = (seen.header)("content-type").ok().flatten().unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    params.insert("service".into(), service.into());
    params.insert("method".into(), method.into());
    !method.contains('/') && (essence == "application/grpc" || essence.starts_with("application/grpc+"))
}

fn parse(body: &[u8]) -> Result<Value, BodyError> {
    let document = json::parse(body).map_err(BodyError::Json)?;
    if document.is_object() { Ok(document) } else { Err(BodyError::NotObject) }
}

fn selected(operation: &Operation, document: &Value) -> Result<bool, BodyError> {
    for (pointer, values) in &operation.select {
        one_reading(document, pointer)?;
        let found = document.pointer(pointer).and_then(Value::as_str);
        if !found.is_some_and(|found| values.iter().any(|v| v == found)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A string of the body that may stand in an object's name.
fn parameter(document: &Value, pointer: &str) -> Result<String, BodyError> {
    one_reading(document, pointer)?;
    let wrong = || BodyError::WrongType { pointer: pointer.to_owned(), kind: FieldType::String };
    let found = document.pointer(pointer);
    let found = found.ok_or_else(|| BodyError::Absent { pointer: pointer.to_owned(), kind: FieldType::String })?;
    let text = found.as_str().ok_or_else(wrong)?;
    let legal = !text.is_empty() && !text.chars().any(|c| c == '/' || c.is_control()) && text != "." && text != "..";
    legal.then(|| text.to_owned()).ok_or_else(|| BodyError::Name { pointer: pointer.to_owned() })
}

fn read(operation: &Operation, document: &Value, seen: &Seen<'_>) -> Result<Map<String, Value>, BodyError> {
    let mut context = Map::new();
    match operation.reads {
        Reads::Json | Reads::Grpc => {}
        Reads::Chat => drop(context.insert("chat".into(), Value::Object(chat::read(document)?))),
        Reads::Mcp => drop(context.insert("mcp".into(), Value::Object(mcp::read(document, seen)?))),
        Reads::Graphql => drop(context.insert("graphql".into(), Value::Object(graphql::read(document, seen)?))),
    }
    if !operation.body.is_empty() {
        context.insert("body".into(), Value::Object(fields(&operation.body, document)?));
    }
    Ok(context)
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
    #[error(
        "{pointer} of the body cannot stand in an object's name: it is empty, or has a slash or a control character"
    )]
    Name { pointer: String },
    #[error("the body is no {what}: {why}")]
    Shape { what: &'static str, why: String },
    #[error("the header {name} comes more than once, or is not text")]
    Header { name: String },
    #[error("the header {name} and the body say different things")]
    HeaderMismatch { name: String },
}

/// Reads the declared fields of a body into `context.body`.
pub fn fields(fields: &[BodyField], document: &Value) -> Result<Map<String, Value>, BodyError> {
    let mut found = Map::new();
    for field in fields {
        one_reading(document, &field.pointer)?;
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

/// A member of an object. One whose name differs from the wanted in case alone is another to some readers.
fn member<'a>(of: &'a Value, name: &str) -> Result<Option<&'a Value>, BodyError> {
    let Some(members) = of.as_object() else { return Ok(None) };
    if let Some(found) = members.keys().find(|k| *k != name && fold(k) == fold(name)) {
        return Err(BodyError::CaseVariant { pointer: format!("/{name}"), found: found.clone() });
    }
    Ok(members.get(name))
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
