//! Finds entities in one logical string that arrives in pieces.
//!
//! At each position the answer is yes, no, or "more bytes would tell". Since an answer never changes when
//! more bytes come, the result does not depend on where the pieces were cut.

mod ahead;
mod email;
mod numbers;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::custom::Found;
use crate::protocol::masking::detect::ahead::Ahead;
use crate::protocol::masking::detect::email::Address;
use crate::protocol::masking::rules::{Counts, EntityKind, Label, MaskRules, Strategy};
use crate::protocol::masking::secrets::{self, Front};
use crate::protocol::masking::token::{self, Keyed};

/// How much of a value's end is kept for [`Strategy::KeepLast`] and to find a PEM block's last line.
const TAIL: usize = 128;

/// What becomes of a stretch of the text, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Goes on as it is.
    Keep(usize, usize),
    /// Goes.
    Drop(usize, usize),
    /// Comes in behind the byte before this offset.
    Insert(usize, Vec<u8>),
}

enum At {
    No,
    Undecided,
    Match(Label, usize),
    Open(Box<Swallow>, usize),
}

impl At {
    const fn found(kind: EntityKind, length: usize) -> Self {
        Self::Match(Label::Kind(kind), length)
    }
}

/// An entity that goes on for as long as its characters do.
struct Swallow {
    pem: bool,
    tail: Vec<u8>,
    /// The whole value goes through it, where its replacement depends on that.
    keyed: Option<Keyed>,
}

impl Swallow {
    fn new(pem: bool, rules: &MaskRules) -> Box<Self> {
        let keyed = matches!(rules.strategy, Strategy::Token | Strategy::Format);
        let keyed = keyed.then(|| Keyed::begin(&rules.key, Label::Kind(EntityKind::Secret).name(rules)));
        Box::new(Self { pem, tail: Vec::new(), keyed })
    }

    fn add(&mut self, bytes: &[u8]) {
        if let Some(keyed) = &mut self.keyed {
            keyed.add(bytes);
        }
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..excess);
    }

    /// Whether the last byte added ended a PEM block.
    fn pem_ended(&self) -> bool {
        let end = memchr::memmem::rfind(&self.tail, secrets::PEM_END);
        self.tail.ends_with(b"-----") && end.is_some_and(|at| self.tail.len() >= at + secrets::PEM_END.len() + 5)
    }
}

/// The state of one logical string between its pieces.
pub struct Scanner {
    before: u8,
    swallow: Option<Box<Swallow>>,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { before: b' ', swallow: None }
    }
}

impl Scanner {
    /// Scans `text`, whose front is the first byte not yet decided, and returns how many bytes are decided now.
    /// `whole` says that nothing follows. What was masked is counted.
    pub fn scan(
        &mut self,
        rules: &MaskRules,
        text: &[u8],
        whole: bool,
        counts: &mut Counts,
        emit: &mut impl FnMut(Piece),
    ) -> Result<usize, Blocked> {
        if whole && self.swallow.is_none() && ahead::is_too_short(rules, text) {
            emit_range(Piece::Keep, 0, text.len(), emit);
            return Ok(text.len());
        }
        let mut ahead = Ahead::new(rules, text, whole);
        // A replacement that waits for a value's end needs a byte of it to stand at.
        let kept_back = usize::from(!whole && rules.strategy != Strategy::Redact);
        let (mut i, mut kept) = (0, 0);
        loop {
            if self.swallow.is_some() {
                let readable = &text[..text.len() - kept_back.min(text.len() - i)];
                if !self.swallow_to_its_end(rules, readable, whole, &mut i, emit) {
                    return Ok(i);
                }
                kept = i;
                continue;
            }
            let next = ahead.next(rules, i);
            if next > i {
                self.before = text[next - 1];
                i = next;
            }
            if i == text.len() {
                break;
            }
            match self.at(rules, text, i, whole, &mut ahead) {
                At::No => {
                    self.before = text[i];
                    i += 1;
                }
                At::Undecided => break,
                At::Match(label, length) => {
                    emit_range(Piece::Keep, kept, i, emit);
                    emit_range(Piece::Drop, i, i + length, emit);
                    mask(rules, label, &text[i..i + length], i + length, counts, emit)?;
                    i += length;
                    kept = i;
                    self.before = text[i - 1];
                }
                At::Open(mut swallow, length) => {
                    let length = length.min(text.len() - i - kept_back);
                    emit_range(Piece::Keep, kept, i, emit);
                    emit_range(Piece::Drop, i, i + length, emit);
                    swallow.add(&text[i..i + length]);
                    count(rules, Label::Kind(EntityKind::Secret), counts)?;
                    if rules.strategy == Strategy::Redact {
                        let label = Label::Kind(EntityKind::Secret);
                        emit(Piece::Insert(i + length, token::replacement(rules, rules.strategy, label, &[])));
                    }
                    self.swallow = Some(swallow);
                    i += length;
                    kept = i;
                    self.before = text[i - 1];
                }
            }
        }
        emit_range(Piece::Keep, kept, i, emit);
        Ok(i)
    }

    /// Whether nothing is found in a text that nothing follows.
    pub fn is_clean(rules: &MaskRules, text: &[u8]) -> bool {
        if ahead::is_too_short(rules, text) {
            return true;
        }
        let mut scanner = Self::default();
        let mut ahead = Ahead::new(rules, text, true);
        let mut i = 0;
        loop {
            let next = ahead.next(rules, i);
            if next > i {
                scanner.before = text[next - 1];
                i = next;
            }
            match text.get(i) {
                None => return true,
                Some(b) if matches!(scanner.at(rules, text, i, true, &mut ahead), At::No) => scanner.before = *b,
                Some(_) => return false,
            }
            i += 1;
        }
    }

    /// Drops an open entity's bytes; true once it has ended, with what takes its place.
    fn swallow_to_its_end(
        &mut self,
        rules: &MaskRules,
        text: &[u8],
        whole: bool,
        i: &mut usize,
        emit: &mut impl FnMut(Piece),
    ) -> bool {
        let start = *i;
        let ended = self.swallow_on(text, i);
        emit_range(Piece::Drop, start, *i, emit);
        if !(ended || whole && *i == text.len()) {
            return false;
        }
        // Only a replacement that depends on the value's end has to wait for it.
        if let Some(swallow) = self.swallow.take()
            && rules.strategy != Strategy::Redact
        {
            emit(Piece::Insert(*i, swallow.replacement(rules)));
        }
        true
    }

    /// Moves over the bytes of an open entity; true once it has ended within the text.
    fn swallow_on(&mut self, text: &[u8], i: &mut usize) -> bool {
        let Some(swallow) = &mut self.swallow else { return true };
        while let Some(b) = text.get(*i) {
            if !swallow.pem && !secrets::is_body(*b) {
                return true;
            }
            swallow.add(&[*b]);
            self.before = *b;
            *i += 1;
            if swallow.pem && swallow.pem_ended() {
                return true;
            }
        }
        false
    }

    fn at(&self, rules: &MaskRules, text: &[u8], i: usize, whole: bool, ahead: &mut Ahead<'_>) -> At {
        let rest = &text[i..];
        let first = |at: At| match at {
            At::No => None,
            decided => Some(decided),
        };
        if let Some(found) = first(exact(&rules.exact, rest, whole)) {
            return found;
        }
        let in_word = self.before.is_ascii_alphanumeric() || self.before == b'_';
        if !in_word {
            for (n, custom) in rules.custom.iter().enumerate() {
                match custom.at(text, i, whole) {
                    Found::Value(length) => return At::Match(Label::Custom(n), length),
                    Found::Nothing => {}
                    Found::Undecided => return At::Undecided,
                }
            }
        }
        if rules.detects(EntityKind::Secret) && !in_word && ahead.may_be_secret(i) {
            match secrets::front(rest, whole) {
                Front::No => {}
                Front::Undecided => return At::Undecided,
                Front::Secret(length) => return At::Open(Swallow::new(false, rules), length),
                Front::Pem(length) => return At::Open(Swallow::new(true, rules), length),
            }
        }
        for (kind, begins, look) in NUMBERS {
            if begins(rest[0], self.before)
                && rules.detects(*kind)
                && let Some(found) = first(look(rest, whole))
            {
                return found;
            }
        }
        if let Some(finder) = &mut ahead.email {
            match finder.at(text, i, whole) {
                Address::Of(length) => return At::found(EntityKind::Email, length),
                Address::Undecided => return At::Undecided,
                Address::No => {}
            }
        }
        At::No
    }
}

impl Swallow {
    fn replacement(mut self: Box<Self>, rules: &MaskRules) -> Vec<u8> {
        let label = Label::Kind(EntityKind::Secret);
        match self.keyed.take() {
            Some(keyed) => keyed.token(label.name(rules)),
            None => token::replacement(rules, rules.strategy, label, &self.tail),
        }
    }
}

/// A detector of numbers: whether it may begin with a byte behind another, and what it makes of a text.
type Numbers = (EntityKind, fn(u8, u8) -> bool, fn(&[u8], bool) -> At);

const NUMBERS: &[Numbers] = &[
    (EntityKind::Iban, |b, before| b.is_ascii_uppercase() && !before.is_ascii_alphanumeric(), numbers::iban),
    (EntityKind::Card, |b, before| b.is_ascii_digit() && !before.is_ascii_digit(), numbers::card),
    (
        EntityKind::Ssn,
        |b, before| b.is_ascii_digit() && !before.is_ascii_alphanumeric() && before != b'-',
        numbers::ssn,
    ),
    (EntityKind::Phone, |b, before| b == b'+' && !before.is_ascii_alphanumeric(), numbers::phone),
    (
        EntityKind::Ip,
        |b, before| {
            (b.is_ascii_hexdigit() || b == b':') && !(before.is_ascii_alphanumeric() || b"_.:".contains(&before))
        },
        numbers::ip,
    ),
    (
        EntityKind::Base58,
        |b, before| b.is_ascii_alphanumeric() && !(before.is_ascii_alphanumeric() || before == b'_'),
        numbers::base58,
    ),
];

fn emit_range(piece: fn(usize, usize) -> Piece, start: usize, end: usize, emit: &mut impl FnMut(Piece)) {
    if start < end {
        emit(piece(start, end));
    }
}

fn mask(
    rules: &MaskRules,
    label: Label,
    value: &[u8],
    at: usize,
    counts: &mut Counts,
    emit: &mut impl FnMut(Piece),
) -> Result<(), Blocked> {
    count(rules, label, counts)?;
    let strategy = if label == Label::Kind(EntityKind::Credential) { Strategy::Redact } else { rules.strategy };
    emit(Piece::Insert(at, token::replacement(rules, strategy, label, value)));
    Ok(())
}

/// Counts a value that was found, or blocks the body that holds it.
fn count(rules: &MaskRules, label: Label, counts: &mut Counts) -> Result<(), Blocked> {
    if rules.strategy == Strategy::Block {
        return Err(Blocked::Forbidden);
    }
    *counts.entry(label.name(rules).to_owned()).or_default() += 1;
    Ok(())
}

fn exact(values: &[Vec<u8>], rest: &[u8], whole: bool) -> At {
    for value in values.iter().filter(|v| !v.is_empty()) {
        if rest.starts_with(value) {
            return At::found(EntityKind::Credential, value.len());
        }
        if !whole && rest.len() < value.len() && value.starts_with(rest) {
            return At::Undecided;
        }
    }
    At::No
}
