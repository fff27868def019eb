//! Model Context Protocol over streamable HTTP: one JSON-RPC 2.0 message a request. From revision 2026-07-28 on, headers
//! repeat method, name and version, and proxies act on them, so they must say what the body says; where an older client
//! sends them, too.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use crate::protocol::operation::{BodyError, Seen, member};

/// The revision that began to demand the headers.
const WITH_HEADERS: &str = "2026-07-28";
const VERSION_IN_BODY: &str = "io.modelcontextprotocol/protocolVersion";
const PARAMETER: &str = "mcp-param-";

fn shape(why: &str) -> BodyError {
    BodyError::Shape { what: "JSON-RPC 2.0 message of MCP", why: why.to_owned() }
}

/// Reads `context.mcp`: `method`, empty for a client's response; `name` of the tool or prompt, or the resource's URI, else
/// empty; `version`; `notification`.
pub(super) fn read(document: &Value, seen: &Seen<'_>) -> Result<Map<String, Value>, BodyError> {
    if member(document, "jsonrpc")?.and_then(Value::as_str) != Some("2.0") {
        return Err(shape("its jsonrpc is not \"2.0\""));
    }
    let id = member(document, "id")?;
    if id.is_some_and(|id| !(id.is_string() || id.is_i64() || id.is_u64())) {
        return Err(shape("its id is neither a string nor a whole number"));
    }
    let answers = member(document, "result")?.is_some() || member(document, "error")?.is_some();
    let method = match member(document, "method")? {
        Some(Value::String(method)) if !answers && !method.is_empty() => method.as_str(),
        None if answers && id.is_some() => "",
        _ => return Err(shape("it is neither one request, one notification nor one response")),
    };
    let params = member(document, "params")?.unwrap_or(&Value::Null);
    if !params.is_null() && !params.is_object() {
        return Err(shape("its params are no object"));
    }
    let name = name(method, params)?;
    let in_body = match member(params, "_meta")? {
        Some(meta) => member(meta, VERSION_IN_BODY)?.and_then(Value::as_str),
        None => None,
    };
    let version = (seen.header)("mcp-protocol-version")?;
    let newest = version.as_deref().into_iter().chain(in_body).max().unwrap_or_default();
    let strict = newest >= WITH_HEADERS;
    if strict && !method.is_empty() || in_body.is_some() {
        agrees("mcp-protocol-version", version.as_deref(), in_body, strict)?;
    }
    agrees("mcp-method", decoded("mcp-method", seen)?.as_deref(), Some(method), strict && !method.is_empty())?;
    agrees("mcp-name", decoded("mcp-name", seen)?.as_deref(), Some(name), strict && !name.is_empty())?;
    parameters(params, seen)?;
    Ok(Map::from_iter([
        ("method".to_owned(), method.into()),
        ("name".to_owned(), name.into()),
        ("version".to_owned(), newest.into()),
        ("notification".to_owned(), (!answers && id.is_none()).into()),
    ]))
}

/// What a request is about.
fn name<'a>(method: &str, params: &'a Value) -> Result<&'a str, BodyError> {
    let pointer = match method {
        "tools/call" | "prompts/get" => "name",
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => "uri",
        _ => return Ok(""),
    };
    let found = member(params, pointer)?.and_then(Value::as_str).filter(|n| !n.is_empty());
    found.ok_or_else(|| BodyError::Shape {
        what: "JSON-RPC 2.0 message of MCP",
        why: format!("{method} has no {pointer}"),
    })
}

fn agrees(name: &str, header: Option<&str>, body: Option<&str>, required: bool) -> Result<(), BodyError> {
    match (header, body) {
        (None, _) if !required => Ok(()),
        (Some(header), Some(body)) if header == body => Ok(()),
        _ => Err(BodyError::HeaderMismatch { name: name.to_owned() }),
    }
}

/// A header's value; what a header cannot carry is written `=?base64?…?=`.
fn decoded(name: &str, seen: &Seen<'_>) -> Result<Option<String>, BodyError> {
    let Some(value) = (seen.header)(name)? else { return Ok(None) };
    let Some(coded) = value.strip_prefix("=?base64?").and_then(|v| v.strip_suffix("?=")) else {
        return Ok(Some(value));
    };
    let bytes = BASE64_STANDARD.decode(coded).ok().and_then(|b| String::from_utf8(b).ok());
    bytes.map(Some).ok_or_else(|| BodyError::Header { name: name.to_owned() })
}

/// Which argument a `Mcp-Param-*` repeats, the tool's schema says, which a gateway does not have: it must be one of them.
fn parameters(params: &Value, seen: &Seen<'_>) -> Result<(), BodyError> {
    let mut scalars = Vec::new();
    collect(member(params, "arguments")?.unwrap_or(&Value::Null), &mut scalars);
    for name in (seen.headers_named)(PARAMETER) {
        let value = decoded(&name, seen)?.unwrap_or_default();
        if !scalars.contains(&value) {
            return Err(BodyError::HeaderMismatch { name });
        }
    }
    Ok(())
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Null => {}
        Value::Bool(b) => into.push(b.to_string()),
        Value::Number(n) => into.push(n.to_string()),
        Value::String(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|v| collect(v, into)),
        Value::Object(members) => members.values().for_each(|v| collect(v, into)),
    }
}
