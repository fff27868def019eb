//! Public keys as JWKs (RFC 7517, RFC 8037) with their thumbprints (RFC 7638).

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey as X509Key;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;

/// Members that make a JWK private or symmetric (RFC 7518 §6.2.2, §6.3.2, §6.4).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// Why a JWK is refused. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum JwkError {
    #[error("jwk has a private member")]
    Private,
    #[error("jwk is of a key type or curve that is not accepted")]
    KeyType,
    #[error("jwk coordinates are not canonical base64url of 32 bytes")]
    Coordinates,
    #[error("jwk is not a point on its curve")]
    NotOnCurve,
}

/// Which signature algorithm a key serves. One key, one algorithm (RFC 8725 §3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// Ed25519, under its own name (RFC 9864) or as `EdDSA` (RFC 8037).
    Ed25519,
}

impl Algorithm {
    /// The names accepted in a JOSE `alg` header.
    pub const NAMES: [&'static str; 3] = ["ES256", "Ed25519", "EdDSA"];

    /// The algorithm that a JOSE name stands for.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ES256" => Some(Self::Es256),
            "Ed25519" | "EdDSA" => Some(Self::Ed25519),
            _ => None,
        }
    }
}

/// A checked public key, ready to verify.
#[derive(Clone, Debug)]
pub struct PublicKey {
    algorithm: Algorithm,
    /// P-256: the uncompressed point; Ed25519: the 32 bytes.
    bytes: Vec<u8>,
    parsed: ParsedPublicKey,
    jkt: Jkt,
}

impl PublicKey {
    /// Reads a public JWK. Only required members count; `kid`, `use` and the like are ignored.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, JwkError> {
        if PRIVATE_MEMBERS.iter().any(|m| jwk.contains_key(*m)) {
            return Err(JwkError::Private);
        }
        let text = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
        match (text("kty"), text("crv")) {
            ("EC", "P-256") => {
                let mut point = vec![4];
                point.extend(coordinate(text("x"))?);
                point.extend(coordinate(text("y"))?);
                Self::es256(&point)
            }
            ("OKP", "Ed25519") => Self::ed25519(&coordinate(text("x"))?),
            _ => Err(JwkError::KeyType),
        }
    }

    /// Reads a SubjectPublicKeyInfo in DER, as certificates and CSRs carry it.
    pub fn from_spki(spki: &[u8]) -> Result<Self, JwkError> {
        let (rest, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| JwkError::KeyType)?;
        if !rest.is_empty() {
            return Err(JwkError::KeyType);
        }
        let p256 = info.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
        match info.parsed().map_err(|_| JwkError::KeyType)? {
            X509Key::EC(point) if p256.is_some_and(|o| o.to_id_string() == "1.2.840.10045.3.1.7") => {
                Self::es256(point.data())
            }
            X509Key::Unknown(raw) if info.algorithm.algorithm.to_id_string() == "1.3.101.112" => Self::ed25519(raw),
            _ => Err(JwkError::KeyType),
        }
    }

    /// From a SEC1 point; p256 checks that it lies on the curve.
    pub fn es256(point: &[u8]) -> Result<Self, JwkError> {
        let key = p256::PublicKey::from_sec1_bytes(point).map_err(|_| JwkError::NotOnCurve)?;
        let bytes = key.to_sec1_point(false).as_bytes().to_vec();
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &bytes).map_err(|_| JwkError::NotOnCurve)?;
        let canonical = format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#,
            B64.encode(&bytes[1..33]),
            B64.encode(&bytes[33..])
        );
        Ok(Self { algorithm: Algorithm::Es256, jkt: Jkt(Sha256::of(canonical.as_bytes()).0), bytes, parsed })
    }

    /// From the 32 bytes of RFC 8032.
    pub fn ed25519(bytes: &[u8]) -> Result<Self, JwkError> {
        let parsed = ParsedPublicKey::new(&ED25519, bytes).map_err(|_| JwkError::NotOnCurve)?;
        let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, B64.encode(bytes));
        let jkt = Jkt(Sha256::of(canonical.as_bytes()).0);
        Ok(Self { algorithm: Algorithm::Ed25519, jkt, bytes: bytes.to_vec(), parsed })
    }

    /// The one algorithm the key serves.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key's bits: an uncompressed point, or 32 bytes.
    pub fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// RFC 7638 thumbprint over the required members.
    pub const fn jkt(&self) -> Jkt {
        self.jkt
    }

    /// The key as a JWK with its required members only.
    pub fn to_jwk(&self) -> Value {
        match self.algorithm {
            Algorithm::Es256 => {
                json!({"kty": "EC", "crv": "P-256", "x": B64.encode(&self.bytes[1..33]), "y": B64.encode(&self.bytes[33..])})
            }
            Algorithm::Ed25519 => json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(&self.bytes)}),
        }
    }

    /// Whether `signature` (r‖s for ES256, RFC 7518 §3.4) is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.verify_sig(message, signature).is_ok()
    }
}

fn coordinate(text: &str) -> Result<Vec<u8>, JwkError> {
    let bytes = B64.decode(text).map_err(|_| JwkError::Coordinates)?;
    (bytes.len() == 32).then_some(bytes).ok_or(JwkError::Coordinates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwk(text: &str) -> Map<String, Value> {
        crate::protocol::json::parse_object(text.as_bytes()).expect("object")
    }

    const GOOD: &str = r#"{"kty":"EC","crv":"P-256","x":"l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs","y":"9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA"}"#;

    #[test]
    fn the_thumbprint_is_that_of_rfc_9449s_example_key() {
        let key = PublicKey::from_jwk(&jwk(GOOD)).expect("RFC 9449 figure 2");
        assert_eq!(key.jkt().to_string(), "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I");
    }

    #[test]
    fn p3_each_bad_jwk_is_refused_by_name() {
        let rows = [
            (GOOD.replace(r#""kty""#, r#""d":"AA","kty""#), JwkError::Private),
            (GOOD.replace(r#""kty""#, r#""k":"AA","kty""#), JwkError::Private),
            (GOOD.replace("P-256", "P-384"), JwkError::KeyType),
            (GOOD.replace("EC", "oct"), JwkError::KeyType),
            (GOOD.replace("9VE4jf", "9VE4jg"), JwkError::NotOnCurve),
            (GOOD.replace("GRDA\"", "GRD\""), JwkError::Coordinates),
            (GOOD.replace("GRDA\"", "GRDA=\""), JwkError::Coordinates),
            (r#"{"kty":"EC"}"#.into(), JwkError::KeyType),
            (r"{}".into(), JwkError::KeyType),
        ];
        for (text, want) in rows {
            assert_eq!(PublicKey::from_jwk(&jwk(&text)).map(|_| ()), Err(want), "{text}");
        }
    }

    #[test]
    fn the_point_at_infinity_is_no_key() {
        assert!(PublicKey::es256(&[0]).is_err());
    }

    #[test]
    fn a_key_reads_back_from_its_own_jwk() {
        let key = PublicKey::from_jwk(&jwk(GOOD)).expect("good");
        let again = PublicKey::from_jwk(key.to_jwk().as_object().expect("object")).expect("own form");
        assert_eq!(again.jkt(), key.jkt());
    }
}
