//! Finds entities in one logical string that arrives in pieces.
//!
//! At each position the answer is yes, no, or "more bytes would tell". Since an answer never changes when
//! more bytes come, the result does not depend on where the pieces were cut.

use crate::protocol::masking::Blocked;
use crate::protocol::masking::rules::{Counts, EntityKind, MaskRules, Strategy, replacement};
use crate::protocol::masking::secrets::{self, Front};

/// Longest local part of an e-mail address (RFC 5321 §4.5.3.1.1).
const LOCAL: usize = 64;
/// Longest domain (RFC 5321 §4.5.3.1.2).
const DOMAIN: usize = 255;
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
    Match(EntityKind, usize),
    Open(Swallow, usize),
}

/// An entity that goes on for as long as its characters do.
struct Swallow {
    pem: bool,
    tail: Vec<u8>,
}

impl Swallow {
    fn new(pem: bool) -> Self {
        Self { pem, tail: Vec::new() }
    }

    fn add(&mut self, bytes: &[u8]) {
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
    swallow: Option<Swallow>,
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
        let mut email = EmailFinder::new(text, whole);
        let (mut i, mut kept) = (0, 0);
        loop {
            if self.swallow.is_some() {
                let start = i;
                let ended = self.swallow_on(text, &mut i);
                emit_range(Piece::Drop, start, i, emit);
                kept = i;
                if !(ended || whole && i == text.len()) {
                    return Ok(i);
                }
                let tail = self.swallow.take().map(|s| s.tail).unwrap_or_default();
                // Only a replacement that shows the value's end has to wait for it.
                if matches!(rules.strategy, Strategy::KeepLast(_)) {
                    emit(Piece::Insert(i, replacement(rules.strategy, EntityKind::Secret, &tail)));
                }
                continue;
            }
            if i == text.len() {
                break;
            }
            match self.at(rules, text, i, whole, &mut email) {
                At::No => {
                    self.before = text[i];
                    i += 1;
                }
                At::Undecided => break,
                At::Match(kind, length) => {
                    emit_range(Piece::Keep, kept, i, emit);
                    emit_range(Piece::Drop, i, i + length, emit);
                    mask(rules, kind, &text[i..i + length], i + length, counts, emit)?;
                    i += length;
                    kept = i;
                    self.before = text[i - 1];
                }
                At::Open(mut swallow, length) => {
                    emit_range(Piece::Keep, kept, i, emit);
                    emit_range(Piece::Drop, i, i + length, emit);
                    swallow.add(&text[i..i + length]);
                    count(rules, EntityKind::Secret, counts)?;
                    if rules.strategy == Strategy::Redact {
                        emit(Piece::Insert(i + length, replacement(rules.strategy, EntityKind::Secret, &[])));
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

    fn at(&self, rules: &MaskRules, text: &[u8], i: usize, whole: bool, email: &mut EmailFinder) -> At {
        let rest = &text[i..];
        match exact(&rules.exact, rest, whole) {
            At::No => {}
            decided => return decided,
        }
        let in_word = self.before.is_ascii_alphanumeric() || self.before == b'_';
        if rules.detects(EntityKind::Secret) && !in_word {
            match secrets::front(rest, whole) {
                Front::No => {}
                Front::Undecided => return At::Undecided,
                Front::Secret(length) => return At::Open(Swallow::new(false), length),
                Front::Pem(length) => return At::Open(Swallow::new(true), length),
            }
        }
        if rules.detects(EntityKind::Card) && rest[0].is_ascii_digit() && !self.before.is_ascii_digit() {
            match card(rest, whole) {
                At::No => {}
                decided => return decided,
            }
        }
        if rules.detects(EntityKind::Email) { email.at(text, i, whole) } else { At::No }
    }
}

fn emit_range(piece: fn(usize, usize) -> Piece, start: usize, end: usize, emit: &mut impl FnMut(Piece)) {
    if start < end {
        emit(piece(start, end));
    }
}

fn mask(
    rules: &MaskRules,
    kind: EntityKind,
    value: &[u8],
    at: usize,
    counts: &mut Counts,
    emit: &mut impl FnMut(Piece),
) -> Result<(), Blocked> {
    count(rules, kind, counts)?;
    let strategy = if kind == EntityKind::Credential { Strategy::Redact } else { rules.strategy };
    emit(Piece::Insert(at, replacement(strategy, kind, value)));
    Ok(())
}

/// Counts a value that was found, or blocks the body that holds it.
fn count(rules: &MaskRules, kind: EntityKind, counts: &mut Counts) -> Result<(), Blocked> {
    if rules.strategy == Strategy::Block {
        return Err(Blocked::Forbidden);
    }
    *counts.entry(kind.to_string()).or_default() += 1;
    Ok(())
}

fn exact(values: &[Vec<u8>], rest: &[u8], whole: bool) -> At {
    for value in values.iter().filter(|v| !v.is_empty()) {
        if rest.starts_with(value) {
            return At::Match(EntityKind::Credential, value.len());
        }
        if !whole && rest.len() < value.len() && value.starts_with(rest) {
            return At::Undecided;
        }
    }
    At::No
}

/// Digit groups that cards are written in; the longest first.
const GROUPINGS: &[&[usize]] = &[&[4, 4, 4, 4, 3], &[4, 4, 4, 4], &[4, 6, 5], &[4, 6, 4]];

fn card(rest: &[u8], whole: bool) -> At {
    let run = rest.iter().take(20).take_while(|b| b.is_ascii_digit()).count();
    if run == rest.len() && !whole && run < 20 {
        return At::Undecided;
    }
    if (13..=19).contains(&run) {
        return if is_card(&rest[..run]) { At::Match(EntityKind::Card, run) } else { At::No };
    }
    if run != 4 {
        return At::No;
    }
    for groups in GROUPINGS {
        match grouped(rest, groups, whole) {
            At::No => {}
            decided => return decided,
        }
    }
    At::No
}

/// Whether the text begins with digits in exactly these groups, one separator between them.
fn grouped(rest: &[u8], groups: &[usize], whole: bool) -> At {
    let mut digits = Vec::with_capacity(19);
    let mut at = 0;
    for (n, group) in groups.iter().enumerate() {
        if n > 0 {
            match rest.get(at) {
                Some(b' ' | b'-' | b'\n') => at += 1,
                None if !whole => return At::Undecided,
                _ => return At::No,
            }
        }
        for _ in 0..*group {
            match rest.get(at) {
                Some(b) if b.is_ascii_digit() => digits.push(*b),
                None if !whole => return At::Undecided,
                _ => return At::No,
            }
            at += 1;
        }
    }
    match rest.get(at) {
        Some(b) if b.is_ascii_digit() => At::No,
        None if !whole => At::Undecided,
        _ if is_card(&digits) => At::Match(EntityKind::Card, at),
        _ => At::No,
    }
}

/// Issuer prefix and length (ISO/IEC 7812), then Luhn.
fn is_card(digits: &[u8]) -> bool {
    let prefix = |n: usize| digits.iter().take(n).fold(0_u32, |a, d| a * 10 + u32::from(d - b'0'));
    let (two, three, four) = (prefix(2), prefix(3), prefix(4));
    let issued = match digits.len() {
        13 => two / 10 == 4,
        14 => (300..=305).contains(&three) || matches!(two, 36 | 38 | 39),
        15 => matches!(two, 34 | 37),
        16 => {
            two / 10 == 4
                || (51..=55).contains(&two)
                || (2221..=2720).contains(&four)
                || matches!(two, 35 | 62 | 65)
                || four == 6011
                || (644..=649).contains(&three)
        }
        17..=19 => matches!(two, 62 | 65) || four == 6011 || (digits.len() == 19 && two / 10 == 4),
        _ => false,
    };
    issued && luhn(digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let d = u32::from(d - b'0');
            if i % 2 == 0 { d } else { d * 2 - if d > 4 { 9 } else { 0 } }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Finds addresses from their `@`, so that clean text costs one search.
struct EmailFinder {
    next_at: Option<usize>,
    start: usize,
    open_tail: usize,
}

impl EmailFinder {
    fn new(text: &[u8], whole: bool) -> Self {
        let open = if whole { 0 } else { text.iter().rev().take(LOCAL).take_while(|b| is_local(**b)).count() };
        let mut finder = Self { next_at: None, start: 0, open_tail: text.len() - open };
        finder.seek(text, 0);
        finder
    }

    /// Finds the first `@` at or behind `from` and the local part before it.
    fn seek(&mut self, text: &[u8], from: usize) {
        self.next_at = memchr::memchr(b'@', &text[from..]).map(|at| from + at);
        if let Some(at) = self.next_at {
            let local = text[..at].iter().rev().take(LOCAL).take_while(|b| is_local(**b)).count();
            self.start = at - local;
        }
    }

    fn at(&mut self, text: &[u8], i: usize, whole: bool) -> At {
        while let Some(at) = self.next_at.filter(|at| *at <= i) {
            self.seek(text, at + 1);
        }
        if let Some(at) = self.next_at.filter(|_| i >= self.start) {
            return match domain(&text[at + 1..], whole) {
                Domain::Undecided => At::Undecided,
                Domain::Of(length) => At::Match(EntityKind::Email, at + 1 + length - i),
                Domain::No => At::No,
            };
        }
        if i >= self.open_tail { At::Undecided } else { At::No }
    }
}

enum Domain {
    No,
    Undecided,
    Of(usize),
}

/// The domain at the front of `rest`: labels with dots between, the last one of letters.
fn domain(rest: &[u8], whole: bool) -> Domain {
    let run = rest.iter().take(DOMAIN).take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')).count();
    if run == rest.len() && run < DOMAIN && !whole {
        return Domain::Undecided;
    }
    let mut name = &rest[..run];
    // The longest front whose last label is one of a top-level domain: what follows may be the next sentence.
    loop {
        while let Some((b'.' | b'-', front)) = name.split_last() {
            name = front;
        }
        let Some(dot) = memchr::memrchr(b'.', name).filter(|dot| *dot > 0) else { return Domain::No };
        let last = &name[dot + 1..];
        if last.len() >= 2 && last.iter().any(u8::is_ascii_alphabetic) {
            return Domain::Of(name.len());
        }
        name = &name[..dot];
    }
}

const fn is_local(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(b, b'.' | b'_' | b'%' | b'+' | b'-' | b'\'' | b'!' | b'#' | b'$' | b'&' | b'*' | b'=' | b'?' | b'~')
}
