//! What other issuers use beyond the usual: tokens encrypted to us (RFC 7516), and signatures by ES256K (RFC 8812) and by
//! Ed25519 and Ed448 (RFC 8037). Josekit does the cryptography; which algorithms count is said here.

use josekit::jwe::{self, JweDecrypter};
use josekit::jwk::Jwk;
use josekit::jws::{ES256K, EdDSA, JwsVerifier};
use serde_json::{Map, Value};

use crate::protocol::jws::{Compact, JwsError};
use crate::protocol::jwt::{self, JwtError};
use crate::trust::TrustError;

/// Key agreement and key transport that are sound today; RSA1_5 and what passwords derive are not.
const KEY_ALGORITHMS: [&str; 5] = ["RSA-OAEP-256", "RSA-OAEP", "ECDH-ES", "ECDH-ES+A128KW", "ECDH-ES+A256KW"];
/// Content encryption that authenticates.
const CONTENT: [&str; 5] = ["A128GCM", "A192GCM", "A256GCM", "A128CBC-HS256", "A256CBC-HS512"];

/// Whether a text has the five segments of a compact JWE (RFC 7516 section 7.1).
pub fn is_encrypted(token: &str) -> bool {
    token.split('.').count() == 5
}

/// Decrypts a nested JWT with our private JWK.
pub fn decrypt(token: &str, key: &str) -> Result<String, TrustError> {
    let refuse = |what: &str| TrustError::Refused(format!("the encrypted token: {what}"));
    let header = token.split('.').next().unwrap_or_default();
    let header = crate::protocol::json::parse_object(
        &base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, header).map_err(|_| refuse("its header"))?,
    )
    .map_err(|_| refuse("its header is not strict JSON"))?;
    let text = |name: &str| header.get(name).and_then(Value::as_str).unwrap_or_default();
    if ["crit", "zip"].iter().any(|name| header.contains_key(*name)) {
        return Err(refuse("crit and zip are not understood"));
    }
    let (alg, enc) = (text("alg"), text("enc"));
    if !KEY_ALGORITHMS.contains(&alg) || !CONTENT.contains(&enc) {
        return Err(refuse("alg or enc is not accepted"));
    }
    let jwk = Jwk::from_bytes(key).map_err(|_| TrustError::Away("decryption_key_file holds no private JWK".into()))?;
    let decrypter = decrypter(alg, &jwk).ok_or_else(|| refuse("alg does not fit our key"))?;
    let (payload, _) = jwe::deserialize_compact(token, &*decrypter).map_err(|_| refuse("it does not decrypt"))?;
    String::from_utf8(payload).map_err(|_| refuse("what it holds is no text"))
}

fn decrypter(alg: &str, jwk: &Jwk) -> Option<Box<dyn JweDecrypter>> {
    use josekit::jwe::{ECDH_ES, ECDH_ES_A128KW, ECDH_ES_A256KW, RSA_OAEP, RSA_OAEP_256};
    fn boxed(made: Result<impl JweDecrypter + 'static, josekit::JoseError>) -> Option<Box<dyn JweDecrypter>> {
        made.ok().map(|d| Box::new(d) as Box<dyn JweDecrypter>)
    }
    match alg {
        "RSA-OAEP-256" => boxed(RSA_OAEP_256.decrypter_from_jwk(jwk)),
        "RSA-OAEP" => boxed(RSA_OAEP.decrypter_from_jwk(jwk)),
        "ECDH-ES" => boxed(ECDH_ES.decrypter_from_jwk(jwk)),
        "ECDH-ES+A128KW" => boxed(ECDH_ES_A128KW.decrypter_from_jwk(jwk)),
        "ECDH-ES+A256KW" => boxed(ECDH_ES_A256KW.decrypter_from_jwk(jwk)),
        _ => None,
    }
}

/// Whether a JWK is one that [`verify`] takes.
pub fn has_key(jwk: &Value) -> bool {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    matches!((text("kty"), text("crv")), (Some("EC"), Some("secp256k1")) | (Some("OKP"), Some("Ed25519" | "Ed448")))
}

/// Verifies a JWT whose algorithm the usual ones are not.
pub fn verify(token: &str, set: &Value, types: &[&str]) -> Result<Map<String, Value>, JwtError> {
    let jws = Compact::split(token)?;
    let header = jws.header_object()?;
    jwt::check_type(&header, types)?;
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    let alg = text("alg").ok_or(JwtError::Algorithm)?;
    let curves: &[&str] = match alg {
        "ES256K" => &["secp256k1"],
        "EdDSA" => &["Ed25519", "Ed448"],
        "Ed25519" => &["Ed25519"],
        "Ed448" => &["Ed448"],
        _ => return Err(JwtError::Algorithm),
    };
    let fits = |jwk: &&Value| {
        let own = |name: &str| jwk.get(name).and_then(Value::as_str);
        let named = own("alg").is_none_or(|a| a == alg || (a == "EdDSA" && alg.starts_with("Ed")));
        has_key(jwk)
            && curves.contains(&own("crv").unwrap_or_default())
            && named
            && own("use").is_none_or(|u| u == "sig")
            && jwk.get("d").is_none()
            && text("kid").is_none_or(|kid| own("kid") == Some(kid))
    };
    let mut keys = set["keys"].as_array().into_iter().flatten().filter(fits).peekable();
    if keys.peek().is_none() {
        return Err(JwtError::UnknownKey);
    }
    let (message, signature) = (jws.signing_input().as_bytes(), jws.signature_bytes()?);
    if !keys.any(|jwk| verifies(jwk, alg, message, &signature)) {
        return Err(JwsError::Signature.into());
    }
    Ok(jws.payload_object()?)
}

fn verifies(jwk: &Value, alg: &str, message: &[u8], signature: &[u8]) -> bool {
    // Required members alone: `alg`, `key_ops` and the like were looked at above, and the library knows fewer names.
    let mut plain = Map::new();
    for name in ["kty", "crv", "x", "y"] {
        plain.extend(jwk.get(name).map(|value| (name.to_owned(), value.clone())));
    }
    let Ok(jwk) = Jwk::from_map(plain) else { return false };
    if alg == "ES256K" {
        return ES256K.verifier_from_jwk(&jwk).is_ok_and(|v| v.verify(message, signature).is_ok());
    }
    EdDSA.verifier_from_jwk(&jwk).is_ok_and(|v| v.verify(message, signature).is_ok())
}

#[cfg(test)]
#[path = "foreign/tests.rs"]
mod tests;
