//! What goes on beside the requests: names are resolved anew, and endpoints asked whether they are well.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{Request, Version};
use tokio::task::JoinSet;

use crate::gateway::upstream::Upstream;
use crate::gateway::upstream::config::HealthConfig;
use crate::gateway::upstream::endpoint::Endpoint;
use crate::net::body::{full, read};

/// Longest answer to a health check that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Begins both; they end with the upstream.
pub(super) fn start(upstream: &Arc<Upstream>) {
    if upstream.is_named() {
        tokio::spawn(resolve(Arc::downgrade(upstream), upstream.config().resolve_every.0));
    }
    if let Some(health) = &upstream.config().health {
        tokio::spawn(check(Arc::downgrade(upstream), health.clone()));
    }
}

async fn resolve(upstream: Weak<Upstream>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.refresh().await;
    }
}

async fn check(upstream: Weak<Upstream>, health: HealthConfig) {
    loop {
        let Some(present) = upstream.upgrade() else { return };
        let mut checks = JoinSet::new();
        for endpoint in present.endpoints().await {
            checks.spawn(check_one(present.clone(), endpoint, health.clone()));
        }
        drop(present);
        while checks.join_next().await.is_some() {}
        tokio::time::sleep(health.every.0).await;
    }
}

async fn check_one(upstream: Arc<Upstream>, endpoint: Arc<Endpoint>, health: HealthConfig) {
    let asked = tokio::time::timeout(health.timeout.0, ask(&upstream, &endpoint, &health.path)).await;
    let result = asked.unwrap_or_else(|_| Err("no answer in time".into()));
    let address = endpoint.address;
    match endpoint.checked(result.is_ok(), &health) {
        Some(true) => tracing::info!(upstream = upstream.url(), %address, "an endpoint is well"),
        Some(false) => {
            let why = result.err().unwrap_or_default();
            tracing::warn!(upstream = upstream.url(), %address, why, "an endpoint is unwell and gets no requests");
        }
        None => {}
    }
}

async fn ask(upstream: &Upstream, endpoint: &Endpoint, path: &str) -> Result<(), String> {
    let uri = upstream.uri(endpoint, path).map_err(|e| e.to_string())?;
    let mut request = Request::new(full(""));
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    request.headers_mut().insert(http::header::HOST, upstream.host().clone());
    let response = endpoint.connections.request(request).await.map_err(|e| e.why())?;
    let status = response.status();
    let _ = read(response.into_body(), MAX_ANSWER).await;
    if status.is_success() { Ok(()) } else { Err(format!("it answered {status}")) }
}
