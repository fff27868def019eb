//! Connections to one service: what is dialled, how long that may take, and which protocol is agreed on.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::{Request, Response, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tower::Service;

use crate::net::body::{AnyBody, BoxError};
use crate::net::h2::client::{Connection, Failure};
use crate::net::inbound::Inbound;

/// How long a connection without a request is kept.
const KEPT: Duration = Duration::from_mins(1);

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
    /// A name and a port; the name is resolved for each connection.
    Name(Arc<str>, u16),
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
    /// No connection came about.
    pub undialled: bool,
    /// The service says that it did not look at the request (RFC 9113 section 8.7), or nothing of it was sent.
    pub unseen: bool,
}

/// The connections to one service.
pub struct Connections {
    place: Place,
    dialling: Dialling,
    http1: Client<Timed<HttpsConnector<Dial>>, AnyBody>,
    http2: Mutex<Option<Kept>>,
    /// Whether the service agreed on HTTP/1.1 when it was offered both.
    agreed_on_http1: AtomicBool,
}

/// A connection of HTTP/2 between its requests.
struct Kept {
    connection: Connection,
    used: Instant,
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
            .wrap_connector(Dial(place.clone()));
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
        match self.http2().await.map_err(Unanswered::undialled)? {
            None => self.over_http1(request).await,
            Some(connection) => connection.send(request).await.map_err(Unanswered::of),
        }
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
            if error.is_connect() {
                // It may have become another service since.
                self.agreed_on_http1.store(false, Ordering::Relaxed);
            }
            let undialled = error.is_connect();
            Unanswered { error: error.into(), undialled, unseen: undialled }
        })
    }

    /// The connection that takes requests, or a new one: whoever asks meanwhile waits for the same. None: the service
    /// speaks HTTP/1.1.
    async fn http2(&self) -> Result<Option<Connection>, BoxError> {
        let mut kept = self.http2.lock().await;
        if let Some(kept) = kept.as_mut().filter(|kept| kept.connection.is_used() || kept.used.elapsed() < KEPT)
            && kept.connection.is_open().await
        {
            kept.used = Instant::now();
            return Ok(Some(kept.connection.clone()));
        }
        *kept = None;
        let timeout = self.dialling.timeout;
        let Some(connection) =
            tokio::time::timeout(timeout, Box::pin(self.dial())).await.map_err(|_| late(timeout))??
        else {
            self.agreed_on_http1.store(true, Ordering::Relaxed);
            return Ok(None);
        };
        *kept = Some(Kept { connection: connection.clone(), used: Instant::now() });
        Ok(Some(connection))
    }

    async fn dial(&self) -> Result<Option<Connection>, BoxError> {
        let stream = dial(&self.place).await?;
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

    fn undialled(error: BoxError) -> Self {
        Self { error, undialled: true, unseen: true }
    }

    fn of(failure: Failure) -> Self {
        let unseen = match &failure {
            Failure::Unsent(_) => true,
            Failure::Broke(error) => error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM),
        };
        Self { error: failure.into(), undialled: false, unseen }
    }
}

fn late(timeout: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}"))
}

async fn dial(place: &Place) -> io::Result<TcpStream> {
    let stream = match place {
        Place::Address(address) => TcpStream::connect(address).await?,
        Place::Name(name, port) => TcpStream::connect((&**name, *port)).await?,
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Dials its place, whatever the URI says.
#[derive(Clone)]
struct Dial(Place);

type Dialled<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Dialled<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let place = self.0.clone();
        Box::pin(async move { dial(&place).await.map(TokioIo::new) })
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
