//! Masks server-sent events (WHATWG HTML section 9.2.6).
//!
//! A client acts on an event only at its blank line, so an event is held whole and goes out at once, framing
//! unchanged. Strings at the mask's delta paths continue from event to event: an event whose delta is undecided
//! waits, and those behind it wait too.

mod skim;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::choices::{Ended, ends_choices, stable_key};
use crate::protocol::masking::detect::Piece;
use crate::protocol::masking::json::{DeltaString, JsonMasker};
use crate::protocol::masking::logical::StringScan;
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Most bytes that one event, or events waiting for a delta, may hold.
const MAX_HELD: usize = 1 << 20;
/// What holding one line costs besides its bytes.
const LINE_COST: usize = 128;
/// Most strings that may continue at once.
const MAX_CONTINUED: usize = 4096;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// One line with the bytes that ended it.
struct Line {
    content: Vec<u8>,
    end: Vec<u8>,
}

/// A delta string's place in a waiting event.
struct Slot {
    at: usize,
    content: Vec<u8>,
    /// Raw bytes at its end that read as nothing.
    after: Vec<u8>,
    /// Text bytes that are not decided.
    open: usize,
}

/// An event that waits to go out.
struct Waiting {
    number: u64,
    lines: Vec<Line>,
    /// Joined data, masked but for its slots; none for an event without data.
    data: Option<Vec<u8>>,
    slots: Vec<Slot>,
    size: usize,
}

/// A string that continues over events.
struct Continued {
    scan: StringScan,
    /// Where the undecided bytes came from: event, slot, length.
    sources: VecDeque<(u64, usize, usize)>,
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
    waiting: VecDeque<Waiting>,
    waiting_size: usize,
    next_number: u64,
    continued: HashMap<String, Continued>,
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
            waiting: VecDeque::new(),
            waiting_size: 0,
            next_number: 0,
            continued: HashMap::new(),
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
            let skimmed = self.skim(rest, out);
            if skimmed > 0 {
                rest = &rest[skimmed..];
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
        self.release(out);
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
        let lines = std::mem::take(&mut self.event);
        self.held = 0;
        let number = self.next_number;
        self.next_number += 1;
        let joined = joined_data(&lines);
        let lines = lines.into_iter().map(|l| self.other_fields(l)).collect::<Result<Vec<_>, _>>()?;
        let size = lines.iter().map(|l| l.content.len() + l.end.len() + LINE_COST).sum();
        let mut event = Waiting { number, lines, data: None, slots: Vec::new(), size };
        let mut touched = Vec::new();
        let mut ended = Ended::Choices(Vec::new());
        if let Some(joined) = joined {
            ended = ends_choices(&joined);
            let (data, deltas) = self.mask_data(&joined)?;
            event.data = Some(data);
            // Which string goes on is read from the whole event; one that cannot be read would be joined to another.
            let document = if deltas.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&joined).map_err(|_| Blocked::Malformed)?
            };
            for (slot, delta) in deltas.into_iter().enumerate() {
                let key = stable_key(&delta.path, &document);
                let (content, after) = (Vec::new(), delta.unseen);
                event.slots.push(Slot { at: delta.at, content, after, open: delta.content.len() });
                let continued = self.continued.entry(key.clone()).or_insert_with(Continued::new);
                continued.sources.push_back((number, slot, delta.content.len()));
                continued.scan.written.append(&delta.content);
                touched.push(key);
            }
        }
        self.waiting_size += event.size;
        if self.waiting_size > MAX_HELD {
            return Err(Blocked::TooLong);
        }
        self.waiting.push_back(event);
        if self.continued.len() > MAX_CONTINUED {
            return Err(Blocked::TooLong);
        }
        for key in touched {
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
        self.release(out);
        Ok(())
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
    fn other_fields(&mut self, line: Line) -> Result<Line, Blocked> {
        if data_value(&line.content).is_some() {
            return Ok(line);
        }
        let content = self.scan_text(&line.content)?;
        Ok(Line { content, ..line })
    }

    fn scan_text(&mut self, text: &[u8]) -> Result<Vec<u8>, Blocked> {
        let mut scan = StringScan::default();
        scan.written.push_plain(text);
        let mut out = Vec::new();
        scan.drain(&self.rules, true, &mut self.counts, &mut out)?;
        Ok(out)
    }

    fn mask_data(&mut self, joined: &[u8]) -> Result<(Vec<u8>, Vec<DeltaString>), Blocked> {
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
        for piece in pieces {
            match piece {
                Piece::Drop(..) => {}
                Piece::Insert(at, bytes) => {
                    if let Some((slot, _)) = locate(&continued.sources, at.saturating_sub(1), &mut self.waiting) {
                        slot.content.extend(bytes);
                    }
                }
                Piece::Keep(mut start, end) => {
                    while start < end {
                        let Some((slot, room)) = locate(&continued.sources, start, &mut self.waiting) else { break };
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

    fn release(&mut self, out: &mut Vec<u8>) {
        while self.waiting.front().is_some_and(|e| e.slots.iter().all(|s| s.open == 0)) {
            if let Some(event) = self.waiting.pop_front() {
                self.waiting_size -= event.size;
                event.write(out);
            }
        }
    }
}

/// The slot that a byte of a continued string came from, and how many bytes of that source are left from there.
fn locate<'a>(
    sources: &VecDeque<(u64, usize, usize)>,
    at: usize,
    waiting: &'a mut VecDeque<Waiting>,
) -> Option<(&'a mut Slot, usize)> {
    let mut offset = 0;
    for (number, slot, length) in sources {
        if at < offset + length {
            let event = waiting.iter_mut().find(|e| e.number == *number)?;
            return Some((event.slots.get_mut(*slot)?, offset + length - at));
        }
        offset += length;
    }
    None
}

fn settle(sources: &mut VecDeque<(u64, usize, usize)>, mut decided: usize, waiting: &mut VecDeque<Waiting>) {
    while let Some((number, slot, length)) = sources.front_mut() {
        let part = decided.min(*length);
        if let Some(slot) = waiting.iter_mut().find(|e| e.number == *number).and_then(|e| e.slots.get_mut(*slot)) {
            slot.open -= part;
        }
        *length -= part;
        decided -= part;
        if *length > 0 {
            break;
        }
        sources.pop_front();
    }
}

impl Waiting {
    /// Writes the event; its data goes back over the data lines it came from.
    fn write(self, out: &mut Vec<u8>) {
        let data = self.data.map(|data| with_slots(&data, &self.slots));
        let mut parts: VecDeque<Vec<u8>> =
            data.map(|d| d.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect()).unwrap_or_default();
        let data_lines = self.lines.iter().filter(|l| data_value(&l.content).is_some()).count();
        let mut seen = 0;
        for line in &self.lines {
            let Some(value) = data_value(&line.content) else {
                out.extend(&line.content);
                out.extend(&line.end);
                continue;
            };
            seen += 1;
            let prefix = &line.content[..line.content.len() - value.len()];
            let take = if seen == data_lines { parts.len() } else { parts.len().min(1) };
            for part in parts.drain(..take) {
                out.extend(prefix);
                out.extend(part);
                out.extend(&line.end);
            }
        }
    }
}

fn with_slots(data: &[u8], slots: &[Slot]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut from = 0;
    for slot in slots {
        out.extend(&data[from..slot.at]);
        out.extend(&slot.content);
        out.extend(&slot.after);
        from = slot.at;
    }
    out.extend(&data[from..]);
    out
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
