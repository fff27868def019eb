//! Fetches documents that others publish: key sets, bundles, token reviews. Bounded in size and time.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::net::body::{AnyBody, full, read};
use crate::net::files;
use crate::net::tls;

const MAX_DOCUMENT: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A document cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{url}: {cause}")]
pub struct FetchError {
    /// What was asked for.
    pub url: String,
    /// What happened.
    pub cause: String,
}

/// Fetches over HTTPS.
#[derive(Clone)]
pub struct Fetcher(Client<HttpsConnector<HttpConnector>, AnyBody>);

impl Fetcher {
    /// A fetcher with a TLS configuration.
    pub fn new(tls: ClientConfig) -> Self {
        Self(https_client(tls))
    }

    /// A fetcher that trusts the certificates of a PEM file, or those of the system.
    pub fn web(ca_file: Option<&Path>) -> Result<Self, FetchError> {
        Ok(Self::new(web_roots(ca_file)?))
    }

    /// The body of a successful answer to a GET.
    pub async fn get(&self, url: &str) -> Result<Bytes, FetchError> {
        self.send(
            Request::builder().method(Method::GET).uri(url).header(header::ACCEPT, "application/json"),
            url,
            Bytes::new(),
        )
        .await
    }

    /// The body of a successful answer to a POST of JSON with a bearer token.
    pub async fn post(&self, url: &str, bearer: &str, body: Bytes) -> Result<Bytes, FetchError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        self.send(request, url, body).await
    }

    /// The body of a successful answer to a POST of a form; `basic` is name and password, joined by a colon.
    pub async fn post_form(&self, url: &str, basic: &str, body: Bytes) -> Result<Bytes, FetchError> {
        let mut credential = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(basic)))
            .map_err(|e| FetchError { url: url.to_owned(), cause: e.to_string() })?;
        credential.set_sensitive(true);
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .header(header::AUTHORIZATION, credential);
        self.send(request, url, body).await
    }

    async fn send(&self, request: http::request::Builder, url: &str, body: Bytes) -> Result<Bytes, FetchError> {
        let failed = |cause: String| FetchError { url: url.to_owned(), cause };
        let request = request.body(full(body)).map_err(|e| failed(e.to_string()))?;
        let answer = tokio::time::timeout(PATIENCE, self.0.request(request)).await;
        let answer = answer.map_err(|_| failed("no answer in 10 s".into()))?.map_err(|e| failed(innermost(&e)))?;
        if !answer.status().is_success() {
            return Err(failed(format!("answered {}", answer.status())));
        }
        read(answer.into_body(), MAX_DOCUMENT).await.map_err(|e| failed(e.to_string()))
    }
}

/// TLS towards servers whose certificates lead to those of a PEM file, or of the system.
pub fn web_roots(ca_file: Option<&Path>) -> Result<ClientConfig, FetchError> {
    let failed = |what: &Path, cause: String| FetchError { url: what.display().to_string(), cause };
    let roots: Vec<Vec<u8>> = match ca_file {
        Some(file) => certificates(file).map_err(|e| failed(file, e))?,
        None => rustls_native_certs::load_native_certs().certs.into_iter().map(|c| c.to_vec()).collect(),
    };
    tls::web_client(&roots).map_err(|e| failed(ca_file.unwrap_or(Path::new("the system's roots")), e.to_string()))
}

/// A pooled client that speaks to http:// URLs as well.
pub fn any_client(tls: ClientConfig) -> Client<HttpsConnector<HttpConnector>, AnyBody> {
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().enable_http2();
    Client::builder(TokioExecutor::new()).build(https.wrap_connector(dialler()))
}

/// A pooled client for HTTP/1.1 and HTTP/2 over one TLS configuration.
fn https_client(tls: ClientConfig) -> Client<HttpsConnector<HttpConnector>, AnyBody> {
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().enable_http2();
    Client::builder(TokioExecutor::new()).build(https.wrap_connector(dialler()))
}

fn dialler() -> HttpConnector {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(Duration::from_secs(5)));
    http
}

/// The certificates of a PEM file, DER; at least one.
pub fn certificates(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = files::read(file).map_err(|e| e.to_string())?;
    pem_certificates(&text).ok_or_else(|| "holds no certificate in PEM".to_owned())
}

/// The certificates of a PEM text, DER; at least one.
pub fn pem_certificates(text: &str) -> Option<Vec<Vec<u8>>> {
    let certs = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
    (!certs.is_empty()).then(|| certs.into_iter().map(|c| c.to_vec()).collect())
}

/// The cause behind all others.
pub fn innermost(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}
