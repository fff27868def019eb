//! JWTs of other issuers (RFC 7519): any asymmetric algorithm of RFC 7518 section 3.1, with keys that are pinned beforehand.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use serde_json::{Map, Value};

use crate::domain::time::Timestamp;
use crate::protocol::jws::{Compact, JwsError};

/// Clocks of issuers run differently.
pub const LEEWAY: u64 = 60;
/// Longest JWT that is read.
pub const MAX_JWT: usize = 16 * 1024;

/// Why a JWT is refused. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum JwtError {
    #[error("longer than 16 KiB")]
    TooLong,
    #[error(transparent)]
    Jws(#[from] JwsError),
    #[error("alg is not an asymmetric algorithm of RFC 7518")]
    Algorithm,
    #[error("typ is not the one expected")]
    Type,
    #[error("no key of the issuer has this kid and algorithm")]
    UnknownKey,
    #[error("exp is missing, or a time is no number")]
    NoEnd,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Early,
    #[error("aud does not name this receiver")]
    Audience,
    #[error("iss is not the expected issuer")]
    Issuer,
    #[error("sub is not a SPIFFE ID with a path")]
    Subject,
}

/// A public key that another issuer publishes.
#[derive(Clone, Debug)]
pub struct JwtKey {
    kid: Option<String>,
    alg: Option<String>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: &'static str, point: Vec<u8> },
}

/// Curves, their algorithm and the bytes of a coordinate (RFC 7518 sections 3.4 and 6.2.1).
const CURVES: [(&str, &str, usize); 3] = [("P-256", "ES256", 32), ("P-384", "ES384", 48), ("P-521", "ES512", 66)];

/// A JWK is not a key that verifies JWTs here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a public RSA key of 2048 to 8192 bits or EC key on P-256, P-384 or P-521")]
pub struct JwtKeyError;

impl JwtKey {
    /// Reads a public JWK.
    pub fn from_jwk(jwk: &Value) -> Result<Self, JwtKeyError> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| text(name).and_then(|t| B64.decode(t).ok()).ok_or(JwtKeyError);
        if jwk.get("d").is_some() || jwk.get("k").is_some() {
            return Err(JwtKeyError);
        }
        let kind = match text("kty") {
            Some("RSA") => {
                let (n, e) = (bytes("n")?, bytes("e")?);
                let significant = n.iter().skip_while(|b| **b == 0).count();
                if !(256..=1024).contains(&significant) || e.is_empty() || e.len() > 8 {
                    return Err(JwtKeyError);
                }
                Kind::Rsa { n, e }
            }
            Some("EC") => {
                let curve = CURVES.iter().find(|(crv, ..)| Some(*crv) == text("crv")).ok_or(JwtKeyError)?;
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != curve.2 || y.len() != curve.2 {
                    return Err(JwtKeyError);
                }
                Kind::Ec { curve: curve.0, point: [&[4][..], &x, &y].concat() }
            }
            _ => return Err(JwtKeyError),
        };
        Ok(Self { kid: text("kid").map(Into::into), alg: text("alg").map(Into::into), kind })
    }

    /// The keys of a JWK Set that verify JWTs; others are passed over, as RFC 7517 section 5 says.
    pub fn from_jwks(set: &Value) -> Vec<Self> {
        let keys = set.get("keys").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(|jwk| Self::from_jwk(jwk).ok()).collect()
    }

    /// Whether the key may have signed with this header.
    fn fits(&self, kid: Option<&str>, alg: &str) -> bool {
        let of_kind = match &self.kind {
            Kind::Rsa { .. } => alg.starts_with("RS") || alg.starts_with("PS"),
            Kind::Ec { curve, .. } => CURVES.iter().any(|(crv, name, _)| crv == curve && *name == alg),
        };
        of_kind
            && self.alg.as_deref().is_none_or(|own| own == alg)
            && kid.is_none_or(|k| self.kid.as_deref() == Some(k))
    }

    fn verifies(&self, alg: &str, message: &[u8], signature: &[u8]) -> bool {
        match &self.kind {
            Kind::Rsa { n, e } => {
                let parameters: &RsaParameters = match alg {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &RSA_PSS_2048_8192_SHA256,
                    "PS384" => &RSA_PSS_2048_8192_SHA384,
                    "PS512" => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            Kind::Ec { curve, point } => {
                let algorithm: &dyn VerificationAlgorithm = match *curve {
                    "P-256" => &ECDSA_P256_SHA256_FIXED,
                    "P-384" => &ECDSA_P384_SHA384_FIXED,
                    _ => &ECDSA_P521_SHA512_FIXED,
                };
                UnparsedPublicKey::new(algorithm, point).verify(message, signature).is_ok()
            }
        }
    }
}

/// Algorithms of RFC 7518 section 3.1 that are signatures.
const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"];

/// `typ` of a JWT that says no more; the empty text stands for none at all.
pub const PLAIN: [&str; 3] = ["", "JWT", "JOSE"];

/// Refuses a header with members that would change how it is read, or of another type than those given (RFC 8725 section
/// 3.11).
pub fn check_type(header: &Map<String, Value>, types: &[&str]) -> Result<(), JwtError> {
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(JwsError::Critical.into());
    }
    let typ = match header.get("typ") {
        None => "",
        Some(typ) => typ.as_str().filter(|t| !t.is_empty()).ok_or(JwtError::Type)?,
    };
    // RFC 7515 section 4.1.9: the prefix may be left out.
    let typ = typ.strip_prefix("application/").unwrap_or(typ);
    if types.contains(&typ) { Ok(()) } else { Err(JwtError::Type) }
}

/// Verifies the signature of a JWT with one of the issuer's keys and gives its claims.
pub fn verify(text: &str, keys: &[JwtKey]) -> Result<Map<String, Value>, JwtError> {
    verify_typed(text, keys, &PLAIN)
}

/// The same for a JWT of one of `types`.
pub fn verify_typed(text: &str, keys: &[JwtKey], types: &[&str]) -> Result<Map<String, Value>, JwtError> {
    if text.len() > MAX_JWT {
        return Err(JwtError::TooLong);
    }
    let jws = Compact::split(text)?;
    let header = jws.header_object()?;
    let member = |name: &str| header.get(name).and_then(Value::as_str);
    check_type(&header, types)?;
    let alg = member("alg").filter(|a| ALGORITHMS.contains(a)).ok_or(JwtError::Algorithm)?;
    let kid = match header.get("kid") {
        None => None,
        Some(kid) => Some(kid.as_str().ok_or(JwtError::UnknownKey)?),
    };
    let mut fitting = keys.iter().filter(|k| k.fits(kid, alg)).peekable();
    if fitting.peek().is_none() {
        return Err(JwtError::UnknownKey);
    }
    let signature = jws.signature_bytes()?;
    if !fitting.any(|key| key.verifies(alg, jws.signing_input().as_bytes(), &signature)) {
        return Err(JwsError::Signature.into());
    }
    Ok(jws.payload_object()?)
}

/// Holds `exp`, and `nbf` and `iat` where they are, against the time (RFC 7519 section 4.1); `late` and `early` are the
/// seconds that clocks may differ by.
pub fn check_time(claims: &Map<String, Value>, now: Timestamp, late: u64, early: u64) -> Result<Timestamp, JwtError> {
    let number = |name: &str| claims.get(name).map(|v| seconds(v).ok_or(JwtError::NoEnd)).transpose();
    let end = number("exp")?.ok_or(JwtError::NoEnd)?;
    if now.unix() >= end.saturating_add(late) {
        return Err(JwtError::Expired);
    }
    for name in ["nbf", "iat"] {
        if number(name)?.is_some_and(|t| t > now.unix().saturating_add(early)) {
            return Err(JwtError::Early);
        }
    }
    Ok(Timestamp::from_unix(end))
}

/// A NumericDate, which may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, as the line says")]
    let whole = |f: f64| (0.0..=253_402_300_799.0).contains(&f).then_some(f as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(whole)).filter(|s| *s <= Timestamp::MAX_SECONDS)
}

/// Whether `aud` names a receiver: a text, or one in a list of texts.
pub fn has_audience(claims: &Map<String, Value>, audience: &str) -> bool {
    match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(many)) => many.iter().all(Value::is_string) && many.iter().any(|a| a == audience),
        _ => false,
    }
}
