//! Body types and reading to a limit.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body of any origin.
pub type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

/// Most bytes of a body that are read once nobody wants them, and for how long.
const LEFT_OVER: (usize, Duration) = (4 << 20, Duration::from_secs(5));

/// A request's body. What nobody read of it is read and forgotten for a while: who still sends would else be cut off before
/// the answer was read, which clients take for a failure of the connection.
pub struct Arriving {
    /// None once it is taken apart.
    body: Option<Incoming>,
    /// Whether the client waits to be told to go on, so that nothing comes unasked.
    waits: bool,
}

impl Arriving {
    /// The body of a request with these headers.
    pub fn new(body: Incoming, headers: &http::HeaderMap) -> Self {
        Self { body: Some(body), waits: headers.contains_key(http::header::EXPECT) }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
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

async fn forget(mut body: Incoming, most: usize) {
    let mut left = most;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body as it comes.
pub fn streaming(body: Incoming) -> AnyBody {
    body.map_err(Into::into).boxed_unsync()
}

/// A body was longer than its limit, or broke off.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReadError {
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    #[error("the body broke off")]
    Broken,
    #[error("the body did not come within {0} s")]
    Slow(u64),
}

/// How long a body that is read whole may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads a body whole, up to `limit` bytes, within half a minute.
pub async fn read<B>(body: B, limit: usize) -> Result<Bytes, ReadError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let Ok(read) = tokio::time::timeout(PATIENCE, Limited::new(body, limit).collect()).await else {
        return Err(ReadError::Slow(PATIENCE.as_secs()));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.is::<http_body_util::LengthLimitError>() => Err(ReadError::TooLong(limit)),
        Err(_) => Err(ReadError::Broken),
    }
}
