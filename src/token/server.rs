//! The token listener: the endpoints' answers and challenges.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use crate::domain::leaf::{Event, Staged};
use crate::domain::refusal::{OauthError, Refusal};
use crate::net::body;
use crate::net::listener::Peer;
use crate::protocol::json;
use crate::protocol::jwk::Algorithm;
use crate::store::entropy;
use crate::token::endpoint::{Minted, TokenPlane};
use crate::token::events::EventError;
use crate::token::grants::Grant;
use crate::token::introspect;
use crate::token::metadata;
use crate::token::scim::{self, ScimError};

/// Longest event or SCIM document.
const MAX_DOCUMENT: usize = 256 * 1024;

/// The listener's routes.
pub fn router(plane: Arc<TokenPlane>) -> Router {
    let router = Router::new()
        .route("/token", post(token))
        .route("/introspect", post(introspection))
        .route("/revoke", post(revocation))
        .route("/jwks.json", get(jwks))
        .route("/.well-known/oauth-authorization-server", get(document))
        .route("/.well-known/openid-configuration", get(document))
        .route("/ssf/events", post(events))
        .route("/scim/v2/ServiceProviderConfig", get(scim_configuration))
        .route("/scim/v2/ResourceTypes", get(scim_types))
        .route("/scim/v2/Users", get(scim_users).post(scim_user))
        .route("/scim/v2/Users/{id}", get(scim_user).put(scim_user).patch(scim_user).delete(scim_user))
        .fallback(nothing_here)
        .method_not_allowed_fallback(async || {
            nothing(StatusCode::METHOD_NOT_ALLOWED, "this method is not offered here")
        });
    // What no page may ask goes past nothing that looks for pages.
    let router = if plane.cors.is_empty() {
        router
    } else {
        router.layer(middleware::from_fn_with_state(plane.clone(), cross_origin))
    };
    router.with_state(plane)
}

type Plane = State<Arc<TokenPlane>>;
type From = Extension<Arc<Peer>>;

async fn token(State(plane): Plane, Extension(peer): From, request: Request<Body>) -> Response<Body> {
    let request_id = entropy::random_id();
    match plane.grant(&peer, request, &request_id).await {
        Ok(minted) => granted(&minted),
        Err(refusal) => refused(&plane, &refusal, &request_id).await,
    }
}

fn granted(minted: &Minted) -> Response<Body> {
    let mut document = json!({
        "access_token": minted.token.expose(),
        "token_type": "DPoP",
        "expires_in": minted.expires_in,
        "scope": minted.scope,
    });
    if !minted.details.is_empty() {
        document["authorization_details"] = json!(minted.details);
    }
    if minted.grant == Grant::TokenExchange {
        document["issued_token_type"] = "urn:ietf:params:oauth:token-type:access_token".into();
    }
    answer(StatusCode::OK, &document)
}

async fn introspection(State(plane): Plane, Extension(peer): From, request: Request<Body>) -> Response<Body> {
    let request_id = entropy::random_id();
    let run = async || {
        let (client, form, headers) = plane.asked(&peer, request).await?;
        let told = plane.introspect(&client, &form)?;
        let wants = |v: &HeaderValue| v.to_str().is_ok_and(|v| v.split(',').any(|t| media(t) == introspect::SIGNED));
        Ok(if headers.get_all(header::ACCEPT).iter().any(wants) {
            text(StatusCode::OK, introspect::SIGNED, plane.signed(&client, &told))
        } else {
            answer(StatusCode::OK, &told)
        })
    };
    match run().await {
        Ok(response) => response,
        Err(refusal) => refused(&plane, &refusal, &request_id).await,
    }
}

fn media(text: &str) -> String {
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

async fn revocation(State(plane): Plane, Extension(peer): From, request: Request<Body>) -> Response<Body> {
    let request_id = entropy::random_id();
    let run = async || {
        let (client, form, _) = plane.asked(&peer, request).await?;
        plane.revoke(&client, &form).await
    };
    match run().await {
        Ok(()) => answer(StatusCode::OK, &json!({})),
        Err(refusal) => refused(&plane, &refusal, &request_id).await,
    }
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
        &json!({"error": error.to_string(), "error_description": described(&refusal.detail), "request_id": request_id}),
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

/// RFC 6749 section 5.2: a description is of printable ASCII characters less `"` and `\`.
fn described(detail: &str) -> String {
    let plain = |c: char| match c {
        '"' => '\'',
        '\\' => '/',
        c if c.is_ascii() && !c.is_ascii_control() => c,
        _ => '?',
    };
    detail.replace('§', "section ").chars().map(plain).collect()
}

async fn jwks(State(plane): Plane) -> Response<Body> {
    answer(StatusCode::OK, &metadata::jwks(&plane))
}

async fn document(State(plane): Plane) -> Response<Body> {
    answer(StatusCode::OK, &metadata::document(&plane))
}

/// RFC 8935: 202 and no body once the event is dealt with.
async fn events(State(plane): Plane, Extension(peer): From, request: Request<Body>) -> Response<Body> {
    let run = async || {
        plane.limit_source(peer.address.map(|a| a.ip()))?;
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let bad = |detail: &str| EventError { status: 400, code: "invalid_request", detail: detail.to_owned() };
        if media(kind) != "application/secevent+jwt" {
            return Err(bad("the content type is not application/secevent+jwt"));
        }
        let bytes = body::read(body, MAX_DOCUMENT).await.map_err(|e| bad(&e.to_string()))?;
        let token = std::str::from_utf8(&bytes).map_err(|_| bad("the body is no text"))?;
        plane.pushed(token.trim(), bearer(&parts.headers)).await
    };
    match run().await {
        Ok(()) => text(StatusCode::ACCEPTED, "application/json", String::new()),
        Err(error) => {
            tracing::warn!(status = error.status, code = error.code, detail = error.detail, "event refused");
            let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
            challenged(answer(status, &json!({"err": error.code, "description": described(&error.detail)})))
        }
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

async fn nothing_here(request: Request<Body>) -> Response<Body> {
    if request.uri().path().starts_with("/scim/") {
        return scim_answer(Err(Refusal::new(404, "not-found", "of SCIM, Users is offered here").into()));
    }
    nothing(StatusCode::NOT_FOUND, "nothing is here; /.well-known/oauth-authorization-server tells what is where")
}

fn nothing(status: StatusCode, detail: &str) -> Response<Body> {
    answer(status, &json!({"error": "invalid_request", "error_description": detail}))
}

async fn scim_configuration() -> Response<Body> {
    scim_answer(Ok((200, scim::service_provider_config())))
}

async fn scim_types() -> Response<Body> {
    scim_answer(Ok((200, scim::resource_types())))
}

async fn scim_users(
    State(plane): Plane,
    Extension(peer): From,
    Query(query): Query<Map<String, Value>>,
    headers: HeaderMap,
) -> Response<Body> {
    let run = async || {
        plane.limit_source(peer.address.map(|a| a.ip()))?;
        let client = plane.scim_client(bearer(&headers))?;
        plane.scim_list(client, &query).await
    };
    scim_answer(run().await)
}

async fn scim_user(
    State(plane): Plane,
    Extension(peer): From,
    id: Option<Path<String>>,
    request: Request<Body>,
) -> Response<Body> {
    let run = async || {
        plane.limit_source(peer.address.map(|a| a.ip()))?;
        let (parts, body) = request.into_parts();
        let client = plane.scim_client(bearer(&parts.headers))?;
        let id = id.map(|Path(id)| id).unwrap_or_default();
        if parts.method == Method::GET {
            return plane.scim_get(client, &id).await;
        }
        if parts.method == Method::DELETE {
            return plane.scim_delete(client, &id).await;
        }
        let bad = |detail: String| ScimError::from(Refusal::new(400, "input", detail));
        let bytes = body::read(body, MAX_DOCUMENT).await.map_err(|e| bad(e.to_string()))?;
        let document = json::parse(&bytes).map_err(|e| bad(format!("the body is not strict JSON: {e}")))?;
        match parts.method {
            Method::POST => plane.scim_create(client, document).await,
            Method::PUT => plane.scim_replace(client, &id, document).await,
            _ => plane.scim_patch(client, &id, &document).await,
        }
    };
    scim_answer(run().await)
}

fn scim_answer(result: Result<(u16, Value), ScimError>) -> Response<Body> {
    let (status, document) = result.unwrap_or_else(|error| {
        tracing::info!(status = error.status, document = %error.document(), "SCIM refused");
        (error.status, error.document())
    });
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = if document.is_null() { String::new() } else { document.to_string() };
    let mut response = text(status, "application/scim+json", body);
    // RFC 7644 section 3.3: where a new user is.
    let location = document["meta"]["location"].as_str().filter(|_| status == StatusCode::CREATED);
    if let Some(location) = location.and_then(|l| HeaderValue::from_str(l).ok()) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    challenged(response)
}

/// RFC 9110 section 15.5.2: a 401 says what would do.
fn challenged(mut response: Response<Body>) -> Response<Body> {
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Pages of configured origins may ask and read the challenges; the others' browsers keep the answers from them (E3).
async fn cross_origin(State(plane): Plane, request: Request<Body>, next: Next) -> Response<Body> {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.filter(|o| o.to_str().is_ok_and(|o| plane.cors.iter().any(|c| c == o)));
    let Some(origin) = allowed else { return next.run(request).await };
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response =
        if preflight { text(StatusCode::NO_CONTENT, "text/plain", String::new()) } else { next.run(request).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("DPoP, Content-Type"));
    } else {
        let exposed = HeaderValue::from_static("DPoP-Nonce, WWW-Authenticate");
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    response
}

fn answer(status: StatusCode, document: &Value) -> Response<Body> {
    text(status, "application/json", document.to_string())
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
