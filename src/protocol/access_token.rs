//! Access tokens: RFC 9068 `at+jwt`, ES256, always bound by `cnf` (RFC 7800 §3.1, RFC 9449 §6.1, RFC 8705 §3.1).

use serde_json::{Map, Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::claims::{numeric_date, text};
use crate::protocol::jwk::{Algorithm, PublicKey};
use crate::protocol::jws::{self, Compact, JwsError, SigningKey};

/// `typ` of an access token (RFC 9068 §2.1).
pub const TYP: &str = "at+jwt";
/// Longest token in bytes that is looked at.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Why a token is refused. The client reads `invalid_token` alone, since before the proof holds the token's state is not its to know.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, strum::IntoStaticStr, thiserror::Error)]
#[strum(serialize_all = "snake_case")]
pub enum TokenError {
    #[error("not a compact JWS of type at+jwt and algorithm ES256")]
    Form,
    #[error("signed by no key of this issuer")]
    UnknownKey,
    #[error("the signature does not verify")]
    Signature,
    #[error("a required claim is absent or malformed")]
    Claims,
    #[error("iss is another issuer")]
    Issuer,
    #[error("aud is another resource")]
    Audience,
    #[error("expired")]
    Expired,
    #[error("has no cnf.jkt: it is bound to no key")]
    Unbound,
}

/// The claims of a token of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// Issuer URL.
    pub iss: String,
    /// The workload.
    pub sub: SpiffeId,
    /// The resource.
    pub aud: String,
    /// When it was minted.
    pub iat: Timestamp,
    /// When it ends.
    pub exp: Timestamp,
    /// Its identifier.
    pub jti: String,
    /// Operation names, separated by spaces.
    pub scope: String,
    /// The key that must prove each use.
    pub jkt: Jkt,
    /// The certificate that must be on the connection, where the resource demands it.
    pub x5t_s256: Option<Sha256>,
    /// Serial of the certificate that the token was minted under, in lower-case hex: a stop of it stops the token.
    pub svid_serial: String,
}

impl Claims {
    /// Signs the claims into a token.
    pub fn sign(&self, kid: &str, signer: &SigningKey) -> String {
        let header = json!({"typ": TYP, "alg": "ES256", "kid": kid});
        let mut cnf = json!({"jkt": self.jkt});
        if let Some(x5t) = self.x5t_s256 {
            cnf["x5t#S256"] = Jkt(x5t.0).to_string().into();
        }
        let payload = json!({
            "iss": self.iss, "sub": self.sub, "aud": self.aud, "client_id": self.sub,
            "iat": self.iat.unix(), "exp": self.exp.unix(), "jti": self.jti, "scope": self.scope, "cnf": cnf,
            "svid_serial": self.svid_serial,
        });
        jws::sign(&header, &payload, signer)
    }

    /// The scope's operation names.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scope.split(' ').filter(|s| !s.is_empty())
    }
}

/// The `kid` of a token, so that the caller can look up the key.
pub fn key_id(token: &str) -> Result<String, TokenError> {
    let header = checked_header(token)?;
    text(&header, "kid").map(ToOwned::to_owned).ok_or(TokenError::Form)
}

fn checked_header(token: &str) -> Result<Map<String, Value>, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::Form);
    }
    let header = Compact::split(token).and_then(|c| c.header_object()).map_err(|_| TokenError::Form)?;
    match jws::check_header(&header, TYP) {
        Ok(Algorithm::Es256) => Ok(header),
        _ => Err(TokenError::Form),
    }
}

/// Verifies a token's signature with `key` and reads its claims; `audience` and life are checked against them.
pub fn verify(token: &str, key: &PublicKey, issuer: &str, now: Timestamp) -> Result<Claims, TokenError> {
    checked_header(token)?;
    let parts = Compact::split(token).map_err(|_| TokenError::Form)?;
    parts.verify_own(key).map_err(|e| if e == JwsError::Form { TokenError::Form } else { TokenError::Signature })?;
    let payload = parts.payload_object().map_err(|_| TokenError::Claims)?;
    let claims = read(&payload)?;
    if claims.iss != issuer {
        return Err(TokenError::Issuer);
    }
    if claims.exp <= now {
        return Err(TokenError::Expired);
    }
    Ok(claims)
}

fn read(payload: &Map<String, Value>) -> Result<Claims, TokenError> {
    let need = |name: &str| text(payload, name).map(ToOwned::to_owned).ok_or(TokenError::Claims);
    let cnf = payload.get("cnf").and_then(Value::as_object).ok_or(TokenError::Unbound)?;
    let jkt = text(cnf, "jkt").and_then(|t| t.parse().ok()).ok_or(TokenError::Unbound)?;
    let x5t_s256 = match cnf.get("x5t#S256") {
        None => None,
        Some(value) => {
            let parsed = value.as_str().and_then(|t| t.parse::<Jkt>().ok()).ok_or(TokenError::Claims)?;
            Some(Sha256(parsed.0))
        }
    };
    Ok(Claims {
        iss: need("iss")?,
        sub: need("sub")?.parse().map_err(|_| TokenError::Claims)?,
        aud: need("aud")?,
        iat: numeric_date(payload, "iat").ok_or(TokenError::Claims)?,
        exp: numeric_date(payload, "exp").ok_or(TokenError::Claims)?,
        jti: need("jti")?,
        scope: need("scope")?,
        jkt,
        x5t_s256,
        svid_serial: need("svid_serial")?,
    })
}
