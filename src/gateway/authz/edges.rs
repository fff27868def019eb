//! The listener that edges ask: who they may be, and what nginx and Envoy say over HTTP.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::any;
use http::{HeaderMap, StatusCode, Uri, header};

use crate::domain::refusal::Refusal;
use crate::gateway::authorize;
use crate::gateway::authz::peers::Peers;
use crate::gateway::authz::{Told, envoy};
use crate::gateway::serve::Gateway;
use crate::net::body::AnyBody;
use crate::net::listener::Peer;
use crate::net::problem;

/// Where Envoy's HTTP service is, as its `path_prefix`.
const ENVOY: &str = "/envoy";
const METHOD: &str = "x-original-method";
const TARGET: &str = "x-original-uri";
const ROUTE: &str = "x-original-route";

/// All that edges ask.
pub fn router(gateway: Arc<Gateway>, peers: Peers) -> Router {
    let envoy_http = || any(envoy_http);
    let http = Router::new()
        .route("/auth", any(nginx))
        .route(ENVOY, envoy_http())
        .route(&format!("{ENVOY}/"), envoy_http())
        .route(&format!("{ENVOY}/{{*path}}"), envoy_http())
        .with_state(gateway.clone());
    envoy::routes(gateway).merge(http).layer(middleware::from_fn_with_state(peers, believed))
}

/// What a stranger says of other people's requests counts for nothing.
async fn believed(State(peers): State<Peers>, request: Request, next: Next) -> Response {
    let known = request.extensions().get::<Arc<Peer>>().is_some_and(|peer| peers.has(peer));
    if known {
        return next.run(request).await;
    }
    tracing::warn!(peer = ?request.extensions().get::<Arc<Peer>>().and_then(|p| p.address), "not one of authz.peers asked for a decision");
    let refusal = Refusal::new(403, "edge", "the asking address is not one of authz.peers");
    problem::response(&refusal, "").map(Body::new)
}

/// `auth_request`: the request is told in headers, and nginx takes 2xx, 401 and 403 for answers.
async fn nginx(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    let one = |name: &str| authorize::one_header(&head.headers, name).ok().flatten();
    // Said twice is not said: it must not count as a route that nobody names.
    let route = authorize::one_header(&head.headers, ROUTE);
    let told = match (one(METHOD), one(TARGET), route) {
        (Some(method), Some(target), Ok(route)) => Told::new(&method, &target, of_client(head.headers), route),
        _ => Err(Refusal::new(
            400,
            "edge",
            "the edge must say each of X-Original-Method, -URI and -Route once: see its set-up in the documentation",
        )),
    };
    let mut response = answered(gateway.for_edge(told).await);
    if response.status().is_client_error() && response.status() != StatusCode::UNAUTHORIZED {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}

/// Envoy's HTTP service: method, headers and path are the client's, behind a prefix.
async fn envoy_http(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    let target = head.uri.path_and_query().map(http::uri::PathAndQuery::as_str).unwrap_or_default();
    let target = target.strip_prefix(ENVOY).unwrap_or_default();
    // Envoy tells nothing of its own in headers: these are the client's.
    let mut headers = head.headers;
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    // Over HTTP/2 the host is in the target.
    if let Some(host) = authority(&head.uri).filter(|_| !headers.contains_key(header::HOST)) {
        headers.insert(header::HOST, host);
    }
    let told = Told::new(head.method.as_str(), if target.is_empty() { "/" } else { target }, headers, None);
    answered(gateway.for_edge(told).await)
}

fn authority(uri: &Uri) -> Option<http::HeaderValue> {
    uri.authority().and_then(|a| a.as_str().parse().ok())
}

/// What the edge says itself, and what frames its own request, is not the client's.
fn of_client(mut headers: HeaderMap) -> HeaderMap {
    for name in [METHOD, TARGET, ROUTE, "content-length", "transfer-encoding"] {
        headers.remove(name);
    }
    headers
}

fn answered(judged: Result<HeaderMap, http::Response<AnyBody>>) -> Response {
    match judged {
        Ok(headers) => {
            let mut response = Response::new(Body::empty());
            *response.headers_mut() = headers;
            response
        }
        Err(refused) => refused.map(Body::new),
    }
}
