//! Interim answers on a connection of HTTP/1.1: the library that serves it writes none but 100.
//!
//! The library flushes a connection only once it has handed over all that it had, and asks for the next answer only once
//! the last one was handed over whole. What is written in a flush while an answer is awaited so stands between two messages,
//! and so does what is written after a flush and before anything else.

use std::fmt::Write as _;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::interim::Desk;

/// Writes interim answers as HTTP/1.1 has them.
fn write(messages: Vec<Response<()>>, into: &mut Vec<u8>) {
    for message in messages {
        let status = message.status();
        let reason = if status.as_u16() == 103 { "Early Hints" } else { status.canonical_reason().unwrap_or_default() };
        let mut line = String::new();
        let _ = write!(line, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
        into.extend(line.into_bytes());
        for (name, value) in message.headers() {
            into.extend(name.as_str().as_bytes());
            into.extend(b": ");
            into.extend(value.as_bytes());
            into.extend(b"\r\n");
        }
        into.extend(b"\r\n");
    }
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
            let waiting = self.desk.take();
            write(waiting, &mut self.writing);
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
        let waiting = self.desk.take_in_time();
        write(waiting, &mut self.writing);
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
    use std::sync::{Arc, Mutex};

    use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::net::body::{AnyBody, full};
    use crate::net::inbound::Inbound;
    use crate::net::interim::Interim;
    use crate::net::listener::{Drain, Peer, Serve, Spoken, connection};

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
        async fn serve(&self, _: Arc<Peer>, request: Request<Inbound>) -> Response<AnyBody> {
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
        let (_switch, drain) = Drain::new();
        let peer = Peer::new(None, None, None);
        let serving = tokio::spawn(connection(server, Spoken::Http1, peer, Hinting::default(), drain));
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
}
