//! Access tokens: RFC 9068 `at+jwt`, ES256, always bound by `cnf` (RFC 7800 §3.1, RFC 9449 §6.1, RFC 8705 §3.1).

use serde_json::{Map, Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::authorization_details::Detail;
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
    /// On whose behalf: the workload itself, or the person or workload whose statement was the grant.
    pub sub: String,
    /// The workload that holds the token.
    pub client_id: SpiffeId,
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
    pub svid_serial: Option<String>,
    /// What exactly it is for (RFC 9396); empty: all of its scope.
    pub details: Vec<Detail>,
    /// Whose grant the uses of its details are counted in, where it was exchanged.
    pub grantee: Option<SpiffeId>,
    /// Who acts, the current actor outermost (RFC 8693 section 4.1).
    pub act: Option<Value>,
    /// Who may act for its subject (RFC 8693 section 4.4).
    pub may_act: Option<String>,
    /// Groups that an identity provider's statement came to (RFC 9068 section 2.2.3.1).
    pub groups: Vec<String>,
    /// When the statement was made that the token rests on (`auth_time`); none: the token rests on the workload alone.
    pub auth_time: Option<Timestamp>,
}

/// Actors of one token.
pub const MAX_ACTORS: usize = 4;

impl Claims {
    /// Signs the claims into a token.
    pub fn sign(&self, kid: &str, signer: &SigningKey) -> String {
        let header = json!({"typ": TYP, "alg": "ES256", "kid": kid});
        let mut cnf = json!({"jkt": self.jkt});
        if let Some(x5t) = self.x5t_s256 {
            cnf["x5t#S256"] = Jkt(x5t.0).to_string().into();
        }
        let mut payload = json!({
            "iss": self.iss, "sub": self.sub, "aud": self.aud, "client_id": self.client_id,
            "iat": self.iat.unix(), "exp": self.exp.unix(), "jti": self.jti, "scope": self.scope, "cnf": cnf,
        });
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                payload[name] = value;
            }
        };
        put("svid_serial", self.svid_serial.clone().map(Value::from));
        put("authorization_details", (!self.details.is_empty()).then(|| json!(self.details)));
        put("details_grantee", self.grantee.as_ref().map(|g| json!(g)));
        put("act", self.act.clone());
        put("may_act", self.may_act.as_ref().map(|m| json!({"sub": m})));
        put("auth_time", self.auth_time.map(|t| t.unix().into()));
        put("groups", (!self.groups.is_empty()).then(|| json!(self.groups)));
        jws::sign(&header, &payload, signer)
    }

    /// Everybody the token speaks of besides its holder: its subject and all actors.
    pub fn parties(&self) -> Vec<String> {
        let actors = actors(self.act.as_ref());
        std::iter::once(self.sub.clone()).chain(actors).filter(|p| p != self.client_id.as_str()).collect()
    }

    /// When whoever is acted for was spoken of.
    pub fn begun(&self) -> Timestamp {
        self.auth_time.unwrap_or(self.iat)
    }

    /// The workload whose grant the uses of its details are counted in.
    pub fn grantee(&self) -> &SpiffeId {
        self.grantee.as_ref().unwrap_or(&self.client_id)
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
    let details = match payload.get("authorization_details") {
        None => Vec::new(),
        Some(details) => serde_json::from_value(details.clone()).map_err(|_| TokenError::Claims)?,
    };
    let id = |name: &str| need(name)?.parse::<SpiffeId>().map_err(|_| TokenError::Claims);
    let some = |name: &str| payload.get(name).is_some();
    let groups = payload.get("groups").cloned().unwrap_or_else(|| json!([]));
    Ok(Claims {
        details,
        grantee: some("details_grantee").then(|| id("details_grantee")).transpose()?,
        auth_time: some("auth_time")
            .then(|| numeric_date(payload, "auth_time").ok_or(TokenError::Claims))
            .transpose()?,
        act: payload.get("act").cloned(),
        may_act: payload.get("may_act").and_then(|m| text(m.as_object()?, "sub")).map(ToOwned::to_owned),
        groups: serde_json::from_value(groups).map_err(|_| TokenError::Claims)?,
        iss: need("iss")?,
        sub: need("sub")?,
        client_id: id("client_id")?,
        aud: need("aud")?,
        iat: numeric_date(payload, "iat").ok_or(TokenError::Claims)?,
        exp: numeric_date(payload, "exp").ok_or(TokenError::Claims)?,
        jti: need("jti")?,
        scope: need("scope")?,
        jkt,
        x5t_s256,
        svid_serial: some("svid_serial").then(|| need("svid_serial")).transpose()?,
    })
}

/// The actors of an `act` claim, the current one first.
pub fn actors(act: Option<&Value>) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = act;
    while let Some(act) = next {
        found.extend(act.get("sub").and_then(Value::as_str).map(ToOwned::to_owned));
        next = act.get("act");
    }
    found
}
