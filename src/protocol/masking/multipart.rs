//! Multipart bodies (RFC 2046 section 5.1): each part is masked as what its own header says.

use std::sync::Arc;

use memchr::memmem;

use crate::protocol::masking::rules::{Counts, MaskRules};
use crate::protocol::masking::{Blocked, Masker};

/// Longest header of a part.
const MAX_HEADER: usize = 16 * 1024;
/// Most blanks behind a delimiter.
const MAX_BLANKS: usize = 1024;

enum Place {
    /// Before the first part, in one, or behind the last: what passes is masked.
    Content(Box<Masker>),
    /// Behind a delimiter: the rest of its line.
    Delimiter,
    /// In a part's header.
    Header,
}

/// Masks multipart bodies.
pub struct MultipartMasker {
    rules: Arc<MaskRules>,
    /// `CR LF -- boundary`.
    delimiter: Vec<u8>,
    place: Place,
    /// What is not decided. It begins as if a line had ended, so that a body may begin with a delimiter.
    held: Vec<u8>,
    /// How many of `held`'s first bytes are of a line end that is not to be written: nobody sent it, or it was written.
    lent: usize,
    /// Whether a part may stand here: not before the first, nor behind the last.
    in_part: bool,
    counts: Counts,
}

impl MultipartMasker {
    /// A masker for a boundary.
    pub fn new(rules: Arc<MaskRules>, boundary: &str) -> Self {
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        let place = Place::Content(Box::new(Masker::bytes(rules.clone())));
        Self { rules, delimiter, place, held: b"\r\n".to_vec(), lent: 2, in_part: false, counts: Counts::new() }
    }

    /// See [`super::Masker::push`].
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.held.extend(chunk);
        while self.step(out)? {}
        Ok(())
    }

    /// See [`super::Masker::finish`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        let rest = std::mem::take(&mut self.held);
        match &mut self.place {
            Place::Content(_) => {
                self.content(&rest, out)?;
                self.end_content(out)
            }
            // A delimiter that is cut short ends the last part.
            Place::Delimiter if rest.iter().all(|b| matches!(b, b'-' | b' ' | b'\r' | b'\n')) => {
                out.extend(rest);
                Ok(())
            }
            _ => Err(Blocked::Malformed),
        }
    }

    /// What has been masked.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<bool, Blocked> {
        match &mut self.place {
            Place::Content(_) => {
                let found = memmem::find(&self.held, &self.delimiter);
                let safe = found.unwrap_or_else(|| self.held.len().saturating_sub(self.delimiter.len() - 1));
                let content: Vec<u8> = self.held.drain(..safe).collect();
                self.content(&content, out)?;
                if found.is_none() {
                    return Ok(false);
                }
                self.end_content(out)?;
                let skip = std::mem::take(&mut self.lent);
                out.extend(&self.delimiter[skip..]);
                self.held.drain(..self.delimiter.len());
                self.place = Place::Delimiter;
                Ok(true)
            }
            Place::Delimiter => self.delimited(out),
            Place::Header => {
                // The line that ended the delimiter may be the empty one.
                let Some(end) = memmem::find(&self.held, b"\r\n\r\n") else {
                    return if self.held.len() > MAX_HEADER + 4 { Err(Blocked::TooLong) } else { Ok(false) };
                };
                if end > MAX_HEADER {
                    return Err(Blocked::TooLong);
                }
                let header: Vec<u8> = self.held.drain(..end + 4).collect();
                self.begin_part(&header, out)?;
                // A part may have no body, and its delimiter follows the empty line at once.
                self.held.splice(..0, *b"\r\n");
                self.lent = 2;
                Ok(true)
            }
        }
    }

    /// The rest of a delimiter's line: a part begins, or the last one has ended.
    fn delimited(&mut self, out: &mut Vec<u8>) -> Result<bool, Blocked> {
        if self.held.starts_with(b"--") {
            out.extend(self.held.drain(..2));
            self.in_part = false;
            self.place = Place::Content(Box::new(Masker::bytes(self.rules.clone())));
            return Ok(true);
        }
        let blanks = self.held.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
        if blanks > MAX_BLANKS {
            return Err(Blocked::TooLong);
        }
        match &self.held[blanks..] {
            [] | [b'\r' | b'-'] => Ok(false),
            [b'\r', b'\n', ..] => {
                // The line's end stays, so that a header that is empty is found.
                out.extend(self.held.drain(..blanks));
                self.place = Place::Header;
                Ok(true)
            }
            // The boundary is the front of a longer text: no reader is sure what that is.
            _ => Err(Blocked::Malformed),
        }
    }

    fn begin_part(&mut self, header: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let text = std::str::from_utf8(header).map_err(|_| Blocked::Charset)?;
        let mut kind = "text/plain";
        for line in text.split("\r\n").filter(|l| !l.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(Blocked::Malformed)?;
            let value = value.trim();
            match name.trim().to_ascii_lowercase().as_str() {
                "content-type" => kind = value,
                "content-encoding" => return Err(Blocked::Coding),
                "content-transfer-encoding"
                    if !["7bit", "8bit", "binary"].contains(&value.to_ascii_lowercase().as_str()) =>
                {
                    return Err(Blocked::Coding);
                }
                // What is about the body may not be so behind the mask.
                "content-length" | "content-md5" | "content-digest" => return Err(Blocked::Malformed),
                _ => {}
            }
        }
        let mut scan = Masker::bytes(self.rules.clone());
        scan.push(header, out)?;
        scan.finish(out)?;
        self.count(scan.counts());
        self.in_part = true;
        self.place = Place::Content(Box::new(Masker::for_content_type(&self.rules, kind)?));
        Ok(())
    }

    fn content(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let lent = self.lent.min(bytes.len());
        self.lent -= lent;
        let bytes = &bytes[lent..];
        // Rules on fields would be lost on what stands outside of parts.
        if !self.in_part && !self.rules.fields.is_empty() && bytes.iter().any(|b| !b.is_ascii_whitespace()) {
            return Err(Blocked::Malformed);
        }
        match &mut self.place {
            Place::Content(masker) => masker.push(bytes, out),
            _ => Ok(()),
        }
    }

    fn end_content(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        let Place::Content(masker) = &mut self.place else { return Ok(()) };
        masker.finish(out)?;
        let counts = masker.counts();
        self.count(counts);
        Ok(())
    }

    fn count(&mut self, more: Counts) {
        for (kind, n) in more {
            *self.counts.entry(kind).or_default() += n;
        }
    }
}

/// The boundary of a content type, if it is of one or more parts that are read.
pub fn boundary(content_type: &str) -> Option<String> {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next()?.to_ascii_lowercase();
    if !essence.starts_with("multipart/") || essence == "multipart/byteranges" {
        return None;
    }
    let value = parts.find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    let legal = (1..=70).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&b));
    legal.then_some(value)
}
