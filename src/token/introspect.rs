//! Introspection (RFC 7662, signed as in RFC 9701) and revocation (RFC 7009).

use std::time::Duration;

use serde_json::{Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::RevocationKind;
use crate::protocol::access_token::Claims;
use crate::protocol::jws;
use crate::store::revocations::NewRevocation;
use crate::token::client::{Client, Form};
use crate::token::endpoint::TokenPlane;

/// Media type, and `typ`, of a signed answer (RFC 9701 section 5).
pub const SIGNED: &str = "application/token-introspection+jwt";
/// A stop of a token lasts this much longer than the token: clocks differ.
const MARGIN: Duration = Duration::from_mins(1);

fn token(form: &Form) -> Result<&str, Refusal> {
    let token = form.get("token").filter(|t| !t.is_empty()).map(String::as_str);
    token.ok_or_else(|| Refusal::new(400, "request", "token is missing").with_error(OauthError::InvalidRequest))
}

impl TokenPlane {
    /// What a token says, for a resource server that it is for. Everybody else reads no more than that it is inactive.
    pub fn introspect(&self, client: &Client, form: &Form) -> Result<Value, Refusal> {
        let inactive = json!({"active": false});
        let claims = match self.live_token(token(form)?) {
            Ok(claims) => claims,
            Err(why) => {
                tracing::debug!(caller = %client.id, why, "introspection of a token that is not in force");
                return Ok(inactive);
            }
        };
        let offer = self.offer.load();
        let ours = offer.resources.iter().any(|r| r.url == claims.aud && r.introspect.contains(&client.id));
        Ok(if ours { active(&claims) } else { inactive })
    }

    /// The same as a JWT for the caller alone.
    pub fn signed(&self, client: &Client, answer: &Value) -> String {
        let key = self.keys.current();
        let header = json!({"typ": SIGNED.trim_start_matches("application/"), "alg": "ES256", "kid": key.kid});
        let now = self.stores.clock.now().unix();
        let claims = json!({"iss": self.issuer, "aud": client.id, "iat": now, "token_introspection": answer});
        jws::sign(&header, &claims, &key.key)
    }

    /// Stops a token of the caller's own. What is no token that lives needs no stop.
    pub async fn revoke(&self, client: &Client, form: &Form) -> Result<(), Refusal> {
        let Ok(claims) = self.signed_token(token(form)?) else { return Ok(()) };
        if claims.client_id != client.id {
            let detail = "the token was issued to another client, which alone may revoke it";
            return Err(Refusal::new(400, "client", detail).with_error(OauthError::UnauthorizedClient));
        }
        let new = NewRevocation {
            kind: RevocationKind::Jti,
            value: claims.jti,
            reason: "revoked by its client (RFC 7009)".into(),
            by: client.id.to_string(),
            until: Some(claims.exp.plus(MARGIN)),
        };
        self.stop_once(new).await
    }
}

fn active(claims: &Claims) -> Value {
    let mut answer = json!({
        "active": true,
        "scope": claims.scope,
        "client_id": claims.client_id,
        "sub": claims.sub,
        "aud": claims.aud,
        "iss": claims.iss,
        "exp": claims.exp.unix(),
        "iat": claims.iat.unix(),
        "jti": claims.jti,
        "token_type": "DPoP",
        "cnf": {"jkt": claims.jkt},
    });
    if let Some(Sha256(x5t)) = claims.x5t_s256 {
        answer["cnf"]["x5t#S256"] = Jkt(x5t).to_string().into();
    }
    if !claims.details.is_empty() {
        answer["authorization_details"] = json!(claims.details);
    }
    if let Some(act) = &claims.act {
        answer["act"] = act.clone();
    }
    if !claims.groups.is_empty() {
        answer["groups"] = json!(claims.groups);
    }
    answer
}
