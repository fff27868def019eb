//! The administration API's client: over the socket in a data directory, or over HTTPS as a person.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::client::ClientError;
use crate::client::http::HttpClient;
use crate::client::identity::Identity;
use crate::net::body::{full, read};

const MAX_ANSWER: usize = 64 << 20;

/// Where administration happens.
pub enum Admin {
    /// Through `admin.sock`.
    Socket(PathBuf),
    /// As a person.
    Server(Box<HttpClient>, String),
}

impl Admin {
    /// Through the socket of a data directory.
    pub fn socket(data_dir: &Path) -> Self {
        Self::Socket(data_dir.join("admin.sock"))
    }

    /// As a person, at a URL.
    pub fn server(url: &str, identity: &Arc<Identity>) -> Result<Self, ClientError> {
        Ok(Self::Server(Box::new(HttpClient::new(identity.tls(true)?)), url.trim_end_matches('/').to_owned()))
    }

    /// Makes one call and gives its document.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let response = match self {
            Self::Socket(socket) => over_socket(socket, request(method, path, "localhost", body)?).await?,
            Self::Server(http, url) => http.fetch(request(method, &format!("{url}{path}"), "", body)?).await?,
        };
        let document: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        if response.status().is_success() {
            return Ok(document);
        }
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(ClientError::Refused {
            what: "administration".into(),
            status: response.status().as_u16(),
            error: text("type"),
            detail: text("detail"),
        })
    }
}

fn request(method: Method, uri: &str, host: &str, body: Option<&Value>) -> Result<Request<Bytes>, ClientError> {
    let mut builder = Request::builder().method(method).uri(uri).header(header::CONTENT_TYPE, "application/json");
    if !host.is_empty() {
        builder = builder.header(header::HOST, host);
    }
    let body = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
    builder.body(body).map_err(|e| ClientError::Input(format!("{uri}: {e}")))
}

async fn over_socket(socket: &Path, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
    let away = |cause: String| {
        ClientError::Input(format!(
            "the service does not answer on {}: {cause}; is `popgate serve` running, and is --data-dir its data directory?",
            socket.display()
        ))
    };
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|e| away(e.to_string()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| away(e.to_string()))?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request.map(full)).await.map_err(|e| away(e.to_string()))?;
    let (parts, body) = response.into_parts();
    let body = read(body, MAX_ANSWER).await.map_err(|e| away(e.to_string()))?;
    drop(sender);
    driver.abort();
    Ok(Response::from_parts(parts, body))
}
