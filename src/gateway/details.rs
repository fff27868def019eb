//! Tokens for exact operations (RFC 9396): whether a request is one of them, and the use that it takes.

use crate::domain::digest::Sha256;
use crate::domain::intent::Intent;
use crate::domain::refusal::{OauthError, Refusal};
use crate::gateway::approve::Asking;
use crate::gateway::serve::Gateway;
use crate::protocol::access_token::Claims;
use crate::protocol::authorization_details::Detail;

/// The details of a token that cover a request.
fn covering<'a>(claims: &'a Claims, intent: &Intent) -> Vec<&'a Detail> {
    claims.details.iter().filter(|d| d.covers(&intent.operation, &intent.object)).collect()
}

/// A token with details is good for what they name alone.
pub fn check(claims: &Claims, intent: &Intent) -> Result<(), Refusal> {
    if claims.details.is_empty() || !covering(claims, intent).is_empty() {
        return Ok(());
    }
    let detail = format!("the token's authorization details do not cover {} of {}", intent.operation, intent.object);
    Err(Refusal::new(403, "insufficient-details", detail).with_error(OauthError::InsufficientScope))
}

/// Whether a request would be paid with a use.
pub fn counted(claims: &Claims, intent: &Intent) -> bool {
    let covering = covering(claims, intent);
    !covering.is_empty() && covering.iter().all(|d| d.uses.is_some())
}

impl Gateway {
    /// Takes a use where every detail that covers the request is counted; gives the grant it was taken of. It is taken with
    /// the permit and never given back: nobody could say what upstream did.
    pub(super) async fn take_use(&self, asking: &Asking<'_>) -> Result<Option<Sha256>, Refusal> {
        let claims = &asking.caller.token.claims;
        let covering = covering(claims, asking.intent);
        if !counted(claims, asking.intent) {
            return Ok(None);
        }
        let grantee = claims.grantee();
        for detail in &covering {
            let grant = detail.grant(grantee.as_str(), &claims.aud);
            if self.stores.uses.take(grant, grantee, detail.uses.unwrap_or_default()).await? {
                return Ok(Some(grant));
            }
        }
        let spent = covering[0];
        let object = spent.identifier.as_deref().map(|i| format!(" of {i}")).unwrap_or_default();
        let detail = format!(
            "the {} uses of {}{object} that {grantee} was granted are spent; another token shares the same count",
            spent.uses.unwrap_or_default(),
            spent.actions.join(", "),
        );
        Err(Refusal::new(403, "uses-spent", detail).with_error(OauthError::InsufficientScope))
    }
}
