//! Masks JSON as it streams: one value, or values in a row (NDJSON, RFC 7464-like concatenation).
//!
//! A scanner, not a parser: what is not inside a string or a number passes as it is. Strings are scanned over
//! their decoded text; member names are held whole, since field rules need them.

mod members;
mod scalar;
mod simple;
pub(in crate::protocol::masking) mod skim;
mod whole;

use std::sync::Arc;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::detect::{Piece, Scanner};
use crate::protocol::masking::escape::{Unescaped, unescape};
use crate::protocol::masking::json::scalar::{is_literal, is_scalar};
use crate::protocol::masking::json::skim::Reach;
use crate::protocol::masking::logical::{StringScan, Written};
use crate::protocol::masking::path::Step;
use crate::protocol::masking::rules::{Counts, FieldAction, MaskRules};

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 512;
/// Longest member name or bare scalar.
const MAX_HELD: usize = 64 * 1024;
/// Longest value that is replaced once it is whole.
const MAX_CAPTURED: usize = 1 << 20;
const REDACTED_FIELD: &[u8] = b"\"[redacted:field]\"";

struct Container {
    object: bool,
    index: usize,
    name: String,
    /// Whether a member has been written, so that the next one needs its comma.
    written: bool,
}

/// Which token may come next; anything else is not JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrEnd,
    Name,
    NameOrEnd,
    Colon,
    CommaOrEnd,
}

enum Lexing {
    Between,
    Name(Escapes),
    Text(Escapes),
    Delta(Escapes),
    Scalar(Vec<u8>),
}

/// A string's escape in progress.
#[derive(Default)]
struct Escapes {
    pending: Vec<u8>,
}

/// A string whose scanning is left to the caller, since it goes on elsewhere.
pub struct DeltaString {
    /// Where in the output its content belongs.
    pub at: usize,
    /// Path of the string.
    pub path: Vec<Step>,
    /// Its content.
    pub content: Written,
    /// Raw bytes at its end that read as nothing.
    pub unseen: Vec<u8>,
}

/// Masks JSON.
pub struct JsonMasker {
    rules: Arc<MaskRules>,
    stack: Vec<Container>,
    lexing: Lexing,
    expect: Expect,
    /// A bare scalar has been read outside any container, and rules on fields allow nothing behind it.
    lone: bool,
    /// Separator held back until the next member is known to stay.
    separator: Vec<u8>,
    string: StringScan,
    /// Whether anything of the string has come, or the scan is another string's.
    begun_string: bool,
    /// Depth at which a dropped or redacted value began.
    muted_at: Option<usize>,
    /// What becomes of the muted value once it is whole, and its bytes.
    captured: Option<(FieldAction, Vec<u8>)>,
    collect_delta: bool,
    deltas: Vec<DeltaString>,
    plain_text: bool,
    reach: Reach,
    counts: Counts,
}

impl JsonMasker {
    /// A masker for one body.
    pub fn new(rules: Arc<MaskRules>) -> Self {
        Self {
            rules,
            stack: Vec::new(),
            lexing: Lexing::Between,
            expect: Expect::Value,
            lone: false,
            separator: Vec::new(),
            string: StringScan::default(),
            begun_string: true,
            muted_at: None,
            captured: None,
            collect_delta: false,
            deltas: Vec::new(),
            plain_text: false,
            reach: Reach::default(),
            counts: Counts::new(),
        }
    }

    /// A masker for one event's data, which leaves the strings at the mask's delta paths to the caller.
    pub fn for_event(rules: Arc<MaskRules>) -> Self {
        Self { collect_delta: true, ..Self::new(rules) }
    }

    /// The delta strings found, in order.
    pub fn take_deltas(&mut self) -> Vec<DeltaString> {
        std::mem::take(&mut self.deltas)
    }

    /// What has been masked.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// See [`super::Masker::push`].
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let skimmed = self.skim(rest, out);
            if skimmed > 0 {
                rest = &rest[skimmed..];
                continue;
            }
            let used = self.step(rest, out)?;
            self.reach.took(used);
            rest = &rest[used..];
            let captured = self.captured.as_ref().map_or(0, |(_, bytes)| bytes.len());
            if captured > MAX_CAPTURED || self.separator.len() > MAX_HELD {
                return Err(Blocked::TooLong);
            }
        }
        if matches!(self.lexing, Lexing::Text(_)) || self.plain_text {
            self.drain(false, out)?;
        }
        Ok(())
    }

    /// See [`super::Masker::finish`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.plain_text {
            return self.drain(true, out);
        }
        match std::mem::replace(&mut self.lexing, Lexing::Between) {
            Lexing::Between => {
                let held = std::mem::take(&mut self.separator);
                self.write(&held, out);
                Ok(())
            }
            Lexing::Scalar(token) => {
                self.end_scalar(&token, out)?;
                if self.plain_text { self.drain(true, out) } else { Ok(()) }
            }
            Lexing::Text(escapes) => {
                self.drain(true, out)?;
                self.write(&escapes.pending, out);
                Ok(())
            }
            Lexing::Delta(escapes) => {
                self.end_delta();
                self.write(&escapes.pending, out);
                Ok(())
            }
            Lexing::Name(escapes) => {
                self.write_separator(out);
                self.write(b"\"", out);
                self.drain(true, out)?;
                self.write(&escapes.pending, out);
                Ok(())
            }
        }
    }

    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Blocked> {
        if self.plain_text {
            self.string.written.push_plain(rest);
            return Ok(rest.len());
        }
        match &mut self.lexing {
            Lexing::Between => self.between(rest[0], out).map(|()| 1),
            Lexing::Scalar(token) => {
                if is_scalar(rest[0]) {
                    token.push(rest[0]);
                    return if token.len() > MAX_HELD { Err(Blocked::TooLong) } else { Ok(1) };
                }
                let token = std::mem::take(token);
                self.lexing = Lexing::Between;
                self.end_scalar(&token, out).map(|()| 0)
            }
            Lexing::Name(_) | Lexing::Text(_) | Lexing::Delta(_) => self.in_string(rest, out),
        }
    }

    fn between(&mut self, b: u8, out: &mut Vec<u8>) -> Result<(), Blocked> {
        use Expect::{Colon, CommaOrEnd, Name, NameOrEnd, Value, ValueOrEnd};
        if matches!(b, b' ' | b'\t' | b'\n' | b'\r') {
            if self.separator.is_empty() {
                self.write(&[b], out);
            } else {
                self.separator.push(b);
            }
            return Ok(());
        }
        if self.lone {
            return self.malformed(&[b]);
        }
        if self.expect == ValueOrEnd && b != b']' {
            self.item_begins(out)?;
        }
        match (b, self.expect) {
            (b'"', Name | NameOrEnd) => {
                self.string = StringScan::default();
                self.begun_string = true;
                self.lexing = Lexing::Name(Escapes::default());
            }
            (b'"', Value | ValueOrEnd) => self.begin_string(out),
            (b'{' | b'[', Value | ValueOrEnd) => return self.open(b, out),
            (b'}', NameOrEnd | CommaOrEnd) | (b']', ValueOrEnd | CommaOrEnd) => return self.close(b, out),
            (b',', CommaOrEnd) => return self.comma(out),
            (b':', Colon) => {
                self.expect = Value;
                self.write(b":", out);
            }
            (_, Value | ValueOrEnd) if is_scalar(b) => self.lexing = Lexing::Scalar(vec![b]),
            _ => return self.malformed(&[b]),
        }
        Ok(())
    }

    fn open(&mut self, b: u8, out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.write(&[b], out);
        if self.stack.len() >= MAX_DEPTH {
            return Err(Blocked::Depth);
        }
        self.stack.push(Container { object: b == b'{', index: 0, name: String::new(), written: false });
        self.expect = if b == b'{' { Expect::NameOrEnd } else { Expect::ValueOrEnd };
        Ok(())
    }

    /// What may follow a value: values in a row outside any container, else a comma or the end.
    fn value_ended(&mut self) {
        self.expect = if self.stack.is_empty() { Expect::Value } else { Expect::CommaOrEnd };
    }

    /// What is not JSON is scanned as text from here on, unless rules on fields would be lost by that.
    fn malformed(&mut self, bytes: &[u8]) -> Result<(), Blocked> {
        if !self.rules.fields.is_empty() || self.muted_at.is_some() {
            return Err(Blocked::Malformed);
        }
        self.plain_text = true;
        self.string = StringScan::default();
        let held = std::mem::take(&mut self.separator);
        self.string.written.push_plain(&held);
        self.string.written.push_plain(bytes);
        Ok(())
    }

    fn begin_string(&mut self, out: &mut Vec<u8>) {
        self.write(b"\"", out);
        let may_continue = self.collect_delta && self.muted_at.is_none() && !self.rules.delta.is_empty();
        let path = if may_continue { self.path() } else { Vec::new() };
        if may_continue && self.rules.delta.iter().any(|d| d.matches(&path)) {
            self.deltas.push(DeltaString { at: out.len(), path, content: Written::default(), unseen: Vec::new() });
            self.lexing = Lexing::Delta(Escapes::default());
        } else {
            if self.begun_string {
                self.string = StringScan::in_json();
            }
            self.begun_string = false;
            self.lexing = Lexing::Text(Escapes::default());
        }
    }

    fn in_string(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Blocked> {
        if let Some(content) = self.simple_front(rest) {
            self.simple(content, out)?;
            return self.end_string(out).map(|()| content.len() + 1);
        }
        let (Lexing::Name(escapes) | Lexing::Text(escapes) | Lexing::Delta(escapes)) = &mut self.lexing else {
            return Ok(0);
        };
        if !escapes.pending.is_empty() {
            return self.in_escape(rest[0], out).map(|()| 1);
        }
        let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        if plain > 0 {
            self.content(|written| written.push_plain(&rest[..plain]))?;
            return Ok(plain);
        }
        if rest[0] == b'\\' {
            escapes.pending.push(b'\\');
            return Ok(1);
        }
        self.end_string(out).map(|()| 1)
    }

    /// Adds to the string that is being read; a member name has a limit.
    fn content(&mut self, write: impl FnOnce(&mut Written)) -> Result<(), Blocked> {
        self.begun_string = true;
        match &self.lexing {
            Lexing::Delta(_) => self.delta_content(write),
            _ => write(&mut self.string.written),
        }
        let name = matches!(self.lexing, Lexing::Name(_));
        if name && self.string.written.len() > MAX_HELD { Err(Blocked::TooLong) } else { Ok(()) }
    }

    fn end_delta(&mut self) {
        if let Some(delta) = self.deltas.last_mut() {
            delta.unseen = delta.content.end();
        }
    }

    fn delta_content(&mut self, write: impl FnOnce(&mut Written)) {
        if let Some(delta) = self.deltas.last_mut() {
            write(&mut delta.content);
        }
    }

    /// Adds a byte to an escape. What turns out not to belong to it is read again on its own.
    fn in_escape(&mut self, b: u8, out: &mut Vec<u8>) -> Result<(), Blocked> {
        let (Lexing::Name(escapes) | Lexing::Text(escapes) | Lexing::Delta(escapes)) = &mut self.lexing else {
            return Ok(());
        };
        escapes.pending.push(b);
        match unescape(&escapes.pending) {
            Unescaped::More => Ok(()),
            Unescaped::Is(character) => {
                let raw = std::mem::take(&mut escapes.pending);
                self.content(|written| written.push_escape(&raw, character))
            }
            Unescaped::Broken(length) => {
                let raw = std::mem::take(&mut escapes.pending);
                let (broken, rest) = raw.split_at(length);
                self.content(|written| written.push_escape(broken, char::REPLACEMENT_CHARACTER))?;
                rest.iter().try_for_each(|b| self.in_string(&[*b], out).map(drop))
            }
        }
    }

    fn end_string(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        match std::mem::replace(&mut self.lexing, Lexing::Between) {
            Lexing::Name(_) => return self.end_name(out),
            Lexing::Text(_) => self.drain(true, out)?,
            Lexing::Delta(_) => self.end_delta(),
            _ => {}
        }
        self.write(b"\"", out);
        self.value_ended();
        Ok(())
    }

    /// A number that is an entity becomes a string, since its replacement is none.
    fn end_scalar(&mut self, token: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let outside = self.stack.is_empty();
        // Bare words and numbers in a row are text to a reader, and so to the mask.
        if !is_literal(token) || (outside && self.rules.fields.is_empty()) {
            return self.malformed(token);
        }
        self.lone = outside;
        self.value_ended();
        if self.muted_at.is_some() {
            self.write(token, out);
            return Ok(());
        }
        let mut masked = Vec::new();
        let mut found = false;
        let mut scanner = Scanner::default();
        scanner.scan(&self.rules, token, true, &mut self.counts, &mut |piece| match piece {
            Piece::Keep(start, end) => masked.extend(&token[start..end]),
            Piece::Drop(..) => {}
            Piece::Insert(_, replacement) => {
                found = true;
                masked.extend(replacement);
            }
        })?;
        if found {
            masked.insert(0, b'"');
            masked.push(b'"');
        }
        self.write(&masked, out);
        Ok(())
    }

    fn drain(&mut self, whole: bool, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.muted_at.is_some() {
            if self.string.written.is_flooded() {
                return Err(Blocked::TooLong);
            }
            let unseen = if whole { self.string.written.end() } else { Vec::new() };
            let all = self.string.written.len();
            if let Some((_, bytes)) = &mut self.captured {
                bytes.extend(self.string.written.raw(0, all));
                bytes.extend(unseen);
            }
            self.string.written.forget(all);
            return Ok(());
        }
        self.string.drain(&self.rules, whole, &mut self.counts, out)
    }

    fn write(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        match (&self.muted_at, &mut self.captured) {
            (None, _) => out.extend(bytes),
            (Some(_), Some((_, captured))) => captured.extend(bytes),
            (Some(_), None) => {}
        }
    }
}
