//! Logs, metrics and the health listener's answers.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

mod traces;

pub use self::traces::{TracesError, start_traces};

/// Upper bounds of histograms, in seconds.
const BUCKETS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
/// The same for clocks of clients, which run ahead and behind.
const OFFSETS: [f64; 9] = [-60.0, -30.0, -10.0, -2.0, 0.0, 2.0, 5.0, 10.0, 60.0];
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logging to standard error. Fields, not sentences; no credential is ever a field.
pub fn start_logs(level: &str, json: bool, access: bool) {
    let access = if access { "info" } else { "off" };
    let filter = EnvFilter::try_new(format!("{level},access={access},sqlx=warn,hyper=warn,h2=warn,rustls=warn"))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // A second start in one process keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
}

/// Starts the metrics recorder of this process.
pub fn start_metrics() -> PrometheusHandle {
    let seconds = Matcher::Suffix("_seconds".into());
    let offset = Matcher::Full("popgate_client_clock_offset_seconds".into());
    let builder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &BUCKETS);
    let builder = builder.and_then(|b| b.set_buckets_for_metric(offset, &OFFSETS)).expect("there are buckets");
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    let _ = metrics::set_global_recorder(recorder);
    // What is recorded waits for a scrape; where nobody scrapes it would wait for ever.
    let kept = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            kept.run_upkeep();
        }
    });
    handle
}

/// Answers whether every part that a decision needs is there; the text names the ones that are not.
pub type Readiness = Arc<dyn Fn() -> futures_util::future::BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What the health listener needs.
#[derive(Clone)]
pub struct Health {
    /// Renders metrics.
    pub metrics: PrometheusHandle,
    /// Asks every store.
    pub readiness: Readiness,
}

/// `/metrics`, `/livez`, `/readyz`.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/metrics", get(|State(h): State<Health>| async move { h.metrics.render() }))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    match (health.readiness)().await {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
    }
}
