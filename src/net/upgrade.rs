//! A connection or a stream that becomes another protocol's once its request was answered.

use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use crate::net::h2::tunnel::Tunnel;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What a request of this connection may become.
pub enum Upgrading {
    /// The connection of HTTP/1.1 (RFC 9110 section 7.8).
    Http1(OnUpgrade),
    /// A stream of HTTP/2 (RFC 8441).
    Http2(oneshot::Receiver<Tunnel>),
}

/// An [`Upgrading`] between a request's extensions, which are things that can be cloned.
#[derive(Clone)]
pub(super) struct Promised(Arc<Mutex<Option<oneshot::Receiver<Tunnel>>>>);

/// Kept once the stream was answered.
pub(super) struct Promise(oneshot::Sender<Tunnel>);

impl Promise {
    /// Hands the stream over; it is closed if nobody wants it any more.
    pub(super) fn keep(self, tunnel: Tunnel) {
        let _ = self.0.send(tunnel);
    }
}

impl Upgrading {
    /// A stream's promise, and what keeps it.
    pub(super) fn promised() -> (Promise, Promised) {
        let (keep, promised) = oneshot::channel();
        (Promise(keep), Promised(Arc::new(Mutex::new(Some(promised)))))
    }

    /// Takes what a request can be upgraded to.
    pub fn take<B>(request: &mut Request<B>) -> Option<Self> {
        let extensions = request.extensions_mut();
        let Some(Promised(promised)) = extensions.remove() else { return extensions.remove().map(Self::Http1) };
        promised.lock().unwrap_or_else(PoisonError::into_inner).take().map(Self::Http2)
    }

    /// What a service of HTTP/1.1 has switched to another protocol.
    pub fn switched<B>(response: &mut Response<B>) -> Option<Self> {
        response.extensions_mut().remove().map(Self::Http1)
    }

    /// Waits for the answer to have gone out. None: the connection is gone.
    pub async fn ready(self) -> Option<Box<dyn Duplex>> {
        match self {
            Self::Http1(upgrade) => upgrade.await.ok().map(|upgraded| Box::new(TokioIo::new(upgraded)) as _),
            Self::Http2(promised) => promised.await.ok().map(|tunnel| Box::new(tunnel) as _),
        }
    }
}
