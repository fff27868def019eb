//! The identity listener: enrol, renew, and the documents that trust rests on.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::domain::leaf::{Event, Staged};
use crate::domain::refusal::Refusal;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::identity::agents::AgentCaller;
use crate::identity::attest::Evidence;
use crate::identity::authority::Made;
use crate::identity::enrol::{Enrolment, Issued};
use crate::identity::revocation_lists::RevocationLists;
use crate::net::body;
use crate::net::files;
use crate::net::listener::{Drain, Peer};
use crate::net::problem;
use crate::protocol::json;
use crate::protocol::svid::X509Svid;
use crate::store::entropy;

const MAX_BODY: usize = 64 * 1024;
const MAX_BATCH: usize = 2 << 20;
/// Most certificates that an agent asks for at once.
const MAX_ORDERS: usize = 512;

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
    pub enrolment: Arc<Enrolment>,
    /// Revocation lists.
    pub lists: Arc<RevocationLists>,
    /// Told with each certificate.
    pub servers: Servers,
    /// Streams that must end before the service does.
    pub drain: Drain,
    /// What must end before the evidence log closes.
    pub tasks: TaskTracker,
}

/// Does a change to its end, whether its caller waits or not: one that is cut in half is nobody's.
async fn whole<T: Send + 'static>(
    plane: &IdentityPlane,
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let ended = plane.tasks.spawn(change).await;
    ended.unwrap_or_else(|error| Err(Refusal::unavailable("the identity service", error)))
}

/// The listener's routes.
pub fn router(plane: Arc<IdentityPlane>) -> Router {
    Router::new()
        .route("/v1/attest", post(attest))
        .route("/v1/renew", post(renew))
        .route("/v1/jwt-svid", post(jwt_svid))
        .route("/v1/downstream", post(downstream))
        .route("/v1/agent/updates", get(agent_updates))
        .route("/v1/agent/svids", post(agent_svids))
        .route("/v1/agent/jwt-svid", post(agent_jwt_svid))
        .route("/bundle.json", get(bundle))
        .route("/crl.der", get(crl_der))
        .route("/crl.pem", get(crl_pem))
        .route("/ca.pem", get(ca))
        .with_state(plane)
}

/// The bundle alone, for a bundle endpoint of its own (SPIFFE Federation section 5).
pub fn bundle_router(plane: Arc<IdentityPlane>) -> Router {
    Router::new().route("/", get(bundle)).route("/bundle.json", get(bundle)).with_state(plane)
}

type Plane = State<Arc<IdentityPlane>>;
type From = Extension<Arc<Peer>>;

async fn attest(State(plane): Plane, body: Body) -> Response<Body> {
    let result = match read_json(body).await {
        Ok(request) => {
            let inner = plane.clone();
            whole(&plane, async move { attest_steps(&inner, &request).await }).await
        }
        Err(refusal) => Err(refusal),
    };
    answer(&plane, result)
}

async fn attest_steps(plane: &IdentityPlane, request: &Map<String, Value>) -> Result<Issued, Refusal> {
    let member = |name: &str| request.get(name).and_then(Value::as_str);
    let method = member("method").unwrap_or_default();
    let csr = csr(request)?;
    let as_node = request.get("node").and_then(Value::as_bool).unwrap_or(false);
    if method == "join_token" {
        let token = JoinToken::parse(member("join_token").unwrap_or_default());
        let token = token.map_err(|e| Refusal::new(401, "join-token", e.to_string()))?;
        return plane.enrolment.join(&token, &csr, as_node).await;
    }
    let wanted = member("spiffe_id").map(spiffe_id).transpose()?;
    let audience = plane.enrolment.authority.trust_domain().id();
    let now = plane.enrolment.stores.clock.now();
    let evidence = Evidence { members: request, audience: &audience, csr: &csr, now };
    plane.enrolment.attest(method, &evidence, wanted.as_ref(), as_node).await
}

fn spiffe_id(text: &str) -> Result<SpiffeId, Refusal> {
    text.parse().map_err(|e| Refusal::new(400, "spiffe-id", format!("spiffe_id is no SPIFFE ID: {e}")))
}

async fn renew(State(plane): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    let result = renew_steps(&plane, &peer, body).await;
    answer(&plane, result)
}

async fn renew_steps(plane: &IdentityPlane, peer: &Peer, body: Body) -> Result<Issued, Refusal> {
    let request = read_json(body).await?;
    let (old, csr, enrolment) = (certificate(plane, peer)?, csr(&request)?, plane.enrolment.clone());
    whole(plane, async move { enrolment.renew(&old, &csr).await }).await
}

/// The certificate of the connection, if it is valid still: connections outlive handshakes.
fn certificate(plane: &IdentityPlane, peer: &Peer) -> Result<X509Svid, Refusal> {
    let leaf = peer.leaf.as_ref().ok_or_else(|| {
        Refusal::new(401, "certificate", "this needs the caller's certificate, and the connection has none")
    })?;
    let svid = X509Svid::parse(leaf).map_err(|e| Refusal::new(401, "certificate", e.to_string()))?;
    if plane.enrolment.stores.clock.now() >= svid.not_after {
        return Err(Refusal::new(401, "certificate", "the certificate of this connection has ended"));
    }
    Ok(svid)
}

/// The agent of the connection.
fn agent(plane: &IdentityPlane, peer: &Peer) -> Result<AgentCaller, Refusal> {
    plane.enrolment.agent(&certificate(plane, peer)?)
}

async fn agent_updates(State(plane): Plane, Extension(peer): From) -> Response<Body> {
    let caller = match agent(&plane, &peer) {
        Ok(caller) => caller,
        Err(refusal) => return refused(&plane, &refusal),
    };
    tracing::info!(node = %caller.node, "an agent listens");
    let (sender, mut lines) = mpsc::channel(4);
    let (enrolment, lists, mut drain) = (plane.enrolment.clone(), plane.lists.clone(), plane.drain.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = enrolment.tell_agent(caller, lists, sender) => {}
            () = drain.begun() => {}
        }
    });
    let stream = futures_util::stream::poll_fn(move |cx| lines.poll_recv(cx).map(|l| l.map(Ok::<_, Infallible>)));
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

async fn agent_svids(State(plane): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    match agent_svids_steps(&plane, &peer, body).await {
        Ok(document) => document_response(StatusCode::OK, "application/json", document.to_string()),
        Err(refusal) => refused(&plane, &refusal),
    }
}

async fn agent_svids_steps(plane: &IdentityPlane, peer: &Peer, body: Body) -> Result<Value, Refusal> {
    let request = read_json_up_to(body, MAX_BATCH).await?;
    let caller = agent(plane, peer)?;
    let orders = request.get("orders").and_then(Value::as_array).filter(|o| o.len() <= MAX_ORDERS);
    let orders = orders.ok_or_else(|| Refusal::new(400, "orders", "orders is a list of at most 512"))?;
    let order = |order: &Value| {
        let order = order.as_object().ok_or_else(|| Refusal::new(400, "orders", "an order is an object"))?;
        Ok((spiffe_id(order.get("spiffe_id").and_then(Value::as_str).unwrap_or_default())?, csr(order)?))
    };
    let orders = orders.iter().map(order).collect::<Result<Vec<_>, Refusal>>()?;
    let issued = plane.enrolment.issue_through(&caller, &orders).await;
    let shown = |((id, _), result): (&(SpiffeId, Vec<u8>), Result<Issued, Refusal>)| match result {
        Ok((made, renew_after)) => certificate_document(&made, renew_after),
        Err(refusal) => {
            tracing::info!(spiffe_id = %id, node = %caller.node, kind = refusal.kind, cause = refusal.cause, "an agent's order is refused");
            json!({"spiffe_id": id, "refused": problem::document(&refusal, "")})
        }
    };
    Ok(json!({"svids": orders.iter().zip(issued).map(shown).collect::<Vec<_>>()}))
}

async fn agent_jwt_svid(State(plane): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    let steps = async {
        let request = read_json(body).await?;
        let caller = agent(&plane, &peer)?;
        let id = spiffe_id(request.get("spiffe_id").and_then(Value::as_str).unwrap_or_default())?;
        plane.enrolment.jwt_through(&caller, &id, &audiences(&request)).await
    };
    jwt_answer(&plane, steps.await)
}

async fn jwt_svid(State(plane): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    let steps = async {
        let request = read_json(body).await?;
        let svid = certificate(&plane, &peer)?;
        plane.enrolment.jwt_for(&svid, &audiences(&request)).await
    };
    jwt_answer(&plane, steps.await)
}

fn audiences(request: &Map<String, Value>) -> Vec<String> {
    let list = request.get("audience").and_then(Value::as_array);
    list.into_iter().flatten().map(|a| a.as_str().unwrap_or_default().to_owned()).collect()
}

fn jwt_answer(plane: &IdentityPlane, result: Result<(String, Timestamp), Refusal>) -> Response<Body> {
    match result {
        Ok((token, until)) => {
            let document = json!({"svid": token, "expires_at": until.rfc3339()});
            document_response(StatusCode::CREATED, "application/json", document.to_string())
        }
        Err(refusal) => refused(plane, &refusal),
    }
}

async fn downstream(State(plane): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    let steps = async {
        let request = read_json(body).await?;
        let svid = certificate(&plane, &peer)?;
        plane.enrolment.issue_downstream(&svid, &csr(&request)?).await
    };
    match steps.await {
        Ok(chain) => {
            let chain: Vec<String> = chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
            let document = json!({"chain": chain, "bundle": plane.enrolment.authority.bundle().to_jwks()});
            document_response(StatusCode::CREATED, "application/json", document.to_string())
        }
        Err(refusal) => refused(&plane, &refusal),
    }
}

async fn read_json(body: Body) -> Result<Map<String, Value>, Refusal> {
    read_json_up_to(body, MAX_BODY).await
}

async fn read_json_up_to(body: Body, limit: usize) -> Result<Map<String, Value>, Refusal> {
    let bytes = body::read(body, limit).await.map_err(|e| Refusal::new(400, "body", e.to_string()))?;
    json::parse_object(&bytes).map_err(|e| Refusal::new(400, "body", format!("the body is not a JSON object: {e}")))
}

fn csr(request: &Map<String, Value>) -> Result<Vec<u8>, Refusal> {
    let text = request.get("csr").and_then(Value::as_str).unwrap_or_default();
    BASE64_STANDARD.decode(text).map_err(|_| Refusal::new(400, "csr", "csr is not base64 of a DER certificate request"))
}

fn answer(plane: &IdentityPlane, result: Result<Issued, Refusal>) -> Response<Body> {
    match result {
        Ok((made, renew_after)) => created(plane, &made, renew_after),
        Err(refusal) => refused(plane, &refusal),
    }
}

fn created(plane: &IdentityPlane, made: &Made, renew_after: Timestamp) -> Response<Body> {
    let mut document = certificate_document(made, renew_after);
    document["bundle"] = plane.enrolment.authority.bundle().to_jwks();
    document["servers"] = json!(plane.servers);
    document_response(StatusCode::CREATED, "application/json", document.to_string())
}

fn certificate_document(made: &Made, renew_after: Timestamp) -> Value {
    let chain: Vec<String> = made.chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
    json!({
        "spiffe_id": made.svid.spiffe_id,
        "svid": chain,
        "not_after": made.svid.not_after.rfc3339(),
        "renew_after": renew_after.rfc3339(),
    })
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
    let roots: String = plane.enrolment.authority.bundle().roots.iter().map(|r| files::pem(r)).collect();
    document_response(StatusCode::OK, "application/x-pem-file", roots)
}

/// The active issuing CA's list: DER holds one alone.
async fn crl_der(State(plane): Plane) -> Response<Body> {
    match plane.lists.lists().await {
        Ok(lists) => {
            document_response(StatusCode::OK, "application/pkix-crl", lists.into_iter().next().unwrap_or_default())
        }
        Err(refusal) => refused(&plane, &refusal),
    }
}

/// The lists of all CAs with unended certificates.
async fn crl_pem(State(plane): Plane) -> Response<Body> {
    match plane.lists.lists().await {
        Ok(lists) => {
            let text: String = lists.iter().map(|l| files::pem_block("X509 CRL", l)).collect();
            document_response(StatusCode::OK, "application/x-pem-file", text)
        }
        Err(refusal) => refused(&plane, &refusal),
    }
}

fn document_response(status: StatusCode, kind: &'static str, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
