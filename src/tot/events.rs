//! A run's events: kept in order, streamed as server-sent events, resumed by number.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Sleep;

use crate::net::body::BoxError;
use crate::tot::serve::Record;

const COMMENT_EVERY: Duration = Duration::from_secs(15);

/// The events of one run.
pub struct EventLog {
    events: Mutex<Vec<String>>,
    /// Number of events, and whether the run is over.
    state: watch::Sender<(usize, bool)>,
}

impl Default for EventLog {
    fn default() -> Self {
        Self { events: Mutex::default(), state: watch::channel((0, false)).0 }
    }
}

impl EventLog {
    /// Appends an event; its id is its number, from 1.
    pub fn push(&self, kind: &str, data: &Value) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let id = events.len() + 1;
        events.push(format!("id: {id}\nevent: {kind}\ndata: {data}\n\n"));
        self.state.send_modify(|s| s.0 = id);
    }

    /// No event follows.
    pub fn end(&self) {
        self.state.send_modify(|s| s.1 = true);
    }

    fn after(&self, seen: usize) -> Option<String> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).get(seen).cloned()
    }
}

/// A client's stream of a run's events.
pub struct EventStream {
    log: Arc<EventLog>,
    seen: usize,
    /// What is not written yet.
    pending: Bytes,
    flush: Option<usize>,
    /// Whether to yield once, so that the last piece is flushed on its own.
    pause: bool,
    waiting: Pin<Box<dyn Future<Output = ()> + Send>>,
    comment: Pin<Box<Sleep>>,
    record: Record,
}

impl EventStream {
    /// Events behind number `seen`, written in pieces of `flush` bytes if asked.
    pub fn new(log: Arc<EventLog>, seen: usize, flush: Option<usize>, record: Record) -> Self {
        let waiting = wait(log.clone(), seen);
        Self {
            log,
            seen,
            pending: Bytes::new(),
            flush,
            pause: false,
            waiting,
            comment: Box::pin(tokio::time::sleep(COMMENT_EVERY)),
            record,
        }
    }

    fn piece(&mut self) -> Bytes {
        let length = self.flush.map_or(self.pending.len(), |n| n.min(self.pending.len()));
        self.pause = self.flush.is_some();
        let piece = self.pending.split_to(length);
        self.record.write(&piece);
        piece
    }
}

/// Returns once there is an event behind `seen`, or the run is over.
fn wait(log: Arc<EventLog>, seen: usize) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let mut state = log.state.subscribe();
        let _ = state.wait_for(|(count, over)| *count > seen || *over).await;
    })
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if std::mem::take(&mut self.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.pending.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.piece()))));
        }
        if self.waiting.as_mut().poll(cx).is_ready() {
            let Some(event) = self.log.after(self.seen) else { return Poll::Ready(None) };
            self.seen += 1;
            self.waiting = wait(self.log.clone(), self.seen);
            self.pending = event.into();
            return Poll::Ready(Some(Ok(Frame::data(self.piece()))));
        }
        if self.comment.as_mut().poll(cx).is_ready() {
            self.comment = Box::pin(tokio::time::sleep(COMMENT_EVERY));
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": waiting\n\n")))));
        }
        Poll::Pending
    }
}
