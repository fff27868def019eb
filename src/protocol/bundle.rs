//! Trust bundles in the SPIFFE JWKS form (SPIFFE Trust Domain and Bundle section 4).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::domain::spiffe_id::TrustDomain;
use crate::protocol::json;

/// Why a bundle is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is not a strict JSON object with a keys array")]
    Form,
    #[error("an x509-svid key does not have exactly one certificate in x5c")]
    Certificate,
    #[error("the bundle has no x509-svid key")]
    Empty,
}

/// The roots of one trust domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustBundle {
    /// Whose roots they are.
    pub trust_domain: TrustDomain,
    /// Only grows.
    pub sequence: u64,
    /// How often to look again, in seconds.
    pub refresh_hint: u64,
    /// Root certificates, DER.
    pub roots: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// The JWKS document; `jwk_of` gives the public JWK members of a root certificate.
    pub fn to_jwks(&self) -> Value {
        let keys: Vec<Value> = self.roots.iter().map(|der| root_jwk(der)).collect();
        json!({"keys": keys, "spiffe_sequence": self.sequence, "spiffe_refresh_hint": self.refresh_hint})
    }

    /// Reads a bundle of `trust_domain`; replaces nothing unless all of it parses.
    pub fn parse(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let object = json::parse_object(text).map_err(|_| BundleError::Form)?;
        let keys = object.get("keys").and_then(Value::as_array).ok_or(BundleError::Form)?;
        let number = |name: &str| object.get(name).and_then(Value::as_u64).unwrap_or(0);
        let roots: Vec<Vec<u8>> = keys
            .iter()
            .filter(|k| k.get("use").and_then(Value::as_str) == Some("x509-svid"))
            .map(certificate)
            .collect::<Result<_, _>>()?;
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self {
            trust_domain,
            sequence: number("spiffe_sequence"),
            refresh_hint: number("spiffe_refresh_hint"),
            roots,
        })
    }
}

fn root_jwk(der: &[u8]) -> Value {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let key = X509Certificate::from_der(der)
        .ok()
        .and_then(|(_, cert)| crate::protocol::jwk::PublicKey::from_spki(cert.public_key().raw).ok());
    let mut jwk = key.map_or_else(|| json!({}), |k| k.to_jwk());
    jwk["use"] = "x509-svid".into();
    jwk["x5c"] = json!([BASE64_STANDARD.encode(der)]);
    jwk
}

fn certificate(key: &Value) -> Result<Vec<u8>, BundleError> {
    let chain = key.get("x5c").and_then(Value::as_array).ok_or(BundleError::Certificate)?;
    match chain.as_slice() {
        [Value::String(one)] => BASE64_STANDARD.decode(one).map_err(|_| BundleError::Certificate),
        _ => Err(BundleError::Certificate),
    }
}
