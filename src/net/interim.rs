//! Interim answers (RFC 9110 section 15.2) on a connection of HTTP/1.1: the library that serves it writes none but 100.
//!
//! The library flushes a connection only once it has handed over all that it had, and asks for the next answer only once
//! the last one was handed over whole. What is written in a flush while an answer is awaited so stands between two messages,
//! and so does what is written after a flush and before anything else.

use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use http::{HeaderMap, Response, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    /// What is to be written.
    waiting: Vec<u8>,
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
        let message = written(status, headers);
        let mut state = self.desk.lock();
        if !state.awaited || state.last != self.request {
            return;
        }
        if message.len() > state.left {
            // No more of them: what comes is not looked at again.
            state.left = 0;
            return;
        }
        if !record() {
            return;
        }
        state.left -= message.len();
        state.waiting.extend(message);
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
fn written(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut head = String::from("HTTP/1.1 ");
    let reason = if status.as_u16() == 103 { "Early Hints" } else { status.canonical_reason().unwrap_or_default() };
    let _ = write!(head, "{} {reason}\r\n", status.as_u16());
    let mut message = head.into_bytes();
    for (name, value) in
        headers.iter().filter(|(n, _)| !matches!(**n, header::CONTENT_LENGTH | header::TRANSFER_ENCODING))
    {
        message.extend(name.as_str().as_bytes());
        message.extend(b": ");
        message.extend(value.as_bytes());
        message.extend(b"\r\n");
    }
    message.extend(b"\r\n");
    message
}

/// A connection's stream, with interim answers between its messages.
pub struct InterimStream<T> {
    inner: T,
    desk: Desk,
    /// What has been begun, and goes out before anything else.
    writing: Vec<u8>,
    /// How much of it is out.
    out: usize,
    /// Whether nothing was written since the last flush.
    between: bool,
}

impl<T> InterimStream<T> {
    /// A stream that writes what comes to the desk.
    pub const fn new(inner: T, desk: Desk) -> Self {
        Self { inner, desk, writing: Vec::new(), out: 0, between: true }
    }
}

impl<T: AsyncWrite + Unpin> InterimStream<T> {
    /// The library begins to write, or goes on.
    fn poll_before(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.between) {
            let waiting = std::mem::take(&mut self.desk.lock().waiting);
            self.writing.extend(waiting);
        }
        self.poll_begun(cx)
    }

    fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out < self.writing.len() {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.writing[self.out..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out += n;
        }
        self.writing.clear();
        self.out = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for InterimStream<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for InterimStream<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.between = true;
        let mut state = self.desk.lock();
        let waiting = std::mem::take(&mut state.waiting);
        // What found no place before the final answer is late.
        let late = !state.awaited;
        drop(state);
        if !late {
            self.writing.extend(waiting);
        }
        ready!(self.poll_begun(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};
    use hyper::body::Incoming;
    use hyper_util::server::graceful::GracefulShutdown;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::body::full;
    use crate::net::listener::{Peer, Serve, Spoken, connection};

    fn hints(link: &'static str) -> HeaderMap {
        HeaderMap::from_iter([
            (header::LINK, HeaderValue::from_static(link)),
            (header::CONTENT_LENGTH, HeaderValue::from_static("7")),
        ])
    }

    /// Hints twice, answers with its path; at the next request it tries once more for the one before.
    #[derive(Clone, Default)]
    struct Hinting(Arc<Mutex<Option<Interim>>>);

    impl Serve for Hinting {
        async fn serve(&self, _: Arc<Peer>, request: Request<Incoming>) -> Response<AnyBody> {
            let early = StatusCode::from_u16(103).expect("a status");
            let before = self.0.lock().expect("whole").take();
            if let Some(before) = before {
                before.send(early, &hints("</stale>"), || panic!("what is not sent is not recorded"));
            }
            let interim = request.extensions().get::<Interim>().cloned();
            if let Some(interim) = &interim {
                interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || true);
                tokio::task::yield_now().await;
                interim.send(early, &hints("</unrecorded>"), || false);
                let (other, (told, wait)) = (interim.clone(), tokio::sync::oneshot::channel());
                tokio::spawn(async move {
                    other.send(early, &hints("</style.css>; rel=preload"), || true);
                    let _ = told.send(());
                });
                let _ = wait.await;
            }
            *self.0.lock().expect("whole") = interim;
            let mut answer = Response::new(full(request.uri().path().to_owned()));
            answer.headers_mut().insert(header::DATE, HeaderValue::from_static("now"));
            answer
        }
    }

    /// All that a client reads over a pipe of so many bytes.
    async fn answered(room: usize, requests: &str) -> String {
        let (mut client, server) = tokio::io::duplex(room);
        let graceful = GracefulShutdown::new();
        let peer = Peer::new(None, None, None);
        let serving = tokio::spawn(connection(server, Spoken::Http1, peer, Hinting::default(), graceful.watcher()));
        let (mut read, mut write) = tokio::io::split(&mut client);
        let mut all = String::new();
        let (wrote, got) = tokio::join!(write.write_all(requests.as_bytes()), read.read_to_string(&mut all));
        wrote.expect("writes");
        got.expect("reads");
        serving.await.expect("ends");
        all
    }

    const HINTED: &str =
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n";

    fn last(path: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ndate: now\r\ncontent-length: {}\r\n\r\n{path}", path.len())
    }

    #[tokio::test]
    async fn they_stand_between_messages_however_narrow_the_connection_is() {
        let requests = "GET /one HTTP/1.1\r\nhost: a\r\n\r\nGET /two HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let closing = last("/two").replacen("date: now", "date: now\r\nconnection: close", 1);
        let wanted = [HINTED, &last("/one"), HINTED, &closing].concat();
        for room in [1, 7, 64, 4096] {
            assert_eq!(answered(room, requests).await, wanted, "{room} bytes at a time");
        }
    }

    #[tokio::test]
    async fn http_1_0_gets_none() {
        let all = answered(4096, "GET /old HTTP/1.0\r\nhost: a\r\n\r\n").await;
        assert!(all.starts_with("HTTP/1.0 200 OK\r\n"), "{all}");
    }

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
        assert!(desk.lock().waiting.len() <= MOST && !interim.is_open());
    }

    #[tokio::test]
    async fn nothing_follows_a_client_that_went() {
        let desk = Desk::default();
        let interim = desk.open();
        let answer = interim.clone().until(std::future::pending());
        drop(answer);
        interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || true);
        assert_eq!(desk.lock().waiting, b"HTTP/1.1 102 Processing\r\n\r\n", "nobody had waited yet");
        let mut answer = Box::pin(interim.clone().until(std::future::pending()));
        assert!(futures_util::poll!(&mut answer).is_pending());
        drop(answer);
        interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || panic!("the answer is not awaited"));
    }
}
