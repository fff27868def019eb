//! What takes a value's place: a mark, its end, a token that is the same for the same value, or one of the same form.
//!
//! Tokens are keyed: without the key nobody can try values against them, as they could against a bare hash.

use aws_lc_rs::hmac;

use crate::protocol::masking::rules::{EntityKind, Label, MaskRules, Strategy};

/// A value on its way through HMAC-SHA256.
pub struct Keyed(hmac::Context);

impl Keyed {
    /// For values of a kind.
    pub fn begin(key: &[u8], name: &str) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
        context.update(name.as_bytes());
        context.update(&[0]);
        Self(context)
    }

    /// A piece of the value.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// `[card:3f9a2c51d08be4a7]`.
    pub fn token(self, name: &str) -> Vec<u8> {
        format!("[{name}:{}]", hex::encode(&self.0.sign().as_ref()[..8])).into_bytes()
    }
}

/// Text that takes the place of `value`; of a value that was not kept whole, its end.
pub fn replacement(rules: &MaskRules, strategy: Strategy, label: Label, value: &[u8]) -> Vec<u8> {
    let name = label.name(rules);
    match strategy {
        Strategy::KeepLast(n) => {
            let keep = &value[value.len().saturating_sub(n)..];
            let mut out = b"****".to_vec();
            out.extend(keep.iter().filter(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\')));
            out
        }
        Strategy::Token => {
            let mut keyed = Keyed::begin(&rules.key, name);
            keyed.add(&normal(label, value));
            keyed.token(name)
        }
        Strategy::Format => formed(&rules.key, name, label, value),
        Strategy::Redact | Strategy::Block => format!("[redacted:{name}]").into_bytes(),
    }
}

/// A value as it is in all its spellings: a number without its separators, an address in small letters.
fn normal(label: Label, value: &[u8]) -> Vec<u8> {
    match label {
        Label::Kind(EntityKind::Email) => value.to_ascii_lowercase(),
        Label::Kind(EntityKind::Card | EntityKind::Ssn | EntityKind::Iban | EntityKind::Phone) => {
            value.iter().copied().filter(u8::is_ascii_alphanumeric).collect()
        }
        _ => value.to_vec(),
    }
}

/// Digits for digits, letters for letters, the rest as it is; never the value itself.
fn formed(key: &[u8], name: &str, label: Label, value: &[u8]) -> Vec<u8> {
    let normal = normal(label, value);
    let mut draw = Draw {
        key: hmac::Key::new(hmac::HMAC_SHA256, key),
        seed: [name.as_bytes(), b"\0form\0", &normal].concat(),
        block: Vec::new(),
        number: 0,
    };
    for _ in 0..4 {
        let made: Vec<u8> = value
            .iter()
            .map(|b| match b {
                b'0'..=b'9' => b'0' + draw.below(10),
                b'a'..=b'z' => b'a' + draw.below(26),
                b'A'..=b'Z' => b'A' + draw.below(26),
                b'"' | b'\\' => b'_',
                other if other.is_ascii_graphic() || *other == b' ' => *other,
                _ => b'_',
            })
            .collect();
        if made != value {
            return made;
        }
    }
    format!("[redacted:{name}]").into_bytes()
}

/// Bytes drawn by HMAC in counter mode.
struct Draw {
    key: hmac::Key,
    seed: Vec<u8>,
    block: Vec<u8>,
    number: u32,
}

impl Draw {
    fn below(&mut self, n: u8) -> u8 {
        // What would make small values likelier is drawn again.
        let fair = 255 - 255 % n;
        loop {
            let Some(byte) = self.block.pop() else {
                let mut context = hmac::Context::with_key(&self.key);
                context.update(&self.number.to_be_bytes());
                context.update(&self.seed);
                self.block = context.sign().as_ref().to_vec();
                self.number += 1;
                continue;
            };
            if byte < fair {
                return byte % n;
            }
        }
    }
}
