//! A body that streams to upstream although its proof signs for it: the last of it goes only once all of it is what was
//! signed for, so that upstream never has another body whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

use crate::domain::digest::{Hasher, Sha256};
use crate::net::body::BoxError;
use crate::protocol::dpop::ProofError;

/// The body, one piece behind.
pub struct Signed<B, F> {
    body: B,
    /// Told when it is another body.
    other: F,
    wanted: Sha256,
    /// None once it was compared.
    seen: Option<Hasher>,
    held: VecDeque<Frame<Bytes>>,
}

impl<B, F: Fn()> Signed<B, F> {
    /// A body that must have this digest.
    pub fn new(body: B, wanted: Sha256, other: F) -> Self {
        Self { body, other, wanted, seen: Some(Hasher::default()), held: VecDeque::new() }
    }

    /// Nothing but trailers follows.
    fn ended(&mut self) -> Result<(), BoxError> {
        match self.seen.take() {
            Some(seen) if seen.so_far() != self.wanted => {
                self.held.clear();
                (self.other)();
                Err(ProofError::ContentDigest.into())
            }
            _ => Ok(()),
        }
    }
}

impl<B, F> Body for Signed<B, F>
where
    F: Fn() + Unpin,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.seen.is_none()
                && let Some(frame) = self.held.pop_front()
            {
                return Poll::Ready(Some(Ok(frame)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None if self.seen.is_none() => return Poll::Ready(None),
                None => self.ended()?,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => {
                    match (frame.data_ref(), &mut self.seen) {
                        (Some(data), Some(seen)) => seen.update(data),
                        _ => self.ended()?,
                    }
                    // An empty piece would let go the one before it, which may be the last.
                    if frame.data_ref().is_none_or(|data| !data.is_empty()) {
                        self.held.push_back(frame);
                    }
                    if self.body.is_end_stream() {
                        self.ended()?;
                    } else if self.seen.is_some() && self.held.len() > 1 {
                        return Poll::Ready(self.held.pop_front().map(Ok));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.seen.is_none() && self.held.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().filter_map(Frame::data_ref).map(|d| d.len() as u64).sum::<u64>();
        match self.body.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + held),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::FutureExt as _;
    use http::HeaderMap;
    use http_body_util::{BodyExt as _, Full, StreamBody};

    use super::*;

    const PIECES: [&str; 5] = ["{\"a\":", "", "1", "}", ""];

    /// All that passes, how many frames were trailers, and whether it ended well.
    fn passed(mut body: impl Body<Data = Bytes, Error = BoxError> + Unpin) -> (String, usize, bool) {
        let (mut all, mut trailers) = (String::new(), 0);
        while let Some(frame) = body.frame().now_or_never().expect("is there") {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => all += std::str::from_utf8(&data).expect("UTF-8"),
                Ok(Err(_)) => trailers += 1,
                Err(_) => return (all, trailers, false),
            }
        }
        (all, trailers, true)
    }

    fn pieces(trailers: bool) -> impl Body<Data = Bytes, Error = std::convert::Infallible> + Unpin {
        let data = PIECES.iter().map(|p| Ok(Frame::data(Bytes::from_static(p.as_bytes()))));
        let last = trailers.then(|| Ok(Frame::trailers(HeaderMap::new())));
        StreamBody::new(futures_util::stream::iter(data.chain(last).collect::<Vec<_>>()))
    }

    #[test]
    fn what_was_signed_for_passes_whole() {
        let digest = Sha256::of(PIECES.concat().as_bytes());
        for trailers in [false, true] {
            let body = Signed::new(pieces(trailers), digest, || panic!("it is that body"));
            assert_eq!(passed(body), (PIECES.concat(), usize::from(trailers), true));
        }
        let body = Signed::new(Full::new(Bytes::from(PIECES.concat())), digest, || panic!("it is that body"));
        assert_eq!(body.size_hint().exact(), Some(7));
        assert_eq!(passed(body), (PIECES.concat(), 0, true));
        assert_eq!(
            passed(Signed::new(Full::new(Bytes::new()), Sha256::of(b""), || panic!("it is"))),
            (String::new(), 0, true)
        );
    }

    #[test]
    fn another_body_never_passes_whole() {
        for trailers in [false, true] {
            let told = Cell::new(0);
            let body = Signed::new(pieces(trailers), Sha256::of(b"another"), || told.set(told.get() + 1));
            assert_eq!(passed(body), ("{\"a\":1".to_owned(), 0, false));
            assert_eq!(told.get(), 1);
        }
        let told = Cell::new(0);
        let body = Signed::new(Full::new(Bytes::from_static(b"{}")), Sha256::of(b"another"), || told.set(1));
        assert_eq!((passed(body), told.get()), ((String::new(), 0, false), 1));
    }
}
