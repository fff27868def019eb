//! Bodies to send, and reading to a limit.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body of any origin.
pub type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is there already.
pub fn full(bytes: impl Into<Bytes>) -> AnyBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body as it comes.
pub fn streaming<B>(body: B) -> AnyBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
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
