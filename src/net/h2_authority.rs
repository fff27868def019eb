//! A stream whose HTTP/2 client may call a Unix socket by its path: see [`crate::net::h2_authority::Mended`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Mends a whole header block.
pub type MendBlock = fn(&mut [u8]);

/// RFC 9113 section 3.4
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Bytes that are read at once; nothing is held for a stream that is quiet.
const READ: usize = 4096;
/// A header block that is longer is handed on as it is: the server refuses its size.
const MAX_BLOCK: usize = 128 * 1024;

/// A stream in front of an HTTP/2 server, with the header blocks that come from the client mended. A block is held until it
/// is whole; everything else goes through as it comes.
pub struct Mended<S> {
    inner: S,
    mend: MendBlock,
    /// Bytes read and not looked at yet.
    held: Vec<u8>,
    /// Bytes looked at and not handed on yet.
    ready: Vec<u8>,
    handed: usize,
    /// Bytes that pass unseen: the preface, the rest of a frame that is no header block.
    skip: usize,
}

impl<S> Mended<S> {
    /// A stream whose blocks `mend` mends.
    pub fn new(inner: S, mend: MendBlock) -> Self {
        Self { inner, mend, held: Vec::new(), ready: Vec::new(), handed: 0, skip: PREFACE }
    }

    /// Moves what is complete from `held` to `ready`.
    fn look(&mut self) {
        loop {
            if self.skip > 0 {
                let n = self.skip.min(self.held.len());
                self.ready.extend(self.held.drain(..n));
                self.skip -= n;
            }
            let Some(head) = self.held.get(..FRAME_HEAD) else { return };
            if head[3] != HEADERS {
                self.skip = FRAME_HEAD + length(head);
                continue;
            }
            let Some(whole) = block_end(&self.held) else {
                if self.held.len() > MAX_BLOCK {
                    self.skip = self.held.len();
                    continue;
                }
                return;
            };
            mend_frames(&mut self.held[..whole], self.mend);
            self.skip = whole;
        }
    }
}

fn length(head: &[u8]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// Where the header block that begins here ends: after the HEADERS frame or its last CONTINUATION.
fn block_end(held: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let head = held.get(at..at + FRAME_HEAD)?;
        let end = at + FRAME_HEAD + length(head);
        if held.len() < end {
            return None;
        }
        // Anything else than a CONTINUATION here is a fault that the server answers.
        let fault = at > 0 && head[3] != CONTINUATION;
        if head[4] & END_HEADERS != 0 || fault {
            return Some(end);
        }
        at = end;
    }
}

/// Gathers the fragments of a block, mends them together and puts them back.
fn mend_frames(frames: &mut [u8], mend: MendBlock) {
    let mut ranges = Vec::new();
    let mut at = 0;
    while let Some(head) = frames.get(at..at + FRAME_HEAD) {
        let (kind, flags, end) = (head[3], head[4], at + FRAME_HEAD + length(head));
        let (mut from, mut to) = (at + FRAME_HEAD, end);
        if kind == HEADERS && flags & PADDED != 0 {
            let Some(padding) = frames.get(from).filter(|_| from < end) else { return };
            to = to.saturating_sub(usize::from(*padding));
            from += 1;
        }
        if kind == HEADERS && flags & PRIORITY != 0 {
            from += 5;
        }
        if from > to {
            return;
        }
        ranges.push(from..to);
        at = end;
    }
    let mut block: Vec<u8> = ranges.iter().flat_map(|r| frames[r.clone()].iter().copied()).collect();
    mend(&mut block);
    let mut rest = block.as_slice();
    for range in ranges {
        let (now, later) = rest.split_at(range.len());
        frames[range].copy_from_slice(now);
        rest = later;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.handed < this.ready.len() {
                let n = out.remaining().min(this.ready.len() - this.handed);
                out.put_slice(&this.ready[this.handed..this.handed + n]);
                this.handed += n;
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.handed = 0;
            let mut raw = [0; READ];
            let mut buffer = ReadBuf::new(&mut raw);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                // The end: what is held is an incomplete frame, which the server may judge.
                this.ready.append(&mut this.held);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            this.held.extend_from_slice(buffer.filled());
            this.look();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let n = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&n[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn dots(block: &mut [u8]) {
        block.iter_mut().filter(|b| **b == b'/').for_each(|b| *b = b'.');
    }

    /// What comes out if the bytes go in `step` at a time.
    async fn through(bytes: Vec<u8>, step: usize) -> Vec<u8> {
        let (mut client, server) = tokio::io::duplex(64);
        let writer = tokio::spawn(async move {
            for piece in bytes.chunks(step) {
                client.write_all(piece).await.expect("writes");
            }
        });
        let mut out = Vec::new();
        Mended::new(server, dots).read_to_end(&mut out).await.expect("reads");
        writer.await.expect("writes");
        out
    }

    #[tokio::test]
    async fn w3_blocks_are_mended_whatever_their_framing_and_other_frames_are_not() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let padded = [&[2][..], b"/p/", b"//"].concat();
        let input = [
            preface.clone(),
            frame(4, 0, b"//////"),
            frame(HEADERS, END_HEADERS, b"a/b"),
            frame(0, 1, b"data/data"),
            frame(HEADERS, END_HEADERS | PADDED, &padded),
            frame(HEADERS, 0, b"c/"),
            frame(CONTINUATION, 0, b"/d"),
            frame(CONTINUATION, END_HEADERS, b"/"),
            frame(HEADERS, END_HEADERS | PRIORITY, b"////x/y"),
            frame(0, 1, b"/"),
        ]
        .concat();
        let want = [
            preface,
            frame(4, 0, b"//////"),
            frame(HEADERS, END_HEADERS, b"a.b"),
            frame(0, 1, b"data/data"),
            frame(HEADERS, END_HEADERS | PADDED, &[&[2][..], b".p.", b"//"].concat()),
            frame(HEADERS, 0, b"c."),
            frame(CONTINUATION, 0, b".d"),
            frame(CONTINUATION, END_HEADERS, b"."),
            frame(HEADERS, END_HEADERS | PRIORITY, b"////x.y"),
            frame(0, 1, b"/"),
        ]
        .concat();
        for step in [1, 2, 7, 64, 4096] {
            assert_eq!(through(input.clone(), step).await, want, "step {step}");
        }
    }

    #[tokio::test]
    async fn w3_a_cut_or_endless_block_reaches_the_server_as_it_is() {
        let cut = [&[b'x'; PREFACE][..], &frame(HEADERS, 0, b"a/b"), b"\0\0"].concat();
        assert_eq!(through(cut.clone(), 3).await, cut);
        let mut endless = [&[b'x'; PREFACE][..], &frame(HEADERS, 0, b"a/b")].concat();
        for _ in 0..20 {
            endless.extend(frame(CONTINUATION, 0, &[b'/'; 8000]));
        }
        assert_eq!(through(endless.clone(), 4096).await, endless);
    }
}
