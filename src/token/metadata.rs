//! Authorization server metadata (RFC 8414) and keys (RFC 7517).

use serde_json::{Value, json};

use crate::protocol::authorization_details;
use crate::protocol::jwk::Algorithm;
use crate::store::keys::KeyUse;
use crate::token::endpoint::TokenPlane;

/// The metadata document: the same at the RFC 8414 location and at OpenID's, for clients that look only there.
pub fn document(plane: &TokenPlane) -> Value {
    let issuer = &plane.issuer;
    let offer = plane.offer.load();
    let keyed = ["tls_client_auth", "private_key_jwt"];
    let mut methods = keyed.to_vec();
    methods.extend(plane.jwt_svid_clients.then_some("spiffe_jwt"));
    let mut scopes: Vec<&String> = offer.resources.iter().flat_map(|r| &r.operations).collect();
    scopes.sort();
    scopes.dedup();
    json!({
        "issuer": issuer,
        "token_endpoint": plane.token_url.as_str(),
        "jwks_uri": format!("{issuer}/jwks.json"),
        "introspection_endpoint": format!("{issuer}/introspect"),
        "revocation_endpoint": format!("{issuer}/revoke"),
        "response_types_supported": [],
        "grant_types_supported": plane.grant_types(),
        "scopes_supported": scopes,
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": Algorithm::NAMES,
        "introspection_endpoint_auth_methods_supported": keyed,
        "introspection_endpoint_auth_signing_alg_values_supported": Algorithm::NAMES,
        "introspection_signing_alg_values_supported": ["ES256"],
        "revocation_endpoint_auth_methods_supported": keyed,
        "revocation_endpoint_auth_signing_alg_values_supported": Algorithm::NAMES,
        "tls_client_certificate_bound_access_tokens": true,
        "dpop_signing_alg_values_supported": Algorithm::NAMES,
        "authorization_details_types_supported": [authorization_details::TYPE],
        "protected_resources": offer.resources.iter().map(|r| &r.url).collect::<Vec<_>>(),
    })
}

/// The keys that access tokens may be signed with.
pub fn jwks(plane: &TokenPlane) -> Value {
    plane.stores.keys.key_set(KeyUse::AccessToken, plane.stores.clock.now())
}
