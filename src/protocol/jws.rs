//! Compact JWS (RFC 7515 §3.1, §7.1): split strictly, verify with a pinned key, sign with a given signer.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use p256::Scalar;
use p256::elliptic_curve::PrimeField as _;
use p256::elliptic_curve::scalar::IsHigh as _;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::digest::Sha256;
use crate::protocol::json;
use crate::protocol::jwk::{Algorithm, PublicKey};

/// Why a text is not a JWS that we accept. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum JwsError {
    #[error("not three segments of canonical unpadded base64url")]
    Form,
    #[error("the header is not one strict JSON object")]
    Header,
    #[error("the payload is not one strict JSON object")]
    Payload,
    #[error("typ is not the one expected")]
    Type,
    #[error("alg is not accepted, or not the key's")]
    Algorithm,
    #[error("crit or b64 asks for what is not understood")]
    Critical,
    #[error("the signature does not verify")]
    Signature,
}

/// A JWS cut into its parts, nothing verified yet.
#[derive(Clone, Copy, Debug)]
pub struct Compact<'a> {
    /// First segment, as sent: equal bytes mean equal headers.
    pub header: &'a str,
    /// Second segment, as sent.
    pub payload: &'a str,
    signature: &'a str,
    signing_input: &'a str,
}

impl<'a> Compact<'a> {
    /// Cuts at the two dots; more or fewer are refused.
    pub fn split(text: &'a str) -> Result<Self, JwsError> {
        let (signing_input, signature) = text.rsplit_once('.').ok_or(JwsError::Form)?;
        let (header, payload) = signing_input.split_once('.').ok_or(JwsError::Form)?;
        if payload.contains('.') || header.is_empty() || payload.is_empty() || signature.is_empty() {
            return Err(JwsError::Form);
        }
        Ok(Self { header, payload, signature, signing_input })
    }

    /// The header's members.
    pub fn header_object(&self) -> Result<Map<String, Value>, JwsError> {
        let bytes = B64.decode(self.header).map_err(|_| JwsError::Form)?;
        json::parse_object(&bytes).map_err(|_| JwsError::Header)
    }

    /// The payload's members.
    pub fn payload_object(&self) -> Result<Map<String, Value>, JwsError> {
        let bytes = B64.decode(self.payload).map_err(|_| JwsError::Form)?;
        json::parse_object(&bytes).map_err(|_| JwsError::Payload)
    }

    /// What the signature is over.
    pub const fn signing_input(&self) -> &str {
        self.signing_input
    }

    /// What a text that anybody may present is remembered by: what is signed, since of one text there may be several
    /// signatures.
    pub fn statement(&self) -> Sha256 {
        Sha256::of_parts(&[b"jwt\0", self.signing_input.as_bytes()])
    }

    /// The signature's bytes.
    pub fn signature_bytes(&self) -> Result<Vec<u8>, JwsError> {
        B64.decode(self.signature).map_err(|_| JwsError::Form)
    }

    /// Checks a signature of our own with `key`: of its two forms only the one that we make.
    pub fn verify_own(&self, key: &PublicKey) -> Result<(), JwsError> {
        let signature = self.signature_bytes()?;
        if is_low_s(&signature) { self.verify(key) } else { Err(JwsError::Signature) }
    }

    /// Checks the signature with `key`.
    pub fn verify(&self, key: &PublicKey) -> Result<(), JwsError> {
        let signature = self.signature_bytes()?;
        key.verifies(self.signing_input.as_bytes(), &signature).then_some(()).ok_or(JwsError::Signature)
    }
}

/// Whether an ES256 signature is the one of its two forms that we make. (r, s) and (r, n − s) both verify, so whoever has a
/// token could make another text of it, which nobody minted.
pub fn is_low_s(signature: &[u8]) -> bool {
    s_of(signature).is_some_and(|s| !bool::from(s.is_high()))
}

/// The low form of an ES256 signature.
fn low_s(mut signature: Vec<u8>) -> Vec<u8> {
    match s_of(&signature) {
        Some(s) if bool::from(s.is_high()) => signature[32..].copy_from_slice(&(-s).to_repr()),
        _ => {}
    }
    signature
}

fn s_of(signature: &[u8]) -> Option<Scalar> {
    let (_, s) = signature.split_at_checked(32)?;
    Scalar::from_repr(p256::FieldBytes::try_from(s).ok()?).into()
}

/// Checks the members of a header that decide how it is read (RFC 7515 §4.1.11, RFC 7797, RFC 8725 §3.11).
pub fn check_header(header: &Map<String, Value>, typ: &str) -> Result<Algorithm, JwsError> {
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    if text("typ") != Some(typ) {
        return Err(JwsError::Type);
    }
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(JwsError::Critical);
    }
    text("alg").and_then(Algorithm::from_name).ok_or(JwsError::Algorithm)
}

/// Gives r‖s over a message.
type SignFunction = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// A key that signs ES256. Its entropy is its maker's business, so this module stays pure.
#[derive(Clone)]
pub struct SigningKey {
    public: PublicKey,
    sign: SignFunction,
}

impl SigningKey {
    /// From the public half and a function that gives r‖s over a message.
    pub fn new(public: PublicKey, sign: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { public, sign: Arc::new(sign) }
    }

    /// The public half.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }
}

fn json(part: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(part).expect("headers and payloads have string keys")
}

/// Signs `header` and `payload` into a compact JWS.
pub fn sign(header: &impl Serialize, payload: &impl Serialize, key: &SigningKey) -> String {
    let mut text = B64.encode(json(header));
    text.push('.');
    B64.encode_string(json(payload), &mut text);
    let signature = low_s((key.sign)(text.as_bytes()));
    text.push('.');
    B64.encode_string(signature, &mut text);
    text
}
