//! The engine's HTTP API.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post, put};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::domain::digest::Sha256;
use crate::domain::refusal::Refusal;
use crate::domain::time::Clock;
use crate::net::body;
use crate::net::problem;
use crate::protocol::json;
use crate::store::entropy;
use crate::tot::admit::Admission;
use crate::tot::events::EventStream;
use crate::tot::facades;
use crate::tot::model::{self, Model};
use crate::tot::openapi;
use crate::tot::run::{Asked, Run, RunError, RunForm};
use crate::tot::tools::{self, ToolError};

pub(super) const MAX_BODY: usize = 1 << 20;
const MAX_RUNS: usize = 10_000;
/// Longest answer that is kept under an `Idempotency-Key`, and how many are.
const MAX_ANSWER: usize = 4 << 20;
const MAX_KEYS: usize = 10_000;

/// Writes one JSON line for each request head and each response write, for tests and the demo.
#[derive(Clone, Default)]
pub struct Record(Option<Arc<Mutex<File>>>);

impl Record {
    /// A record in a new file.
    pub fn create(path: &FilePath) -> std::io::Result<Self> {
        Ok(Self(Some(Arc::new(Mutex::new(File::create(path)?)))))
    }

    fn line(&self, line: &Value) {
        if let Some(file) = &self.0 {
            let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(file, "{line}");
        }
    }

    /// A piece of a streamed response.
    pub fn write(&self, piece: &[u8]) {
        if self.0.is_some() {
            self.line(&json!({"write": BASE64_STANDARD.encode(piece)}));
        }
    }

    fn request(&self, request: &Request) {
        if self.0.is_some() {
            let headers: Vec<(String, String)> = request
                .headers()
                .iter()
                .map(|(n, v)| (n.to_string(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
                .collect();
            self.line(&json!({"request": {"method": request.method().as_str(), "target": request.uri().to_string(), "headers": headers}}));
        }
    }
}

/// The engine.
pub struct Engine {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Whom it admits; none: anybody.
    pub admission: Option<Admission>,
    /// What it writes down.
    pub record: Record,
    /// What runs may ask.
    pub model: Option<Arc<Model>>,
    runs: RwLock<HashMap<String, Arc<Run>>>,
    prompts: RwLock<HashMap<String, String>>,
    answers: Mutex<HashMap<String, Slot>>,
}

/// The answer to the requests with one `Idempotency-Key`, once there is one.
type Slot = Arc<tokio::sync::Mutex<Option<Kept>>>;

struct Kept {
    asked: Sha256,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Kept {
    fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

impl Engine {
    /// An engine without runs.
    pub fn new(clock: Arc<dyn Clock>, admission: Option<Admission>, record: Record, model: Option<Arc<Model>>) -> Self {
        let (runs, prompts, answers) = (RwLock::default(), RwLock::default(), Mutex::default());
        Self { clock, admission, record, model, runs, prompts, answers }
    }

    fn remembered(&self, key: &str) -> Slot {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_KEYS {
            answers.clear();
        }
        answers.entry(key.to_owned()).or_default().clone()
    }

    /// The model, asked in the words of the prompts `propose` and `value` where there are such.
    fn asked(&self) -> Option<Asked> {
        let prompts = self.prompts.read().unwrap_or_else(PoisonError::into_inner);
        let words = |name: &str, usual: &str| prompts.get(name).cloned().unwrap_or_else(|| usual.to_owned());
        let model = self.model.clone()?;
        Some(Asked { model, propose: words("propose", model::PROPOSE), value: words("value", model::VALUE) })
    }

    fn run(&self, id: &str) -> Result<Arc<Run>, Refusal> {
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        runs.get(id).cloned().ok_or_else(|| Refusal::new(404, "not-found", format!("there is no run {id}")))
    }
}

#[derive(Deserialize)]
struct Options {
    depth: Option<usize>,
    flush_bytes: Option<usize>,
}

type Shared = State<Arc<Engine>>;
type QueryOptions = Result<Query<Options>, QueryRejection>;

fn checked(options: QueryOptions) -> Result<Options, Refusal> {
    options.map(|Query(options)| options).map_err(|e| Refusal::new(400, "query", e.body_text()))
}

/// The routes, behind the admission check.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .route("/v1/runs", post(create))
        .route("/v1/runs/{run}", get(show).delete(remove))
        .route("/v1/runs/{run}/tree", get(tree))
        .route("/v1/runs/{run}/events", get(events))
        .route("/v1/runs/{run}/solution", get(solution))
        .route("/v1/runs/{run}/step", post(step))
        .route("/v1/runs/{run}/solve", post(solve))
        .route("/v1/runs/{run}/nodes/{node}/prune", post(prune))
        .route("/v1/runs/{run}/nodes/{node}/expand", post(expand))
        .route("/v1/runs/{run}/evaluate", post(evaluate_nodes))
        .route("/v1/runs/{run}/tools/{name}", post(tool))
        .route("/v1/prompts/{name}", put(put_prompt).get(show_prompt))
        .route("/openapi.json", get(openapi::show))
        .merge(facades::router())
        .layer(middleware::from_fn_with_state(engine.clone(), once))
        .layer(middleware::from_fn_with_state(engine.clone(), admit))
        .with_state(engine)
}

async fn admit(State(engine): Shared, request: Request, next: Next) -> Response<Body> {
    engine.record.request(&request);
    if let Some(admission) = &engine.admission {
        let target = request.uri().path_and_query().map_or("/", |t| t.as_str());
        let checked = admission.check(request.headers(), request.method().as_str(), target, engine.clock.now());
        if let Err(error) = checked {
            tracing::info!(%error, "refused");
            return refused(&Refusal::new(401, "txn-token", error.to_string()));
        }
    }
    let mut response = next.run(request).await;
    let verified = HeaderValue::from_static(if engine.admission.is_some() { "verified" } else { "not-demanded" });
    response.headers_mut().insert("tot-txn-token", verified);
    response
}

async fn create(State(engine): Shared, body: Body) -> Response<Body> {
    let make = async || {
        let form: RunForm = read(body).await?;
        let id = format!("r{}", &entropy::random_id()[..12]);
        let run = Arc::new(Run::new(id, form, engine.asked()).map_err(run_error)?);
        let mut runs = engine.runs.write().unwrap_or_else(PoisonError::into_inner);
        if runs.len() >= MAX_RUNS {
            return Err(Refusal::new(503, "full", "the engine holds as many runs as it can; delete some"));
        }
        runs.insert(run.id.clone(), run.clone());
        Ok(run)
    };
    match make().await {
        Err(refusal) => refused(&refusal),
        Ok(run) => {
            if run.started {
                search(run.clone());
            }
            answer(StatusCode::CREATED, &run.view())
        }
    }
}

/// Searches to the end in the background, a step at a time.
fn search(run: Arc<Run>) {
    tokio::spawn(async move {
        while !run.step().await {
            tokio::task::yield_now().await;
        }
    });
}

async fn show(State(engine): Shared, Path(id): Path<String>) -> Response<Body> {
    reply(engine.run(&id).map(|r| r.view()))
}

async fn tree(State(engine): Shared, Path(id): Path<String>, options: QueryOptions) -> Response<Body> {
    let show = || Ok(engine.run(&id)?.tree(checked(options)?.depth.unwrap_or(1)));
    reply(show())
}

async fn solution(State(engine): Shared, Path(id): Path<String>) -> Response<Body> {
    let none = || Refusal::new(404, "no-solution", "the run has no solution yet");
    reply(engine.run(&id).and_then(|r| r.solution().ok_or_else(none)))
}

async fn step(State(engine): Shared, Path(id): Path<String>) -> Response<Body> {
    let run = async || {
        let run = engine.run(&id)?;
        Ok(json!({"done": run.step().await, "run": run.view()}))
    };
    reply(run().await)
}

async fn solve(State(engine): Shared, Path(id): Path<String>) -> Response<Body> {
    let run = async || {
        let run = engine.run(&id)?;
        while !run.step().await {}
        Ok(run.view())
    };
    reply(run().await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PruneForm {
    if_version: u64,
}

async fn prune(State(engine): Shared, Path((id, node)): Path<(String, String)>, body: Body) -> Response<Body> {
    let run = async || {
        let form: PruneForm = read(body).await?;
        engine.run(&id)?.prune(&node, form.if_version).map_err(run_error)
    };
    reply(run().await)
}

async fn expand(State(engine): Shared, Path((id, node)): Path<(String, String)>) -> Response<Body> {
    let run = async || engine.run(&id)?.expand(&node).await.map_err(run_error);
    reply(run().await)
}

async fn evaluate_nodes(State(engine): Shared, Path(id): Path<String>, body: Body) -> Response<Body> {
    let run = async || {
        let form: EvaluateForm = read(body).await?;
        engine.run(&id)?.evaluate(&form.nodes).await.map_err(run_error)
    };
    reply(run().await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EvaluateForm {
    nodes: Vec<String>,
}

async fn tool(State(engine): Shared, Path((id, name)): Path<(String, String)>, body: Body) -> Response<Body> {
    let run = async || {
        engine.run(&id)?;
        let arguments: serde_json::Map<String, Value> = read(body).await?;
        tools::call(&name, &arguments).map_err(|error| match error {
            ToolError::Unknown(_) => Refusal::new(404, "not-found", error.to_string()),
            ToolError::Arguments(_) => Refusal::new(400, "input", error.to_string()),
        })
    };
    reply(run().await)
}

/// Answers a repeated `Idempotency-Key` as the first time: the same request is carried out once. A key that comes with
/// another request is refused (draft-ietf-httpapi-idempotency-key-header).
async fn once(State(engine): Shared, request: Request, next: Next) -> Response<Body> {
    let key = request.headers().get("idempotency-key").and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let (Some(key), false) = (key, request.method().is_safe()) else { return next.run(request).await };
    let (parts, body) = request.into_parts();
    let body = match body::read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(error) => return refused(&Refusal::new(413, "body", error.to_string())),
    };
    let asked =
        Sha256::of_parts(&[parts.method.as_str().as_bytes(), b" ", parts.uri.to_string().as_bytes(), b"\n", &body]);
    // Held over the call: a second one with the same key waits for the first.
    let slot = engine.remembered(&key);
    let mut slot = slot.lock().await;
    if let Some(known) = slot.as_ref() {
        return if known.asked == asked {
            known.response()
        } else {
            refused(&Refusal::new(422, "idempotency-key", "this Idempotency-Key came with another request before"))
        };
    }
    let (parts, body) = next.run(Request::from_parts(parts, Body::from(body))).await.into_parts();
    let Ok(body) = body::read(body, MAX_ANSWER).await else {
        return refused(&Refusal::new(
            500,
            "idempotency-key",
            "the answer is too long to be kept: send it without the key",
        ));
    };
    let kept = Kept { asked, status: parts.status, headers: parts.headers, body };
    let response = kept.response();
    *slot = Some(kept);
    response
}

async fn remove(State(engine): Shared, Path(id): Path<String>) -> Response<Body> {
    let gone = engine.runs.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    reply(
        gone.map(|r| json!({"deleted": r.id}))
            .ok_or_else(|| Refusal::new(404, "not-found", format!("there is no run {id}"))),
    )
}

async fn events(
    State(engine): Shared,
    Path(id): Path<String>,
    options: QueryOptions,
    headers: HeaderMap,
) -> Response<Body> {
    let found = engine.run(&id).and_then(|run| Ok((run, checked(options)?)));
    let (run, options) = match found {
        Ok(found) => found,
        Err(refusal) => return refused(&refusal),
    };
    let seen = headers.get("last-event-id").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()).unwrap_or(0);
    let flush = options.flush_bytes.map(|n| n.max(1));
    let stream = EventStream::new(run.events.clone(), seen, flush, engine.record.clone());
    let mut response = Response::new(Body::new(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn put_prompt(State(engine): Shared, Path(name): Path<String>, body: Body) -> Response<Body> {
    let put = async || {
        let bytes = body::read(body, MAX_BODY).await.map_err(|e| Refusal::new(413, "body", e.to_string()))?;
        let text =
            String::from_utf8(bytes.to_vec()).map_err(|_| Refusal::new(400, "body", "a prompt is UTF-8 text"))?;
        engine.prompts.write().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), text);
        Ok(json!({"name": name}))
    };
    reply(put().await)
}

async fn show_prompt(State(engine): Shared, Path(name): Path<String>) -> Response<Body> {
    let text = engine.prompts.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    reply(
        text.map(|t| json!({"name": name, "text": t}))
            .ok_or_else(|| Refusal::new(404, "not-found", format!("there is no prompt {name}"))),
    )
}

pub(super) async fn read<T: serde::de::DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let bad = |detail: String| Refusal::new(400, "input", detail);
    let bytes = body::read(body, MAX_BODY).await.map_err(|e| bad(e.to_string()))?;
    let value = json::parse(&bytes).map_err(|e| bad(format!("the body is not strict JSON: {e}")))?;
    serde_json::from_value(value).map_err(|e| bad(e.to_string()))
}

pub(super) fn run_error(error: RunError) -> Refusal {
    let (status, kind) = match error {
        RunError::Input(_) => (400, "input"),
        RunError::NoNode(_) => (404, "not-found"),
        RunError::Version { .. } => (409, "version"),
        RunError::Model(_) => (502, "model"),
    };
    Refusal::new(status, kind, error.to_string())
}

fn reply(result: Result<Value, Refusal>) -> Response<Body> {
    match result {
        Ok(document) => answer(StatusCode::OK, &document),
        Err(refusal) => refused(&refusal),
    }
}

fn refused(refusal: &Refusal) -> Response<Body> {
    problem::response(refusal, "").map(Body::new)
}

pub(super) fn answer(status: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
