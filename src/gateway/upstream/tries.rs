//! A request's body between tries: what one try has read of it another may send again, as long as that is little and upstream
//! says that it looked at none of it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};

use crate::net::body::{AnyBody, BoxError};

/// Most bytes that are kept for another try.
const MOST_KEPT: usize = 64 << 10;

/// A body and what was read of it.
pub struct Tried(Arc<Mutex<State>>);

struct State {
    body: AnyBody,
    /// What was read, in order; none once it is too much, or will not be wanted.
    kept: Option<Vec<Piece>>,
    size: usize,
    /// Whether all was read.
    ended: bool,
    /// Number of the last try: only that one reads.
    last: usize,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

impl Tried {
    /// A body that no try has read from.
    pub fn new(body: AnyBody) -> Self {
        let ended = body.is_end_stream();
        Self(Arc::new(Mutex::new(State { body, kept: Some(Vec::new()), size: 0, ended, last: 0 })))
    }

    /// The whole body for a try; none once more of it was read than is kept.
    pub fn lend(&self) -> Option<AnyBody> {
        let mut state = lock(&self.0);
        let kept = state.kept.as_ref()?;
        let hint = if kept.is_empty() { state.body.size_hint() } else { whole(&state) };
        state.last += 1;
        let number = state.last;
        drop(state);
        Some(Lent { shared: self.0.clone(), number, next: 0, hint }.boxed_unsync())
    }

    /// An answer is there: nothing is sent again.
    pub fn settle(&self) {
        lock(&self.0).kept = None;
    }
}

/// What is known of the length of all of it.
fn whole(state: &State) -> SizeHint {
    let read = state.size as u64;
    state.body.size_hint().exact().map_or_else(SizeHint::default, |left| SizeHint::with_exact(read + left))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lent {
    shared: Arc<Mutex<State>>,
    number: usize,
    /// How many pieces this try has had.
    next: usize,
    hint: SizeHint,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { shared, number, next, .. } = &mut *self;
        let mut state = lock(shared);
        if state.last != *number {
            // Whoever asks last is the only one to be woken.
            return Poll::Ready(Some(Err("another try has this body".into())));
        }
        let again = state.kept.as_ref().and_then(|kept| kept.get(*next)).cloned();
        if let Some(piece) = again {
            *next += 1;
            return Poll::Ready(Some(Ok(match piece {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        let polled = ready!(Pin::new(&mut state.body).poll_frame(cx));
        match &polled {
            None => state.ended = true,
            // What broke is not tried again.
            Some(Err(_)) => state.kept = None,
            Some(Ok(frame)) => {
                state.keep(frame);
                *next += 1;
            }
        }
        state.ended |= state.body.is_end_stream();
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.shared);
        state.ended && state.kept.as_ref().is_none_or(|kept| self.next >= kept.len())
    }

    fn size_hint(&self) -> SizeHint {
        if self.next == 0 { self.hint } else { SizeHint::default() }
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(kept) = &mut self.kept else { return };
        if let Some(data) = frame.data_ref() {
            self.size += data.len();
            kept.push(Piece::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.push(Piece::Trailers(trailers.clone()));
        }
        if self.size > MOST_KEPT {
            self.kept = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use http_body_util::StreamBody;

    use super::*;
    use crate::net::body::streaming;

    fn body(pieces: &[&'static str]) -> AnyBody {
        let frames: Vec<_> =
            pieces.iter().map(|p| Ok::<_, BoxError>(Frame::data(Bytes::from_static(p.as_bytes())))).collect();
        streaming(StreamBody::new(futures_util::stream::iter(frames)))
    }

    fn all(body: AnyBody) -> Option<String> {
        let whole = body.collect().now_or_never().expect("is there").ok()?;
        Some(String::from_utf8(whole.to_bytes().to_vec()).expect("UTF-8"))
    }

    #[test]
    fn each_try_gets_all_of_it() {
        let tried = Tried::new(body(&["a", "b", "c"]));
        let mut first = tried.lend().expect("little was read");
        assert!(first.frame().now_or_never().expect("is there").is_some());
        let second = tried.lend().expect("little was read");
        assert!(first.frame().now_or_never().expect("is there").expect("no end").is_err(), "the other one has it");
        assert_eq!(all(second).as_deref(), Some("abc"));
        assert_eq!(all(tried.lend().expect("little was read")).as_deref(), Some("abc"), "and once more");
        tried.settle();
        assert!(tried.lend().is_none());
    }

    #[test]
    fn what_is_long_is_tried_once() {
        let long: &'static str = Box::leak("x".repeat(MOST_KEPT).into_boxed_str());
        let tried = Tried::new(body(&[long, "y", "z"]));
        let sent = all(tried.lend().expect("nothing was read"));
        assert_eq!(sent.map(|s| s.len()), Some(MOST_KEPT + 2));
        assert!(tried.lend().is_none());
    }

    #[test]
    fn nothing_is_nothing_each_time() {
        let tried = Tried::new(crate::net::body::full(""));
        for _ in 0..2 {
            assert!(tried.lend().expect("little was read").is_end_stream());
        }
    }
}
