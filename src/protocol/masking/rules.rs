//! What a mask looks for and what it does with it.

use std::collections::BTreeMap;

use crate::protocol::masking::path::FieldPath;

/// What a detector finds.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    strum::Display,
    strum::EnumString,
    strum::VariantNames,
    strum::VariantArray,
)]
#[strum(serialize_all = "lowercase")]
pub enum EntityKind {
    /// E-mail address.
    Email,
    /// Payment card number that passes Luhn and has an issuer's prefix.
    Card,
    /// Cloud and API keys, JWTs and private keys, by their prefixes.
    Secret,
    /// The credential that the gateway injects upstream, by its exact value.
    Credential,
}

/// What takes a found value's place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Strategy {
    /// `[redacted:KIND]`.
    Redact,
    /// Stars and the last few characters.
    KeepLast(usize),
    /// The body is not passed on at all.
    Block,
}

/// What happens to a field that a rule names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldAction {
    /// Its value becomes `"[redacted:field]"`.
    Redact,
    /// The member goes; an array's item becomes `null`.
    Drop,
    /// The body is not passed on at all.
    Block,
}

/// One rule on a field.
#[derive(Clone, Debug)]
pub struct FieldRule {
    /// Which fields.
    pub path: FieldPath,
    /// What happens to them.
    pub action: FieldAction,
}

/// One mask, checked and ready.
#[derive(Clone, Debug)]
pub struct MaskRules {
    /// Which entities are looked for.
    pub detectors: Vec<EntityKind>,
    /// What happens to them.
    pub strategy: Strategy,
    /// Rules on fields; they go before detectors.
    pub fields: Vec<FieldRule>,
    /// Paths whose strings continue from one server-sent event to the next.
    pub delta: Vec<FieldPath>,
    /// Byte strings that are masked wherever they occur.
    pub exact: Vec<Vec<u8>>,
}

impl MaskRules {
    /// The paths of OpenAI-compatible streams whose strings continue over events.
    pub const OPENAI_DELTA: [&'static str; 2] =
        ["$.choices[*].delta.content", "$.choices[*].delta.tool_calls[*].function.arguments"];

    /// A mask with these detectors that redacts, without field rules.
    pub fn detecting(detectors: &[EntityKind]) -> Self {
        Self {
            detectors: detectors.to_vec(),
            strategy: Strategy::Redact,
            fields: Vec::new(),
            delta: Self::OPENAI_DELTA.iter().filter_map(|p| FieldPath::parse(p).ok()).collect(),
            exact: Vec::new(),
        }
    }

    /// Whether the detector is on.
    pub fn detects(&self, kind: EntityKind) -> bool {
        self.detectors.contains(&kind)
    }
}

/// How many values of each kind were masked.
pub type Counts = BTreeMap<String, u64>;

/// Text that takes the place of a value of `kind` whose last characters are `tail`.
pub fn replacement(strategy: Strategy, kind: EntityKind, tail: &[u8]) -> Vec<u8> {
    match strategy {
        Strategy::KeepLast(n) => {
            let keep = &tail[tail.len().saturating_sub(n)..];
            let mut out = b"****".to_vec();
            out.extend(keep.iter().filter(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')));
            out
        }
        Strategy::Redact | Strategy::Block => format!("[redacted:{kind}]").into_bytes(),
    }
}
