//! The two directions of a stream that an extended CONNECT opened (RFC 8441), as bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::h2::pulse::Use;

/// A stream as bytes both ways.
pub struct Tunnel {
    from: RecvStream,
    to: SendStream<Bytes>,
    /// What has come and was not read yet.
    held: Bytes,
    ended: bool,
    used: Use,
}

impl Tunnel {
    /// The stream of a request that was answered with 200.
    pub const fn new(from: RecvStream, to: SendStream<Bytes>, used: Use) -> Self {
        Self { from, to, held: Bytes::new(), ended: false, used }
    }

    /// Why nothing can be written.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.to.poll_reset(cx).map(|reset| match reset {
            // The other end is done with it (RFC 9113 section 7).
            Ok(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => io::ErrorKind::BrokenPipe.into(),
            Ok(reason) => broken(reason.into()),
            Err(error) => broken(error),
        })
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::other(error)
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.held.is_empty() {
            match ready!(self.from.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(data)) => {
                    self.used.life().heard();
                    self.held = data;
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let n = into.remaining().min(self.held.len());
        into.put_slice(&self.held[..n]);
        self.held.advance(n);
        // Only what was read makes room for more. An error says that the stream is over.
        let _ = self.from.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.to.reserve_capacity(bytes.len());
        while self.to.capacity() == 0 {
            match self.to.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Pending => return self.poll_over(cx).map(Err),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Err(ready!(self.poll_over(cx)))),
            }
        }
        let n = self.to.capacity().min(bytes.len());
        self.to.send_data(Bytes::copy_from_slice(&bytes[..n]), false).map_err(broken)?;
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection writes what it has got by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.ended, true) {
            self.to.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.ended {
            // A stream that was not ended is reset, and what waits to be sent goes nowhere.
            let _ = self.to.send_data(Bytes::new(), true);
        }
    }
}
