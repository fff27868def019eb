//! What the gateway answers itself: resource metadata (RFC 9728), its transaction-token keys, and a caller's own approvals.

use http::{HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::domain::refusal::Refusal;
use crate::gateway::authenticate::{Demand, Unproved};
use crate::gateway::config::Access;
use crate::gateway::read::Incoming;
use crate::gateway::serve::Gateway;
use crate::net::body::{AnyBody, full};
use crate::net::listener::Peer;
use crate::protocol::jwk::Algorithm;
use crate::store::keys::KeyUse;

const METADATA: &str = "/.well-known/oauth-protected-resource";
const APPROVALS: &str = "/.popgate/approvals/";

impl Gateway {
    /// The answer to a request for the gateway itself; none if it is for a route.
    pub async fn own(&self, peer: &Peer, request: &Incoming) -> Option<Result<Response<AnyBody>, Unproved>> {
        let path = request.path.as_str();
        if let Some(resource) = path.strip_prefix(METADATA) {
            return Some(read_only(request).and_then(|()| self.metadata(resource)).map_err(Into::into));
        }
        if path == "/.well-known/txn-jwks.json" {
            let document = read_only(request).map(|()| answer(StatusCode::OK, &self.txn_jwks()));
            return Some(document.map_err(Into::into));
        }
        if let Some(id) = path.strip_prefix(APPROVALS) {
            return Some(self.own_approval(peer, request, id).await);
        }
        // The prefix is never proxied.
        path.starts_with("/.popgate").then(|| Err(not_found().into()))
    }

    fn metadata(&self, path: &str) -> Result<Response<AnyBody>, Refusal> {
        let rules = self.rules.load();
        let wanted = format!("{}{path}", self.origins[0].as_str());
        let found = rules.routes().iter().filter(|r| r.access != Access::DangerPublic).find(|r| {
            r.resource == wanted || (path.is_empty() && r.resource.strip_suffix('/') == Some(wanted.as_str()))
        });
        let route = found.ok_or_else(not_found)?;
        let scopes: Vec<&str> = route.operations.iter().map(|o| o.name.as_str()).collect();
        Ok(answer(
            StatusCode::OK,
            &json!({
                "resource": route.resource,
                "authorization_servers": [self.issuer],
                "scopes_supported": scopes,
                "bearer_methods_supported": [],
                "dpop_bound_access_tokens_required": true,
                "dpop_signing_alg_values_supported": Algorithm::NAMES,
                "tls_client_certificate_bound_access_tokens": route.access == Access::ProofAndCertificate,
            }),
        ))
    }

    /// The keys of transaction tokens.
    pub fn txn_jwks(&self) -> Value {
        self.stores.keys.key_set(KeyUse::TxnToken, self.stores.clock.now())
    }

    /// Shown only to the workload and key that asked.
    async fn own_approval(&self, peer: &Peer, request: &Incoming, id: &str) -> Result<Response<AnyBody>, Unproved> {
        let caller =
            self.authenticate(peer, request, &Demand { resource: None, certificate: false, nonce: false }).await?;
        read_only(request)?;
        let found = self.stores.approvals.get(id).await.map_err(Refusal::from)?;
        let own = found.filter(|a| a.requester == caller.token.claims.client_id && a.jkt == caller.jkt());
        let approval = own.ok_or_else(not_found)?;
        Ok(answer(
            StatusCode::OK,
            &json!({"id": approval.id, "state": approval.state, "expires_at": approval.expires_at.rfc3339()}),
        ))
    }

    /// Where the metadata of a path's resource is, for challenges.
    pub fn metadata_url(&self, path: &str) -> String {
        let origin = self.origins[0].as_str();
        let rules = self.rules.load();
        // A path without a route is told like the broadest resource: who proves itself learns that there is nothing.
        let proved = || rules.routes().iter().filter(|r| r.access != Access::DangerPublic);
        let of_path = proved().find(|r| r.matcher.path.matches(path).is_some());
        let route = of_path.or_else(|| proved().min_by_key(|r| r.resource.len()));
        let resource = route.and_then(|r| r.resource.strip_prefix(origin).map(ToOwned::to_owned));
        format!("{origin}{METADATA}{}", resource.unwrap_or_default())
    }
}

fn read_only(request: &Incoming) -> Result<(), Refusal> {
    if matches!(request.head.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    Err(Refusal::new(405, "method", "this document is read with GET"))
}

fn not_found() -> Refusal {
    Refusal::new(404, "not-found", "there is nothing here for you")
}

fn answer(status: StatusCode, document: &Value) -> Response<AnyBody> {
    let mut response = Response::new(full(document.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
