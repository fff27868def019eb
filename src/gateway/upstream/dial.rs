//! Connections to one address: what is dialled, how long that may take, and which protocol is agreed on.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tower::Service;

use crate::gateway::upstream::config::Protocol;
use crate::net::body::{AnyBody, BoxError};

/// How long a connection without a request is kept.
const KEPT: Duration = Duration::from_mins(1);
/// An HTTP/2 connection is asked this often whether it is alive.
const PING: Duration = Duration::from_secs(20);

/// A pool of connections to one address.
pub type Connections = Client<Timed<HttpsConnector<Dial>>, AnyBody>;

/// What all connections of a URL have in common.
#[derive(Clone)]
pub struct Dialling {
    /// How long TCP and TLS may take together.
    pub timeout: Duration,
    /// What is spoken.
    pub protocol: Protocol,
    /// TLS, for `https`.
    pub tls: Arc<ClientConfig>,
    /// The name in the certificate.
    pub server_name: ServerName<'static>,
}

/// The pool of an address.
pub fn connections(dialling: &Dialling, address: SocketAddr) -> Connections {
    let builder = HttpsConnectorBuilder::new()
        .with_tls_config(dialling.tls.as_ref().clone())
        .https_or_http()
        .with_server_name_resolver(FixedServerNameResolver::new(dialling.server_name.clone()));
    let connector = match dialling.protocol {
        Protocol::Auto => builder.enable_http1().enable_http2().wrap_connector(Dial(address)),
        Protocol::Http1 => builder.enable_http1().wrap_connector(Dial(address)),
        Protocol::Http2 => builder.enable_http2().wrap_connector(Dial(address)),
    };
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(KEPT)
        .http2_only(dialling.protocol == Protocol::Http2)
        .http2_keep_alive_interval(PING)
        .http2_adaptive_window(true)
        .build(Timed { inner: connector, timeout: dialling.timeout })
}

/// Dials its address, whatever the URI says.
#[derive(Clone)]
pub struct Dial(SocketAddr);

type Dialled<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Dialled<Result<Self::Response, io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// A connector with a time limit over all that it does.
#[derive(Clone)]
pub struct Timed<C> {
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
        Box::pin(async move {
            let late = || io::Error::new(io::ErrorKind::TimedOut, "no connection within connect_timeout");
            tokio::time::timeout(timeout, connecting).await.map_err(|_| late())?
        })
    }
}
