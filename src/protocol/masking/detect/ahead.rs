//! Where in a text an entity may begin at all: clean text is passed over without looking at each of its bytes.

use std::sync::LazyLock;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::protocol::masking::detect::email::EmailFinder;
use crate::protocol::masking::detect::numbers;
use crate::protocol::masking::rules::{EntityKind, MaskRules};
use crate::protocol::masking::secrets;

/// Every way a secret begins.
static SECRETS: LazyLock<AhoCorasick> = LazyLock::new(|| {
    let prefixes = secrets::FAMILIES.iter().map(|f| f.prefix).chain([secrets::PEM_BEGIN]);
    AhoCorasick::builder().match_kind(MatchKind::LeftmostFirst).build(prefixes).expect("a few short literals")
});

/// The first positions of each family, from the last position asked for.
pub struct Ahead<'t> {
    text: &'t [u8],
    whole: bool,
    /// Every position counts: a detector is on that nothing cheap finds.
    each: bool,
    secret: Option<usize>,
    digit: Option<usize>,
    plus: Option<usize>,
    exact: Option<usize>,
    /// Addresses.
    pub email: Option<EmailFinder>,
}

impl<'t> Ahead<'t> {
    /// At the front of `text`; `whole` says that nothing follows it.
    pub fn new(rules: &MaskRules, text: &'t [u8], whole: bool) -> Self {
        let on = |kinds: &[EntityKind]| kinds.iter().any(|k| rules.detects(*k)).then_some(0);
        let each = !rules.custom.is_empty() || rules.detects(EntityKind::Ip) || rules.detects(EntityKind::Base58);
        Self {
            text,
            whole,
            each,
            secret: on(&[EntityKind::Secret]),
            digit: on(&[EntityKind::Card, EntityKind::Ssn, EntityKind::Iban]),
            plus: on(&[EntityKind::Phone]),
            exact: (!rules.exact.is_empty()).then_some(0),
            email: rules.detects(EntityKind::Email).then(|| EmailFinder::new(text, whole)),
        }
    }

    /// Whether a secret may begin at `i`, which [`Self::next`] came to.
    pub fn may_be_secret(&self, i: usize) -> bool {
        let open = !self.whole && i + secrets::PEM_BEGIN.len() > self.text.len();
        self.each || open || self.secret == Some(i)
    }

    /// The first position from `i` on where something may begin, or is not decided; the text's end if there is none.
    pub fn next(&mut self, rules: &MaskRules, i: usize) -> usize {
        if self.each {
            return i;
        }
        let (text, end) = (self.text, self.text.len());
        // What begins in the last few bytes may go on behind them.
        let tail = |longest: usize| if self.whole { end } else { end.saturating_sub(longest) };
        let mut first = end;
        if let Some(known) = &mut self.secret {
            if *known <= i {
                *known = SECRETS.find(&text[i..]).map_or(end, |m| i + m.start()).max(i);
            }
            first = first.min(*known).min(tail(secrets::PEM_BEGIN.len() - 1).max(i));
        }
        if let Some(known) = &mut self.digit {
            if *known < i || *known == 0 {
                *known = next_number(text, i);
            }
            // An account's two letters stand before its digits.
            let account = *known < end && *known >= i + 2 && numbers::is_country(&text[*known - 2..*known]);
            first = first.min(if account { *known - 2 } else { *known }).min(tail(2).max(i));
        }
        if let Some(known) = &mut self.plus {
            if *known < i || *known == 0 {
                *known = memchr::memchr(b'+', &text[i..]).map_or(end, |at| i + at);
            }
            first = first.min(*known);
        }
        if let Some(known) = &mut self.exact {
            if *known < i || *known == 0 {
                let found = rules.exact.iter().filter(|v| !v.is_empty());
                let found = found.filter_map(|v| memchr::memmem::find(&text[i..], v)).min();
                *known = found.map_or(end, |at| i + at);
            }
            let longest = rules.exact.iter().map(Vec::len).max().unwrap_or(1);
            first = first.min(*known).min(tail(longest.saturating_sub(1)).max(i));
        }
        if let Some(finder) = &mut self.email {
            first = first.min(finder.next(text, i));
        }
        first.max(i)
    }
}

/// Shortest secret: its prefix and what must follow.
static SHORTEST_SECRET: LazyLock<usize> =
    LazyLock::new(|| secrets::FAMILIES.iter().map(|f| f.prefix.len() + f.least).min().unwrap_or(0));

/// Whether a whole text, such as a member's name, cannot hold anything: it is shorter than any secret, and has neither digit
/// nor `@` nor `+`.
pub fn is_too_short(rules: &MaskRules, text: &[u8]) -> bool {
    let each = !rules.custom.is_empty() || rules.detects(EntityKind::Ip) || rules.detects(EntityKind::Base58);
    text.len() < *SHORTEST_SECRET
        && !each
        && rules.exact.is_empty()
        && !text.iter().any(|b| b.is_ascii_digit() || matches!(b, b'@' | b'+'))
}

/// The first run of digits at or behind `i` with which a number may begin; the text's end if there is none.
fn next_number(text: &[u8], i: usize) -> usize {
    let digits = |at: usize| text[at..].iter().take_while(|b| b.is_ascii_digit()).count();
    // Within a run nothing begins.
    let inside = i.checked_sub(1).and_then(|n| text.get(n)).is_some_and(u8::is_ascii_digit);
    let mut at = i + if inside { digits(i) } else { 0 };
    loop {
        at += find_digit(&text[at..]);
        let run = digits(at);
        let country = at.checked_sub(2).is_some_and(|n| numbers::is_country(&text[n..at]));
        if at + run == text.len() || country || numbers::may_begin_with(run) {
            return at;
        }
        at += run;
    }
}

/// Offset of the first digit, eight bytes at a time; the length if there is none.
fn find_digit(text: &[u8]) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let (blocks, rest) = text.as_chunks::<8>();
    for (n, block) in blocks.iter().enumerate() {
        // A digit less '0' is below ten: its high bit stays clear when 118 is added, and was clear before.
        let less = u64::from_le_bytes(*block) ^ (EACH * u64::from(b'0'));
        let above = ((less & (EACH * 0x7f)) + EACH * 118) | less;
        let digits = !above & (EACH * 0x80);
        if digits != 0 {
            return n * 8 + digits.trailing_zeros() as usize / 8;
        }
    }
    blocks.len() * 8 + rest.iter().position(u8::is_ascii_digit).unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_digit_is_found_wherever_it_stands() {
        for length in 0..40 {
            for at in 0..length {
                for other in [b'/', b':', b' ', b'~', 0x80, 0xff, 0xb5, b'x'] {
                    let mut text = vec![other; length];
                    text[at] = b'0' + u8::try_from(at % 10).expect("a digit");
                    assert_eq!(super::find_digit(&text), at, "{other} {length}");
                }
            }
            assert_eq!(super::find_digit(&vec![b'a'; length]), length);
        }
    }
}
