//! Token exchange (RFC 8693): a token for somebody becomes one that the caller holds and that says who acts for whom.

use serde_json::{Value, json};

use crate::domain::key::Jkt;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject as Stoppable;
use crate::domain::spiffe_id::SpiffeId;
use crate::protocol::access_token::{self, Claims, MAX_ACTORS};
use crate::protocol::jws::Compact;
use crate::token::client::{Client, Form};
use crate::token::endpoint::TokenPlane;
use crate::token::grants::{Bounds, Subject, Tied, distrusted, named_key, refused};

/// `urn:ietf:params:oauth:token-type:access_token`
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const SAML2: &str = "urn:ietf:params:oauth:token-type:saml2";

/// RFC 8693 section 2.2.2: whatever is wrong with a token that was handed in.
fn invalid(detail: impl Into<String>) -> Refusal {
    refused(OauthError::InvalidRequest, detail)
}

impl TokenPlane {
    /// Reads a token exchange.
    pub(super) async fn exchanged(&self, client: &Client, form: &Form, jkt: Jkt) -> Result<Subject, Refusal> {
        let given = |name: &str| form.get(name).filter(|v| !v.is_empty()).map(String::as_str);
        let need = |name: &str| given(name).ok_or_else(|| invalid(format!("{name} is missing")));
        if given("requested_token_type").is_some_and(|t| t != ACCESS_TOKEN) {
            return Err(invalid("requested_token_type is not an access token's, and nothing else is issued"));
        }
        let (token, kind) = (need("subject_token")?, need("subject_token_type")?);
        match (given("actor_token"), given("actor_token_type")) {
            (None, None) => {}
            (Some(actor), Some(kind)) => self.check_actor(client, actor, kind)?,
            _ => return Err(invalid("actor_token and actor_token_type come together")),
        }
        match kind {
            ACCESS_TOKEN => self.own_token(client, token, jkt),
            JWT if is_jwt_svid(token) && self.jwt_svid_clients => self.workload(client, token),
            JWT | ID_TOKEN => {
                let now = self.stores.clock.now();
                let statement = self.providers.oidc(token, self.receiver(), now).await;
                let statement = statement.map_err(|e| distrusted(e, OauthError::InvalidRequest, "subject_token"))?;
                named_key(&statement, jkt)?;
                may_act(statement.may_act.as_deref(), client)?;
                Ok(Subject::stated(client, statement, now))
            }
            SAML2 => {
                let now = self.stores.clock.now();
                let statement = self.providers.saml(token, self.receiver(), now);
                let statement = statement.map_err(|e| distrusted(e, OauthError::InvalidRequest, "subject_token"))?;
                Ok(Subject::stated(client, statement, now))
            }
            _ => Err(invalid("subject_token_type is not one of: access_token, id_token, jwt, saml2")),
        }
    }

    /// An access token of ours. It is bound: only its own key may bring it, or whom it names in `may_act`.
    fn own_token(&self, client: &Client, token: &str, jkt: Jkt) -> Result<Subject, Refusal> {
        let claims =
            self.live_token(token).map_err(|why| invalid("subject_token is no token in force").because(why))?;
        if claims.jkt != jkt && claims.may_act.as_deref() != Some(client.id.as_str()) {
            return Err(invalid("subject_token is bound to another key, and names nobody who may act for it"));
        }
        let act = acting(client, &claims)?;
        Ok(Subject {
            act,
            groups: claims.groups.clone(),
            until: claims.exp.min(client.until),
            bounds: Some(Bounds {
                audience: Some(claims.aud.clone()),
                scope: claims.scopes().map(ToOwned::to_owned).collect(),
                details: claims.details.clone(),
                grantee: Some(claims.grantee().clone()),
            }),
            spoken_at: (claims.sub != claims.client_id.as_str()).then(|| claims.begun()),
            sub: claims.sub,
            tied: Vec::new(),
            provider: None,
            confirmed: None,
        })
    }

    /// Another workload's JWT-SVID for this issuer: the caller acts for that workload, as far as both may go.
    fn workload(&self, client: &Client, token: &str) -> Result<Subject, Refusal> {
        let svid =
            self.jwt_svid(token).map_err(|why| invalid("subject_token is no JWT-SVID for this issuer").because(why))?;
        may_act(svid.claims.get("may_act").and_then(|m| m.get("sub")).and_then(Value::as_str), client)?;
        let entry = self.stores.entries.get(&svid.spiffe_id);
        let entry = entry.ok_or_else(|| invalid("the workload of subject_token is not registered"))?;
        let signed = Compact::split(token).map_err(|e| invalid(e.to_string()))?;
        let another = svid.spiffe_id != client.id;
        Ok(Subject {
            sub: svid.spiffe_id.to_string(),
            act: another.then(|| json!({"sub": client.id})),
            groups: Vec::new(),
            until: svid.expires_at.min(client.until),
            bounds: Some(Bounds { audience: None, scope: entry.operations, details: Vec::new(), grantee: None }),
            tied: vec![Tied { digest: signed.statement(), until: svid.expires_at, once: false }],
            provider: None,
            spoken_at: None,
            confirmed: None,
        })
    }

    /// The actor is the caller: a token of somebody else would let it act under another's name.
    fn check_actor(&self, client: &Client, token: &str, kind: &str) -> Result<(), Refusal> {
        let named = match kind {
            ACCESS_TOKEN => self.live_token(token).map(|c| c.client_id),
            JWT => self.jwt_svid(token).map(|s| s.spiffe_id),
            _ => return Err(invalid("actor_token_type is not one of: access_token, jwt")),
        };
        match named {
            Ok(id) if id == client.id => Ok(()),
            Ok(_) => Err(invalid("actor_token is another's: the actor is the client of this request")),
            Err(why) => Err(invalid("actor_token is not accepted").because(why)),
        }
    }

    /// A token that was signed here and has not ended; it may be stopped.
    pub fn signed_token(&self, token: &str) -> Result<Claims, String> {
        let now = self.stores.clock.now();
        let kid = access_token::key_id(token).map_err(|e| e.to_string())?;
        let key = self.keys.published(&kid, now).ok_or("signed by no key of this issuer")?;
        access_token::verify(token, &key, &self.issuer, now).map_err(|e| e.to_string())
    }

    /// A token of ours that is in force: signed here, not ended, and nobody in it stopped.
    pub fn live_token(&self, token: &str) -> Result<Claims, String> {
        let now = self.stores.clock.now();
        let claims = self.signed_token(token)?;
        let entry = self.stores.entries.get(&claims.client_id).filter(|e| !e.has_expired(now));
        let entry = entry.ok_or("its workload is not registered")?;
        let subject = Stoppable {
            serial: claims.svid_serial.clone(),
            jkt: Some(claims.jkt),
            jti: Some(claims.jti.clone()),
            groups: entry.groups.iter().chain(&claims.groups).cloned().collect(),
            ..Stoppable::workload(&entry)
        };
        let registered = |id: &SpiffeId| self.stores.entries.get(id).filter(|e| !e.has_expired(now));
        let subject = subject.acting_for(claims.parties(), claims.begun(), registered);
        let subject = subject.ok_or("a workload that is acted for is not registered")?;
        let stopped = self.stores.revocations.watch().borrow().stops(&subject, now);
        stopped.map_or(Ok(claims), |kind| Err(format!("stopped by {kind}")))
    }
}

/// Whose statement names who may act for its subject is obeyed (RFC 8693 section 4.4).
pub(super) fn may_act(named: Option<&str>, client: &Client) -> Result<(), Refusal> {
    match named {
        Some(named) if named != client.id.as_str() => {
            Err(invalid("the may_act of what was handed in names another actor"))
        }
        _ => Ok(()),
    }
}

/// The chain of actors with the caller outermost; its length is bounded.
fn acting(client: &Client, claims: &Claims) -> Result<Option<Value>, Refusal> {
    let current = access_token::actors(claims.act.as_ref()).into_iter().next();
    // The same workload for itself, or the same actor again: nobody new acts.
    let itself = claims.sub == client.id.as_str() && claims.act.is_none();
    if itself || current.as_deref() == Some(client.id.as_str()) {
        return Ok(claims.act.clone());
    }
    if access_token::actors(claims.act.as_ref()).len() >= MAX_ACTORS {
        return Err(invalid(format!("subject_token has {MAX_ACTORS} actors already, and more are not taken")));
    }
    let mut act = json!({"sub": client.id});
    if let Some(before) = &claims.act {
        act["act"] = before.clone();
    }
    Ok(Some(act))
}

fn is_jwt_svid(token: &str) -> bool {
    let claims = Compact::split(token).and_then(|c| c.payload_object());
    claims.is_ok_and(|c| c.get("sub").and_then(Value::as_str).is_some_and(|s| s.starts_with("spiffe://")))
}
