//! Interim answers (RFC 9110 section 15.2): those that a connection's client still gets, and those that an upstream gives.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use http::{HeaderMap, Request, Response, StatusCode, header};

use crate::net::body::AnyBody;

/// Most bytes of interim answers to one request.
const MOST: usize = 64 << 10;

/// What a connection and those who answer on it share.
#[derive(Clone, Default)]
pub struct Desk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Number of the last request.
    last: u64,
    /// Whether its answer is awaited.
    awaited: bool,
    /// What is to be sent.
    waiting: Vec<Response<()>>,
    /// Bytes that its interim answers may still have.
    left: usize,
    /// Wakes the connection.
    waker: Option<Waker>,
}

/// Where interim answers to one request go.
#[derive(Clone)]
pub struct Interim {
    desk: Desk,
    request: u64,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be sent now.
    pub fn take(&self) -> Vec<Response<()>> {
        std::mem::take(&mut self.lock().waiting)
    }

    /// The same, unless the final answer is there: what found no place before it is late.
    pub fn take_in_time(&self) -> Vec<Response<()>> {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        if state.awaited { waiting } else { Vec::new() }
    }

    /// Takes interim answers to the request that has come.
    pub fn open(&self) -> Interim {
        let mut state = self.lock();
        let request = state.last + 1;
        *state = State { last: request, awaited: true, waiting: Vec::new(), left: MOST, waker: None };
        drop(state);
        Interim { desk: self.clone(), request }
    }
}

impl Interim {
    /// Whether another one may still be sent.
    pub fn is_open(&self) -> bool {
        let state = self.desk.lock();
        state.awaited && state.last == self.request && state.left > 0
    }

    /// Sends one, unless the final answer is there, or they are too many. What `record` does not take is not sent.
    pub fn send(&self, status: StatusCode, headers: &HeaderMap, record: impl FnOnce() -> bool) {
        let message = message(status, headers);
        let length = length(&message);
        let mut state = self.desk.lock();
        if !state.awaited || state.last != self.request {
            return;
        }
        if length > state.left {
            // No more of them: what comes is not looked at again.
            state.left = 0;
            return;
        }
        if !record() {
            return;
        }
        state.left -= length;
        state.waiting.push(message);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the final answer; the interim ones are written meanwhile, and none behind it.
    pub async fn until(self, answer: impl Future<Output = Response<AnyBody>>) -> Response<AnyBody> {
        let over = Over(self);
        let mut answer = pin!(answer);
        std::future::poll_fn(|cx| {
            over.0.desk.lock().waker = Some(cx.waker().clone());
            answer.as_mut().poll(cx)
        })
        .await
    }
}

/// Takes no more interim answers when the final one is there, or the client went. What has come goes out before it.
struct Over(Interim);

impl Drop for Over {
    fn drop(&mut self) {
        let mut state = self.0.desk.lock();
        if state.last == self.0.request {
            state.awaited = false;
        }
    }
}

/// An interim answer has no body, and nothing that speaks of one.
fn message(status: StatusCode, headers: &HeaderMap) -> Response<()> {
    let mut message = Response::new(());
    *message.status_mut() = status;
    *message.headers_mut() = headers.clone();
    for name in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        message.headers_mut().remove(name);
    }
    message
}

/// About what it takes in HTTP/1.1.
fn length(message: &Response<()>) -> usize {
    message.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>() + 27
}

/// Told of each interim answer that an upstream gives.
#[derive(Clone)]
pub struct OnInterim(Arc<Told>);

type Told = dyn Fn(StatusCode, &HeaderMap) + Send + Sync;

impl OnInterim {
    /// Somebody to tell.
    pub fn new(told: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(told))
    }

    /// Has it told of what answers this request, whichever version of HTTP carries it.
    pub fn attach<B>(&self, request: &mut Request<B>) {
        let told = self.clone();
        hyper::ext::on_informational(request, move |answer| told.tell(answer.status(), answer.headers()));
        request.extensions_mut().insert(self.clone());
    }

    /// Tells of one.
    pub fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        (self.0)(status, headers);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn what_is_too_much_is_not_sent() {
        let desk = Desk::default();
        let interim = desk.open();
        let long =
            HeaderMap::from_iter([(header::LINK, HeaderValue::from_str(&"x".repeat(MOST / 2)).expect("a value"))]);
        let mut recorded = 0;
        for _ in 0..3 {
            interim.send(StatusCode::PROCESSING, &long, || {
                recorded += 1;
                true
            });
        }
        assert_eq!(recorded, 1, "the second would be beyond {MOST} bytes");
        assert_eq!(desk.take_in_time().len(), 1);
        assert!(!interim.is_open());
    }

    #[tokio::test]
    async fn nothing_follows_a_client_that_went() {
        let desk = Desk::default();
        let interim = desk.open();
        let answer = interim.clone().until(std::future::pending());
        drop(answer);
        interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || true);
        assert_eq!(desk.take().len(), 1, "nobody had waited yet");
        let mut answer = Box::pin(interim.clone().until(std::future::pending()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        drop(answer);
        interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || panic!("the answer is not awaited"));
    }
}
