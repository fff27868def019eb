//! OpenAI-compatible chat completions, as policy sees a request: model, tools that are offered, tools that were called.

use serde_json::{Map, Value};

use crate::protocol::operation::{BodyError, member};

const WHAT: &str = "chat completion request";

fn shape(why: &str) -> BodyError {
    BodyError::Shape { what: WHAT, why: why.to_owned() }
}

/// Reads `context.chat`: `model`, `stream`, `tools`, `called`.
pub(super) fn read(document: &Value) -> Result<Map<String, Value>, BodyError> {
    let model = member(document, "model")?.and_then(Value::as_str).ok_or_else(|| shape("it has no model"))?;
    let messages = member(document, "messages")?.and_then(Value::as_array);
    let messages = messages.ok_or_else(|| shape("it has no messages"))?;
    let stream = match member(document, "stream")? {
        None | Some(Value::Null) => false,
        Some(stream) => stream.as_bool().ok_or_else(|| shape("stream is neither true nor false"))?,
    };
    let mut tools = names(document, "tools")?;
    for function in list(document, "functions")? {
        tools.push(name_in(function)?);
    }
    let mut called = Vec::new();
    for message in messages {
        called.extend(names(message, "tool_calls")?);
        if let Some(call) = member(message, "function_call")?.filter(|c| !c.is_null()) {
            called.push(name_in(call)?);
        }
    }
    Ok(Map::from_iter([
        ("model".to_owned(), model.into()),
        ("stream".to_owned(), stream.into()),
        ("tools".to_owned(), tools.into()),
        ("called".to_owned(), called.into()),
    ]))
}

fn list<'a>(of: &'a Value, name: &str) -> Result<&'a [Value], BodyError> {
    match member(of, name)? {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(BodyError::Shape { what: WHAT, why: format!("{name} is no array") }),
    }
}

/// The names of tools, or of calls to them: of a function or a custom tool its name, of one built in its type.
fn names(of: &Value, list_name: &str) -> Result<Vec<String>, BodyError> {
    list(of, list_name)?.iter().map(named).collect()
}

fn named(tool: &Value) -> Result<String, BodyError> {
    let kind = member(tool, "type")?.and_then(Value::as_str).ok_or_else(|| shape("a tool has no type"))?;
    match kind {
        "function" | "custom" => {
            name_in(member(tool, kind)?.ok_or_else(|| shape("a tool has no member of its type's name"))?)
        }
        built_in => Ok(built_in.to_owned()),
    }
}

fn name_in(of: &Value) -> Result<String, BodyError> {
    let name = member(of, "name")?.and_then(Value::as_str).filter(|n| !n.is_empty());
    name.map(ToOwned::to_owned).ok_or_else(|| shape("a tool or a call has no name"))
}
