//! A pooled HTTPS client over one TLS configuration.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;

use crate::client::ClientError;
use crate::net::body::{AnyBody, full, read};

/// Largest document that is read whole.
const MAX_DOCUMENT: usize = 16 << 20;

/// A client with its connections.
#[derive(Clone)]
pub struct HttpClient(Client<HttpsConnector<HttpConnector>, AnyBody>);

impl HttpClient {
    /// A client that dials with `tls`.
    pub fn new(tls: ClientConfig) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(5)));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// Sends a request; the answer's body streams.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Incoming>, ClientError> {
        let url = request.uri().to_string();
        let request = request.map(full);
        self.0.request(request).await.map_err(|e| failure(&url, &e))
    }

    /// Sends a request and reads the answer whole.
    pub async fn fetch(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        let url = request.uri().to_string();
        let (parts, body) = self.send(request).await?.into_parts();
        let body = read(body, MAX_DOCUMENT).await;
        let body = body.map_err(|e| ClientError::Protocol { what: url, cause: e.to_string() })?;
        Ok(Response::from_parts(parts, body))
    }
}

fn failure(url: &str, error: &hyper_util::client::legacy::Error) -> ClientError {
    let mut cause = error.to_string();
    let mut source = std::error::Error::source(error);
    let mut handshake = None;
    while let Some(inner) = source {
        cause = inner.to_string();
        let tls = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = inner.downcast_ref::<rustls::Error>().or_else(|| tls.and_then(|e| e.downcast_ref::<rustls::Error>()));
        handshake = handshake.or_else(|| tls.map(explain));
        source = inner.source();
    }
    match handshake {
        Some(cause) => ClientError::Handshake { url: url.to_owned(), cause },
        None => ClientError::Unreachable { url: url.to_owned(), cause },
    }
}

/// A handshake's failure in words that say what to do.
fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    match error {
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the server says that this identity's certificate has expired (or that a clock is off); fetch a new one".into()
        }
        Error::AlertReceived(alert) => format!("the server ended the handshake ({alert:?}); is this identity of its trust domain and in date?"),
        Error::InvalidCertificate(CertificateError::NotValidYet) => "the server's certificate is not valid yet: compare this machine's clock with the server's".into(),
        Error::InvalidCertificate(CertificateError::Expired) => "the server's certificate has expired, or this machine's clock runs ahead".into(),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "the server's certificate does not lead to the root that is trusted: wrong server, or a join token of another installation".into(),
        other => format!("the TLS handshake failed: {other}"),
    }
}
