//! A logical string: its decoded text, the raw bytes it was written as, and the way back from one to the other.

use crate::protocol::masking::Blocked;
use crate::protocol::masking::detect::{Piece, Scanner};
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Raw bytes and the text they decode to.
#[derive(Clone, Debug, Default)]
pub struct Written {
    raw: Vec<u8>,
    text: Vec<u8>,
    /// For each byte of `text`, where its raw form begins.
    origin: Vec<usize>,
}

impl Written {
    /// Bytes that stand for themselves.
    pub fn push_plain(&mut self, bytes: &[u8]) {
        let start = self.raw.len();
        self.raw.extend(bytes);
        self.text.extend(bytes);
        self.origin.extend(start..start + bytes.len());
    }

    /// An escape and the character it stands for.
    pub fn push_escape(&mut self, raw: &[u8], character: char) {
        let start = self.raw.len();
        self.raw.extend(raw);
        let mut buffer = [0; 4];
        for b in character.encode_utf8(&mut buffer).bytes() {
            self.text.push(b);
            self.origin.push(start);
        }
    }

    /// Appends another stretch.
    pub fn append(&mut self, more: &Self) {
        let base = self.raw.len();
        self.raw.extend(&more.raw);
        self.text.extend(&more.text);
        self.origin.extend(more.origin.iter().map(|o| o + base));
    }

    /// Length of the decoded text.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether it has no text.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The raw form of a stretch of the text.
    pub fn raw(&self, start: usize, end: usize) -> &[u8] {
        &self.raw[self.raw_at(start)..self.raw_at(end)]
    }

    fn raw_at(&self, at: usize) -> usize {
        self.origin.get(at).copied().unwrap_or(self.raw.len())
    }

    /// The decoded text.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Forgets the first bytes of the text.
    pub fn forget(&mut self, n: usize) {
        let raw = self.raw_at(n);
        self.raw.drain(..raw);
        self.text.drain(..n);
        self.origin.drain(..n);
        self.origin.iter_mut().for_each(|o| *o -= raw);
    }
}

/// A logical string that is masked as it comes in.
#[derive(Default)]
pub struct StringScan {
    /// What has come in and is not decided.
    pub written: Written,
    scanner: Scanner,
}

impl StringScan {
    /// Writes what is decided; replacements are ASCII without quotes or backslashes, so they need no escape.
    pub fn drain(
        &mut self,
        rules: &MaskRules,
        whole: bool,
        counts: &mut Counts,
        out: &mut Vec<u8>,
    ) -> Result<(), Blocked> {
        let written = &self.written;
        let decided = self.scanner.scan(rules, written.text(), whole, counts, &mut |piece| match piece {
            Piece::Keep(start, end) => out.extend(written.raw(start, end)),
            Piece::Drop(..) => {}
            Piece::Insert(_, replacement) => out.extend(replacement),
        })?;
        self.written.forget(decided);
        Ok(())
    }
}

impl StringScan {
    /// Like [`Self::drain`], but tells the pieces instead of writing them, and forgets nothing: the caller does.
    pub fn scan_pieces(
        &mut self,
        rules: &MaskRules,
        whole: bool,
        counts: &mut Counts,
        pieces: &mut Vec<Piece>,
    ) -> Result<usize, Blocked> {
        self.scanner.scan(rules, self.written.text(), whole, counts, &mut |piece| pieces.push(piece))
    }
}
