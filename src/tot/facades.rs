//! The engine for clients of other protocols: OpenAI-compatible chat completions, and the Model Context Protocol.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};

use crate::domain::refusal::Refusal;
use crate::net::body;
use crate::protocol::json;
use crate::store::entropy;
use crate::tot::chat::{ChatForm, MODEL};
use crate::tot::mcp;
use crate::tot::run::RunError;
use crate::tot::serve::{Engine, MAX_BODY, answer, read, run_error};

/// Their routes.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/mcp", post(message))
}

async fn models() -> Response<Body> {
    let model = json!({"id": MODEL, "object": "model", "created": 0, "owned_by": "popgate"});
    answer(StatusCode::OK, &json!({"object": "list", "data": [model]}))
}

async fn chat(State(engine): State<Arc<Engine>>, body: Body) -> Response<Body> {
    let thinking = async || {
        let form: ChatForm = read(body).await?;
        // A search takes a processor for a while.
        let thought = tokio::task::spawn_blocking(move || (form.think(), form.stream)).await;
        let (said, stream) = thought.map_err(|e| Refusal::new(500, "search", e.to_string()))?;
        Ok::<_, Refusal>((said.map_err(run_error)?, stream))
    };
    let (id, created) = (entropy::random_id(), engine.clock.now().unix());
    match thinking().await {
        Err(refusal) => openai_error(&refusal),
        Ok((said, false)) => answer(StatusCode::OK, &said.completion(&id, created)),
        Ok((said, true)) => {
            let record = engine.record.clone();
            let chunks = said.chunks(&id, created).into_iter().map(move |chunk| {
                record.write(chunk.as_bytes());
                Ok::<_, Infallible>(Bytes::from(chunk))
            });
            let mut response = Response::new(Body::from_stream(stream::iter(chunks)));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    }
}

/// The error object that OpenAI's clients read.
fn openai_error(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::BAD_REQUEST);
    let error =
        json!({"message": refusal.detail, "type": "invalid_request_error", "param": null, "code": refusal.kind});
    answer(status, &json!({"error": error}))
}

async fn message(body: Body) -> Response<Body> {
    let bytes = match body::read(body, MAX_BODY).await {
        Ok(bytes) => bytes,
        Err(error) => return parse_error(&error.to_string()),
    };
    let message = match json::parse_object(&bytes) {
        Ok(message) => message,
        Err(error) => return parse_error(&error.to_string()),
    };
    match tokio::task::spawn_blocking(move || mcp::answer(&message)).await {
        Ok(Some(told)) => answer(StatusCode::OK, &told),
        Ok(None) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::ACCEPTED;
            response
        }
        Err(error) => parse_error(&RunError::Input(error.to_string()).to_string()),
    }
}

fn parse_error(why: &str) -> Response<Body> {
    let error: Value = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": why}});
    answer(StatusCode::BAD_REQUEST, &error)
}
