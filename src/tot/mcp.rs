//! The engine as a Model Context Protocol server over streamable HTTP: revision 2026-07-28, which keeps no session, and
//! 2025-11-25, whose handshake it answers and keeps nothing of.

use serde_json::{Map, Value, json};

use crate::tot::tools::{self, ToolError};

/// The revisions that are spoken, the newest first.
pub const REVISIONS: [&str; 2] = ["2026-07-28", "2025-11-25"];

const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const INVALID_REQUEST: i64 = -32600;

/// The answer to one message; none to a notification or a response.
pub fn answer(message: &Map<String, Value>) -> Option<Value> {
    let method = message.get("method").and_then(Value::as_str);
    let id = message.get("id").cloned();
    let (Some(method), Some(id)) = (method, id) else {
        let answers = message.contains_key("result") || message.contains_key("error");
        let told = method.is_some() || answers;
        return (!told).then(|| failed(&Value::Null, INVALID_REQUEST, "it is no message of JSON-RPC 2.0"));
    };
    let empty = Map::new();
    let params = message.get("params").and_then(Value::as_object).unwrap_or(&empty);
    Some(match method {
        "initialize" => {
            let wanted = params.get("protocolVersion").and_then(Value::as_str);
            // The handshake is of the older revision; who asks for another is offered it.
            let version = wanted.filter(|v| *v == REVISIONS[1]).unwrap_or(REVISIONS[1]);
            let result = json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server()});
            done(&id, result)
        }
        "server/discover" => done(
            &id,
            json!({
                "resultType": "complete", "supportedVersions": REVISIONS, "capabilities": {"tools": {}},
                "serverInfo": server(), "ttlMs": 60_000, "cacheScope": "public",
            }),
        ),
        "ping" => done(&id, json!({})),
        "tools/list" => done(
            &id,
            json!({"resultType": "complete", "tools": tools::list(), "ttlMs": 60_000, "cacheScope": "public"}),
        ),
        "tools/call" => call(&id, params),
        other => failed(&id, METHOD_NOT_FOUND, &format!("there is no method {other}")),
    })
}

fn server() -> Value {
    json!({"name": "popgate-tot", "version": env!("CARGO_PKG_VERSION")})
}

fn call(id: &Value, params: &Map<String, Value>) -> Value {
    let name = params.get("name").and_then(Value::as_str).unwrap_or_default();
    let empty = Map::new();
    let arguments = params.get("arguments").and_then(Value::as_object).unwrap_or(&empty);
    let (content, is_error) = match tools::call(name, arguments) {
        Err(error @ ToolError::Unknown(_)) => return failed(id, INVALID_PARAMS, &error.to_string()),
        Ok(result) => (result, false),
        Err(error) => (json!({"error": error.to_string()}), true),
    };
    done(
        id,
        json!({
            "resultType": "complete", "content": [{"type": "text", "text": content.to_string()}],
            "structuredContent": content, "isError": is_error,
        }),
    )
}

fn done(id: &Value, result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

fn failed(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}
