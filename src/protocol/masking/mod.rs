//! Masks sensitive values in a stream, chunk by chunk, so that any chunking gives the same bytes.
//!
//! Layers: frame ([`sse`], [`json`], [`text`]) → logical string ([`logical`]) → entities ([`detect`]).
//! Only bytes that no live match can still include are released, and no timer ever flushes an undecided
//! tail. Pure: bytes in, bytes out.

pub mod charset;
mod choices;
pub mod custom;
pub mod detect;
mod escape;
mod fold;
mod inner;
pub mod json;
pub mod logical;
mod multipart;
pub mod path;
pub mod rules;
pub mod secrets;
pub mod sse;
pub mod text;
mod token;

use std::sync::Arc;

use crate::protocol::masking::charset::{Charset, Transcoder};

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
    charset: Charset,
    transcoder: Transcoder,
    /// The body's first bytes, until they show how it is coded.
    front: Vec<u8>,
    /// Whether they have.
    begun: bool,
}

enum Framing {
    /// `application/json`, `+json`, NDJSON: values in a row.
    Json(json::JsonMasker),
    /// `text/event-stream`.
    Sse(Box<sse::SseMasker>),
    /// `multipart/…`.
    Multipart(Box<multipart::MultipartMasker>),
    /// Other text.
    Text(text::TextMasker),
    /// A type that the mask lets pass.
    Allowed(Counts),
}

/// How many of the first bytes show it.
const FRONT: usize = 4;
/// The byte order mark in UTF-8.
const MARK: &[u8] = b"\xef\xbb\xbf";

impl Masker {
    /// Chooses the framing by content type; what no layer can read is blocked.
    pub fn for_content_type(rules: &Arc<MaskRules>, content_type: &str) -> Result<Self, Blocked> {
        let mut parts = content_type.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut charset = Charset::Utf8;
        for parameter in parts {
            if let Some((name, value)) = parameter.split_once('=')
                && name.trim().eq_ignore_ascii_case("charset")
            {
                charset = Charset::named(value.trim().trim_matches('"')).ok_or(Blocked::Charset)?;
            }
        }
        let json = matches!(
            essence.as_str(),
            "application/json" | "text/json" | "application/x-ndjson" | "application/ndjson" | "application/jsonl"
        ) || (essence.starts_with("application/") && essence.ends_with("+json"));
        let framing = if rules.allow.contains(&essence) {
            Framing::Allowed(Counts::new())
        } else if json {
            Framing::Json(json::JsonMasker::new(rules.clone()))
        } else if essence == "text/event-stream" {
            Framing::Sse(Box::new(sse::SseMasker::new(rules.clone())))
        } else if let Some(boundary) = multipart::boundary(content_type) {
            Framing::Multipart(Box::new(multipart::MultipartMasker::new(rules.clone(), &boundary)))
        } else if essence.starts_with("text/") {
            Framing::Text(text::TextMasker::new(rules.clone()))
        } else {
            return Err(Blocked::ContentType);
        };
        let begun = matches!(framing, Framing::Allowed(_) | Framing::Multipart(_));
        Ok(Self { framing, charset, transcoder: Transcoder::new(Charset::Utf8), front: Vec::new(), begun })
    }

    /// Scans bytes of any kind as one text, whatever they are.
    pub fn bytes(rules: Arc<MaskRules>) -> Self {
        let framing = Framing::Text(text::TextMasker::new(rules));
        let transcoder = Transcoder::new(Charset::Utf8);
        Self { framing, charset: Charset::Utf8, transcoder, front: Vec::new(), begun: true }
    }

    /// Takes a chunk and appends what may be released.
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.begun {
            return self.pass(chunk, out);
        }
        self.front.extend_from_slice(chunk);
        if self.front.len() < FRONT { Ok(()) } else { self.begin(out) }
    }

    /// The body has ended: decides and releases the rest.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if !self.begun {
            self.begin(out)?;
        }
        if self.transcoder.is_plain() {
            return self.framing.finish(out);
        }
        let mut masked = Vec::new();
        self.framing.finish(&mut masked)?;
        self.transcoder.write(&masked, out)?;
        self.transcoder.end()
    }

    fn begin(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        if matches!(&self.front[..], [0x1f, 0x8b, ..] | [0x28, 0xb5, ..]) {
            return Err(Blocked::Coding);
        }
        self.begun = true;
        self.transcoder = Transcoder::new(self.charset.seen(&self.front));
        let front = std::mem::take(&mut self.front);
        let (mut decoded, events) = (Vec::new(), matches!(self.framing, Framing::Sse(_)));
        let (mut text, mut read) = (&front[..], Ok(()));
        if !self.transcoder.is_plain() {
            read = self.transcoder.read(text, &mut decoded);
            text = &decoded;
        }
        // A mark before events is theirs.
        if let Some(rest) = text.strip_prefix(MARK).filter(|_| !events) {
            self.release(MARK, out)?;
            text = rest;
        }
        let mut masked = Vec::new();
        self.framing.push(text, &mut masked)?;
        self.release(&masked, out)?;
        read
    }

    fn release(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.transcoder.is_plain() {
            out.extend(text);
            return Ok(());
        }
        self.transcoder.write(text, out)
    }

    fn pass(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        if self.transcoder.is_plain() {
            return self.framing.push(chunk, out);
        }
        let (mut text, mut masked) = (Vec::new(), Vec::new());
        // What stands before a fault is judged before it, however the body was cut.
        let read = self.transcoder.read(chunk, &mut text);
        self.framing.push(&text, &mut masked)?;
        self.transcoder.write(&masked, out)?;
        read
    }

    /// What has been masked so far.
    pub fn counts(&self) -> Counts {
        match &self.framing {
            Framing::Json(m) => m.counts().clone(),
            Framing::Sse(m) => m.counts().clone(),
            Framing::Multipart(m) => m.counts().clone(),
            Framing::Text(m) => m.counts().clone(),
            Framing::Allowed(none) => none.clone(),
        }
    }
}

impl Framing {
    fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        match self {
            Self::Json(m) => m.push(chunk, out),
            Self::Sse(m) => m.push(chunk, out),
            Self::Multipart(m) => m.push(chunk, out),
            Self::Text(m) => m.push(chunk, out),
            Self::Allowed(_) => {
                out.extend(chunk);
                Ok(())
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        match self {
            Self::Json(m) => m.finish(out),
            Self::Sse(m) => m.finish(out),
            Self::Multipart(m) => m.finish(out),
            Self::Text(m) => m.finish(out),
            Self::Allowed(_) => Ok(()),
        }
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

/// Masks one string: what its bytes are is not asked.
pub fn mask_text(rules: &Arc<MaskRules>, text: &[u8]) -> Result<(Vec<u8>, Counts), Blocked> {
    let mut masker = Masker::bytes(rules.clone());
    let mut out = Vec::new();
    masker.push(text, &mut out)?;
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
