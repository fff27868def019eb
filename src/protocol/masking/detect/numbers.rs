//! Entities of digits: cards, social security numbers, bank accounts, telephone numbers, addresses of machines.
//!
//! Each function looks at the front of a text; `whole` says that nothing follows it.

use crate::protocol::masking::detect::At;
use crate::protocol::masking::rules::EntityKind;

/// Digit groups that cards are written in; the longest first.
const GROUPINGS: &[&[usize]] = &[&[4, 4, 4, 4, 3], &[4, 4, 4, 4], &[4, 6, 5], &[4, 6, 4]];

/// Whether a card or a social security number may begin with a run of so many digits. A run at a text's end may go on.
pub const fn may_begin_with(run: usize) -> bool {
    matches!(run, 3 | 4 | 13..=19)
}

/// Whether these two letters may begin a bank account's number.
pub fn is_country(letters: &[u8]) -> bool {
    letters.iter().all(u8::is_ascii_uppercase)
}

/// A payment card.
pub fn card(rest: &[u8], whole: bool) -> At {
    let run = rest.iter().take(20).take_while(|b| b.is_ascii_digit()).count();
    if run == rest.len() && !whole && run < 20 {
        return At::Undecided;
    }
    if (13..=19).contains(&run) {
        return if is_card(&rest[..run]) { At::found(EntityKind::Card, run) } else { At::No };
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
        _ if is_card(&digits) => At::found(EntityKind::Card, at),
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

/// What a character of a fixed form may be.
fn formed(rest: &[u8], form: &[u8], whole: bool) -> At {
    for (i, want) in form.iter().enumerate() {
        let fits = match (want, rest.get(i)) {
            (_, None) => return if whole { At::No } else { At::Undecided },
            (b'9', Some(b)) => b.is_ascii_digit(),
            (_, Some(b)) => matches!(b, b'-' | b' '),
        };
        if !fits {
            return At::No;
        }
    }
    match rest.get(form.len()) {
        None if !whole => At::Undecided,
        Some(b) if b.is_ascii_alphanumeric() || *b == b'-' => At::No,
        _ => At::found(EntityKind::Ssn, form.len()),
    }
}

/// A social security number of the United States, as `ddd-dd-dddd`, in the numbers that may be issued.
pub fn ssn(rest: &[u8], whole: bool) -> At {
    let found = formed(rest, b"999-99-9999", whole);
    if matches!(found, At::Match(..)) {
        let (area, group, serial) = (&rest[..3], &rest[4..6], &rest[7..11]);
        let separated = rest[3] == rest[6];
        if !separated || area == b"000" || area == b"666" || area[0] == b'9' || group == b"00" || serial == b"0000" {
            return At::No;
        }
    }
    found
}

/// Longest bank account (ISO 13616).
const MAX_IBAN: usize = 34;

/// Lengths by country (ISO 13616, registry of August 2023).
const IBAN_LENGTHS: &[(&[u8; 2], usize)] = &[
    (b"AD", 24),
    (b"AE", 23),
    (b"AL", 28),
    (b"AT", 20),
    (b"AZ", 28),
    (b"BA", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BH", 22),
    (b"BI", 27),
    (b"BR", 29),
    (b"BY", 28),
    (b"CH", 21),
    (b"CR", 22),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DJ", 27),
    (b"DK", 18),
    (b"DO", 28),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FK", 18),
    (b"FO", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GL", 18),
    (b"GR", 27),
    (b"GT", 28),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IQ", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"JO", 30),
    (b"KW", 30),
    (b"KZ", 20),
    (b"LB", 28),
    (b"LC", 32),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"LY", 25),
    (b"MC", 27),
    (b"MD", 24),
    (b"ME", 22),
    (b"MK", 19),
    (b"MN", 20),
    (b"MR", 27),
    (b"MT", 31),
    (b"MU", 30),
    (b"NI", 28),
    (b"NL", 18),
    (b"NO", 15),
    (b"OM", 23),
    (b"PK", 24),
    (b"PL", 28),
    (b"PS", 29),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"RS", 22),
    (b"RU", 33),
    (b"SA", 24),
    (b"SC", 31),
    (b"SD", 18),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"SO", 23),
    (b"ST", 25),
    (b"SV", 28),
    (b"TL", 23),
    (b"TN", 24),
    (b"TR", 26),
    (b"UA", 29),
    (b"VA", 22),
    (b"VG", 24),
    (b"XK", 20),
    (b"YE", 30),
];

/// An international bank account number: country, its length, mod 97; single spaces between groups are left out.
pub fn iban(rest: &[u8], whole: bool) -> At {
    let undecided = || if whole { At::No } else { At::Undecided };
    let mut compact: Vec<u8> = Vec::with_capacity(MAX_IBAN);
    let (mut at, mut wanted) = (0, MAX_IBAN);
    while compact.len() < wanted {
        match rest.get(at) {
            None => return undecided(),
            Some(b' ') if compact.len() >= 4 && rest[at - 1] != b' ' => {}
            Some(b) => {
                let fits = match compact.len() {
                    0 | 1 => b.is_ascii_uppercase(),
                    2 | 3 => b.is_ascii_digit(),
                    _ => b.is_ascii_uppercase() || b.is_ascii_digit(),
                };
                if !fits {
                    return At::No;
                }
                compact.push(*b);
                if let [first, second] = compact[..] {
                    match IBAN_LENGTHS.iter().find(|(country, _)| **country == [first, second]) {
                        Some((_, length)) => wanted = *length,
                        None => return At::No,
                    }
                }
            }
        }
        at += 1;
    }
    match rest.get(at) {
        None if !whole => At::Undecided,
        Some(b) if b.is_ascii_alphanumeric() => At::No,
        _ if mod_97(&compact) == 1 => At::found(EntityKind::Iban, at),
        _ => At::No,
    }
}

fn mod_97(compact: &[u8]) -> u32 {
    compact[4..].iter().chain(&compact[..4]).fold(0, |rest, b| {
        if b.is_ascii_digit() {
            (rest * 10 + u32::from(b - b'0')) % 97
        } else {
            (rest * 100 + u32::from(b - b'A') + 10) % 97
        }
    })
}

/// A telephone number in its international form (E.164): `+`, then 8 to 15 digits, single separators between them.
pub fn phone(rest: &[u8], whole: bool) -> At {
    if rest[0] != b'+' {
        return At::No;
    }
    let (mut digits, mut end, mut at) = (0, 0, 1);
    loop {
        match rest.get(at) {
            None if !whole => return At::Undecided,
            Some(b) if b.is_ascii_digit() => {
                digits += 1;
                end = at + 1;
                if digits > 15 {
                    return At::No;
                }
            }
            Some(b' ' | b'-' | b'.' | b'(' | b')' | b'/') if at - end < 2 && digits > 0 => {}
            _ => break,
        }
        at += 1;
    }
    if digits >= 8 { At::found(EntityKind::Phone, end) } else { At::No }
}

/// Longest address of a machine: IPv6 with an IPv4 tail.
const MAX_IP: usize = 46;

/// An IPv4 or IPv6 address.
pub fn ip(rest: &[u8], whole: bool) -> At {
    let legal = |b: &&u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':');
    let run = rest.iter().take(MAX_IP).take_while(legal).count();
    if run == rest.len() && !whole {
        return At::Undecided;
    }
    if rest.get(run).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
        return At::No;
    }
    let mut text = &rest[..run];
    while let Some((b'.' | b':', front)) = text.split_last()
        && !text.ends_with(b"::")
    {
        text = front;
    }
    let is_address = |t: &[u8]| std::str::from_utf8(t).is_ok_and(|t| t.parse::<core::net::IpAddr>().is_ok());
    // `::` alone, and a time of day, are none.
    let plausible = text.len() >= 7 && (text.contains(&b'.') || memchr::memchr_iter(b':', text).count() >= 3);
    if plausible && is_address(text) { At::found(EntityKind::Ip, text.len()) } else { At::No }
}

/// Fewest and most characters of a key or address in base58.
const BASE58: (usize, usize) = (26, 90);

/// A run of base58 with digits, capitals and small letters: keys and addresses of ledgers.
pub fn base58(rest: &[u8], whole: bool) -> At {
    let legal = |b: &&u8| b.is_ascii_alphanumeric() && !matches!(b, b'0' | b'O' | b'I' | b'l');
    let run = rest.iter().take(BASE58.1 + 1).take_while(legal).count();
    if run == rest.len() && run <= BASE58.1 && !whole {
        return At::Undecided;
    }
    if run < BASE58.0 || run > BASE58.1 || rest.get(run).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_') {
        return At::No;
    }
    let has = |class: fn(&u8) -> bool| rest[..run].iter().any(class);
    let mixed = has(u8::is_ascii_digit) && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    if mixed { At::found(EntityKind::Base58, run) } else { At::No }
}
