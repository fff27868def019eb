//! The routes of the administration API.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::console::actor::Actor;
use crate::console::authorities::AuthorityDesk;
use crate::console::registry::ImportForm;
use crate::console::stops::in_force;
use crate::domain::digest::Sha256;
use crate::domain::leaf::Staged;
use crate::domain::people::Role;
use crate::domain::refusal::Refusal;
use crate::domain::spiffe_id::TrustDomain;
use crate::net::body;
use crate::net::listener::Peer;
use crate::net::problem;
use crate::protocol::json;
use crate::store::{Stores, entropy};

const MAX_BODY: usize = 8 << 20;

/// What only the wiring knows: certificates, listeners, queues.
pub type StatusSource = Arc<dyn Fn() -> Value + Send + Sync>;

/// The plane's state.
pub struct Console {
    /// What is remembered.
    pub stores: Stores,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Pin of join tokens: the present root's.
    pub pin: Arc<dyn Fn() -> Sha256 + Send + Sync>,
    /// Our own bundle, as a document.
    pub bundle: StatusSource,
    /// Where authorities are worked on.
    pub desk: Arc<dyn AuthorityDesk>,
    /// Shortest and longest life of a certificate that an entry may ask for.
    pub svid_bounds: (Duration, Duration),
    /// Life of a certificate whose entry names none.
    pub default_ttl: Duration,
    /// Trust domains whose bundles the configuration keeps.
    pub federated: Vec<TrustDomain>,
    /// Names of our own servers, which no entry may claim.
    pub server_names: Vec<String>,
    /// One screen of facts.
    pub status: StatusSource,
    /// Held while a person's decision takes effect.
    pub deciding: tokio::sync::Mutex<()>,
    /// What must end before the evidence log closes.
    pub tasks: TaskTracker,
}

#[derive(Deserialize)]
struct IdQuery {
    id: Option<String>,
    all: Option<bool>,
    dry_run: Option<bool>,
}

type Plane = State<Arc<Console>>;
type From = Extension<Arc<Peer>>;

/// The routes; the listener decides who reaches them.
pub fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/entries", get(entries).post(entry_create).delete(entry_delete))
        .route("/v1/entries/export", get(entries_export))
        .route("/v1/entries/diff", post(entries_diff))
        .route("/v1/nodes", get(nodes).delete(node_evict))
        .route("/v1/bundles", get(bundles).post(bundle_set).delete(bundle_delete))
        .route("/v1/authorities", get(authorities).post(authority_act))
        .route("/v1/import", post(import))
        .route("/v1/join-tokens", post(join_token))
        .route("/v1/people", get(people).post(person_create).delete(person_delete))
        .route("/v1/approvals", get(approvals))
        .route("/v1/approvals/{id}", get(approval).post(decide))
        .route("/v1/revocations", get(revocations).post(revoke))
        .route("/v1/revocations/{id}/lift", post(lift))
        .route("/v1/offboard", post(offboard))
        .route("/v1/evidence/publish", post(publish))
        .with_state(console)
        .layer(middleware::from_fn(same_site))
}

/// A browser that holds a person's certificate sends it for every page it is on: nothing from another site gets in.
async fn same_site(request: Request, next: Next) -> Response<Body> {
    if is_same_site(request.uri(), request.headers()) {
        return next.run(request).await;
    }
    answer(Err(Refusal::new(403, "cross-site", "administration answers no request that a page of another site makes")))
}

fn is_same_site(uri: &Uri, headers: &HeaderMap) -> bool {
    let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?").to_owned());
    let host = header("host").or_else(|| uri.authority().map(ToString::to_string)).unwrap_or_default();
    let origin = header("origin").is_none_or(|origin| origin.eq_ignore_ascii_case(&format!("https://{host}")));
    origin && header("sec-fetch-site").is_none_or(|site| site == "none" || site == "same-origin")
}

async fn status(State(console): Plane, Extension(peer): From) -> Response<Body> {
    let run = async || {
        actor(&console, &peer)?.need(Role::Viewer)?;
        let mut status = (console.status)();
        let now = console.stores.clock.now();
        // Null while the ledger is away: the rest is wanted then most of all.
        let open = console.stores.approvals.list(true).await.ok();
        status["approvals_open"] = json!(open.map(|all| all.iter().filter(|a| a.expires_at > now).count()));
        Ok(status)
    };
    answer(run().await)
}

async fn entries(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    let list = || {
        actor(&console, &peer)?.need(Role::Viewer)?;
        let entries = console.stores.entries.list();
        match query.id {
            None => Ok(json!(entries)),
            Some(id) => entries
                .into_iter()
                .find(|e| e.spiffe_id.as_str() == id)
                .map(|e| json!(e))
                .or_else(|| console.template(&id))
                .ok_or_else(|| Refusal::new(404, "not-found", format!("there is no entry {id}"))),
        }
    };
    answer(list())
}

async fn people(State(console): Plane, Extension(peer): From) -> Response<Body> {
    answer(actor(&console, &peer).and_then(|a| a.need(Role::Viewer)).map(|()| json!(console.stores.people.list())))
}

async fn entry_create(
    State(console): Plane,
    Extension(peer): From,
    Query(query): Query<IdQuery>,
    body: Body,
) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.create_entry(&actor(&console, &peer)?, form, query.dry_run.unwrap_or(false)).await
    })
    .await
}

async fn entries_export(State(console): Plane, Extension(peer): From) -> Response<Body> {
    answer(actor(&console, &peer).and_then(|a| console.export_entries(&a)))
}

async fn entries_diff(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    let run = async || {
        let form: ImportForm = read(body).await?;
        console.compare_entries(&actor(&console, &peer)?, form.entry)
    };
    answer(run().await)
}

async fn nodes(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    answer(actor(&console, &peer).and_then(|a| console.nodes(&a, query.id.as_deref())))
}

async fn node_evict(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    finished(&console.clone(), async move {
        console.evict_node(&actor(&console, &peer)?, &query.id.unwrap_or_default()).await
    })
    .await
}

async fn bundles(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    answer(actor(&console, &peer).and_then(|a| console.bundles(&a, query.id.as_deref())))
}

async fn bundle_set(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.set_bundle(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn bundle_delete(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    finished(&console.clone(), async move {
        console.delete_bundle(&actor(&console, &peer)?, &query.id.unwrap_or_default()).await
    })
    .await
}

async fn authorities(State(console): Plane, Extension(peer): From) -> Response<Body> {
    answer(actor(&console, &peer).and_then(|a| console.authorities(&a)))
}

async fn authority_act(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let action = read(body).await?;
        console.act_on_authority(&actor(&console, &peer)?, action).await
    })
    .await
}

async fn entry_delete(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    finished(&console.clone(), async move {
        console.delete_entry(&actor(&console, &peer)?, &query.id.unwrap_or_default()).await
    })
    .await
}

async fn import(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.import(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn join_token(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.create_join_token(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn person_create(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.create_person(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn person_delete(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    finished(&console.clone(), async move {
        console.delete_person(&actor(&console, &peer)?, &query.id.unwrap_or_default()).await
    })
    .await
}

async fn approvals(State(console): Plane, Extension(peer): From, Query(query): Query<IdQuery>) -> Response<Body> {
    let run = async || console.list_approvals(&actor(&console, &peer)?, query.all.unwrap_or(false)).await;
    answer(run().await)
}

async fn approval(State(console): Plane, Extension(peer): From, Path(id): Path<String>) -> Response<Body> {
    let run = async || console.show_approval(&actor(&console, &peer)?, &id).await;
    answer(run().await)
}

async fn decide(State(console): Plane, Extension(peer): From, Path(id): Path<String>, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.decide(&actor(&console, &peer)?, &id, form).await
    })
    .await
}

async fn revocations(State(console): Plane, Extension(peer): From) -> Response<Body> {
    let run = async || console.list_revocations(&actor(&console, &peer)?).await;
    answer(run().await)
}

async fn revoke(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.revoke(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn lift(State(console): Plane, Extension(peer): From, Path(id): Path<i64>) -> Response<Body> {
    finished(&console.clone(), async move { console.lift(&actor(&console, &peer)?, id).await }).await
}

async fn offboard(State(console): Plane, Extension(peer): From, body: Body) -> Response<Body> {
    finished(&console.clone(), async move {
        let form = read(body).await?;
        console.offboard(&actor(&console, &peer)?, form).await
    })
    .await
}

async fn publish(State(console): Plane, Extension(peer): From) -> Response<Body> {
    finished(&console.clone(), async move {
        actor(&console, &peer)?.need(Role::Auditor)?;
        console.stores.evidence.publish().await?;
        Ok(json!({"published": true}))
    })
    .await
}

fn actor(console: &Console, peer: &Peer) -> Result<Actor, Refusal> {
    Actor::of(&console.stores, peer)
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bad = |detail: String| Refusal::new(400, "input", detail);
    let bytes = body::read(body, MAX_BODY).await.map_err(|e| bad(e.to_string()))?;
    let value = json::parse(&bytes).map_err(|e| bad(format!("the body is not strict JSON: {e}")))?;
    serde_json::from_value(value).map_err(|e| bad(e.to_string()))
}

/// Runs a change to its end, whether or not the client stays for the answer, and before the log closes: what is done is
/// then also in the log. Bodies are read before the actor is: who was stopped meanwhile changes nothing.
async fn finished(
    console: &Console,
    change: impl Future<Output = Result<Value, Refusal>> + Send + 'static,
) -> Response<Body> {
    answer(console.tasks.spawn(change).await.unwrap_or_else(|e| Err(Refusal::unavailable("administration", e))))
}

fn answer(result: Result<Value, Refusal>) -> Response<Body> {
    match result {
        Err(refusal) => {
            let request_id = entropy::random_id();
            tracing::info!(
                request_id,
                status = refusal.status,
                kind = refusal.kind,
                detail = refusal.detail,
                cause = refusal.cause,
                "administration refused"
            );
            problem::response(&refusal, &request_id).map(Body::new)
        }
        Ok(document) => {
            let mut response = Response::new(Body::from(document.to_string()));
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    }
}

impl Console {
    /// Makes a change of the registry a leaf.
    pub async fn log_registration(&self, actor: &Actor, what: &str, action: &str, value: &str) -> Result<(), Refusal> {
        let (value, by) = (entropy::seal(value), entropy::seal(actor.name()));
        let staged = Staged::registration(self.stores.clock.now(), what, action, value, by);
        self.stores.evidence.append(staged).await.map(drop).map_err(in_force)
    }
}
