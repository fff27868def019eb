//! One admitted exchange: its opening leaf, its recording, its counters, and its one closing leaf.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::domain::digest::{Hasher, Sha256};
use crate::domain::leaf::{Completion, Event, Staged};
use crate::domain::recording::FrameKind;
use crate::domain::refusal::Refusal;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::gateway::admission::admission;
use crate::gateway::approve::Permit;
use crate::gateway::authenticate::count_refused;
use crate::gateway::carry::Carry;
use crate::gateway::config::RecordMode;
use crate::gateway::headers;
use crate::gateway::outlive::Outlive;
use crate::gateway::read::Incoming;
use crate::gateway::serve::Gateway;
use crate::gateway::trace::{End, Phase};
use crate::protocol::dpop::ProofError;
use crate::protocol::masking::{self, Counts, MaskRules, Masker};
use crate::protocol::transcript::Head;
use crate::store::evidence::Recording;
use crate::store::{Stores, Unavailable};

/// An exchange between its opening and its closing leaf. Shared by the two directions.
#[derive(Clone)]
pub struct Exchange(Arc<Mutex<Inner>>);

struct Inner {
    stores: Stores,
    request: Arc<Incoming>,
    /// Whose it is; none: anybody's, of a public route.
    spiffe_id: Option<SpiffeId>,
    began: Timestamp,
    recording: Option<Box<dyn Recording>>,
    /// Whether the exchange goes on where its recording cannot.
    degraded: bool,
    /// Whether the recording broke off and the exchange went on.
    lost: bool,
    /// Why the request's body ended before its end.
    fault: Option<RequestFault>,
    /// Masks what is recorded of the request; none: recorded as it is.
    request_mask: RequestMask,
    /// The same for the messages of a WebSocket.
    message_mask: Option<Arc<MaskRules>>,
    sent: (u64, Hasher),
    response: (u64, Hasher),
    upstream_bytes: u64,
    /// When the request's body last moved.
    moved: Instant,
    /// Whether it has ended.
    request_done: bool,
    masked: Counts,
    status: u16,
    sealed: bool,
    /// The log stays open until this is dropped.
    open: TaskTrackerToken,
}

#[derive(Clone, Copy)]
enum RequestFault {
    Broke,
    Unsigned,
    Unrecorded,
}

enum RequestMask {
    Plain,
    Masked(Box<Masker>),
    /// The mask cannot read it, so it is counted and not kept.
    Omitted,
}

impl Gateway {
    /// Makes the opening leaf durable and begins the recording, before upstream is dialled.
    pub async fn open(&self, carry: &Carry<'_>, permit: &Permit) -> Result<Exchange, Refusal> {
        let request = carry.request;
        let mode = if carry.for_edge { RecordMode::Off } else { carry.route.record };
        let degraded = mode == RecordMode::Degraded;
        let begin = || self.stores.evidence.record(&request.id);
        let recording = match (mode != RecordMode::Off).then(begin) {
            None => None,
            Some(Ok(recording)) => Some(recording),
            Some(Err(error)) if degraded => {
                unrecorded(&request.id, &error);
                None
            }
            Some(Err(error)) => return Err(error.into()),
        };
        let admission = admission(carry, permit, recording.is_some(), self.stores.clock.now());
        let mut inner = Inner {
            stores: self.stores.clone(),
            request: request.clone(),
            spiffe_id: carry.caller.map(|c| c.token.claims.client_id.clone()),
            began: self.stores.clock.now(),
            recording,
            degraded,
            lost: false,
            fault: None,
            request_mask: request_mask(carry),
            message_mask: carry.route.mask.clone(),
            sent: (0, Hasher::default()),
            response: (0, Hasher::default()),
            upstream_bytes: 0,
            moved: Instant::now(),
            request_done: false,
            masked: Counts::new(),
            status: 0,
            // Until it is admitted there is nothing to end.
            sealed: true,
            open: self.tasks.token(),
        };
        let line = format!("{} {}{}", request.head.method, request.origin.as_str(), request.target());
        inner.head(FrameKind::RequestHead, line, &request.head.headers)?;
        // A client that goes now must not leave an admission without its end.
        let evidence = self.stores.evidence.clone();
        let opening = Outlive::new(&self.tasks, async move {
            evidence.append(admission).await?;
            inner.sealed = false;
            inner.request.trace.carry();
            metrics::gauge!("popgate_open_exchanges").increment(1);
            Ok::<_, Unavailable>(Exchange(Arc::new(Mutex::new(inner))))
        });
        Ok(opening.await?)
    }
}

fn unsigned() -> Refusal {
    let error = ProofError::ContentDigest;
    Refusal::unauthorized(error.oauth(), format!("{error}; upstream may have begun"))
}

fn unrecorded(request_id: &str, error: &Unavailable) {
    tracing::error!(%error, request_id, "an exchange is not recorded whole");
    metrics::counter!("popgate_unrecorded_total").increment(1);
}

fn request_mask(carry: &Carry<'_>) -> RequestMask {
    let Some(rules) = &carry.route.mask else { return RequestMask::Plain };
    let kind = carry.request.head.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    match Masker::for_content_type(rules, kind.unwrap_or_default()) {
        Ok(masker) => RequestMask::Masked(Box::new(masker)),
        Err(_) => RequestMask::Omitted,
    }
}

impl Inner {
    fn frame(&mut self, kind: FrameKind, payload: &[u8]) -> Result<(), Unavailable> {
        let written = match &mut self.recording {
            Some(recording) if !payload.is_empty() => recording.frame(kind, payload),
            _ => Ok(()),
        };
        match written {
            Err(error) if self.degraded => {
                unrecorded(&self.request.id, &error);
                self.recording = None;
                self.lost = true;
                Ok(())
            }
            other => other,
        }
    }

    fn head(&mut self, kind: FrameKind, line: String, headers: &HeaderMap) -> Result<(), Unavailable> {
        if self.recording.is_none() {
            return Ok(());
        }
        let head = Head { line, headers: headers::recorded(headers) };
        let payload = serde_json::to_vec(&head).expect("a head is strings");
        self.frame(kind, &payload)
    }

    fn trailers(&mut self, kind: FrameKind, trailers: &HeaderMap) -> Result<(), Unavailable> {
        if self.recording.is_none() {
            return Ok(());
        }
        let payload = serde_json::to_vec(&headers::recorded(trailers)).expect("trailers are strings");
        self.frame(kind, &payload)
    }
}

impl Exchange {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece of the request's body has passed.
    pub fn request_chunk(&self, chunk: &[u8]) -> Result<(), Unavailable> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.sealed {
            // The answer is whole, or was cut: what would follow is in no entry.
            return Err(Unavailable::new("the recorder", "the exchange has ended"));
        }
        inner.moved = Instant::now();
        inner.sent.0 += chunk.len() as u64;
        inner.sent.1.update(chunk);
        let mut kept = Vec::new();
        match &mut inner.request_mask {
            RequestMask::Plain => kept.extend_from_slice(chunk),
            RequestMask::Omitted => {}
            RequestMask::Masked(masker) => {
                if masker.push(chunk, &mut kept).is_err() {
                    inner.request_mask = RequestMask::Omitted;
                }
            }
        }
        inner.frame(FrameKind::RequestBody, &kept)
    }

    /// A message of a WebSocket's client is about to pass; each is masked for the recording on its own.
    pub fn request_message(&self, message: &[u8]) -> Result<(), Unavailable> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.sealed {
            return Err(Unavailable::new("the recorder", "the exchange has ended"));
        }
        inner.sent.0 += message.len() as u64;
        inner.sent.1.update(message);
        let kept = match &inner.message_mask {
            None => Some(message.to_vec()),
            Some(rules) => masking::mask_whole(rules, masking::sniffed(message), message).ok(),
        };
        inner.frame(FrameKind::RequestBody, &kept.unwrap_or_default())
    }

    /// The key to its evidence.
    pub fn request_id(&self) -> String {
        self.lock().request.id.clone()
    }

    /// When the last piece of the request's body passed; before the first, when the exchange began.
    pub fn last_request_chunk(&self) -> Instant {
        self.lock().moved
    }

    /// The client's body is malformed, or the client went.
    pub fn request_broke(&self) {
        // Why it breaks off may be known already.
        self.lock().fault.get_or_insert(RequestFault::Broke);
    }

    /// The client's body is not the one that its proof signs for, so its last piece does not pass.
    pub fn request_unsigned(&self) {
        count_refused(ProofError::ContentDigest);
        self.lock().fault = Some(RequestFault::Unsigned);
    }

    /// A piece of the request's body could not be recorded, and so does not pass.
    pub fn request_unrecorded(&self) {
        self.lock().fault = Some(RequestFault::Unrecorded);
    }

    /// What a client reads whose request's body did not reach upstream whole, for no fault of upstream.
    pub fn request_fault(&self) -> Option<Refusal> {
        Some(match self.lock().fault? {
            RequestFault::Broke => Refusal::new(400, "body", "the request's body is malformed or broke off"),
            RequestFault::Unsigned => unsigned(),
            RequestFault::Unrecorded => Refusal::new(
                503,
                "unrecorded",
                "the request's body could not be recorded whole; upstream may have begun",
            ),
        })
    }

    /// The request's body has ended.
    pub fn request_end(&self) -> Result<(), Unavailable> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut kept = Vec::new();
        if let RequestMask::Masked(masker) = &mut inner.request_mask {
            let _ = masker.finish(&mut kept);
        }
        inner.request_mask = RequestMask::Omitted;
        inner.request_done = true;
        inner.frame(FrameKind::RequestBody, &kept)
    }

    /// The request's trailers have passed.
    pub fn request_trailers(&self, trailers: &HeaderMap) -> Result<(), Unavailable> {
        let mut inner = self.lock();
        if inner.sealed {
            return Err(Unavailable::new("the recorder", "the exchange has ended"));
        }
        inner.trailers(FrameKind::RequestTrailers, trailers)
    }

    /// The response's trailers are about to go to the client.
    pub fn response_trailers(&self, trailers: &HeaderMap) -> Result<(), Unavailable> {
        self.lock().trailers(FrameKind::ResponseTrailers, trailers)
    }

    /// Whether the request's body has ended.
    pub fn request_ended(&self) -> bool {
        self.lock().request_done
    }

    /// The response's head is about to go to the client.
    pub fn response_head(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Unavailable> {
        let mut inner = self.lock();
        inner.status = status.as_u16();
        inner.head(FrameKind::ResponseHead, status.as_u16().to_string(), headers)
    }

    /// An interim answer is about to go to the client.
    pub fn interim_head(&self, status: StatusCode, headers: &HeaderMap) -> Result<(), Unavailable> {
        let mut inner = self.lock();
        if inner.sealed {
            return Err(Unavailable::new("the recorder", "the exchange has ended"));
        }
        inner.head(FrameKind::InterimHead, status.as_u16().to_string(), headers)
    }

    /// What the client reads instead of an answer of upstream's.
    pub fn answered(&self, status: u16) {
        let mut inner = self.lock();
        if !inner.sealed {
            inner.status = status;
        }
    }

    /// Upstream sent this many bytes.
    pub fn upstream_chunk(&self, length: usize) {
        self.lock().upstream_bytes += length as u64;
    }

    /// A piece of the response is about to go to the client.
    pub fn response_chunk(&self, chunk: &[u8]) -> Result<(), Unavailable> {
        let mut inner = self.lock();
        // Recorded first: what is not does not pass, and so does not count.
        inner.frame(FrameKind::ResponseBody, chunk)?;
        inner.response.0 += chunk.len() as u64;
        inner.response.1.update(chunk);
        Ok(())
    }

    /// Adds to what has been masked.
    pub fn masked_more(&self, counts: Counts) {
        let mut inner = self.lock();
        for (kind, n) in counts {
            *inner.masked.entry(kind).or_default() += n;
        }
    }

    /// Ends the exchange: the recording first, then its one closing leaf.
    pub fn seal(&self, how: &str) {
        self.lock().seal(how);
    }
}

impl Inner {
    fn seal(&mut self, how: &str) {
        if std::mem::replace(&mut self.sealed, true) {
            return;
        }
        let took = self.stores.clock.now().since(self.began);
        let completion = Completion {
            request_id: self.request.id.clone(),
            spiffe_id: self.spiffe_id.clone(),
            status: self.status,
            request_bytes: self.sent.0,
            request_sha256: self.sent.1.so_far(),
            response_bytes: self.response.0,
            response_sha256: self.response.1.so_far(),
            upstream_bytes: self.upstream_bytes,
            masked: self.masked.clone(),
            recording_sha256: None,
            ended: if self.lost && how == "complete" { "complete_unrecorded".into() } else { how.to_owned() },
            duration_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        self.observe(&completion, took);
        let (stores, open) = (self.stores.clone(), self.open.clone());
        let note = move |completion| {
            stores.evidence.note(Staged::plain(stores.clock.now(), Event::Completion(completion)));
            drop(open);
        };
        match self.recording.take() {
            None => note(completion),
            Some(recording) => recording.finish(how, Box::new(move |digest| note(recorded(completion, digest)))),
        }
    }

    fn observe(&self, completion: &Completion, took: Duration) {
        metrics::gauge!("popgate_open_exchanges").decrement(1);
        metrics::histogram!("popgate_exchange_seconds").record(took.as_secs_f64());
        for (kind, n) in &completion.masked {
            metrics::counter!("popgate_masked_total", "kind" => kind.clone()).increment(*n);
        }
        self.request.trace.end(Phase::Stream);
        self.request.trace.over(&End {
            status: completion.status,
            ended: &completion.ended,
            request_bytes: completion.request_bytes,
            response_bytes: completion.response_bytes,
        });
    }
}

/// A completion whose recording has ended.
fn recorded(completion: Completion, digest: Result<Sha256, Unavailable>) -> Completion {
    match digest {
        Ok(digest) => Completion { recording_sha256: Some(digest), ..completion },
        Err(error) => {
            unrecorded(&completion.request_id, &error);
            let ended = if completion.ended == "complete" { "complete_unrecorded".into() } else { completion.ended };
            Completion { ended, ..completion }
        }
    }
}

/// An exchange that is dropped unsealed was abandoned: the client went, or the task was ended.
impl Drop for Inner {
    fn drop(&mut self) {
        self.seal("abandoned");
    }
}
