//! The engine as an OpenAI-compatible chat model: it reads four numbers in the last message of the user and thinks aloud.
//! Where it is offered a tool, it calls that first.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::tot::run::RunError;
use crate::tot::search::Search;
use crate::tot::value::Valuer;

/// The one model.
pub const MODEL: &str = "tot-24";

/// `POST /v1/chat/completions`; members that it does not know are left alone, as clients expect.
#[derive(Debug, Deserialize)]
pub struct ChatForm {
    model: String,
    messages: Vec<Message>,
    /// Whether the answer streams.
    #[serde(default)]
    pub stream: bool,
    #[serde(default)]
    tools: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

/// What the model says.
pub enum Said {
    /// Text, thought by thought.
    Thoughts(Vec<String>),
    /// A call of a tool.
    Call {
        /// Its name.
        tool: String,
        /// Its arguments, JSON.
        arguments: String,
    },
}

impl ChatForm {
    /// Thinks.
    pub fn think(&self) -> Result<Said, RunError> {
        if self.model != MODEL {
            return Err(RunError::Input(format!("there is no model {:?}; there is {MODEL}", self.model)));
        }
        let asked = self.messages.iter().rev().find(|m| m.role == "user").map(|m| text(&m.content)).unwrap_or_default();
        let numbers: Vec<i64> = asked
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .filter(|n| (1..=13).contains(n))
            .take(4)
            .collect();
        if numbers.len() != 4 {
            return Err(RunError::Input("the last message of the user has no four numbers from 1 to 13".into()));
        }
        let told = self.messages.iter().any(|m| m.role == "tool");
        let tool = self.tools.iter().find_map(|t| t["function"]["name"].as_str());
        if let Some(tool) = tool.filter(|_| !told) {
            return Ok(Said::Call { tool: tool.to_owned(), arguments: json!({"input": numbers}).to_string() });
        }
        let mut search = Search::new(&numbers, 5, Valuer::Heuristic);
        let mut thoughts = vec![format!("You asked: {asked}\n")];
        while !search.is_over() {
            for n in search.step() {
                let node = &search.nodes[n];
                if node.kept {
                    thoughts.push(format!("{}\n", node.text));
                }
            }
        }
        thoughts.push(match search.solution() {
            Some(expression) => format!("Answer: {expression} = 24"),
            None => "I found no answer.".to_owned(),
        });
        Ok(Said::Thoughts(thoughts))
    }
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|p| p["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

impl Said {
    /// The whole answer.
    pub fn completion(&self, id: &str, created: u64) -> Value {
        let (message, reason) = match self {
            Self::Thoughts(thoughts) => (json!({"role": "assistant", "content": thoughts.concat()}), "stop"),
            Self::Call { tool, arguments } => {
                let call = json!({"id": format!("call_{id}"), "type": "function", "function": {"name": tool, "arguments": arguments}});
                (json!({"role": "assistant", "content": null, "tool_calls": [call]}), "tool_calls")
            }
        };
        json!({
            "id": format!("chatcmpl-{id}"), "object": "chat.completion", "created": created, "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        })
    }

    /// The answer as server-sent events, in pieces as a model makes them.
    pub fn chunks(&self, id: &str, created: u64) -> Vec<String> {
        let chunk = |delta: Value, reason: Option<&str>| {
            let document = json!({
                "id": format!("chatcmpl-{id}"), "object": "chat.completion.chunk", "created": created, "model": MODEL,
                "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            });
            format!("data: {document}\n\n")
        };
        let mut chunks = vec![chunk(json!({"role": "assistant", "content": ""}), None)];
        let reason = match self {
            Self::Thoughts(thoughts) => {
                for piece in thoughts.iter().flat_map(|t| pieces(t)) {
                    chunks.push(chunk(json!({"content": piece}), None));
                }
                "stop"
            }
            Self::Call { tool, arguments } => {
                let begin = json!({"index": 0, "id": format!("call_{id}"), "type": "function", "function": {"name": tool, "arguments": ""}});
                chunks.push(chunk(json!({"tool_calls": [begin]}), None));
                for piece in pieces(arguments) {
                    let more = json!({"index": 0, "function": {"arguments": piece}});
                    chunks.push(chunk(json!({"tool_calls": [more]}), None));
                }
                "tool_calls"
            }
        };
        chunks.push(chunk(json!({}), Some(reason)));
        chunks.push("data: [DONE]\n\n".to_owned());
        chunks
    }
}

/// As tokens come: some characters at a time.
fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(7).map(|c| c.iter().collect()).collect()
}
