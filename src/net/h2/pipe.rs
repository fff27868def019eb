//! Sends a body over a stream, no faster than the other end takes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use hyper::body::{Body, Frame};
use tokio::time::Instant;

use crate::net::body::{AnyBody, BoxError};
use crate::net::h2::strip;

/// Sends a body whole; the stream is reset if the body breaks, though not before a moment if one is given.
///
/// # Errors
///
/// The other end reset the stream, or the connection is gone, or the body broke.
pub async fn send(mut body: AnyBody, mut to: SendStream<Bytes>, not_before: Option<Instant>) -> Result<(), BoxError> {
    loop {
        // The frame comes first and room for it second: room that nothing fills would be kept from other streams.
        match poll_fn(|cx| frame(&mut body, &mut to, cx)).await? {
            None => return Ok(to.send_data(Bytes::new(), true)?),
            Some(Err(error)) => {
                if let Some(moment) = not_before {
                    tokio::time::sleep_until(moment).await;
                }
                to.send_reset(reason(&*error));
                return Err(error);
            }
            Some(Ok(frame)) => {
                let last = body.is_end_stream();
                if send_frame(frame, last, &mut to).await? {
                    return Ok(());
                }
            }
        }
    }
}

type NextFrame = Result<Option<Result<Frame<Bytes>, BoxError>>, h2::Error>;

fn frame(body: &mut AnyBody, to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<NextFrame> {
    if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
        return Poll::Ready(Ok(frame));
    }
    over(to, cx).map(Err)
}

/// Why the stream takes no more.
fn over(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<h2::Error> {
    to.poll_reset(cx).map(|reset| reset.map_or_else(|error| error, Into::into))
}

/// Sends a frame, after which nothing comes if it is the last; true if so.
async fn send_frame(frame: Frame<Bytes>, last: bool, to: &mut SendStream<Bytes>) -> Result<bool, BoxError> {
    let data = match frame.into_data() {
        Ok(data) => data,
        Err(frame) => {
            let mut trailers = frame.into_trailers().unwrap_or_default();
            strip(&mut trailers);
            to.send_trailers(trailers)?;
            return Ok(true);
        }
    };
    if data.is_empty() && !last {
        return Ok(false);
    }
    if !data.is_empty() {
        // `h2` asks for the rest when it has the data.
        to.reserve_capacity(1);
        poll_fn(|cx| room(to, cx)).await?;
    }
    to.send_data(data, last)?;
    Ok(last)
}

fn room(to: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
    while to.capacity() == 0 {
        match to.poll_capacity(cx) {
            Poll::Pending => return over(to, cx).map(|error| Err(error.into())),
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
            Poll::Ready(None) => return Poll::Ready(Err("the stream takes no more".into())),
        }
    }
    Poll::Ready(Ok(()))
}

/// What a stream is reset with when its body breaks: what broke it, if that was a stream of HTTP/2. `NO_ERROR` is taken for an
/// end by some.
pub(super) fn reason(error: &(dyn std::error::Error + 'static)) -> Reason {
    let own = error.downcast_ref::<h2::Error>().and_then(h2::Error::reason);
    own.filter(|reason| *reason != Reason::NO_ERROR)
        .or_else(|| error.source().map(reason))
        .unwrap_or(Reason::INTERNAL_ERROR)
}
