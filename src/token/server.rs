//! The token listener: the endpoint's answers and challenges.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::domain::leaf::{Event, Staged};
use crate::domain::refusal::{OauthError, Refusal};
use crate::net::listener::Peer;
use crate::protocol::jwk::Algorithm;
use crate::store::entropy;
use crate::token::endpoint::{Minted, TokenPlane};
use crate::token::metadata;

/// The listener's routes.
pub fn router(plane: Arc<TokenPlane>) -> Router {
    Router::new()
        .route("/token", post(token))
        .route("/jwks.json", get(jwks))
        .route("/.well-known/oauth-authorization-server", get(document))
        .route("/.well-known/openid-configuration", get(document))
        .with_state(plane)
}

type Plane = State<Arc<TokenPlane>>;

async fn token(State(plane): Plane, Extension(peer): Extension<Arc<Peer>>, request: Request<Body>) -> Response<Body> {
    let request_id = entropy::random_id();
    match plane.grant(&peer, request, &request_id).await {
        Ok(minted) => granted(&minted),
        Err(refusal) => refused(&plane, &refusal, &request_id).await,
    }
}

fn granted(minted: &Minted) -> Response<Body> {
    answer(
        StatusCode::OK,
        &json!({
            "access_token": minted.token.expose(),
            "token_type": "DPoP",
            "expires_in": minted.expires_in,
            "scope": minted.scope,
        }),
    )
}

/// RFC 6749 section 5.2, with a challenge on 401 and a nonce where one is asked for (RFC 9449 section 8).
async fn refused(plane: &TokenPlane, refusal: &Refusal, request_id: &str) -> Response<Body> {
    tracing::info!(%request_id, status = refusal.status, kind = refusal.kind, detail = refusal.detail, cause = refusal.cause, "token refused");
    metrics::counter!("popgate_tokens_refused_total", "kind" => refusal.kind).increment(1);
    plane.stores.evidence.note(Staged::plain(
        plane.stores.clock.now(),
        Event::Refusal {
            request_id: request_id.to_owned(),
            plane: "token".into(),
            status: refusal.status,
            check: refusal.kind.into(),
            claimed: None,
            proof_sha256: None,
        },
    ));
    let error = refusal.error.unwrap_or(OauthError::InvalidRequest);
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = answer(
        status,
        &json!({"error": error.to_string(), "error_description": refusal.detail.replace('§', "section "), "request_id": request_id}),
    );
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        let challenge = format!("DPoP error=\"{error}\", algs=\"{}\"", Algorithm::NAMES.join(" "));
        headers.extend(HeaderValue::from_str(&challenge).map(|v| (header::WWW_AUTHENTICATE, v)));
    }
    if let Some(seconds) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if error == OauthError::UseDpopNonce
        && let Some(nonce) = plane.nonce().await.and_then(|n| HeaderValue::from_str(&n).ok())
    {
        headers.insert(HeaderName::from_static("dpop-nonce"), nonce);
    }
    response
}

async fn jwks(State(plane): Plane) -> Response<Body> {
    answer(StatusCode::OK, &metadata::jwks(&plane))
}

async fn document(State(plane): Plane) -> Response<Body> {
    answer(StatusCode::OK, &metadata::document(&plane))
}

fn answer(status: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
