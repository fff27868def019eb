//! Strings that are there at once and stand for themselves: most of them, and nothing of them need be kept.

use crate::protocol::masking::Blocked;
use crate::protocol::masking::detect::{Piece, Scanner};
use crate::protocol::masking::json::{JsonMasker, Lexing};

impl JsonMasker {
    /// A string's content that is there at once and stands for itself, so that nothing of it need be kept.
    pub(super) fn simple_front<'r>(&self, rest: &'r [u8]) -> Option<&'r [u8]> {
        if self.begun_string
            || self.muted_at.is_some()
            || !matches!(&self.lexing, Lexing::Text(e) if e.pending.is_empty())
        {
            return None;
        }
        let content = &rest[..memchr::memchr2(b'"', b'\\', rest)?];
        let document = content.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'{' | b'['));
        (rest[content.len()] == b'"' && !document && content.is_ascii()).then_some(content)
    }

    pub(super) fn simple(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let emit = &mut |piece| match piece {
            Piece::Keep(start, end) => out.extend(&content[start..end]),
            Piece::Drop(..) => {}
            Piece::Insert(_, replacement) => out.extend(replacement),
        };
        Scanner::default().scan(&self.rules, content, true, &mut self.counts, emit).map(drop)
    }
}
