//! Accepts connections, serves HTTP/1.1 and HTTP/2 on them, and drains.

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response, Version};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::net::body::{AnyBody, BoxError};
use crate::net::h1_interim::InterimStream;
use crate::net::h2;
use crate::net::inbound::Inbound;
use crate::net::interim::Desk;
use crate::net::preface;
use crate::net::process::PeerProcess;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(15);

/// Who is on the other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address; none on a Unix socket.
    pub address: Option<SocketAddr>,
    /// Its leaf certificate, DER, verified in the handshake.
    pub leaf: Option<Arc<[u8]>>,
    /// Its user, on a Unix socket.
    pub uid: Option<u32>,
    /// Its process, where an agent asked the kernel.
    pub process: Option<Arc<PeerProcess>>,
    /// What a plane has read from the certificate, once for the connection.
    pub read: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Peer {
    /// A peer of which nothing has been read yet.
    pub fn new(address: Option<SocketAddr>, leaf: Option<Arc<[u8]>>, uid: Option<u32>) -> Self {
        Self { address, leaf, uid, process: None, read: OnceLock::new() }
    }
}

/// Tells listeners and streams that the service is going.
#[derive(Clone)]
pub struct Drain {
    going: watch::Receiver<bool>,
}

impl Drain {
    /// A drain and the switch that begins it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (switch, going) = watch::channel(false);
        (switch, Self { going })
    }

    /// Returns once draining has begun.
    pub async fn begun(&mut self) {
        // A dropped switch means the service is gone already.
        let _ = self.going.wait_for(|going| *going).await;
    }
}

/// A listening address cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "{what} cannot listen on {address}: another process has it; stop that one, or set another address (key {key})"
    )]
    Busy { what: &'static str, address: SocketAddr, key: &'static str },
    #[error("{what} cannot listen on {address}: {cause} (key {key})")]
    Other { what: &'static str, address: SocketAddr, key: &'static str, cause: io::Error },
}

/// Binds an address; the error names who wanted it and which key says so.
pub async fn bind(address: SocketAddr, what: &'static str, key: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => BindError::Busy { what, address, key },
        _ => BindError::Other { what, address, key, cause },
    })
}

/// How many connections a listener has at a time: three fifths of the files that the process may open, since each may need
/// another one upstream.
fn places() -> usize {
    use nix::sys::resource::{Resource, getrlimit};
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    usize::try_from(files / 5 * 3).unwrap_or(usize::MAX).clamp(600, 100_000)
}

/// Answers requests of one listener. Errors are answers, too.
pub trait Serve: Clone + Send + Sync + 'static {
    /// Whether extended CONNECT is offered over HTTP/2 (RFC 8441 section 3).
    const TUNNELS: bool = false;

    /// Answers one request of one peer.
    fn serve(&self, peer: Arc<Peer>, request: Request<Inbound>) -> impl Future<Output = Response<AnyBody>> + Send;
}

/// Serves a listener until the drain begins, then finishes what is in flight.
pub async fn serve<S: Serve>(listener: TcpListener, tls: Option<Arc<ServerConfig>>, service: S, mut drain: Drain) {
    let room = Arc::new(Semaphore::new(places()));
    // Dropped with this future, so that a listener that is ended takes its connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (service, drain, tls) = (service.clone(), drain.clone(), tls.clone());
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => {
                    connection(stream, Spoken::Either, Peer::new(Some(address), None, None), service, drain).await;
                }
                Some(tls) => secured(stream, address, tls, service, drain).await,
            }
            drop(place);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn secured<S: Serve>(
    stream: tokio::net::TcpStream,
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    service: S,
    mut drain: Drain,
) {
    let handshake = tokio::select! {
        biased;
        handshake = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)) => handshake,
        // Who has asked for nothing yet asks elsewhere.
        () = drain.begun() => return,
    };
    match handshake {
        Ok(Ok(stream)) => {
            let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|c| Arc::from(c.as_ref()));
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let spoken = if http2 { Spoken::Http2 } else { Spoken::Http1 };
            connection(stream, spoken, Peer::new(Some(address), leaf, None), service, drain).await;
        }
        Ok(Err(error)) => {
            metrics::counter!("popgate_tls_handshakes_failed_total").increment(1);
            tracing::info!(%address, %error, "handshake failed");
        }
        Err(_) => tracing::info!(%address, "handshake took too long"),
    }
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Spoken {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What its first bytes say, where nothing was agreed on (RFC 9113 section 3.3).
    Either,
}

/// Serves one connection, whatever carries it, until its client goes or the drain has begun and nothing is in flight. One
/// that brings no request in time is closed, recognised or not.
pub async fn connection<S: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    spoken: Spoken,
    peer: Peer,
    service: S,
    drain: Drain,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let service = Asked { service, asked: asked.clone() };
    tokio::select! {
        biased;
        ended = spoken_with(stream, spoken, Arc::new(peer), service, drain) => if let Err(error) = ended {
            tracing::debug!(error, "connection ended");
        },
        () = unasked(&asked) => tracing::debug!("a connection brought no request in time"),
    }
}

async fn spoken_with<S: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    spoken: Spoken,
    peer: Arc<Peer>,
    service: S,
    mut drain: Drain,
) -> Result<(), BoxError> {
    match spoken {
        Spoken::Http1 => http1(stream, peer, service, drain).await?,
        Spoken::Http2 => h2::server::serve(stream, service, peer, drain).await?,
        Spoken::Either => {
            let read = tokio::select! {
                biased;
                read = preface::is_http2(stream) => read,
                () = drain.begun() => return Ok(()),
            };
            match read? {
                (true, stream) => h2::server::serve(stream, service, peer, drain).await?,
                (false, stream) => http1(stream, peer, service, drain).await?,
            }
        }
    }
    Ok(())
}

async fn http1<S: Serve>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Arc<Peer>,
    service: S,
    mut drain: Drain,
) -> Result<(), hyper::Error> {
    let desk = Desk::default();
    let stream = InterimStream::new(stream, desk.clone());
    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Inbound::from);
        let (service, peer) = (service.clone(), peer.clone());
        // HTTP/1.0 knows no interim answers.
        let interim = (request.version() == Version::HTTP_11).then(|| desk.open());
        if let Some(interim) = &interim {
            request.extensions_mut().insert(interim.clone());
        }
        async move {
            let answer = service.serve(peer, request);
            Ok::<_, Infallible>(match interim {
                Some(interim) => interim.until(answer).await,
                None => answer.await,
            })
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(128 * 1024);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), answer).with_upgrades());
    tokio::select! {
        biased;
        ended = &mut serving => return ended,
        () = drain.begun() => serving.as_mut().graceful_shutdown(),
    }
    serving.await
}

/// A service that notes whether it was asked anything.
#[derive(Clone)]
struct Asked<S> {
    service: S,
    asked: Arc<AtomicBool>,
}

impl<S: Serve> Serve for Asked<S> {
    const TUNNELS: bool = S::TUNNELS;

    fn serve(&self, peer: Arc<Peer>, request: Request<Inbound>) -> impl Future<Output = Response<AnyBody>> + Send {
        self.asked.store(true, Ordering::Relaxed);
        self.service.serve(peer, request)
    }
}

/// Returns when the first request is overdue. The library's own timers begin after the first bytes of HTTP/2.
async fn unasked(asked: &AtomicBool) {
    tokio::time::sleep(HEADERS).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
