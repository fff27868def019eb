//! Which version of HTTP a connection speaks where nothing was agreed on (RFC 9113 section 3.3).

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// How a client of HTTP/2 begins (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream, and what was read of it already.
pub struct Reread<T> {
    inner: T,
    read: [u8; PREFACE.len()],
    from: usize,
    to: usize,
}

/// Reads until it is clear whether the client speaks HTTP/2.
pub async fn is_http2<T: AsyncRead + Unpin>(mut inner: T) -> io::Result<(bool, Reread<T>)> {
    let mut read = [0; PREFACE.len()];
    let mut to = 0;
    while to < read.len() && read[..to] == PREFACE[..to] {
        let n = inner.read(&mut read[to..]).await?;
        if n == 0 {
            break;
        }
        to += n;
    }
    Ok((read == *PREFACE, Reread { inner, read, from: 0, to }))
}

impl<T: AsyncRead + Unpin> AsyncRead for Reread<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from == self.to {
            return Pin::new(&mut self.inner).poll_read(cx, into);
        }
        let n = into.remaining().min(self.to - self.from);
        into.put_slice(&self.read[self.from..self.from + n]);
        self.from += n;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Reread<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is found out of bytes that come `step` at a time, and what is read then.
    fn found(bytes: &[u8], step: usize) -> (bool, Vec<u8>) {
        let mut stream = Steps(bytes, step);
        futures_util::FutureExt::now_or_never(async move {
            let (http2, mut stream) = is_http2(&mut stream).await.expect("reads");
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.expect("reads");
            (http2, all)
        })
        .expect("everything is there")
    }

    struct Steps<'a>(&'a [u8], usize);

    impl AsyncRead for Steps<'_> {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let (now, later) = self.0.split_at(self.1.min(self.0.len()).min(into.remaining()));
            into.put_slice(now);
            self.0 = later;
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn nothing_of_it_is_lost(kept in 0..=PREFACE.len(), rest in proptest::collection::vec(any::<u8>(), 0..40), step in 1_usize..40) {
            let bytes = [&PREFACE[..kept], &rest].concat();
            let (http2, all) = found(&bytes, step);
            prop_assert_eq!(http2, bytes.starts_with(PREFACE));
            prop_assert_eq!(all, bytes);
        }
    }
}
