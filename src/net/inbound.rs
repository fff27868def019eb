//! Bodies that come from the other end of a connection, whichever version of HTTP carries them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::net::body::BoxError;
use crate::net::h2::body::StreamBody;

/// A message's body as it comes.
pub enum Inbound {
    /// Over HTTP/1.1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(StreamBody),
    /// There is none.
    Empty,
}

impl From<Incoming> for Inbound {
    fn from(body: Incoming) -> Self {
        Self::Http1(body)
    }
}

impl Body for Inbound {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2(body) => Pin::new(body).poll_frame(cx),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// Most bytes of a body that are read once nobody wants them, and for how long.
const LEFT_OVER: (usize, Duration) = (4 << 20, Duration::from_secs(5));

/// A request's body. What nobody read of it is read and forgotten for a while: who still sends would else be cut off before
/// the answer was read, which clients take for a failure of the connection.
pub struct Arriving {
    /// None once it is taken apart.
    body: Option<Inbound>,
    /// Whether the client waits to be told to go on, so that nothing comes unasked.
    waits: bool,
}

impl Arriving {
    /// The body of a request with these headers.
    pub fn new(body: Inbound, headers: &http::HeaderMap) -> Self {
        Self { body: Some(body), waits: headers.contains_key(http::header::EXPECT) }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.waits = false;
        let polled = self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx));
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (most, patience) = LEFT_OVER;
            runtime.spawn(tokio::time::timeout(patience, forget(body, most)));
        }
    }
}

async fn forget(mut body: Inbound, most: usize) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}
