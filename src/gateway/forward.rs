//! Permit → upstream. The credential stays here; upstream gets a transaction token for this one request.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::domain::refusal::Refusal;
use crate::gateway::approve::Permit;
use crate::gateway::authenticate::Caller;
use crate::gateway::bounds::Bounds;
use crate::gateway::carry::Carry;
use crate::gateway::header_rules::HeaderRules;
use crate::gateway::record::Exchange;
use crate::gateway::routes::Route;
use crate::gateway::serve::Gateway;
use crate::gateway::signed::Signed;
use crate::gateway::upstream::Unsent;
use crate::gateway::upstream::config::Protocol;
use crate::gateway::upstream::endpoint::Place;
use crate::gateway::{headers, interim};
use crate::net::body::{AnyBody, BoxError};
use crate::net::inbound::{Arriving, Inbound};
use crate::protocol::dpop::SignedBody;
use crate::protocol::masking::{Blocked, Masker};
use crate::protocol::txn_token::{self, request_digest};

/// The request's body on its way: counted, recorded, and held back by upstream's own pace.
struct Recorded<B> {
    body: B,
    exchange: Exchange,
    trailers: TrailerRules,
}

/// What of a request's trailers stays here besides what no trailer may carry.
#[derive(Clone, Default)]
struct TrailerRules {
    rules: Option<Arc<HeaderRules>>,
    injected: Option<HeaderName>,
}

impl TrailerRules {
    fn of(route: &Route) -> Self {
        let rules = (!route.request_headers.is_empty()).then(|| route.request_headers.clone());
        Self { rules, injected: route.inject.as_ref().map(|i| i.header.clone()) }
    }

    fn passing(&self, sent: &HeaderMap) -> HeaderMap {
        let mut passing = headers::trailers(sent);
        if let Some(rules) = &self.rules {
            rules.strip(&mut passing);
        }
        if let Some(name) = &self.injected {
            passing.remove(name);
        }
        passing
    }
}

impl<B> Body for Recorded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            None => self.exchange.request_end().err().map(|e| Err(e.into())),
            Some(Err(error)) => {
                self.exchange.request_broke();
                Some(Err(error.into()))
            }
            Some(Ok(frame)) => {
                let mut passed = pass(frame, &self.exchange, &self.trailers);
                // Who knows that nothing follows need not ask for it.
                if self.body.is_end_stream() {
                    passed = passed.and_then(|frame| ended(frame, &self.exchange));
                }
                if passed.is_err() {
                    self.exchange.request_unrecorded();
                }
                Some(passed)
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn ended(frame: Frame<Bytes>, exchange: &Exchange) -> Result<Frame<Bytes>, BoxError> {
    exchange.request_end()?;
    Ok(frame)
}

fn pass(frame: Frame<Bytes>, exchange: &Exchange, rules: &TrailerRules) -> Result<Frame<Bytes>, BoxError> {
    match frame.into_data() {
        Ok(chunk) => {
            exchange.request_chunk(&chunk)?;
            Ok(Frame::data(chunk))
        }
        Err(frame) => {
            let trailers = rules.passing(&frame.into_trailers().unwrap_or_default());
            exchange.request_trailers(&trailers)?;
            Ok(Frame::trailers(trailers))
        }
    }
}

/// Masks a request's body before anything else sees it go.
struct Masked<B> {
    body: B,
    /// None once the body has ended.
    masker: Option<Masker>,
}

impl<B> Body for Masked<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let mut out = Vec::new();
            match frame {
                // Trailers come behind what is left, and the mask would have to hold them: they stay.
                None => {
                    let Some(mut masker) = self.masker.take() else { return Poll::Ready(None) };
                    masker.finish(&mut out)?;
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => {
                    if let (Ok(chunk), Some(masker)) = (frame.into_data(), &mut self.masker) {
                        masker.push(&chunk, &mut out)?;
                    }
                }
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
    }
}

/// The masker of a request towards upstream, where the route's mask says so. A body that it cannot read does not pass.
fn request_masker(carry: &Carry<'_>, body: &Outgoing) -> Result<Option<Masker>, Refusal> {
    let Some(rules) = carry.route.mask.as_ref().filter(|rules| rules.requests) else { return Ok(None) };
    let headers = &carry.request.head.headers;
    if body.is_empty() {
        return Ok(None);
    }
    let unreadable = |why: Blocked| Refusal::new(415, "unmaskable", format!("this route masks requests: {why}"));
    if headers.get_all(header::CONTENT_ENCODING).iter().any(|v| v != "identity") {
        return Err(unreadable(Blocked::Coding));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Masker::for_content_type(rules, kind).map(Some).map_err(unreadable)
}

/// The body that is forwarded: read whole before, or streaming.
pub enum Outgoing {
    /// Held for a rule or an approval.
    Held(Bytes),
    /// Passed on as it comes.
    Streaming(Arriving),
}

impl Outgoing {
    fn is_empty(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_empty(),
            Self::Streaming(body) => body.is_end_stream(),
        }
    }

    /// The body as it goes: held to the digest that its proof signs for, masked, recorded.
    fn recorded(self, carry: &Carry<'_>, exchange: &Exchange, masker: Option<Masker>) -> AnyBody {
        let (exchange, trailers) = (exchange.clone(), TrailerRules::of(carry.route));
        if self.is_empty() {
            // Nothing is recorded of it, so nothing can fail.
            let _ = exchange.request_end();
        }
        match (self, carry.caller.map(|c| c.signed_body)) {
            (Self::Held(bytes), _) => going(Full::new(bytes), exchange, trailers, masker),
            (Self::Streaming(body), Some(SignedBody::Exactly(wanted))) => {
                let other = exchange.clone();
                let body = Signed::new(body, wanted, move || other.request_unsigned());
                going(body, exchange, trailers, masker)
            }
            (Self::Streaming(body), _) => going(body, exchange, trailers, masker),
        }
    }
}

/// Masked, then recorded.
fn going<B>(body: B, exchange: Exchange, trailers: TrailerRules, masker: Option<Masker>) -> AnyBody
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    match masker {
        None => Recorded { body, exchange, trailers }.boxed_unsync(),
        masker => Recorded { body: Masked { body, masker }, exchange, trailers }.boxed_unsync(),
    }
}

/// Upstream gave no answer.
pub struct Unanswered {
    /// What the client reads.
    pub refusal: Refusal,
    /// Whether upstream may have acted on the request.
    pub sent: bool,
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, sent: false }
    }
}

impl Gateway {
    /// Sends the permitted request; the permit is used up.
    pub async fn forward(
        &self,
        carry: &Carry<'_>,
        permit: Permit,
        exchange: &Exchange,
        body: Outgoing,
        bounds: &Bounds,
    ) -> Result<(Response<Inbound>, Place), Unanswered> {
        let upstream = &carry.route.upstream;
        let target = carry.request.target();
        let mut request = Request::new(());
        *request.method_mut() = carry.request.method().clone();
        *request.version_mut() = Version::HTTP_11;
        let (parent, call) = carry.request.trace.call(self.tracer.as_ref(), upstream.authority().as_str());
        *request.headers_mut() = self.headers(carry, &permit, &target, &parent)?;
        interim::pass_on(&mut request, carry, exchange);
        let (head, ()) = request.into_parts();
        drop(permit);
        let masker = request_masker(carry, &body)?;
        let body = body.recorded(carry, exchange, masker);
        let blameless = || exchange.request_fault().is_some();
        let sending = upstream.send(&head, &target, body, &blameless);
        let answered = tokio::select! {
            biased;
            cut = bounds.over(&self.stores) => return Err(Unanswered { refusal: cut.refusal(), sent: true }),
            answered = patient(sending, exchange, upstream.idle(), upstream.thinking()) => answered,
        };
        // The call's span is over.
        drop(call);
        match answered {
            Some(Ok(answered)) => Ok(answered),
            Some(Err(unsent)) => Err(unanswered(&carry.route.name, exchange, &unsent)),
            None if !exchange.request_ended() => {
                let refusal = Refusal::new(408, "body", "the request's body, or upstream's reading of it, stood still");
                Err(Unanswered { refusal, sent: true })
            }
            None => {
                let refusal = Refusal::new(504, "upstream", "the protected service did not answer in time");
                Err(Unanswered { refusal, sent: true })
            }
        }
    }

    fn headers(&self, carry: &Carry<'_>, permit: &Permit, target: &str, parent: &str) -> Result<HeaderMap, Refusal> {
        let upstream = &carry.route.upstream;
        let request = carry.request;
        let mut headers = headers::towards_upstream(
            &request.head.headers,
            carry.route.mask.is_some() || carry.route.inject.is_some() || self.judges_calls(carry),
        );
        if !request.trace.is_continued() {
            // It belongs to a parent that was not taken (W3C Trace Context section 3.4).
            headers.remove("tracestate");
        }
        carry.route.request_headers.apply(&mut headers);
        headers.insert(header::HOST, upstream.host().clone());
        headers.extend(self.own_headers(carry, permit, target, parent)?);
        headers.append(header::VIA, HeaderValue::from_static(via(request.head.version)));
        if headers::takes_trailers(&request.head.headers) {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            if upstream.config().protocol == Protocol::Http1 {
                headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
        }
        if let Some(handshake) = &request.handshake {
            handshake.ask(&mut headers);
        }
        if let (Some(inject), Some(injected)) = (&carry.route.inject, carry.injected) {
            headers.insert(inject.header.clone(), injected.value.clone());
        }
        Ok(headers)
    }

    /// What the gateway says to upstream itself: who asks, by a token for this one request, and in which trace.
    pub(super) fn own_headers(
        &self,
        carry: &Carry<'_>,
        permit: &Permit,
        target: &str,
        parent: &str,
    ) -> Result<HeaderMap, Refusal> {
        let request = carry.request;
        let mut headers = HeaderMap::new();
        if let Some(caller) = carry.caller {
            headers.insert("txn-token", self.txn_token(carry, caller, permit, target)?);
        }
        headers.insert(header::FORWARDED, text(&format!("proto=https;host=\"{}\"", request.origin.authority()))?);
        headers.insert("popgate-request-id", text(&request.id)?);
        headers.insert("traceparent", text(parent)?);
        Ok(headers)
    }

    fn txn_token(
        &self,
        carry: &Carry<'_>,
        caller: &Caller,
        permit: &Permit,
        target: &str,
    ) -> Result<HeaderValue, Refusal> {
        let (upstream, request) = (&carry.route.upstream, carry.request);
        let context = txn_token::Context {
            upstream: upstream.url().to_owned(),
            operation: carry.operation.to_owned(),
            object: carry.object.to_owned(),
            rule: permit.verdict().rule().to_owned(),
            policy_version: permit.verdict().policy_version.clone(),
            request_sha256: request_digest(request.method().as_str(), upstream.authority().as_str(), target),
            // What upstream gets of a masked request is another body.
            body_sha256: carry
                .body
                .filter(|_| !carry.route.mask.as_ref().is_some_and(|m| m.requests))
                .map(|b| crate::domain::digest::Sha256::of(b)),
        };
        let now = self.stores.clock.now();
        let client = &caller.token.claims.client_id;
        let token = txn_token::sign(&self.trust_domain, &request.id, client, &context, now, &self.txn_key);
        let mut token = text(&token)?;
        token.set_sensitive(true);
        Ok(token)
    }
}

fn text(value: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(value).map_err(|e| Refusal::new(400, "header", "a header cannot be written").because(e))
}

/// Waits for an answer as long as the body moves: a long upload is not silence. Once it is whole, upstream may think for
/// its own time.
async fn patient<F: Future>(answer: F, exchange: &Exchange, idle: Duration, thinking: Duration) -> Option<F::Output> {
    let mut answer = std::pin::pin!(answer);
    let began = Instant::now();
    let mut deadline = began + idle.min(thinking);
    loop {
        tokio::select! {
            answer = &mut answer => return Some(answer),
            () = tokio::time::sleep_until(deadline) => {}
        }
        let patience = if exchange.request_ended() { thinking } else { idle };
        deadline = exchange.last_request_chunk().max(began) + patience;
        if deadline <= Instant::now() {
            return None;
        }
    }
}

/// What the client reads when upstream gave no answer.
fn unanswered(route: &str, exchange: &Exchange, unsent: &Unsent) -> Unanswered {
    let sent = matches!(unsent, Unsent::Broke(_));
    if let Some(refusal) = exchange.request_fault() {
        return Unanswered { refusal: refusal.because(unsent), sent: true };
    }
    let (status, kind, detail) = match unsent {
        Unsent::Overloaded => {
            (503, "overloaded", format!("the protected service of route {route} has all it can take"))
        }
        Unsent::NoneFit => (503, "upstream", format!("no endpoint of the protected service of route {route} is well")),
        Unsent::Unreachable(_) => {
            (502, "upstream", format!("the protected service of route {route} does not answer; it may be down"))
        }
        Unsent::Unseen(_) => {
            (503, "upstream", format!("the protected service of route {route} took no request; it may be restarting"))
        }
        Unsent::Broke(_) => {
            (502, "upstream", format!("the protected service of route {route} broke off, or does not speak HTTP"))
        }
    };
    // Whoever may have been heard is not asked again unasked.
    let retry_after = (!sent).then_some(5);
    let refusal = Refusal { retry_after, ..Refusal::new(status, kind, detail) };
    Unanswered { refusal: refusal.because(unsent), sent }
}

/// RFC 9110 §7.6.3: the version that was received, and who received it.
const fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2 popgate",
        Version::HTTP_10 => "1.0 popgate",
        _ => "1.1 popgate",
    }
}
