//! Masks JSON as it streams: one value, or values in a row (NDJSON, RFC 7464-like concatenation).
//!
//! A scanner, not a parser: what is not inside a string or a number passes as it is. Strings are scanned over
//! their decoded text; member names are held whole, since field rules need them.

mod members;

use std::sync::Arc;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::detect::{Piece, Scanner};
use crate::protocol::masking::escape::{Unescaped, unescape};
use crate::protocol::masking::logical::{StringScan, Written};
use crate::protocol::masking::path::Step;
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 512;
/// Longest member name or bare scalar.
const MAX_HELD: usize = 64 * 1024;
const REDACTED_FIELD: &[u8] = b"\"[redacted:field]\"";

struct Container {
    object: bool,
    index: usize,
    name: String,
    /// Whether a member has been written, so that the next one needs its comma.
    written: bool,
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
}

/// Masks JSON.
pub struct JsonMasker {
    rules: Arc<MaskRules>,
    stack: Vec<Container>,
    lexing: Lexing,
    expect_name: bool,
    /// Separator held back until the next member is known to stay.
    separator: Vec<u8>,
    name: Vec<u8>,
    string: StringScan,
    /// Depth at which a dropped or redacted value began.
    muted_at: Option<usize>,
    collect_delta: bool,
    deltas: Vec<DeltaString>,
    plain_text: bool,
    counts: Counts,
}

impl JsonMasker {
    /// A masker for one body.
    pub fn new(rules: Arc<MaskRules>) -> Self {
        Self {
            rules,
            stack: Vec::new(),
            lexing: Lexing::Between,
            expect_name: false,
            separator: Vec::new(),
            name: Vec::new(),
            string: StringScan::default(),
            muted_at: None,
            collect_delta: false,
            deltas: Vec::new(),
            plain_text: false,
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
            let used = self.step(rest, out)?;
            rest = &rest[used..];
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
            Lexing::Scalar(token) => self.end_scalar(&token, out),
            Lexing::Text(escapes) => {
                self.drain(true, out)?;
                self.write(&escapes.pending, out);
                Ok(())
            }
            Lexing::Delta(escapes) => {
                self.write(&escapes.pending, out);
                Ok(())
            }
            Lexing::Name(escapes) => {
                self.name.extend(&escapes.pending);
                let held = std::mem::take(&mut self.name);
                let separator = std::mem::take(&mut self.separator);
                self.write(&separator, out);
                self.write(b"\"", out);
                let masked = self.scan_whole(&held)?;
                self.write(&masked, out);
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
        match b {
            b'"' if self.expect_name => {
                self.lexing = Lexing::Name(Escapes::default());
                self.name.clear();
            }
            b'"' => self.begin_string(out),
            b'{' | b'[' => {
                self.value_begins();
                self.write(&[b], out);
                if self.stack.len() >= MAX_DEPTH {
                    return Err(Blocked::Depth);
                }
                self.stack.push(Container { object: b == b'{', index: 0, name: String::new(), written: false });
                self.expect_name = b == b'{';
                self.item_begins(out)?;
            }
            b'}' | b']' => return self.close(b, out),
            b',' => return self.comma(out),
            b':' => self.write(b":", out),
            b' ' | b'\t' | b'\n' | b'\r' => {
                if self.separator.is_empty() {
                    self.write(&[b], out);
                } else {
                    self.separator.push(b);
                }
            }
            _ if is_scalar(b) && !self.expect_name => {
                self.value_begins();
                self.lexing = Lexing::Scalar(vec![b]);
            }
            _ => return self.malformed(b),
        }
        Ok(())
    }

    /// What is not JSON is scanned as text from here on, unless rules on fields would be lost by that.
    fn malformed(&mut self, b: u8) -> Result<(), Blocked> {
        if !self.rules.fields.is_empty() || self.muted_at.is_some() {
            return Err(Blocked::Malformed);
        }
        self.plain_text = true;
        let held = std::mem::take(&mut self.separator);
        self.string.written.push_plain(&held);
        self.string.written.push_plain(&[b]);
        Ok(())
    }

    const fn value_begins(&mut self) {
        self.expect_name = false;
    }

    fn begin_string(&mut self, out: &mut Vec<u8>) {
        self.value_begins();
        self.write(b"\"", out);
        let path = self.path();
        if self.collect_delta && self.muted_at.is_none() && self.rules.delta.iter().any(|d| d.matches(&path)) {
            self.deltas.push(DeltaString { at: out.len(), path, content: Written::default() });
            self.lexing = Lexing::Delta(Escapes::default());
        } else {
            self.string = StringScan::default();
            self.lexing = Lexing::Text(Escapes::default());
        }
    }

    fn in_string(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Result<usize, Blocked> {
        let (Lexing::Name(escapes) | Lexing::Text(escapes) | Lexing::Delta(escapes)) = &mut self.lexing else {
            return Ok(0);
        };
        if !escapes.pending.is_empty() {
            return Ok(self.in_escape(rest[0]));
        }
        let plain = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        if plain > 0 {
            self.plain(&rest[..plain])?;
            return Ok(plain);
        }
        if rest[0] == b'\\' {
            escapes.pending.push(b'\\');
            return Ok(1);
        }
        self.end_string(out).map(|()| 1)
    }

    fn plain(&mut self, bytes: &[u8]) -> Result<(), Blocked> {
        match &self.lexing {
            Lexing::Name(_) => self.name.extend(bytes),
            Lexing::Delta(_) => self.delta_content(|w| w.push_plain(bytes)),
            _ => self.string.written.push_plain(bytes),
        }
        if self.name.len() > MAX_HELD { Err(Blocked::TooLong) } else { Ok(()) }
    }

    fn delta_content(&mut self, write: impl FnOnce(&mut Written)) {
        if let Some(delta) = self.deltas.last_mut() {
            write(&mut delta.content);
        }
    }

    /// Adds a byte to an escape; zero is returned where the byte belongs to what follows it.
    fn in_escape(&mut self, b: u8) -> usize {
        let (Lexing::Name(escapes) | Lexing::Text(escapes) | Lexing::Delta(escapes)) = &mut self.lexing else {
            return 0;
        };
        let mut candidate = escapes.pending.clone();
        candidate.push(b);
        let (raw, character, used) = match unescape(&candidate) {
            Unescaped::More => {
                escapes.pending = candidate;
                return 1;
            }
            Unescaped::Is(character) => (candidate, character, 1),
            Unescaped::EndedBefore(character) => (std::mem::take(&mut escapes.pending), character, 0),
        };
        escapes.pending.clear();
        match &self.lexing {
            Lexing::Name(_) => self.name.extend(&raw),
            Lexing::Delta(_) => self.delta_content(|w| w.push_escape(&raw, character)),
            _ => self.string.written.push_escape(&raw, character),
        }
        used
    }

    fn end_string(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        match std::mem::replace(&mut self.lexing, Lexing::Between) {
            Lexing::Name(_) => self.end_name(out),
            Lexing::Text(_) => {
                self.drain(true, out)?;
                self.write(b"\"", out);
                Ok(())
            }
            _ => {
                self.write(b"\"", out);
                Ok(())
            }
        }
    }

    /// Masks a name's raw bytes at once.
    fn scan_whole(&mut self, raw: &[u8]) -> Result<Vec<u8>, Blocked> {
        let mut scan = StringScan::default();
        scan.written.push_plain(raw);
        let mut out = Vec::new();
        scan.drain(&self.rules, true, &mut self.counts, &mut out)?;
        Ok(out)
    }

    /// A number that is an entity becomes a string, since its replacement is none.
    fn end_scalar(&mut self, token: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
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
            let all = self.string.written.len();
            self.string.written.forget(all);
            return Ok(());
        }
        self.string.drain(&self.rules, whole, &mut self.counts, out)
    }

    fn write(&self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.muted_at.is_none() {
            out.extend(bytes);
        }
    }
}

const fn is_scalar(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.')
}
