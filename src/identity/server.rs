//! The identity listener: enrol, renew, and the documents that trust rests on.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::domain::leaf::{Event, Staged};
use crate::domain::refusal::Refusal;
use crate::domain::secret::JoinToken;
use crate::domain::time::Timestamp;
use crate::identity::authority::Made;
use crate::identity::enrol::Enrolment;
use crate::net::body;
use crate::net::files;
use crate::net::listener::Peer;
use crate::net::problem;
use crate::protocol::json;
use crate::protocol::svid::X509Svid;
use crate::store::entropy;

const MAX_BODY: usize = 64 * 1024;

/// Where clients find the other listeners.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Servers {
    /// This listener.
    pub identity: String,
    /// Token service.
    pub token: String,
    /// Gateway.
    pub gateway: String,
    /// Administration.
    pub admin: String,
}

/// The plane's state.
pub struct IdentityPlane {
    /// Issues.
    pub enrolment: Enrolment,
    /// Told with each certificate.
    pub servers: Servers,
}

/// The listener's routes.
pub fn router(plane: Arc<IdentityPlane>) -> Router {
    Router::new()
        .route("/v1/attest", post(attest))
        .route("/v1/renew", post(renew))
        .route("/bundle.json", get(bundle))
        .route("/ca.pem", get(ca))
        .with_state(plane)
}

type Plane = State<Arc<IdentityPlane>>;

async fn attest(State(plane): Plane, body: Body) -> Response<Body> {
    let result = attest_steps(&plane, body).await;
    answer(&plane, result)
}

async fn attest_steps(plane: &IdentityPlane, body: Body) -> Result<(Made, Timestamp), Refusal> {
    let request = read_json(body).await?;
    let member = |name: &str| request.get(name).and_then(Value::as_str);
    match member("method") {
        Some("join_token") => {}
        _ => return Err(Refusal::new(400, "method", "method is not one that this server attests by: join_token")),
    }
    let token = member("join_token").unwrap_or_default();
    let token = JoinToken::parse(token).map_err(|e| Refusal::new(401, "join-token", e.to_string()))?;
    plane.enrolment.attest(&token, &csr(&request)?).await
}

async fn renew(State(plane): Plane, Extension(peer): Extension<Arc<Peer>>, body: Body) -> Response<Body> {
    let result = renew_steps(&plane, &peer, body).await;
    answer(&plane, result)
}

async fn renew_steps(plane: &IdentityPlane, peer: &Peer, body: Body) -> Result<(Made, Timestamp), Refusal> {
    let leaf = peer.leaf.as_ref().ok_or_else(|| {
        Refusal::new(
            401,
            "certificate",
            "a renewal needs the certificate that is to be renewed, and the connection has none",
        )
    })?;
    let old = X509Svid::parse(leaf).map_err(|e| Refusal::new(401, "certificate", e.to_string()))?;
    let request = read_json(body).await?;
    plane.enrolment.renew(&old, &csr(&request)?).await
}

async fn read_json(body: Body) -> Result<Map<String, Value>, Refusal> {
    let bytes = body::read(body, MAX_BODY).await.map_err(|e| Refusal::new(400, "body", e.to_string()))?;
    json::parse_object(&bytes).map_err(|e| Refusal::new(400, "body", format!("the body is not a JSON object: {e}")))
}

fn csr(request: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let text = request.get("csr").and_then(Value::as_str).unwrap_or_default();
    BASE64_STANDARD.decode(text).map_err(|_| Refusal::new(400, "csr", "csr is not base64 of a DER certificate request"))
}

fn answer(plane: &IdentityPlane, result: Result<(Made, Timestamp), Refusal>) -> Response<Body> {
    match result {
        Ok((made, renew_after)) => created(plane, &made, renew_after),
        Err(refusal) => refused(plane, &refusal),
    }
}

fn created(plane: &IdentityPlane, made: &Made, renew_after: Timestamp) -> Response<Body> {
    let chain: Vec<String> = made.chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
    let document = json!({
        "spiffe_id": made.svid.spiffe_id,
        "svid": chain,
        "bundle": plane.enrolment.authority.bundle().to_jwks(),
        "not_after": made.svid.not_after.rfc3339(),
        "renew_after": renew_after.rfc3339(),
        "servers": plane.servers,
    });
    document_response(StatusCode::CREATED, "application/json", document.to_string())
}

fn refused(plane: &IdentityPlane, refusal: &Refusal) -> Response<Body> {
    let request_id = entropy::random_id();
    tracing::info!(%request_id, status = refusal.status, kind = refusal.kind, cause = refusal.cause, "enrolment refused");
    metrics::counter!("popgate_enrolments_refused_total", "kind" => refusal.kind).increment(1);
    let stores = &plane.enrolment.stores;
    stores.evidence.note(Staged::plain(
        stores.clock.now(),
        Event::Refusal {
            request_id: request_id.clone(),
            plane: "identity".into(),
            status: refusal.status,
            check: refusal.kind.into(),
            claimed: None,
            proof_sha256: None,
        },
    ));
    problem::response(refusal, &request_id).map(Body::new)
}

async fn bundle(State(plane): Plane) -> Response<Body> {
    document_response(StatusCode::OK, "application/json", plane.enrolment.authority.bundle().to_jwks().to_string())
}

async fn ca(State(plane): Plane) -> Response<Body> {
    document_response(StatusCode::OK, "application/x-pem-file", files::pem(plane.enrolment.authority.root_der()))
}

fn document_response(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
