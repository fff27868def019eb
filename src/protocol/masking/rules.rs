//! What a mask looks for and what it does with it.

use std::collections::BTreeMap;

use crate::protocol::masking::custom::Custom;
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
    strum::IntoStaticStr,
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
    /// Social security number of the United States.
    Ssn,
    /// International bank account number (ISO 13616).
    Iban,
    /// Telephone number in its international form.
    Phone,
    /// IPv4 or IPv6 address.
    Ip,
    /// Key or address in base58.
    Base58,
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
    /// `[KIND:…]`, keyed: the same for the same value.
    Token,
    /// Keyed, in the form of the value.
    Format,
    /// The body is not passed on at all.
    Block,
}

/// What a value is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Label {
    /// By its detector.
    Kind(EntityKind),
    /// By the number of an operator's detector.
    Custom(usize),
}

impl Label {
    /// Its name, in replacements and counts.
    pub fn name(self, rules: &MaskRules) -> &str {
        match self {
            Self::Kind(kind) => kind.into(),
            Self::Custom(n) => rules.custom.get(n).map_or("custom", |c| c.name.as_str()),
        }
    }
}

/// What happens to a field that a rule names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FieldAction {
    /// Its value becomes `"[redacted:field]"`.
    Redact,
    /// Its value becomes a keyed token of it.
    Token,
    /// Its string is base64, or a `data:` URI of it: what that decodes to is scanned.
    Base64,
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
    /// Detectors of the operator's own.
    pub custom: Vec<Custom>,
    /// Key of tokens.
    pub key: Vec<u8>,
    /// Response headers whose values are scanned, in lower case.
    pub headers: Vec<String>,
    /// Content types that pass unread, in lower case.
    pub allow: Vec<String>,
    /// Whether requests are masked towards upstream, too.
    pub requests: bool,
}

impl MaskRules {
    /// The paths of OpenAI-compatible streams whose strings continue over events.
    pub const OPENAI_DELTA: [&'static str; 5] = [
        "$.choices[*].delta.content",
        "$.choices[*].delta.tool_calls[*].function.arguments",
        "$.choices[*].delta.refusal",
        "$.choices[*].delta.reasoning_content",
        "$.choices[*].text",
    ];

    /// A mask with these detectors that redacts, without field rules.
    pub fn detecting(detectors: &[EntityKind]) -> Self {
        Self {
            detectors: detectors.to_vec(),
            strategy: Strategy::Redact,
            fields: Vec::new(),
            delta: Self::OPENAI_DELTA.iter().filter_map(|p| FieldPath::parse(p).ok()).collect(),
            exact: Vec::new(),
            custom: Vec::new(),
            key: Vec::new(),
            headers: Vec::new(),
            allow: Vec::new(),
            requests: false,
        }
    }

    /// Whether the detector is on.
    pub fn detects(&self, kind: EntityKind) -> bool {
        self.detectors.contains(&kind)
    }
}

/// How many values of each kind were masked.
pub type Counts = BTreeMap<String, u64>;
