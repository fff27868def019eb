//! A request's body that another try may still take: nothing of it has been read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};

use crate::net::body::{AnyBody, BoxError};

/// The body between tries.
pub struct Untouched(Arc<Mutex<Option<AnyBody>>>);

impl Untouched {
    /// A body that no try has read from.
    pub fn new(body: AnyBody) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    /// The body for a try; none once one has read from it.
    pub fn lend(&self) -> Option<AnyBody> {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let body = lent.as_ref()?;
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        drop(lent);
        Some(Lent { shared: self.0.clone(), taken: None, hint, ended }.boxed_unsync())
    }
}

struct Lent {
    shared: Arc<Mutex<Option<AnyBody>>>,
    taken: Option<AnyBody>,
    hint: SizeHint,
    ended: bool,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.taken.is_none() {
            let taken = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.taken = taken;
        }
        match &mut self.taken {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(Some(Err("another try has read this body".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.taken.as_ref().map_or(self.ended, Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.taken.as_ref().map_or(self.hint, Body::size_hint)
    }
}
