//! A logical string: its text as detectors read it, the raw bytes it was written as, and the way back from one to the other.

use crate::protocol::masking::Blocked;
use crate::protocol::masking::detect::{Piece, Scanner};
use crate::protocol::masking::fold::{Fold, fold};
use crate::protocol::masking::inner::Inner;
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Most raw bytes in a row that read as nothing.
const MAX_SKIPPED: usize = 4096;

/// From an offset of the text on, where its raw form lies.
#[derive(Clone, Copy, Debug)]
struct Span {
    text: usize,
    raw: usize,
    /// Byte for byte; else all of the span's text is one stretch of raw bytes.
    plain: bool,
}

/// Raw bytes and the text they read as.
#[derive(Clone, Debug, Default)]
pub struct Written {
    text: Vec<u8>,
    /// Empty while the raw bytes are the text.
    raw: Vec<u8>,
    spans: Vec<Span>,
    /// Raw bytes that read as nothing; they go with the character behind them.
    skipped: Vec<u8>,
    /// Whether there were ever more of them in a row than may be.
    flooded: bool,
    /// A character that has begun.
    partial: Vec<u8>,
}

impl Written {
    /// Bytes that stand for themselves: UTF-8, as far as they are.
    pub fn push_plain(&mut self, bytes: &[u8]) {
        if self.partial.is_empty() && bytes.is_ascii() {
            return self.same(bytes);
        }
        let mut joined = std::mem::take(&mut self.partial);
        let mut rest = if joined.is_empty() {
            bytes
        } else {
            joined.extend_from_slice(bytes);
            &joined
        };
        while !rest.is_empty() {
            let ascii = rest.iter().position(|b| !b.is_ascii()).unwrap_or(rest.len());
            self.same(&rest[..ascii]);
            rest = &rest[ascii..];
            let Some(first) = rest.first() else { break };
            let length = match first {
                0xC2..=0xDF => 2,
                0xE0..=0xEF => 3,
                0xF0..=0xF4 => 4,
                _ => 1,
            };
            let candidate = &rest[..length.min(rest.len())];
            match std::str::from_utf8(candidate) {
                Ok(one) => {
                    let character = one.chars().next().unwrap_or('\u{fffd}');
                    self.character(candidate, character);
                    rest = &rest[length..];
                }
                Err(error) if error.error_len().is_none() && rest.len() < length => {
                    self.partial = rest.to_vec();
                    return;
                }
                // No character: its first byte stands for itself.
                Err(_) => {
                    self.same(&rest[..1]);
                    rest = &rest[1..];
                }
            }
        }
    }

    /// An escape and the character it stands for.
    pub fn push_escape(&mut self, raw: &[u8], character: char) {
        self.flush();
        self.character(raw, character);
    }

    fn character(&mut self, raw: &[u8], character: char) {
        let mut buffer = [0; 4];
        match fold(character) {
            Fold::Nothing => {
                self.skipped.extend(raw);
                self.flooded |= self.skipped.len() > MAX_SKIPPED;
            }
            Fold::Ascii(byte) => self.collapsed(raw, &[byte]),
            Fold::Several(bytes, length) => self.collapsed(raw, &bytes[..length]),
            Fold::Same => {
                let text = character.encode_utf8(&mut buffer).as_bytes();
                if text == raw { self.same(raw) } else { self.collapsed(raw, text) }
            }
        }
    }

    fn same(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if !self.skipped.is_empty() {
            let (first, rest) = bytes.split_at(1);
            self.collapsed(first, first);
            return self.same(rest);
        }
        if self.spans.is_empty() {
            self.text.extend(bytes);
            return;
        }
        if self.spans.last().is_some_and(|s| !s.plain) {
            self.spans.push(Span { text: self.text.len(), raw: self.raw.len(), plain: true });
        }
        self.text.extend(bytes);
        self.raw.extend(bytes);
    }

    /// Text whose raw form is another.
    fn collapsed(&mut self, raw: &[u8], text: &[u8]) {
        if self.spans.is_empty() {
            self.raw.clone_from(&self.text);
            self.spans.push(Span { text: 0, raw: 0, plain: true });
        }
        self.spans.push(Span { text: self.text.len(), raw: self.raw.len(), plain: false });
        let skipped = std::mem::take(&mut self.skipped);
        self.raw.extend(skipped);
        self.raw.extend(raw);
        self.text.extend(text);
    }

    /// What has begun and does not go on stands for itself.
    fn flush(&mut self) {
        let partial = std::mem::take(&mut self.partial);
        self.same(&partial);
    }

    /// Nothing follows: gives the raw bytes at the end that read as nothing.
    pub fn end(&mut self) -> Vec<u8> {
        self.flush();
        std::mem::take(&mut self.skipped)
    }

    /// Whether more in a row read as nothing than any text has.
    pub const fn is_flooded(&self) -> bool {
        self.flooded
    }

    /// Appends another stretch, which has ended.
    pub fn append(&mut self, more: &Self) {
        self.flush();
        if more.spans.is_empty() {
            return self.same(&more.text);
        }
        if self.spans.is_empty() {
            self.raw.clone_from(&self.text);
            self.spans.push(Span { text: 0, raw: 0, plain: true });
        }
        let (text, raw) = (self.text.len(), self.raw.len());
        self.spans.extend(more.spans.iter().map(|s| Span { text: s.text + text, raw: s.raw + raw, ..*s }));
        self.text.extend(&more.text);
        self.raw.extend(&more.raw);
    }

    /// Length of the text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether it has no text.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The raw form of a stretch of the text.
    pub fn raw(&self, start: usize, end: usize) -> &[u8] {
        if self.spans.is_empty() { &self.text[start..end] } else { &self.raw[self.raw_at(start)..self.raw_at(end)] }
    }

    fn raw_at(&self, at: usize) -> usize {
        if at >= self.text.len() {
            return self.raw.len();
        }
        // Of spans without text the last counts: the others' raw bytes lie before it.
        let next = self.spans.partition_point(|s| s.text <= at);
        match next.checked_sub(1).and_then(|n| self.spans.get(n)) {
            Some(span) if span.plain => span.raw + at - span.text,
            Some(span) => span.raw,
            None => 0,
        }
    }

    /// The text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Forgets the first bytes of the text.
    pub fn forget(&mut self, n: usize) {
        if self.spans.is_empty() {
            self.text.drain(..n);
            return;
        }
        if n == 0 {
            return;
        }
        let raw = self.raw_at(n);
        if n >= self.text.len() {
            self.text.clear();
            self.raw.clear();
            self.spans.clear();
            return;
        }
        self.raw.drain(..raw);
        self.text.drain(..n);
        let before = self.spans.partition_point(|s| s.text <= n).saturating_sub(1);
        self.spans.drain(..before);
        for span in &mut self.spans {
            // The first span may have begun before; only a plain one can be cut within.
            let cut = n.saturating_sub(span.text);
            span.raw = if span.plain { span.raw + cut } else { span.raw.max(raw) };
            span.text = span.text.max(n) - n;
            span.raw -= raw;
        }
    }
}

/// A logical string that is masked as it comes in.
#[derive(Default)]
pub struct StringScan {
    /// What has come in and is not decided.
    pub written: Written,
    scanner: Scanner,
    inner: Inner,
}

impl StringScan {
    /// A string inside JSON: text that is JSON itself stays so.
    pub fn in_json() -> Self {
        Self { inner: Inner::in_json(), ..Self::default() }
    }

    /// Writes what is decided; replacements are ASCII without quotes or backslashes, so they need no escape.
    pub fn drain(
        &mut self,
        rules: &MaskRules,
        whole: bool,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<(), Blocked> {
        if self.written.is_flooded() {
            return Err(Blocked::TooLong);
        }
        let unseen = if whole { self.written.end() } else { Vec::new() };
        let (written, inner) = (&self.written, &mut self.inner);
        let decided = self.scanner.scan(rules, written.text(), whole, counts, &mut |piece| match piece {
            Piece::Keep(start, end) => {
                inner.pass(&written.text()[start..end]);
                out.extend(written.raw(start, end));
            }
            Piece::Drop(..) => {}
            Piece::Insert(_, replacement) => inner.write(&replacement, out),
        })?;
        self.written.forget(decided);
        out.extend(unseen);
        Ok(())
    }

    /// Like [`Self::drain`], but tells the pieces instead of writing them, and forgets nothing: the caller does.
    pub fn scan_pieces(
        &mut self,
        rules: &MaskRules,
        whole: bool,
        counts: &mut Counts,
        pieces: &mut Vec<Piece>,
    ) -> Result<usize, Blocked> {
        let (written, inner) = (&self.written, &mut self.inner);
        self.scanner.scan(rules, written.text(), whole, counts, &mut |piece| {
            pieces.push(match piece {
                Piece::Keep(start, end) => {
                    inner.pass(&written.text()[start..end]);
                    Piece::Keep(start, end)
                }
                Piece::Insert(at, replacement) => {
                    let mut quoted = Vec::new();
                    inner.write(&replacement, &mut quoted);
                    Piece::Insert(at, quoted)
                }
                dropped @ Piece::Drop(..) => dropped,
            });
        })
    }
}
