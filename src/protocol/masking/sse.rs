//! Masks server-sent events (WHATWG HTML section 9.2.6).
//!
//! A client acts on an event only at its blank line, so an event is held whole and goes out at once, framing
//! unchanged. Strings at the mask's delta paths continue from event to event: an event whose delta is undecided
//! waits, and those behind it wait too.

mod repeat;
mod skim;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::choices::{END_OF_CHAT, Ended, ends_choices, may_end_choices, stable_key};
use crate::protocol::masking::detect::Piece;
use crate::protocol::masking::json::{DeltaString, JsonMasker};
use crate::protocol::masking::logical::{StringScan, Written};
use crate::protocol::masking::rules::{Counts, MaskRules};
use crate::protocol::masking::sse::repeat::Frame;
use crate::protocol::masking::sse::waiting::{Form, Line, Queue, Slot, Source, Walk, settle};

/// Most bytes that one event, or events waiting for a delta, may hold.
const MAX_HELD: usize = 1 << 20;
/// What holding one line costs besides its bytes.
const LINE_COST: usize = 128;
/// Most strings that may continue at once.
const MAX_CONTINUED: usize = 4096;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A string that continues over events.
struct Continued {
    scan: StringScan,
    /// Where the undecided bytes came from.
    sources: VecDeque<Source>,
}

impl Continued {
    fn new() -> Self {
        Self { scan: StringScan::in_json(), sources: VecDeque::new() }
    }
}

/// Masks server-sent events.
pub struct SseMasker {
    rules: Arc<MaskRules>,
    begun: bool,
    line: Vec<u8>,
    carriage_return: bool,
    event: Vec<Line>,
    held: usize,
    waiting: Queue,
    continued: HashMap<String, Continued>,
    /// Frames of events, the last one first.
    frames: Vec<Arc<Frame>>,
    /// How many bytes of events may be scanned together.
    reach: usize,
    counts: Counts,
}

impl SseMasker {
    /// A masker for one body.
    pub fn new(rules: Arc<MaskRules>) -> Self {
        Self {
            rules,
            begun: false,
            line: Vec::new(),
            carriage_return: false,
            event: Vec::new(),
            held: 0,
            waiting: Queue::default(),
            continued: HashMap::new(),
            frames: Vec::new(),
            reach: skim::REACH,
            counts: Counts::new(),
        }
    }

    /// What has been masked.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// See [`super::Masker::push`].
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let mut rest = chunk;
        while let Some(first) = rest.first() {
            let passed = match self.repeat(rest, out)? {
                0 => self.skim(rest, out),
                repeated => repeated,
            };
            if passed > 0 {
                rest = &rest[passed..];
                continue;
            }
            // What stands between two line ends comes at once.
            let plain =
                if self.carriage_return { 0 } else { memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len()) };
            if plain == 0 {
                self.byte(*first, out)?;
                rest = &rest[1..];
                continue;
            }
            // The limit is on what is held, wherever the chunk was cut.
            let room = MAX_HELD.saturating_sub(self.held);
            self.line.extend(&rest[..plain.min(room)]);
            self.held += plain;
            if plain > room {
                return Err(Blocked::TooLong);
            }
            rest = &rest[plain..];
        }
        Ok(())
    }

    /// See [`super::Masker::finish`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.carriage_return {
            self.end_line(b"\r", out)?;
        }
        if !self.line.is_empty() {
            let content = std::mem::take(&mut self.line);
            self.event.push(Line { content, end: Vec::new() });
        }
        if !self.event.is_empty() {
            self.end_event(out)?;
        }
        self.end_continued()?;
        self.waiting.release(out);
        Ok(())
    }

    fn byte(&mut self, b: u8, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if std::mem::take(&mut self.carriage_return) {
            if b == b'\n' {
                return self.end_line(b"\r\n", out);
            }
            self.end_line(b"\r", out)?;
        }
        match b {
            b'\n' => self.end_line(b"\n", out),
            b'\r' => {
                self.carriage_return = true;
                Ok(())
            }
            _ => {
                self.line.push(b);
                self.held += 1;
                if self.held > MAX_HELD { Err(Blocked::TooLong) } else { Ok(()) }
            }
        }
    }

    fn end_line(&mut self, end: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let mut content = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && content.starts_with(BOM) {
            out.extend(BOM);
            content.drain(..BOM.len());
        }
        let blank = content.is_empty();
        self.held += end.len() + LINE_COST;
        if self.held > MAX_HELD {
            return Err(Blocked::TooLong);
        }
        self.event.push(Line { content, end: end.to_vec() });
        if blank { self.end_event(out) } else { Ok(()) }
    }

    fn end_event(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        let raw = std::mem::take(&mut self.event);
        self.held = 0;
        let joined = joined_data(&raw);
        let masked = |counts: &Counts| counts.values().sum::<u64>();
        let before = masked(&self.counts);
        let lines = raw.iter().map(|l| self.other_fields(l)).collect::<Result<Vec<_>, _>>()?;
        let size = lines.iter().map(|l| l.content.len() + l.end.len() + LINE_COST).sum();
        let Some(joined) = joined else {
            self.wait(Form::Lines(lines, None, Vec::new()), size)?;
            self.waiting.release(out);
            return Ok(());
        };
        let (data, deltas) = self.mask_data(&joined)?;
        let asked = !deltas.is_empty() || may_end_choices(&joined);
        let document = match asked.then(|| serde_json::from_slice(&joined)) {
            Some(Ok(document)) => document,
            // Which string goes on is read from the whole event; one that cannot be read would be joined to another.
            Some(Err(_)) if !deltas.is_empty() => return Err(Blocked::Malformed),
            _ => Value::Null,
        };
        let ended = ends_choices(&joined, &document);
        let (slots, texts): (Vec<Slot>, Vec<(String, Written)>) = deltas
            .into_iter()
            .map(|delta| {
                let slot = Slot { at: delta.at, content: Vec::new(), after: delta.unseen, open: delta.content.len() };
                (slot, (stable_key(&delta.path, &document), delta.content))
            })
            .unzip();
        let form = Form::Lines(lines, Some(data), slots);
        if let (Ended::Choices(none), [(key, text)]) = (&ended, &texts[..])
            && none.is_empty()
            && masked(&self.counts) == before
            && let Some(frame) = Frame::of(&raw, &form, text.raw(0, text.len()), key)
        {
            self.remember(frame);
        }
        let event = self.wait(form, size)?;
        for (slot, (key, text)) in texts.iter().enumerate() {
            let continued = self.continued.entry(key.clone()).or_insert_with(Continued::new);
            continued.sources.push_back(Source { event, slot, length: text.len() });
            continued.scan.written.append(text);
        }
        if self.continued.len() > MAX_CONTINUED {
            return Err(Blocked::TooLong);
        }
        for (key, _) in texts {
            self.advance(&key, false)?;
        }
        match ended {
            Ended::All => self.end_continued()?,
            Ended::Choices(numbers) => {
                for number in numbers {
                    self.end_choice(number)?;
                }
            }
        }
        self.waiting.release(out);
        Ok(())
    }

    /// Adds an event to those that wait, and gives its number.
    fn wait(&mut self, form: Form, size: usize) -> Result<u64, Blocked> {
        let event = self.waiting.push(form, size);
        if self.waiting.size() > MAX_HELD { Err(Blocked::TooLong) } else { Ok(event) }
    }

    /// Nothing continues the strings of one choice.
    fn end_choice(&mut self, number: u64) -> Result<(), Blocked> {
        let front = format!(".choices[{number}]");
        let keys: Vec<String> = self.continued.keys().filter(|k| k.starts_with(&front)).cloned().collect();
        for key in keys {
            self.advance(&key, true)?;
            self.continued.remove(&key);
        }
        Ok(())
    }

    /// Nothing continues any string: all of them are decided.
    fn end_continued(&mut self) -> Result<(), Blocked> {
        let keys: Vec<String> = self.continued.keys().cloned().collect();
        for key in keys {
            self.advance(&key, true)?;
        }
        self.continued.clear();
        Ok(())
    }

    /// Comments and fields other than data are scanned as text.
    fn other_fields(&mut self, line: &Line) -> Result<Line, Blocked> {
        let data = data_value(&line.content).is_some();
        let content = if data { line.content.clone() } else { self.scan_text(&line.content)? };
        Ok(Line { content, end: line.end.clone() })
    }

    fn scan_text(&mut self, text: &[u8]) -> Result<Vec<u8>, Blocked> {
        let mut scan = StringScan::default();
        scan.written.push_plain(text);
        let mut out = Vec::new();
        scan.drain(&self.rules, true, &mut self.counts, &mut out)?;
        Ok(out)
    }

    fn mask_data(&mut self, joined: &[u8]) -> Result<(Vec<u8>, Vec<DeltaString>), Blocked> {
        if joined == END_OF_CHAT {
            // It begins like JSON and is none, which rules on fields would not let pass.
            return Ok((joined.to_vec(), Vec::new()));
        }
        let first = joined.iter().find(|b| !b.is_ascii_whitespace());
        if !matches!(first, Some(b'{' | b'[' | b'"')) {
            return Ok((self.scan_text(joined)?, Vec::new()));
        }
        let mut masker = JsonMasker::for_event(self.rules.clone());
        let mut out = Vec::new();
        masker.push(joined, &mut out)?;
        masker.finish(&mut out)?;
        for (kind, n) in masker.counts() {
            *self.counts.entry(kind.clone()).or_default() += n;
        }
        Ok((out, masker.take_deltas()))
    }

    /// Scans a continued string and gives each decided byte back to the slot it came from.
    fn advance(&mut self, key: &str, whole: bool) -> Result<(), Blocked> {
        let Some(continued) = self.continued.get_mut(key) else { return Ok(()) };
        let mut pieces = Vec::new();
        let decided = continued.scan.scan_pieces(&self.rules, whole, &mut self.counts, &mut pieces)?;
        let mut walk = Walk::over(&continued.sources);
        for piece in pieces {
            match piece {
                Piece::Drop(..) => {}
                Piece::Insert(at, bytes) => {
                    if let Some((slot, _)) = walk.slot(at.saturating_sub(1), &mut self.waiting) {
                        slot.content.extend(bytes);
                    }
                }
                Piece::Keep(mut start, end) => {
                    while start < end {
                        let Some((slot, room)) = walk.slot(start, &mut self.waiting) else { break };
                        let stop = end.min(start + room);
                        slot.content.extend(continued.scan.written.raw(start, stop));
                        start = stop;
                    }
                }
            }
        }
        continued.scan.written.forget(decided);
        settle(&mut continued.sources, decided, &mut self.waiting);
        Ok(())
    }
}

/// The value of a data line, without the one space that may precede it.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    if line == b"data" {
        return Some(&[]);
    }
    let value = line.strip_prefix(b"data:")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

fn joined_data(lines: &[Line]) -> Option<Vec<u8>> {
    let values: Vec<&[u8]> = lines.iter().filter_map(|l| data_value(&l.content)).collect();
    (!values.is_empty()).then(|| values.join(&b'\n'))
}
