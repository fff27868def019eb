//! A body that comes over a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, StatusCode, header};
use hyper::body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::net::body::BoxError;
use crate::net::h2::pulse::Use;
use crate::net::interim::Interim;

/// A body that comes over a stream. One that the other end resets is broken, whatever reason it gives: only END_STREAM ends
/// a body (RFC 9113 section 8.1).
pub struct StreamBody {
    stream: RecvStream,
    /// What `Content-Length` says is still to come; `h2` holds the stream to it.
    left: Option<u64>,
    data_ended: bool,
    /// Tells a client that waits for it to go on, once somebody reads.
    go_on: Option<Interim>,
    /// What is still sent on the same stream; it ends with a body that nobody wants.
    sending: Option<AbortHandle>,
    used: Use,
}

impl StreamBody {
    /// The body of a message with these headers.
    pub fn new(stream: RecvStream, headers: &HeaderMap, used: Use) -> Self {
        let left = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        Self { stream, left, data_ended: false, go_on: None, sending: None, used }
    }

    /// The same body, before which 100 (Continue) is sent (RFC 9110 section 10.1.1).
    pub fn asked_for_by(mut self, interim: Interim) -> Self {
        self.go_on = Some(interim);
        self
    }

    /// The same body, with what goes the other way.
    pub fn with_sending(mut self, sending: Option<AbortHandle>) -> Self {
        self.sending = sending;
        self
    }

    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let polled = ready!(self.stream.poll_data(cx));
        if let Some(Ok(data)) = &polled {
            self.used.life().heard();
            // An error says that the stream is over: there is no window to give back.
            let _ = self.stream.flow_control().release_capacity(data.len());
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            self.left = self.left.map(|left| left.saturating_sub(length));
        }
        Poll::Ready(polled)
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(interim) = self.go_on.take().filter(|_| !self.stream.is_end_stream()) {
            interim.send(StatusCode::CONTINUE, &HeaderMap::new(), || true);
        }
        if !self.data_ended {
            match ready!(self.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) => None,
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(sending) = self.sending.take().filter(|_| !self.stream.is_end_stream()) {
            sending.abort();
        }
    }
}
