//! Trust bundles in the SPIFFE JWKS form (SPIFFE Trust Domain and Bundle section 4).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::domain::spiffe_id::TrustDomain;
use crate::protocol::json;
use crate::protocol::jwt::JwtKey;
use crate::protocol::svid;

/// Why a bundle is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    #[error("the bundle is not a strict JSON object with a keys array")]
    Form,
    #[error("an x509-svid key does not have exactly one certificate in x5c")]
    Certificate,
    #[error("an x509-svid key's certificate is not a CA certificate")]
    NoCa,
    #[error("an x509-svid key's certificate names another trust domain")]
    Foreign,
    #[error("a jwt-svid key has no kid, or is no key of an algorithm that JWT-SVIDs may have")]
    JwtKey,
    #[error("the bundle has neither an x509-svid nor a jwt-svid key")]
    Empty,
}

/// A key that signs JWT-SVIDs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtAuthority {
    /// Its `kid`.
    pub kid: String,
    /// Its JWK, required members alone where it is ours.
    pub jwk: Value,
}

impl JwtAuthority {
    /// The JWK under its `kid`.
    pub fn jwk_with_kid(&self) -> Value {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = self.kid.clone().into();
        jwk
    }
}

/// The roots and JWT-SVID keys of one trust domain.
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
    /// Keys of JWT-SVIDs.
    pub jwt_keys: Vec<JwtAuthority>,
}

impl TrustBundle {
    /// A bundle that trusts nothing.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, sequence: 0, refresh_hint: 0, roots: Vec::new(), jwt_keys: Vec::new() }
    }

    /// Its certificates one after the other, as the Workload API has them.
    pub fn concatenated(&self) -> Vec<u8> {
        self.roots.concat()
    }

    /// The JWK Set of its JWT-SVID keys, as the Workload API has them: other uses have no place in it.
    pub fn jwt_jwks(&self) -> Value {
        json!({"keys": self.jwt_keys.iter().map(jwt_jwk).collect::<Vec<_>>()})
    }

    /// The JWKS document.
    pub fn to_jwks(&self) -> Value {
        let keys: Vec<Value> =
            self.roots.iter().map(|der| root_jwk(der)).chain(self.jwt_keys.iter().map(jwt_jwk)).collect();
        json!({"keys": keys, "spiffe_sequence": self.sequence, "spiffe_refresh_hint": self.refresh_hint})
    }

    /// Reads a bundle of `trust_domain`; replaces nothing unless all of it parses.
    pub fn parse(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let object = json::parse_object(text).map_err(|_| BundleError::Form)?;
        let keys = object.get("keys").and_then(Value::as_array).ok_or(BundleError::Form)?;
        let number = |name: &str| object.get(name).and_then(Value::as_u64).unwrap_or(0);
        let of = |usage: &'static str| keys.iter().filter(move |k| k.get("use").and_then(Value::as_str) == Some(usage));
        let roots: Vec<Vec<u8>> = of("x509-svid").map(|k| certificate(&trust_domain, k)).collect::<Result<_, _>>()?;
        let jwt_keys: Vec<JwtAuthority> = of("jwt-svid").map(jwt_authority).collect::<Result<_, _>>()?;
        if roots.is_empty() && jwt_keys.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self {
            trust_domain,
            sequence: number("spiffe_sequence"),
            refresh_hint: number("spiffe_refresh_hint"),
            roots,
            jwt_keys,
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

fn certificate(trust_domain: &TrustDomain, key: &Value) -> Result<Vec<u8>, BundleError> {
    let chain = key.get("x5c").and_then(Value::as_array).ok_or(BundleError::Certificate)?;
    match chain.as_slice() {
        [Value::String(one)] => {
            let der = BASE64_STANDARD.decode(one).map_err(|_| BundleError::Certificate)?;
            if svid::spiffe_names(&der).iter().any(|name| *name != trust_domain.id()) {
                return Err(BundleError::Foreign);
            }
            if svid::is_ca(&der) { Ok(der) } else { Err(BundleError::NoCa) }
        }
        _ => Err(BundleError::Certificate),
    }
}

fn jwt_jwk(key: &JwtAuthority) -> Value {
    let mut jwk = key.jwk_with_kid();
    jwk["use"] = "jwt-svid".into();
    jwk
}

fn jwt_authority(key: &Value) -> Result<JwtAuthority, BundleError> {
    let kid = key.get("kid").and_then(Value::as_str).filter(|k| !k.is_empty()).ok_or(BundleError::JwtKey)?;
    JwtKey::from_jwk(key).map_err(|_| BundleError::JwtKey)?;
    Ok(JwtAuthority { kid: kid.to_owned(), jwk: key.clone() })
}
