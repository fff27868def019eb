//! Masks sensitive values in a stream, chunk by chunk, so that any chunking gives the same bytes.
//!
//! Layers: frame ([`sse`], [`json`], [`text`]) → logical string ([`logical`]) → entities ([`detect`]).
//! Only bytes that no live match can still include are released, and no timer ever flushes an undecided
//! tail. Pure: bytes in, bytes out.

pub mod custom;
pub mod detect;
mod escape;
mod fold;
mod inner;
pub mod json;
pub mod logical;
pub mod path;
pub mod rules;
pub mod secrets;
pub mod sse;
pub mod text;
mod token;

use std::sync::Arc;

pub use rules::{Counts, EntityKind, FieldAction, FieldRule, Label, MaskRules, Strategy};

/// Why a body cannot be passed on. The gateway answers 502, or cuts the stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum Blocked {
    #[error("the mask cannot read this content type")]
    ContentType,
    #[error("the mask cannot read this character set")]
    Charset,
    #[error("the mask cannot read this content coding")]
    Coding,
    #[error("nested deeper than the mask follows")]
    Depth,
    #[error("one event, member name or number is longer than the mask holds")]
    TooLong,
    #[error("malformed JSON, and the mask has rules on its fields")]
    Malformed,
    #[error("a value that the mask forbids")]
    Forbidden,
}

/// A masker for one body.
pub struct Masker {
    framing: Framing,
    /// The body's first bytes, until they show that it is text.
    front: Vec<u8>,
    /// Whether they have.
    begun: bool,
}

enum Framing {
    /// `application/json`, `+json`, NDJSON: values in a row.
    Json(json::JsonMasker),
    /// `text/event-stream`.
    Sse(Box<sse::SseMasker>),
    /// Other text.
    Text(text::TextMasker),
}

impl Masker {
    /// Chooses the framing by content type; what no layer can read is blocked.
    pub fn for_content_type(rules: &Arc<MaskRules>, content_type: &str) -> Result<Self, Blocked> {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        for parameter in parts {
            check_charset(parameter)?;
        }
        let json = matches!(
            essence.as_str(),
            "application/json" | "text/json" | "application/x-ndjson" | "application/ndjson" | "application/jsonl"
        ) || (essence.starts_with("application/") && essence.ends_with("+json"));
        let framing = if json {
            Framing::Json(json::JsonMasker::new(rules.clone()))
        } else if essence == "text/event-stream" {
            Framing::Sse(Box::new(sse::SseMasker::new(rules.clone())))
        } else if essence.starts_with("text/") {
            Framing::Text(text::TextMasker::new(rules.clone()))
        } else {
            return Err(Blocked::ContentType);
        };
        Ok(Self { framing, front: Vec::new(), begun: false })
    }

    /// Scans bytes of any kind as one text, whatever they are.
    pub fn bytes(rules: Arc<MaskRules>) -> Self {
        Self { framing: Framing::Text(text::TextMasker::new(rules)), front: Vec::new(), begun: true }
    }

    /// Takes a chunk and appends what may be released.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.begun {
            return self.framing.push(chunk, out);
        }
        self.front.extend_from_slice(chunk);
        if self.front.len() < 2 { Ok(()) } else { self.begin(out) }
    }

    /// The body has ended: decides and releases the rest.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if !self.begun {
            self.begin(out)?;
        }
        self.framing.finish(out)
    }

    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        check_front(&self.front)?;
        self.begun = true;
        let front = std::mem::take(&mut self.front);
        self.framing.push(&front, out)
    }

    /// What has been masked so far.
    pub fn counts(&self) -> Counts {
        match &self.framing {
            Framing::Json(m) => m.counts().clone(),
            Framing::Sse(m) => m.counts().clone(),
            Framing::Text(m) => m.counts().clone(),
        }
    }
}

impl Framing {
    fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        match self {
            Self::Json(m) => m.push(chunk, out),
            Self::Sse(m) => m.push(chunk, out),
            Self::Text(m) => m.push(chunk, out),
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        match self {
            Self::Json(m) => m.finish(out),
            Self::Sse(m) => m.finish(out),
            Self::Text(m) => m.finish(out),
        }
    }
}

/// What no text in UTF-8 begins with: UTF-16 with its mark or of Latin letters, gzip, zstd. Readers that look at the first
/// bytes would decode it, and the mask does not.
fn check_front(front: &[u8]) -> Result<(), Blocked> {
    match front {
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] | [0, ..] | [_, 0, ..] => Err(Blocked::Charset),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, ..] => Err(Blocked::Coding),
        _ => Ok(()),
    }
}

fn check_charset(parameter: &str) -> Result<(), Blocked> {
    match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            let value = value.trim().trim_matches('"').to_ascii_lowercase();
            matches!(value.as_str(), "utf-8" | "utf8" | "us-ascii").then_some(()).ok_or(Blocked::Charset)
        }
        _ => Ok(()),
    }
}

/// Masks a whole body at once.
pub fn mask_whole(rules: &Arc<MaskRules>, content_type: &str, body: &[u8]) -> Result<Vec<u8>, Blocked> {
    mask_counting(rules, content_type, body).map(|(masked, _)| masked)
}

/// Like [`mask_whole`], and says what was masked.
pub fn mask_counting(rules: &Arc<MaskRules>, content_type: &str, body: &[u8]) -> Result<(Vec<u8>, Counts), Blocked> {
    let mut masker = Masker::for_content_type(rules, content_type)?;
    let mut out = Vec::new();
    masker.push(body, &mut out)?;
    masker.finish(&mut out)?;
    Ok((out, masker.counts()))
}

/// The content type that a text without one is read as: what begins as an object or array is JSON.
pub fn sniffed(text: &[u8]) -> &'static str {
    match text.iter().find(|b| !b.is_ascii_whitespace()) {
        Some(b'{' | b'[') => "application/json",
        _ => "text/plain",
    }
}

#[cfg(test)]
mod tests;
