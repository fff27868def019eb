//! Character sets besides UTF-8: what comes in is read as text, and what goes out is written as it came.

use crate::protocol::masking::Blocked;

/// How text is coded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Charset {
    /// UTF-8, or ASCII.
    Utf8,
    /// One byte a character: ISO 8859-1, and Windows-1252 but for its own signs.
    Latin1,
    /// UTF-16, the high byte first.
    Utf16Be,
    /// UTF-16, the low byte first.
    Utf16Le,
}

impl Charset {
    /// The character set that a content type names; none if it is not read.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "utf-8" | "utf8" | "us-ascii" | "ascii" => Self::Utf8,
            "iso-8859-1" | "latin1" | "windows-1252" => Self::Latin1,
            // Without a mark it is the high byte first (RFC 2781 section 4.3).
            "utf-16" | "utf-16be" => Self::Utf16Be,
            "utf-16le" => Self::Utf16Le,
            _ => return None,
        })
    }

    /// What the first bytes say against what was named: readers believe them more.
    pub const fn seen(self, front: &[u8]) -> Self {
        match front {
            [0xfe, 0xff, ..] => Self::Utf16Be,
            [0xff, 0xfe, ..] => Self::Utf16Le,
            [0, second, ..] if *second != 0 => Self::Utf16Be,
            [first, 0, ..] if *first != 0 => Self::Utf16Le,
            _ => self,
        }
    }
}

/// Reads one character set and writes it again, piece by piece.
#[derive(Debug)]
pub struct Transcoder {
    charset: Charset,
    /// Bytes of a character that has begun, on the way in.
    coming: Vec<u8>,
    /// The same on the way out, in UTF-8.
    going: Vec<u8>,
}

impl Transcoder {
    /// For a character set.
    pub const fn new(charset: Charset) -> Self {
        Self { charset, coming: Vec::new(), going: Vec::new() }
    }

    /// Whether there is nothing to do.
    pub fn is_plain(&self) -> bool {
        self.charset == Charset::Utf8
    }

    /// Appends a chunk's text in UTF-8.
    pub fn read(&mut self, chunk: &[u8], text: &mut Vec<u8>) -> Result<(), Blocked> {
        let mut buffer = [0; 4];
        if self.charset == Charset::Latin1 {
            for b in chunk {
                text.extend(char::from(*b).encode_utf8(&mut buffer).as_bytes());
            }
            return Ok(());
        }
        self.coming.extend(chunk);
        let mut used = 0;
        while let Some(first) = self.unit(used) {
            let (units, length) = match first {
                0xD800..=0xDBFF => match self.unit(used + 2) {
                    None => break,
                    Some(second) => ([first, second], 2),
                },
                _ => ([first, 0], 1),
            };
            let character = char::decode_utf16(units[..length].iter().copied()).next();
            let character = character.and_then(Result::ok).ok_or(Blocked::Charset)?;
            text.extend(character.encode_utf8(&mut buffer).as_bytes());
            used += length * 2;
        }
        self.coming.drain(..used);
        Ok(())
    }

    fn unit(&self, at: usize) -> Option<u16> {
        let pair = [*self.coming.get(at)?, *self.coming.get(at + 1)?];
        Some(if self.charset == Charset::Utf16Be { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) })
    }

    /// Writes UTF-8 in the character set.
    pub fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.going.extend(text);
        let whole = match std::str::from_utf8(&self.going) {
            Ok(text) => text.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(Blocked::Charset),
        };
        let text = std::str::from_utf8(&self.going[..whole]).map_err(|_| Blocked::Charset)?;
        let mut units = [0; 2];
        for character in text.chars() {
            match self.charset {
                Charset::Utf8 => {}
                Charset::Latin1 => out.push(u8::try_from(u32::from(character)).map_err(|_| Blocked::Charset)?),
                Charset::Utf16Be => {
                    character.encode_utf16(&mut units).iter().for_each(|u| out.extend(u.to_be_bytes()));
                }
                Charset::Utf16Le => {
                    character.encode_utf16(&mut units).iter().for_each(|u| out.extend(u.to_le_bytes()));
                }
            }
        }
        self.going.drain(..whole);
        Ok(())
    }

    /// Nothing follows: no character may be half there.
    pub fn end(&self) -> Result<(), Blocked> {
        if self.coming.is_empty() && self.going.is_empty() { Ok(()) } else { Err(Blocked::Charset) }
    }
}
