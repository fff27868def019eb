//! Connections to one service: what is dialled, how long that may take, and which protocol is agreed on.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::net::body::{AnyBody, BoxError};
use crate::net::h2::client::{Connection, KEPT};
use crate::net::inbound::Inbound;

/// Which versions of HTTP are spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Versions {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, in the clear with prior knowledge (RFC 9113 section 3.3).
    Http2,
    /// What ALPN agrees on; in the clear HTTP/1.1.
    Either,
}

/// Where a service is.
#[derive(Clone, Debug)]
pub enum Place {
    /// An address that was resolved.
    Address(SocketAddr),
    /// A name and a port; the name is resolved for each connection, and what it comes to is tried side by side.
    Name(Authority),
}

/// How a service is dialled.
#[derive(Clone)]
pub struct Dialling {
    /// How long TCP and TLS may take together.
    pub timeout: Duration,
    /// What is spoken.
    pub versions: Versions,
    /// TLS, for `https`.
    pub tls: Arc<ClientConfig>,
    /// The name in the certificate; none: in the clear.
    pub server_name: Option<ServerName<'static>>,
}

/// A request came to no answer.
#[derive(Debug)]
pub struct Unanswered {
    /// Why.
    pub error: BoxError,
    /// What may have become of the request.
    pub fate: Fate,
}

/// What may have become of a request that was not answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// No connection came about.
    Undialled,
    /// The connection went before it (RFC 9113 section 6.8): another one may take it.
    Gone,
    /// The service says that it did not look at it (RFC 9113 section 8.7).
    Refused,
    /// The service may have acted on it.
    Unknown,
}

/// Why a connection did not come about, for all who waited for it.
#[derive(Clone, Debug)]
struct NotConnected(Arc<dyn std::error::Error + Send + Sync>);

impl std::fmt::Display for NotConnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not connected")
    }
}

impl std::error::Error for NotConnected {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // What it is, and not its holder, which looks like an error, too.
        Some(&*self.0)
    }
}

/// The connections to one service.
pub struct Connections {
    place: Place,
    dialling: Dialling,
    http1: Client<Timed<HttpsConnector<Dial>>, AnyBody>,
    http2: Mutex<Held>,
    /// Whether the service agreed on HTTP/1.1 when it was offered both.
    agreed_on_http1: AtomicBool,
}

/// The connection of HTTP/2.
#[derive(Default)]
struct Held {
    connection: Option<Connection>,
    /// When none came about, and why.
    failed: Option<(Instant, NotConnected)>,
}

impl Connections {
    /// None yet.
    pub fn new(dialling: &Dialling, place: Place) -> Self {
        // In the clear nobody asks for a name.
        let nobody = || ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let name = dialling.server_name.clone().unwrap_or_else(nobody);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(dialling.tls.as_ref().clone())
            .https_or_http()
            .with_server_name_resolver(FixedServerNameResolver::new(name))
            .enable_http1()
            .wrap_connector(Dial(place.clone(), dialling.timeout));
        let http1 = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .build(Timed { inner: connector, timeout: dialling.timeout });
        let (dialling, http2) = (dialling.clone(), Mutex::default());
        Self { place, dialling, http1, http2, agreed_on_http1: AtomicBool::new(false) }
    }

    /// Sends a request with an absolute URI, over what the two ends agree on.
    pub async fn request(&self, request: Request<AnyBody>) -> Result<Response<Inbound>, Unanswered> {
        let offered = match self.dialling.versions {
            Versions::Http1 => false,
            Versions::Http2 => true,
            Versions::Either => self.dialling.server_name.is_some() && !self.agreed_on_http1.load(Ordering::Relaxed),
        };
        if !offered {
            return self.over_http1(request).await;
        }
        // A connection may go while the request waits for its turn.
        for _ in 0..2 {
            let connection = self.http2().await.map_err(Unanswered::undialled)?;
            let Some(connection) = connection else { return self.over_http1(request).await };
            if let Some(turn) = connection.turn().await {
                return turn.send(request).await.map_err(Unanswered::of);
            }
        }
        Err(Unanswered { error: "the connection went".into(), fate: Fate::Gone })
    }

    /// Sends a request of which a protocol may be made that is not HTTP: only HTTP/1.1 switches so.
    pub async fn switching(&self, request: Request<AnyBody>) -> Result<Response<Inbound>, Unanswered> {
        match self.dialling.versions {
            Versions::Http2 => self.request(request).await,
            Versions::Either | Versions::Http1 => self.over_http1(request).await,
        }
    }

    async fn over_http1(&self, request: Request<AnyBody>) -> Result<Response<Inbound>, Unanswered> {
        let answered = self.http1.request(request).await;
        answered.map(|response| response.map(Inbound::from)).map_err(|error| {
            let fate = if error.is_connect() { Fate::Undialled } else { Fate::Unknown };
            if fate == Fate::Undialled {
                // It may have become another service since.
                self.agreed_on_http1.store(false, Ordering::Relaxed);
            }
            Unanswered { error: error.into(), fate }
        })
    }

    /// The connection that takes requests, or a new one: whoever asks meanwhile waits for the same, and learns with it that there
    /// is none. None: the service speaks HTTP/1.1.
    async fn http2(&self) -> Result<Option<Connection>, NotConnected> {
        let asked = Instant::now();
        let mut held = self.http2.lock().await;
        if let Some(connection) = held.connection.as_ref().filter(|connection| connection.is_open()) {
            return Ok(Some(connection.clone()));
        }
        held.connection = None;
        if self.agreed_on_http1.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if let Some((_, error)) = held.failed.as_ref().filter(|(at, _)| *at >= asked) {
            return Err(error.clone());
        }
        let timeout = self.dialling.timeout;
        let dialled = tokio::time::timeout(timeout, Box::pin(self.dial())).await;
        match dialled.unwrap_or_else(|_| Err(late(timeout).into())) {
            Ok(connection) => {
                self.agreed_on_http1.store(connection.is_none(), Ordering::Relaxed);
                held.connection.clone_from(&connection);
                Ok(connection)
            }
            Err(error) => {
                let error = NotConnected(Arc::from(error));
                held.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn dial(&self) -> Result<Option<Connection>, BoxError> {
        let stream = dial(&self.place, self.dialling.timeout).await?;
        let Some(name) = self.dialling.server_name.clone() else { return Ok(Some(Connection::begin(stream).await?)) };
        let mut tls = self.dialling.tls.as_ref().clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        if self.dialling.versions == Versions::Either {
            tls.alpn_protocols.push(b"http/1.1".to_vec());
        }
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if agreed || self.dialling.versions == Versions::Http2 {
            return Ok(Some(Connection::begin(stream).await?));
        }
        Ok(None)
    }
}

impl Unanswered {
    /// Why, with all its causes.
    pub fn why(&self) -> String {
        let mut text = self.error.to_string();
        let mut source = self.error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    fn undialled(error: NotConnected) -> Self {
        Self { error: error.into(), fate: Fate::Undialled }
    }

    fn of(error: h2::Error) -> Self {
        let fate = match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => Fate::Refused,
            // Only streams behind the last one that the service looked at end so.
            _ if error.is_go_away() && error.is_remote() => Fate::Gone,
            _ => Fate::Unknown,
        };
        Self { error: error.into(), fate }
    }
}

fn late(timeout: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"))
}

async fn dial(place: &Place, timeout: Duration) -> Result<TcpStream, BoxError> {
    match place {
        Place::Address(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        }
        Place::Name(authority) => {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            connector.set_connect_timeout(Some(timeout));
            let mut parts = http::uri::Parts::default();
            (parts.scheme, parts.authority) = (Some(Scheme::HTTP), Some(authority.clone()));
            parts.path_and_query = Some(PathAndQuery::from_static("/"));
            Ok(connector.call(Uri::from_parts(parts)?).await?.into_inner())
        }
    }
}

/// Dials its place, whatever the URI says.
#[derive(Clone)]
struct Dial(Place, Duration);

type Dialled<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Dialled<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (place, timeout) = (self.0.clone(), self.1);
        Box::pin(async move { dial(&place, timeout).await.map(TokioIo::new) })
    }
}

/// A connector with a time limit over all that it does.
#[derive(Clone)]
struct Timed<C> {
    inner: C,
    timeout: Duration,
}

impl<C> Service<Uri> for Timed<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Response: 'static,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Dialled<Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, timeout) = (self.inner.call(uri), self.timeout);
        Box::pin(async move { tokio::time::timeout(timeout, connecting).await.map_err(|_| late(timeout))? })
    }
}
