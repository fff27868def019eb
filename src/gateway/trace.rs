//! What a request's trace tells: one span of the request here, one of its call upstream, W3C context through both, and how
//! long each phase took.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode};
use opentelemetry::global::{BoxedSpan, BoxedTracer};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue};

use crate::domain::spiffe_id::SpiffeId;
use crate::protocol::traceparent::TraceParent;
use crate::store::entropy;

/// What a request spends its time on, in order. Each ends where the next begins.
#[derive(Clone, Copy, Debug, strum::EnumCount, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Phase {
    /// Reading the target; token, proof and its claim.
    Authenticate,
    /// Reading what of the body is needed; operation and policy.
    Decide,
    /// Waiting for people, where policy asks for it.
    Hold,
    /// The log's entry, made durable.
    Log,
    /// Until upstream's head has come.
    Upstream,
    /// The answer's body.
    Stream,
}

const PHASES: usize = <Phase as strum::EnumCount>::COUNT;

/// A request's time and trace, from its head to the end of its answer.
pub struct Trace {
    began: Instant,
    /// Microseconds from the beginning to the end of the last phase.
    last: AtomicU64,
    spent: [AtomicU64; PHASES],
    /// What upstream is told to continue.
    parent: TraceParent,
    /// None where traces are not exported.
    span: Option<Mutex<BoxedSpan>>,
    /// Whether lines of the access log are written.
    logged: bool,
    said: Mutex<Said>,
    request_id: String,
    method: &'static str,
    /// Whether what upstream is told of the trace is the client's own.
    continued: bool,
    /// Whether an exchange goes on behind the answer's head, and will say how it ended.
    carried: AtomicBool,
    /// Whether it was said how it ended.
    over: AtomicBool,
}

/// A client may go at any time: what nobody ended was abandoned.
impl Drop for Trace {
    fn drop(&mut self) {
        self.over(&End { status: 0, ended: "abandoned", request_bytes: 0, response_bytes: 0 });
    }
}

/// What is known of a request, as far as it came.
#[derive(Default)]
struct Said {
    route: String,
    operation: String,
    caller: String,
}

/// How a request ended.
pub struct End<'a> {
    /// The answer's status; 0 if there was none.
    pub status: u16,
    /// `complete`, or why not.
    pub ended: &'a str,
    /// Bytes of its body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
}

impl Trace {
    /// Continues a client's trace, or begins one named like the request.
    pub fn begin(tracer: Option<&BoxedTracer>, method: &Method, headers: &HeaderMap, request_id: &str) -> Self {
        let mut values = headers.get_all("traceparent").iter();
        let given = values.next().filter(|_| values.next().is_none());
        let given = given.and_then(|v| v.to_str().ok()).and_then(TraceParent::parse);
        let span = tracer.map(|tracer| {
            let context =
                given.map_or_else(Context::new, |parent| Context::new().with_remote_span_context(remote(&parent)));
            tracer.span_builder("request").with_kind(SpanKind::Server).start_with_context(tracer, &context)
        });
        let own = span.as_ref().map(BoxedSpan::span_context).filter(|c| c.is_valid()).map(told);
        let parent = own.unwrap_or_else(|| {
            let mut trace = [0; 16];
            if hex::decode_to_slice(request_id, &mut trace).is_err() {
                trace = entropy::random();
            }
            let trace = given.map_or(trace, |g| g.trace);
            TraceParent { trace, span: entropy::random(), sampled: given.is_none_or(|g| g.sampled) }
        });
        let trace = Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
            spent: Default::default(),
            parent,
            span: span.map(Mutex::new),
            logged: tracing::enabled!(target: "access", tracing::Level::INFO),
            said: Mutex::default(),
            request_id: request_id.to_owned(),
            method: known(method),
            continued: given.is_some(),
            carried: AtomicBool::new(false),
            over: AtomicBool::new(false),
        };
        trace.note("popgate.request_id", request_id);
        trace
    }

    /// A phase ends now.
    pub fn end(&self, phase: Phase) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before = self.last.swap(now, Ordering::Relaxed);
        self.spent[phase as usize].fetch_add(now.saturating_sub(before), Ordering::Relaxed);
    }

    /// Microseconds that a phase took; zero for one that was not come to.
    fn spent(&self, phase: Phase) -> u64 {
        self.spent[phase as usize].load(Ordering::Relaxed)
    }

    fn note(&self, key: &'static str, value: &str) {
        if let Some(span) = &self.span {
            lock(span).set_attribute(KeyValue::new(key, value.to_owned()));
        }
    }

    /// Its route is known.
    pub fn route(&self, name: &str) {
        name.clone_into(&mut lock(&self.said).route);
        if let Some(span) = &self.span {
            lock(span).update_name(format!("{} {name}", self.method));
        }
        self.note("popgate.route", name);
    }

    /// Its caller is known.
    pub fn caller(&self, spiffe_id: &SpiffeId) {
        if self.logged {
            spiffe_id.as_str().clone_into(&mut lock(&self.said).caller);
        }
        self.note("enduser.id", spiffe_id.as_str());
    }

    /// Its operation is known.
    pub fn operation(&self, name: &str) {
        if self.logged {
            name.clone_into(&mut lock(&self.said).operation);
        }
        self.note("popgate.operation", name);
    }

    /// An exchange has begun, which will say how it ended.
    pub fn carry(&self) {
        self.carried.store(true, Ordering::Relaxed);
    }

    /// Whether the client's own trace is continued.
    pub const fn is_continued(&self) -> bool {
        self.continued
    }

    /// The answer's head is there; unless an exchange goes on behind it, that was all.
    pub fn answered(&self, status: StatusCode) {
        if !self.carried.load(Ordering::Relaxed) {
            let ended = if status.is_success() { "own" } else { "refused" };
            self.over(&End { status: status.as_u16(), ended, request_bytes: 0, response_bytes: 0 });
        }
    }

    /// What whoever carries the request on is told.
    pub fn parent(&self) -> String {
        self.parent.to_string()
    }

    /// Begins the call upstream: what upstream is told, and the call's own span, which ends when it is dropped.
    pub fn call(&self, tracer: Option<&BoxedTracer>, server: &str) -> (String, Option<BoxedSpan>) {
        let Some((tracer, own)) = tracer.zip(self.span.as_ref()) else { return (self.parent(), None) };
        let context = Context::new().with_remote_span_context(lock(own).span_context().clone());
        let address = KeyValue::new("server.address", server.to_owned());
        let builder = tracer.span_builder("upstream").with_kind(SpanKind::Client).with_attributes([address]);
        let span = builder.start_with_context(tracer, &context);
        if span.span_context().is_valid() {
            (told(span.span_context()).to_string(), Some(span))
        } else {
            (self.parent(), None)
        }
    }

    /// The whole is over: its line, its numbers, the end of its span.
    pub fn over(&self, end: &End<'_>) {
        if self.over.swap(true, Ordering::Relaxed) {
            return;
        }
        let said = std::mem::take(&mut *lock(&self.said));
        let total = self.began.elapsed();
        let ms = |phase| f64::from(u32::try_from(self.spent(phase)).unwrap_or(u32::MAX)) / 1000.0;
        if self.logged {
            tracing::info!(
                target: "access",
                request_id = self.request_id,
                spiffe_id = said.caller,
                method = self.method,
                route = said.route,
                operation = said.operation,
                status = end.status,
                ended = end.ended,
                request_bytes = end.request_bytes,
                response_bytes = end.response_bytes,
                authenticate_ms = ms(Phase::Authenticate),
                decide_ms = ms(Phase::Decide),
                hold_ms = ms(Phase::Hold),
                log_ms = ms(Phase::Log),
                upstream_ms = ms(Phase::Upstream),
                stream_ms = ms(Phase::Stream),
                total_ms = (total.as_secs_f64() * 1_000_000.0).round() / 1000.0,
            );
        }
        // Names of routes and endings are few: the configuration's and our own.
        let class = format!("{}xx", end.status / 100);
        metrics::counter!("popgate_requests_total", "route" => said.route, "class" => class, "ended" => end.ended.to_owned())
            .increment(1);
        for phase in <Phase as strum::VariantArray>::VARIANTS {
            if self.spent(*phase) > 0 {
                let name = <&str>::from(*phase);
                metrics::histogram!("popgate_phase_seconds", "phase" => name).record(ms(*phase) / 1000.0);
            }
        }
        if let Some(span) = &self.span {
            self.note("http.request.method", self.method);
            lock(span).set_attribute(KeyValue::new("http.response.status_code", i64::from(end.status)));
            self.note("popgate.ended", end.ended);
            for phase in <Phase as strum::VariantArray>::VARIANTS.iter().filter(|p| self.spent(**p) > 0) {
                let at = self.spent(*phase);
                let attributes = vec![KeyValue::new("microseconds", i64::try_from(at).unwrap_or(i64::MAX))];
                lock(span).add_event(<&str>::from(*phase), attributes);
            }
            lock(span).end();
        }
    }
}

/// Lines and spans have few methods, whatever a client calls its own.
fn known(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn lock<T>(held: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remote(parent: &TraceParent) -> SpanContext {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, span) = (TraceId::from_bytes(parent.trace), SpanId::from_bytes(parent.span));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

fn told(own: &SpanContext) -> TraceParent {
    TraceParent { trace: own.trace_id().to_bytes(), span: own.span_id().to_bytes(), sampled: own.is_sampled() }
}
