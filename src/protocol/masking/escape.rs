//! JSON string escapes (RFC 8259 section 7), read byte by byte.

/// What an escape so far stands for.
pub(super) enum Unescaped {
    /// It goes on.
    More,
    /// This character.
    Is(char),
    /// The first so many bytes stand for nothing legal; the others are to be read again on their own.
    Broken(usize),
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
        return Unescaped::Broken(raw.len() - 1);
    }
    if digits.len() < 4 {
        return Unescaped::More;
    }
    let high = hex4(digits);
    if !(0xD800..0xDC00).contains(&high) {
        return char::from_u32(high).map_or(Unescaped::Broken(6), Unescaped::Is);
    }
    low_surrogate(high, &raw[6..])
}

/// A high surrogate needs a low one behind it, `\udc00` to `\udfff`; anything else is read again on its own.
fn low_surrogate(high: u32, second: &[u8]) -> Unescaped {
    let expected = second.iter().enumerate().all(|(i, b)| match i {
        0 => *b == b'\\',
        1 => *b == b'u',
        _ => b.is_ascii_hexdigit(),
    });
    if !expected {
        return Unescaped::Broken(6);
    }
    if second.len() < 6 {
        return Unescaped::More;
    }
    let low = hex4(&second[2..]);
    if !(0xDC00..0xE000).contains(&low) {
        return Unescaped::Broken(6);
    }
    char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)).map_or(Unescaped::Broken(6), Unescaped::Is)
}

fn hex4(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |a, d| a * 16 + char::from(*d).to_digit(16).unwrap_or(0))
}
