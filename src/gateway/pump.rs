//! Moves a response from upstream to the client: masks, records, and cuts it when its caller is stopped.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::gateway::bounds::{Bounds, Cut};
use crate::gateway::mask::Treatment;
use crate::gateway::record::Exchange;
use crate::gateway::upstream::endpoint::Place;
use crate::net::body::{AnyBody, BoxError};
use crate::store::Stores;

/// What a client's end of a stream finds when the channel closes.
const OPEN: u8 = 0;
const COMPLETE: u8 = 1;
const CUT: u8 = 2;
const AHEAD: usize = 16;
/// How long a stream's last event has before its reset.
const LAST_WORD: Duration = Duration::from_millis(20);

/// How a body is to be moved.
pub struct Course {
    /// How long upstream may be silent.
    pub idle: Duration,
    /// Whether the client reads server-sent events, so that it can be told why they end.
    pub events: bool,
    /// What has passed of the body already.
    pub first: Bytes,
    /// Whether the length that upstream's body has is not the answer's: it is another body, or has none by its nature.
    pub resized: bool,
    /// The place at the endpoint, kept to the last byte.
    pub place: Place,
}

/// What a body is moved by.
pub struct Pump {
    /// Upstream's body.
    pub upstream: AnyBody,
    /// What becomes of it.
    pub treatment: Treatment,
    /// Its evidence.
    pub exchange: Exchange,
    /// What ends it.
    pub bounds: Bounds,
    /// How it is moved.
    pub course: Course,
    /// Stops and the clock.
    pub stores: Stores,
}

impl Pump {
    /// Starts the pump and gives the client's end of it.
    pub fn start(self) -> AnyBody {
        let exact =
            (self.treatment.is_plain() && !self.course.resized).then(|| self.upstream.size_hint().exact()).flatten();
        // An answer that ends with its head ends so for the client, too: gRPC tells errors that way.
        let ended = self.upstream.is_end_stream() && self.course.first.is_empty();
        let (sender, receiver) = mpsc::channel(AHEAD);
        let end = Arc::new(AtomicU8::new(OPEN));
        tokio::spawn(self.run(sender, end.clone()));
        ClientEnd { receiver, exact, ended, end }.boxed_unsync()
    }

    async fn run(mut self, client: mpsc::Sender<Frame<Bytes>>, end: Arc<AtomicU8>) {
        // A stop counts wherever the relay waits: for upstream, or for a client that does not read. That the client went
        // comes last: an HTTP/1.1 connection drops a body that has ended, or has none, before anybody asked for it.
        let outcome = tokio::select! {
            biased;
            cut = self.bounds.over(&self.stores) => Err(cut),
            done = relay(&mut self.upstream, &mut self.treatment, &self.exchange, &self.course, &client) => done,
            () = client.closed() => Err(Cut::ClientGone),
        };
        if let Err(cut) = outcome
            && self.course.events
            && cut != Cut::ClientGone
        {
            tell(&self.exchange, &client, cut.into()).await;
        }
        // Sealed before the reset goes out: from here on nothing of it passes.
        self.seal(outcome);
        // What still waits for the client stays here: closing the channel wakes its end, which then fails.
        end.store(if outcome.is_ok() { COMPLETE } else { CUT }, Ordering::Release);
    }

    fn seal(&self, outcome: Result<(), Cut>) {
        self.exchange.masked_more(self.treatment.counts());
        let Err(cut) = outcome else { return self.exchange.seal("complete") };
        let name = <&str>::from(cut);
        let spiffe_id = self.bounds.subject.as_ref().map(|s| s.spiffe_id.as_str());
        let request_id = self.exchange.request_id();
        tracing::info!(request_id, why = name, spiffe_id, "a response was cut");
        metrics::counter!("popgate_streams_cut_total", "why" => name).increment(1);
        self.exchange.seal(name);
    }
}

/// The last event of a stream that is cut.
async fn tell(exchange: &Exchange, client: &mpsc::Sender<Frame<Bytes>>, name: &str) {
    // A client that does not read is not told.
    let Ok(place) = client.try_reserve() else { return };
    let event = format!(
        "event: error\ndata: {{\"type\":\"urn:popgate:problem:{name}\",\"detail\":\"the gateway ended this stream\"}}\n\n"
    );
    if exchange.response_chunk(event.as_bytes()).is_ok() {
        place.send(Frame::data(event.into()));
        // A reset discards what HTTP/2 has queued, so the event gets a moment to leave.
        tokio::time::sleep(LAST_WORD).await;
    }
}

async fn relay(
    upstream: &mut AnyBody,
    treatment: &mut Treatment,
    exchange: &Exchange,
    course: &Course,
    client: &mpsc::Sender<Frame<Bytes>>,
) -> Result<(), Cut> {
    release(course.first.clone(), exchange, client).await?;
    loop {
        let frame = loop {
            match timeout(course.idle, upstream.frame()).await {
                Ok(frame) => break frame,
                // A client that still sends is no silence: gRPC answers with its head before.
                Err(_) if exchange.last_request_chunk().elapsed() < course.idle => {}
                Err(_) => return Err(Cut::Silent),
            }
        };
        match frame {
            None => break,
            Some(Err(_)) => return Err(Cut::Upstream),
            Some(Ok(frame)) => pass(frame, treatment, exchange, client).await?,
        }
    }
    let rest = treatment.finish()?;
    release(rest, exchange, client).await?;
    match treatment.last.take() {
        Some(trailers) => trail(trailers, exchange, client).await,
        None => Ok(()),
    }
}

async fn pass(
    frame: Frame<Bytes>,
    treatment: &mut Treatment,
    exchange: &Exchange,
    client: &mpsc::Sender<Frame<Bytes>>,
) -> Result<(), Cut> {
    match frame.into_data() {
        Ok(chunk) => {
            exchange.upstream_chunk(chunk.len());
            let chunk = treatment.push(chunk)?;
            release(chunk, exchange, client).await
        }
        Err(frame) => {
            treatment.trail(&frame.into_trailers().unwrap_or_default());
            Ok(())
        }
    }
}

/// Records, then sends: nothing reaches the client that the recording does not have.
async fn release(chunk: Bytes, exchange: &Exchange, client: &mpsc::Sender<Frame<Bytes>>) -> Result<(), Cut> {
    if chunk.is_empty() {
        return Ok(());
    }
    exchange.response_chunk(&chunk).map_err(|_| Cut::Unrecorded)?;
    client.send(Frame::data(chunk)).await.map_err(|_| Cut::ClientGone)
}

async fn trail(trailers: HeaderMap, exchange: &Exchange, client: &mpsc::Sender<Frame<Bytes>>) -> Result<(), Cut> {
    exchange.response_trailers(&trailers).map_err(|_| Cut::Unrecorded)?;
    client.send(Frame::trailers(trailers)).await.map_err(|_| Cut::ClientGone)
}

/// The body that the client reads as it comes.
struct ClientEnd {
    receiver: mpsc::Receiver<Frame<Bytes>>,
    exact: Option<u64>,
    ended: bool,
    /// Set before the channel closes: a pump that died does not look like an end.
    end: Arc<AtomicU8>,
}

impl Body for ClientEnd {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.end.load(Ordering::Acquire) == CUT {
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        }
        let next = ready!(self.receiver.poll_recv(cx));
        Poll::Ready(match (next, self.end.load(Ordering::Acquire)) {
            (Some(frame), _) => Some(Ok(frame)),
            (None, COMPLETE) => {
                self.ended = true;
                None
            }
            (None, _) => Some(Err(h2::Error::from(h2::Reason::CANCEL).into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
