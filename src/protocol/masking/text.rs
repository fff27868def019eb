//! Plain text: one logical string from the first byte to the last.

use std::sync::Arc;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::json::JsonMasker;
use crate::protocol::masking::logical::StringScan;
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Masks plain text. Where fields have rules and the text turns out to be JSON under another name, it is read as JSON.
pub struct TextMasker {
    rules: Arc<MaskRules>,
    string: StringScan,
    counts: Counts,
    /// Nothing but white space has come, and fields have rules.
    undecided: bool,
    json: Option<Box<JsonMasker>>,
}

impl TextMasker {
    /// A masker for one body.
    pub fn new(rules: Arc<MaskRules>) -> Self {
        let undecided = !rules.fields.is_empty();
        Self { rules, string: StringScan::default(), counts: Counts::new(), undecided, json: None }
    }

    /// See [`super::Masker::push`].
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        let mut chunk = chunk;
        if self.undecided {
            let blank = |b: &u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r');
            let blanks = chunk.iter().take_while(|b| blank(b)).count();
            out.extend(&chunk[..blanks]);
            chunk = &chunk[blanks..];
            let Some(first) = chunk.first() else { return Ok(()) };
            self.undecided = false;
            if matches!(first, b'{' | b'[') {
                self.json = Some(Box::new(JsonMasker::new(self.rules.clone())));
            }
        }
        if let Some(json) = &mut self.json {
            return json.push(chunk, out);
        }
        self.string.written.push_plain(chunk);
        self.string.drain(&self.rules, false, &mut self.counts, out)
    }

    /// See [`super::Masker::finish`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        match &mut self.json {
            Some(json) => json.finish(out),
            None => self.string.drain(&self.rules, true, &mut self.counts, out),
        }
    }

    /// What has been masked.
    pub fn counts(&self) -> &Counts {
        self.json.as_ref().map_or(&self.counts, |json| json.counts())
    }
}
