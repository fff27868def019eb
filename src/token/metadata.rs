//! Authorization server metadata (RFC 8414) and keys (RFC 7517).

use serde_json::{Value, json};

use crate::protocol::jwk::Algorithm;
use crate::store::keys::KeyUse;
use crate::token::endpoint::TokenPlane;

/// The metadata document: the same at the RFC 8414 location and at OpenID's, for clients that look only there.
pub fn document(plane: &TokenPlane) -> Value {
    let issuer = &plane.issuer;
    json!({
        "issuer": issuer,
        "token_endpoint": plane.token_url.as_str(),
        "jwks_uri": format!("{issuer}/jwks.json"),
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ["tls_client_auth"],
        "tls_client_certificate_bound_access_tokens": true,
        "dpop_signing_alg_values_supported": Algorithm::NAMES,
        "authorization_details_types_supported": [],
        "protected_resources": plane.resources.load().iter().map(|r| &r.url).collect::<Vec<_>>(),
    })
}

/// The keys that access tokens may be signed with.
pub fn jwks(plane: &TokenPlane) -> Value {
    plane.stores.keys.key_set(KeyUse::AccessToken, plane.stores.clock.now())
}
