//! Permit → answer: opens the exchange, forwards, masks, seals.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use hyper::body::Body as _;

use crate::domain::approval::ApprovalState;
use crate::domain::refusal::Refusal;
use crate::gateway::approve::{Asking, Permit};
use crate::gateway::authenticate::Caller;
use crate::gateway::bounds::Bounds;
use crate::gateway::forward::{Outgoing, Unanswered};
use crate::gateway::headers;
use crate::gateway::inject::Injected;
use crate::gateway::mask;
use crate::gateway::pump::{Course, Pump};
use crate::gateway::read::Incoming;
use crate::gateway::record::Exchange;
use crate::gateway::routes::Route;
use crate::gateway::serve::Gateway;
use crate::gateway::trace::Phase;
use crate::gateway::upstream::endpoint::Place;
use crate::gateway::websocket::{self, Relay};
use crate::net::body::{self, AnyBody};
use crate::net::inbound::Inbound;
use crate::net::upgrade::Upgrading;
use crate::protocol::operation::WebSocket;

/// A decided request, and what carrying it out needs.
pub struct Carry<'a> {
    /// Where it goes.
    pub route: &'a Route,
    /// The request.
    pub request: &'a Arc<Incoming>,
    /// Who asks; none: anybody, of a public route.
    pub caller: Option<&'a Arc<Caller>>,
    /// Name of its operation.
    pub operation: &'a str,
    /// What it is done to.
    pub object: &'a str,
    /// Its whole body, where it was read.
    pub body: Option<&'a Bytes>,
    /// The upstream's own credential, where the route injects one.
    pub injected: Option<&'a Injected>,
    /// What its operation allows, if it opens a WebSocket.
    pub websocket: WebSocket,
    /// Whether another edge carries it out, so that nothing of it is recorded here.
    pub for_edge: bool,
}

impl Asking<'_> {
    /// What carrying it out needs.
    pub fn carry(&self) -> Carry<'_> {
        Carry {
            route: self.route,
            request: self.request,
            caller: Some(self.caller),
            operation: &self.intent.operation,
            object: &self.intent.object,
            body: self.body,
            injected: self.injected,
            websocket: self.websocket,
            for_edge: self.for_edge,
        }
    }
}

impl Gateway {
    /// Opens, forwards, answers; and says what an approval of this request has come to.
    pub(super) async fn carry(
        self: &Arc<Self>,
        carry: &Carry<'_>,
        permit: Permit,
        body: Outgoing,
    ) -> (Result<Response<AnyBody>, Refusal>, ApprovalState) {
        let exchange = match self.open(carry, &permit).await {
            Ok(exchange) => exchange,
            Err(refusal) => return (Err(refusal), ApprovalState::Failed),
        };
        let bounds = self.bounds(carry);
        carry.request.trace.end(Phase::Log);
        let forwarded = self.forward(carry, permit, &exchange, body, &bounds).await;
        carry.request.trace.end(Phase::Upstream);
        let (result, state) = match forwarded {
            Ok((upstream, place)) => {
                if let (StatusCode::UNAUTHORIZED, Some(inject)) = (upstream.status(), &carry.route.inject) {
                    inject.refused(carry.injected);
                }
                let done = upstream.status().is_success() || upstream.status() == StatusCode::SWITCHING_PROTOCOLS;
                let state = if done { ApprovalState::Done } else { ApprovalState::Failed };
                (self.answer(carry, upstream, &exchange, bounds, place).await, state)
            }
            Err(Unanswered { refusal, sent }) => {
                (Err(refusal), if sent { ApprovalState::Unknown } else { ApprovalState::Failed })
            }
        };
        if let Err(refusal) = &result {
            exchange.answered(refusal.status);
            exchange.seal(refusal.kind);
        }
        (result, state)
    }

    /// No exchange outlives the certificate, whatever upstream does.
    fn bounds(&self, carry: &Carry<'_>) -> Bounds {
        let mut until = self.stores.clock.now().plus(self.stream_max);
        if let Some(caller) = carry.caller {
            until = until.min(caller.token.svid_end);
            if carry.route.ends_with_token {
                until = until.min(caller.token.claims.exp);
            }
        }
        Bounds { subject: carry.caller.map(|c| c.subject.clone()), until, ending: self.ending.clone() }
    }

    async fn answer(
        self: &Arc<Self>,
        carry: &Carry<'_>,
        mut upstream: Response<Inbound>,
        exchange: &Exchange,
        bounds: Bounds,
        place: Place,
    ) -> Result<Response<AnyBody>, Refusal> {
        let upgraded = Upgrading::switched(&mut upstream);
        let (mut parts, body) = upstream.into_parts();
        let secret = carry.injected.map(|i| i.secret.as_slice());
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(handshake), Some(upgraded)) =
            (parts.status, &carry.request.handshake, upgraded)
        {
            let mut shown = headers::towards_client(&parts.headers, carry.route.mask.is_some(), secret);
            carry.route.response_headers.apply(&mut shown);
            exchange.response_head(parts.status, &shown)?;
            let relay = self.relay(carry, exchange, bounds, place);
            return websocket::open(relay, handshake, &parts.headers, shown, upgraded);
        }
        let mut treatment = mask::treatment(carry.route, carry.request, &parts, body.is_end_stream(), secret)?;
        treatment.rules = (!carry.route.response_headers.is_empty()).then(|| carry.route.response_headers.clone());
        let events =
            parts.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let mut body = if self.judges_calls(carry) {
            self.gate(carry, &parts, body, &mut treatment).await?
        } else {
            body::streaming(body)
        };
        let idle = carry.route.upstream.idle();
        let (decoded, resized) = (treatment.decoder.is_some(), !treatment.is_plain());
        // What is in a coding is looked at before the head goes out; other streams open at once, whenever they begin.
        let first = if decoded {
            tokio::select! {
                biased;
                cut = bounds.over(&self.stores) => return Err(cut.refusal()),
                first = mask::first(&mut body, &mut treatment, exchange, idle) => first?,
            }
        } else {
            Bytes::new()
        };
        let masked = carry.route.mask.is_some() || secret.is_some();
        parts.headers = headers::towards_client(&parts.headers, masked, secret);
        if decoded {
            parts.headers.remove(header::CONTENT_ENCODING);
        }
        if let Some(rules) = mask::rules(carry.route, secret) {
            mask::headers(&rules, &mut parts.headers);
        }
        carry.route.response_headers.apply(&mut parts.headers);
        if parts.status == StatusCode::NO_CONTENT {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        parts.version = http::Version::HTTP_11;
        parts.extensions.clear();
        exchange.response_head(parts.status, &parts.headers)?;
        let bodiless = carry.request.head.method == Method::HEAD
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let course = Course { idle, events, first, resized: bodiless || resized, place };
        let (exchange, stores) = (exchange.clone(), self.stores.clone());
        let pump = Pump { upstream: body, treatment, exchange, bounds, course, stores };
        Ok(Response::from_parts(parts, pump.start()))
    }

    fn relay(self: &Arc<Self>, carry: &Carry<'_>, exchange: &Exchange, bounds: Bounds, place: Place) -> Relay {
        Relay {
            gateway: self.clone(),
            caller: carry.caller.cloned(),
            request: carry.request.clone(),
            route: carry.route.name.clone(),
            websocket: carry.websocket,
            mask: mask::rules(carry.route, carry.injected.map(|i| i.secret.as_slice())),
            reads: carry.route.mask.is_some(),
            exchange: exchange.clone(),
            bounds,
            idle: carry.route.upstream.idle(),
            place,
        }
    }
}
