//! A pooled HTTPS client over one TLS configuration.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{Request, Response, Uri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use crate::client::ClientError;
use crate::net::body::{AnyBody, full, read};
use crate::net::connections::{Connections, Dialling, Place, Versions};
use crate::net::inbound::Inbound;

/// Largest document that is read whole.
const MAX_DOCUMENT: usize = 16 << 20;

/// How long the head of an answer may take: longer than a request is held for an approval.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Servers whose connections are kept.
const MOST_SERVERS: usize = 256;

/// How long TCP and TLS may take together.
const DIALLING: Duration = Duration::from_secs(10);

/// A client with its connections.
#[derive(Clone)]
pub struct HttpClient {
    tls: Arc<ClientConfig>,
    servers: Arc<Mutex<HashMap<Authority, Arc<Connections>>>>,
    patience: Duration,
}

impl HttpClient {
    /// A client that dials with `tls`.
    pub fn new(tls: ClientConfig) -> Self {
        Self { tls: Arc::new(tls), servers: Arc::default(), patience: PATIENCE }
    }

    /// The same client, that waits so long for the head of an answer.
    pub fn waiting(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends a request whose body streams, for as long as that takes; with `upgrade` the answer may switch protocols.
    pub async fn stream(&self, request: Request<AnyBody>, upgrade: bool) -> Result<Response<Inbound>, ClientError> {
        let url = request.uri().to_string();
        let server = self.server(request.uri())?;
        let answered = if upgrade { server.switching(request).await } else { server.request(request).await };
        answered.map_err(|unanswered| failure(&url, &*unanswered.error))
    }

    /// The connections to a URL's server.
    fn server(&self, url: &Uri) -> Result<Arc<Connections>, ClientError> {
        let wrong = |why: String| ClientError::Input(format!("{url}: {why}"));
        let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(wrong("write https://; certificates and proofs need TLS".into()));
        };
        if authority.as_str().contains('@') {
            return Err(wrong("a user's name in it says nothing here: leave it out".into()));
        }
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(authority) {
            return Ok(server.clone());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|e| wrong(e.to_string()))?;
        let dialling =
            Dialling { timeout: DIALLING, versions: Versions::Either, tls: self.tls.clone(), server_name: Some(name) };
        let port = authority.port_u16().unwrap_or(443);
        let at = format!("{}:{port}", authority.host()).parse();
        let place = Place::Name(at.map_err(|e: http::uri::InvalidUri| wrong(e.to_string()))?);
        let server = Arc::new(Connections::new(&dialling, place));
        if servers.len() >= MOST_SERVERS {
            servers.clear();
        }
        servers.insert(authority.clone(), server.clone());
        Ok(server)
    }

    /// Sends a request; the answer's body streams.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Inbound>, ClientError> {
        let url = request.uri().to_string();
        let server = self.server(request.uri())?;
        let answer = tokio::time::timeout(self.patience, server.request(request.map(full))).await;
        let silent = || ClientError::Unreachable {
            url: url.clone(),
            cause: format!("no answer in {} s", self.patience.as_secs()),
        };
        answer.map_err(|_| silent())?.map_err(|unanswered| failure(&url, &*unanswered.error))
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

fn failure(url: &str, error: &(dyn Error + 'static)) -> ClientError {
    let (url, cause) = (url.to_owned(), innermost(error));
    match tls_error(error) {
        Some(error) => ClientError::Handshake { url, cause: explain(error) },
        // HTTP/2 keeps the text of an alert and forgets its type. A server judges our certificate after its own part of the
        // handshake is over, so that this comes with the first request.
        None if cause.contains("fatal alert") => {
            let why = "is this identity of its trust domain, in date, and from an authority that is still trusted?";
            ClientError::Handshake { url, cause: format!("the server ended the handshake ({cause}); {why}") }
        }
        None => ClientError::Unreachable { url, cause },
    }
}

/// The TLS error behind an error; an `io::Error` hides the one it carries from `source`.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(found) = error.downcast_ref::<rustls::Error>() {
        return Some(found);
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => tls_error(inner),
        None => error.source().and_then(tls_error),
    }
}

fn innermost(error: &dyn Error) -> String {
    error.source().map_or_else(|| error.to_string(), innermost)
}

/// A handshake's failure in words that say what to do.
fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error as Tls};
    match error {
        Tls::AlertReceived(AlertDescription::CertificateExpired) => {
            "the server says that this identity's certificate has expired (or that a clock is off); fetch a new one".into()
        }
        Tls::AlertReceived(alert) => format!("the server ended the handshake ({alert:?}); is this identity of its trust domain and in date?"),
        Tls::InvalidCertificate(CertificateError::NotValidYet) => "the server's certificate is not valid yet: compare this machine's clock with the server's".into(),
        Tls::InvalidCertificate(CertificateError::Expired) => "the server's certificate has expired, or this machine's clock runs ahead".into(),
        Tls::InvalidCertificate(CertificateError::UnknownIssuer) => "the server's certificate does not lead to the root that is trusted: wrong server, or a join token of another installation".into(),
        other => format!("the TLS handshake failed: {other}"),
    }
}
