//! Tool calls in the answer to a chat completion, whole or streamed: the fragments of a call's arguments are joined before
//! it is judged, and nothing of it passes until then.

use std::collections::BTreeMap;

use serde_json::Value;

/// Most bytes that wait for a call to be whole.
const MAX_HELD: usize = 1 << 20;

/// A complete call.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments, as the model wrote them: JSON, or free text for a custom tool.
    pub arguments: String,
}

/// Why an answer does not pass.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Held<E> {
    /// More would wait than may.
    TooLong,
    /// A call is refused.
    Refused(E),
    /// The answer cannot be read as what its type says.
    Unreadable,
}

/// Lets an answer pass call by call.
pub enum CallGate {
    /// A whole completion: held to its end.
    Whole(Vec<u8>),
    /// `text/event-stream`.
    Events(Events),
}

/// The state of a stream of chunks.
#[derive(Default)]
pub struct Events {
    /// The event that is coming in.
    event: Vec<u8>,
    line_start: usize,
    /// The last byte was a carriage return: a line feed behind it belongs to it.
    after_return: bool,
    /// Events that wait, as they came.
    waiting: Vec<u8>,
    /// Calls that go on, by choice and number.
    open: BTreeMap<(u64, u64), ToolCall>,
}

impl CallGate {
    /// A gate for a content type; none for one that holds no completion.
    pub fn for_content_type(kind: &str) -> Option<Self> {
        let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "text/event-stream" => Some(Self::Events(Events::default())),
            "application/json" => Some(Self::Whole(Vec::new())),
            _ => None,
        }
    }

    /// Takes a chunk and appends what may pass.
    pub fn push<E>(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>,
    ) -> Result<(), Held<E>> {
        match self {
            Self::Whole(held) => {
                held.extend_from_slice(chunk);
                if held.len() > MAX_HELD { Err(Held::TooLong) } else { Ok(()) }
            }
            Self::Events(events) => events.push(chunk, out, judge),
        }
    }

    /// The answer has ended.
    pub fn finish<E>(
        &mut self,
        out: &mut Vec<u8>,
        judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>,
    ) -> Result<(), Held<E>> {
        match self {
            Self::Whole(held) => {
                let held = std::mem::take(held);
                let document: Value = crate::protocol::json::parse(&held).map_err(|_| Held::Unreadable)?;
                for call in whole_calls(&document) {
                    judge(&call).map_err(Held::Refused)?;
                }
                out.extend(held);
                Ok(())
            }
            Self::Events(events) => events.finish(out, judge),
        }
    }
}

impl Events {
    fn push<E>(
        &mut self,
        chunk: &[u8],
        out: &mut Vec<u8>,
        judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>,
    ) -> Result<(), Held<E>> {
        for b in chunk {
            let second_half = std::mem::replace(&mut self.after_return, *b == b'\r') && *b == b'\n';
            if second_half && self.event.is_empty() {
                let to = if self.waiting.is_empty() { &mut *out } else { &mut self.waiting };
                to.push(*b);
                continue;
            }
            let blank = self.line_start == self.event.len();
            self.event.push(*b);
            if self.event.len() + self.waiting.len() > MAX_HELD {
                return Err(Held::TooLong);
            }
            if matches!(b, b'\n' | b'\r') {
                self.line_start = self.event.len();
                if blank && !second_half {
                    self.end_event(out, judge)?;
                }
            }
        }
        Ok(())
    }

    fn end_event<E>(
        &mut self,
        out: &mut Vec<u8>,
        judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>,
    ) -> Result<(), Held<E>> {
        let event = std::mem::take(&mut self.event);
        self.line_start = 0;
        let ended = self.read(&data(&event))?;
        self.waiting.extend(event);
        if ended || self.open.is_empty() {
            self.settle(judge)?;
            out.append(&mut self.waiting);
        }
        Ok(())
    }

    fn finish<E>(
        &mut self,
        out: &mut Vec<u8>,
        judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>,
    ) -> Result<(), Held<E>> {
        if !self.event.is_empty() {
            self.end_event(out, judge)?;
        }
        self.settle(judge)?;
        out.append(&mut self.waiting);
        Ok(())
    }

    fn settle<E>(&mut self, judge: &mut dyn FnMut(&ToolCall) -> Result<(), E>) -> Result<(), Held<E>> {
        for call in std::mem::take(&mut self.open).into_values() {
            judge(&call).map_err(Held::Refused)?;
        }
        Ok(())
    }

    /// Adds an event's fragments to their calls; true once every choice that calls has ended.
    fn read<E>(&mut self, data: &[u8]) -> Result<bool, Held<E>> {
        if data.is_empty() {
            return Ok(false);
        }
        if data == b"[DONE]" {
            return Ok(true);
        }
        let chunk: Value = crate::protocol::json::parse(data).map_err(|_| Held::Unreadable)?;
        let choices = chunk["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut finished = Vec::new();
        for (position, choice) in choices.iter().enumerate() {
            let number = choice["index"].as_u64().unwrap_or(position as u64);
            self.fragments(number, &choice["delta"]);
            if choice["finish_reason"].is_string() {
                finished.push(number);
            }
        }
        let all = self.open.keys().all(|(choice, _)| finished.contains(choice));
        Ok(all && !finished.is_empty())
    }

    fn fragments(&mut self, choice: u64, delta: &Value) {
        let calls = delta["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (position, fragment) in calls.iter().enumerate() {
            let number = fragment["index"].as_u64().unwrap_or(position as u64);
            let call = self.open.entry((choice, number)).or_default();
            add(call, fragment);
        }
        if delta["function_call"].is_object() {
            let call = self.open.entry((choice, u64::MAX)).or_default();
            add_parts(call, &delta["function_call"], "arguments");
        }
    }
}

fn add(call: &mut ToolCall, fragment: &Value) {
    add_parts(call, &fragment["function"], "arguments");
    add_parts(call, &fragment["custom"], "input");
}

fn add_parts(call: &mut ToolCall, part: &Value, arguments: &str) {
    call.name.push_str(part["name"].as_str().unwrap_or_default());
    call.arguments.push_str(part[arguments].as_str().unwrap_or_default());
}

fn whole_calls(document: &Value) -> Vec<ToolCall> {
    let mut calls = Vec::new();
    for choice in document["choices"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let message = &choice["message"];
        for one in message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let mut call = ToolCall::default();
            add(&mut call, one);
            calls.push(call);
        }
        if message["function_call"].is_object() {
            let mut call = ToolCall::default();
            add_parts(&mut call, &message["function_call"], "arguments");
            calls.push(call);
        }
    }
    calls
}

/// The joined data of an event's lines (WHATWG HTML section 9.2.6).
fn data(event: &[u8]) -> Vec<u8> {
    let lines = event.split(|b| matches!(b, b'\n' | b'\r'));
    let mut values = Vec::new();
    for line in lines {
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if let Some(value) = line.strip_prefix(b"data:") {
            values.push(value.strip_prefix(b" ").unwrap_or(value));
        }
    }
    values.join(&b'\n')
}
