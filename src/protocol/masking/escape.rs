//! JSON string escapes (RFC 8259 section 7), read byte by byte.

/// What an escape so far stands for.
pub(super) enum Unescaped {
    /// It goes on.
    More,
    /// This character.
    Is(char),
    /// The escape ended before the last byte given.
    EndedBefore(char),
}

/// Reads `\n`, `\u0041`, `\ud83d\ude00`; a lone surrogate reads as U+FFFD.
pub(super) fn unescape(raw: &[u8]) -> Unescaped {
    let simple = |c| Unescaped::Is(c);
    match raw.get(1) {
        None => Unescaped::More,
        Some(b'u') => unicode_escape(raw),
        Some(b'n') => simple('\n'),
        Some(b't') => simple('\t'),
        Some(b'r') => simple('\r'),
        Some(b'b') => simple('\u{8}'),
        Some(b'f') => simple('\u{c}'),
        Some(other) => simple(char::from(*other)),
    }
}

fn unicode_escape(raw: &[u8]) -> Unescaped {
    let digits = &raw[2..raw.len().min(6)];
    if digits.iter().any(|b| !b.is_ascii_hexdigit()) {
        return Unescaped::EndedBefore(char::REPLACEMENT_CHARACTER);
    }
    if digits.len() < 4 {
        return Unescaped::More;
    }
    let high = hex4(digits);
    if !(0xD800..0xDC00).contains(&high) {
        return Unescaped::Is(char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    let second = &raw[6..];
    let expected = second.iter().enumerate().all(|(i, b)| match i {
        0 => *b == b'\\',
        1 => *b == b'u',
        _ => b.is_ascii_hexdigit(),
    });
    match (expected, second.len()) {
        (true, 6) => {
            let low = hex4(&second[2..]);
            let joined = 0x10000 + ((high - 0xD800) << 10) + low.wrapping_sub(0xDC00);
            let legal = (0xDC00..0xE000).contains(&low);
            Unescaped::Is(if legal {
                char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER)
            } else {
                char::REPLACEMENT_CHARACTER
            })
        }
        (true, _) => Unescaped::More,
        (false, _) => Unescaped::EndedBefore(char::REPLACEMENT_CHARACTER),
    }
}

fn hex4(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |a, d| a * 16 + char::from(*d).to_digit(16).unwrap_or(0))
}
