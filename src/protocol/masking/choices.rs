//! Which strings of a chat completion's stream are one, and when they end.

use serde_json::Value;

use crate::protocol::masking::path::Step;

/// The data of a chat's last event.
pub const END_OF_CHAT: &[u8] = b"[DONE]";

/// What an event says of strings that go on no more.
pub enum Ended {
    /// All of them.
    All,
    /// Those of these choices.
    Choices(Vec<u64>),
}

/// Whether an event must be read to know which choices it ends.
pub fn may_end_choices(data: &[u8]) -> bool {
    memchr::memmem::find(data, b"finish_reason").is_some()
}

/// What an event ends: all at `[DONE]`, and each choice that has a reason to finish.
pub fn ends_choices(data: &[u8], document: &Value) -> Ended {
    if data == END_OF_CHAT {
        return Ended::All;
    }
    let choices = document["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    let finished = choices.iter().enumerate().filter(|(_, c)| c["finish_reason"].is_string());
    Ended::Choices(finished.map(|(position, c)| c["index"].as_u64().unwrap_or(position as u64)).collect())
}

/// Names a delta string by the `index` members of the array items on its way, where they have one: a stream may put
/// each choice first in its own event's array.
pub fn stable_key(path: &[Step], document: &Value) -> String {
    let mut key = String::new();
    let mut here = Some(document);
    for step in path {
        match step {
            Step::Name(name) => {
                key.push('.');
                key.push_str(name);
                here = here.and_then(|v| v.get(name));
            }
            Step::Index(position) => {
                here = here.and_then(|v| v.get(*position));
                let index = here.and_then(|v| v.get("index")).and_then(Value::as_u64);
                key.push_str(&format!("[{}]", index.unwrap_or(*position as u64)));
            }
        }
    }
    key
}
