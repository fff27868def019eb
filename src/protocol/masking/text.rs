//! Plain text: one logical string from the first byte to the last.

use std::sync::Arc;

use crate::protocol::masking::Blocked;
use crate::protocol::masking::logical::StringScan;
use crate::protocol::masking::rules::{Counts, MaskRules};

/// Masks plain text.
pub struct TextMasker {
    rules: Arc<MaskRules>,
    string: StringScan,
    counts: Counts,
}

impl TextMasker {
    /// A masker for one body.
    pub fn new(rules: Arc<MaskRules>) -> Self {
        Self { rules, string: StringScan::default(), counts: Counts::new() }
    }

    /// See [`super::Masker::push`].
    pub fn push(&mut self, chunk: &[u8], out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.string.written.push_plain(chunk);
        self.string.drain(&self.rules, false, &mut self.counts, out)
    }

    /// See [`super::Masker::finish`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Blocked> {
        self.string.drain(&self.rules, true, &mut self.counts, out)
    }

    /// What has been masked.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }
}
