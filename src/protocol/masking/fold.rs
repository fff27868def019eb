//! Characters as detectors read them: other scripts' digits are digits, wide letters are letters, what is not seen is not
//! there, and a dash is a dash.

use unicode_normalization::char::decompose_compatible;

/// What a character reads as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fold {
    /// Itself.
    Same,
    /// Nothing: it has no width.
    Nothing,
    /// One ASCII character.
    Ascii(u8),
    /// A few of them, such as `fi` for its ligature.
    Several([u8; 4], usize),
}

/// Zeros of the scripts with decimal digits (Unicode category Nd) that compatibility decomposition leaves alone.
const ZEROS: [u32; 46] = [
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6, 0x0E50,
    0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50,
    0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0x104A0, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0,
    0x11450, 0x114D0, 0x11650, 0x116C0, 0x1E950,
];

/// Reads one character.
pub fn fold(c: char) -> Fold {
    let code = u32::from(c);
    match code {
        0..=0x7F => return Fold::Same,
        0x00AD
        | 0x034F
        | 0x061C
        | 0x115F..=0x1160
        | 0x17B4..=0x17B5
        | 0x180B..=0x180F
        | 0x200B..=0x200F
        | 0x202A..=0x202E
        | 0x2060..=0x206F
        | 0x3164
        | 0xFE00..=0xFE0F
        | 0xFEFF
        | 0xFFA0
        | 0xE0000..=0xE0FFF => {
            return Fold::Nothing;
        }
        0x2010..=0x2015 | 0x2043 | 0x2212 | 0xFE58 | 0xFE63 | 0xFF0D => return Fold::Ascii(b'-'),
        0x00A0 | 0x1680 | 0x2000..=0x200A | 0x2028..=0x2029 | 0x202F | 0x205F | 0x3000 => return Fold::Ascii(b' '),
        _ => {}
    }
    if let Some(zero) = ZEROS.iter().find(|z| (**z..**z + 10).contains(&code)) {
        return u8::try_from(code - zero).map_or(Fold::Same, |digit| Fold::Ascii(b'0' + digit));
    }
    let (mut plain, mut length, mut fits) = ([0; 4], 0, true);
    decompose_compatible(c, |part| match u8::try_from(part) {
        // A wide quote or backslash means nothing to JSON.
        Ok(byte) if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\') && length < plain.len() => {
            plain[length] = byte;
            length += 1;
        }
        _ => fits = false,
    });
    match (fits, length) {
        (true, 1) => Fold::Ascii(plain[0]),
        (true, 2..) => Fold::Several(plain, length),
        _ => Fold::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_read_as_people_read_them() {
        for (c, want) in [
            ('a', Fold::Same),
            ('é', Fold::Same),
            ('漢', Fold::Same),
            ('４', Fold::Ascii(b'4')),
            ('٤', Fold::Ascii(b'4')),
            ('४', Fold::Ascii(b'4')),
            ('𝟜', Fold::Ascii(b'4')),
            ('④', Fold::Ascii(b'4')),
            ('⁴', Fold::Ascii(b'4')),
            ('＠', Fold::Ascii(b'@')),
            ('Ａ', Fold::Ascii(b'A')),
            ('\u{a0}', Fold::Ascii(b' ')),
            ('–', Fold::Ascii(b'-')),
            ('\u{200b}', Fold::Nothing),
            ('\u{ad}', Fold::Nothing),
            ('ﬁ', Fold::Several([b'f', b'i', 0, 0], 2)),
        ] {
            assert_eq!(fold(c), want, "{c:?}");
        }
    }
}
