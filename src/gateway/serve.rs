//! One request, top to bottom: read → Caller → Intent → Verdict → Permit → Exchange → forward → mask → seal → answer.
//!
//! Each step takes the previous step's value, so skipping one does not compile.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming as IncomingBody};
use opentelemetry::global::BoxedTracer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::approval::ApprovalState;
use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationSet;
use crate::domain::verdict::{Decision, Verdict};
use crate::gateway::answer::{in_grpc, stamp};
use crate::gateway::approve::{Asking, Permit};
use crate::gateway::authenticate::{Caller, Demand, Unproved, bad_proof};
use crate::gateway::authorize;
use crate::gateway::bounds::Bounds;
use crate::gateway::config::Access;
use crate::gateway::cors;
use crate::gateway::forward::{Outgoing, Unanswered};
use crate::gateway::headers;
use crate::gateway::mask;
use crate::gateway::matching::Wanted;
use crate::gateway::pump::{self, Course};
use crate::gateway::read::Incoming;
use crate::gateway::record::Exchange;
use crate::gateway::routes::{Route, Rules};
use crate::gateway::tokens::Caches;
use crate::gateway::trace::{Phase, Trace};
use crate::gateway::upstream::endpoint::Place;
use crate::gateway::websocket::{self, Relay};
use crate::net::body::{self, AnyBody, ReadError};
use crate::net::listener::{Peer, Serve};
use crate::net::tls::OwnTls;
use crate::protocol::dpop::Window;
use crate::protocol::htu::Origin;
use crate::protocol::jws::SigningKey;
use crate::protocol::nonce::NonceKey;
use crate::protocol::operation::{self, Seen, WebSocket};
use crate::store::{Stores, entropy};

/// The plane's state.
pub struct Gateway {
    /// What is remembered.
    pub stores: Stores,
    /// Our trust domain.
    pub trust_domain: String,
    /// The token service's issuer URL.
    pub issuer: String,
    /// Origins that `htu` may name; the first is canonical.
    pub origins: Vec<Origin>,
    /// What upstreams are shown.
    pub own: OwnTls,
    /// Routes, masks and policy in force.
    pub rules: ArcSwap<Rules>,
    /// Stops in force.
    pub revoked: watch::Receiver<Arc<RevocationSet>>,
    /// Makes and checks nonces.
    pub nonces: Arc<NonceKey>,
    /// Accepted ages of proofs.
    pub window: Window,
    /// Verified tokens.
    pub caches: Caches,
    /// Signs transaction tokens.
    pub txn_key: SigningKey,
    /// Largest body that is held whole.
    pub held_body: usize,
    /// How long a stream may last.
    pub stream_max: Duration,
    /// Makes spans, where traces are exported.
    pub tracer: Option<BoxedTracer>,
    /// What must end before the evidence log closes.
    pub tasks: TaskTracker,
    /// Cancelled when the grace of a drain is over.
    pub ending: CancellationToken,
}

/// A [`Gateway`] as a listener's service.
#[derive(Clone)]
pub struct GatewayService(pub Arc<Gateway>);

impl Serve for GatewayService {
    async fn serve(&self, peer: Arc<Peer>, request: Request<IncomingBody>) -> Response<AnyBody> {
        let request_id = entropy::random_id();
        let grpc =
            request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        let trace = Trace::begin(self.0.tracer.as_ref(), request.method(), request.headers(), &request_id);
        let trace = Arc::new(trace);
        let response = self.0.handle(&peer, request, &request_id, &trace).await;
        trace.answered(response.status());
        stamp(if grpc { in_grpc(response) } else { response }, &request_id)
    }
}

impl Gateway {
    async fn handle(
        self: &Arc<Self>,
        peer: &Peer,
        request: Request<IncomingBody>,
        request_id: &str,
        trace: &Arc<Trace>,
    ) -> Response<AnyBody> {
        let path = request.uri().path().to_owned();
        let (request, body) = match self.read(request, request_id, trace) {
            Ok(read) => read,
            Err(refusal) => return self.refuse(request_id, &path, refusal.into()).await,
        };
        if let Some(own) = self.own(peer, &request).await {
            return match own {
                Ok(response) => response,
                Err(unproved) => self.refuse(request_id, &path, unproved).await,
            };
        }
        let rules = self.rules.load_full();
        let asked = cors::asked(&request);
        let route = rules.route(&Wanted {
            origin: &request.origin,
            path: request.path.as_str(),
            method: asked.and_then(|m| m.to_str().ok()).unwrap_or_else(|| request.method().as_str()),
            headers: &request.head.headers,
        });
        if let Some(route) = route {
            trace.route(&route.name);
        }
        let page = route.and_then(|r| r.cors.as_ref()?.allowed(&request.head.headers));
        if let (Some(method), Some(page), Some(cors)) = (asked, &page, route.and_then(|r| r.cors.as_ref())) {
            return cors.answer(page, method);
        }
        let mut response = match self.authenticate(peer, &request, &demand(route)).await {
            Err(unproved) => self.refuse(request_id, &path, unproved).await,
            Ok(caller) => {
                trace.end(Phase::Authenticate);
                trace.caller(&caller.token.claims.client_id);
                self.proved(&rules, route, &Arc::new(request), body, &Arc::new(caller)).await
            }
        };
        if let Some(page) = page {
            cors::show(&page, response.headers_mut());
        }
        response
    }

    async fn proved(
        self: &Arc<Self>,
        rules: &Rules,
        route: Option<&Route>,
        request: &Arc<Incoming>,
        body: IncomingBody,
        caller: &Arc<Caller>,
    ) -> Response<AnyBody> {
        let Some(route) = route else {
            return self.deny(request, caller, None, &no_route()).await;
        };
        let mut operation = None;
        match self.carry_out(rules, route, request, body, caller, &mut operation).await {
            Ok(response) => response,
            Err(refusal) => self.deny(request, caller, operation.as_deref(), &refusal).await,
        }
    }

    /// What a body must be for its operation to be known, and what of it is held for that.
    async fn judged_body(&self, route: &Route, request: &Incoming, body: IncomingBody) -> Result<Outgoing, Refusal> {
        let headers = &request.head.headers;
        let body = Outgoing::Streaming(body);
        if request.handshake.is_some() {
            // It has none; over HTTP/2 what follows are messages.
            return Ok(Outgoing::Held(Bytes::new()));
        }
        if operation::needs_body(&route.operations, request.method().as_str(), request.path.as_str()) {
            authorize::readable(headers)?;
            return self.held(body).await;
        }
        if authorize::is_form(headers) {
            // RFC 6750 section 2.2: a token may hide in a form, and never does here.
            let body = self.held(body).await?;
            authorize::without_token(bytes_of(&body))?;
            return Ok(body);
        }
        Ok(body)
    }

    async fn carry_out(
        self: &Arc<Self>,
        rules: &Rules,
        route: &Route,
        request: &Arc<Incoming>,
        body: IncomingBody,
        caller: &Arc<Caller>,
        operation: &mut Option<String>,
    ) -> Result<Response<AnyBody>, Refusal> {
        let method = request.method().as_str();
        let mut body = self.judged_body(route, request, body).await?;
        if route.content_digest {
            body = self.held(body).await?;
        }
        if let Some(held) = bytes_of(&body) {
            caller.signed_body.check(held, route.content_digest).map_err(bad_proof)?;
        }
        let headers = &request.head.headers;
        let seen = Seen {
            method,
            path: request.path.as_str(),
            query: request.query(),
            body: bytes_of(&body).map(|b| &b[..]),
            header: &|name| authorize::one_header(headers, name),
            headers_named: &|prefix| authorize::headers_named(headers, prefix),
        };
        let matched = authorize::classify(route, &seen, &rules.policy)?;
        if matched.operation.reads_body() {
            authorize::readable(headers)?;
        }
        request.trace.operation(&matched.operation.name);
        *operation = Some(matched.operation.name.clone());
        if request.handshake.is_some() && matched.operation.websocket == WebSocket::Off {
            return Err(authorize::unlisted(&rules.policy, "the operation with this path opens no WebSocket"));
        }
        let intent = authorize::intent(caller, route, &matched, method, self.stores.clock.now());
        let verdict = authorize::decide(&rules.policy, caller, &intent)?;
        if matches!(verdict.decision, Decision::AllowWithApproval(_)) {
            body = self.held(body).await?;
        }
        let held = bytes_of(&body).cloned();
        let injected = match &route.inject {
            None => None,
            Some(inject) => {
                Some(inject.read().await.map_err(|e| Refusal::unavailable("the upstream's credential", e))?)
            }
        };
        let (held, injected) = (held.as_ref(), injected.as_ref());
        let websocket = matched.operation.websocket;
        let asking =
            Asking { rules, route, caller, intent: &intent, request, body: held, injected, websocket, for_edge: false };
        request.trace.end(Phase::Decide);
        self.admitted(&asking, verdict, body).await
    }

    async fn admitted(
        self: &Arc<Self>,
        asking: &Asking<'_>,
        verdict: Verdict,
        body: Outgoing,
    ) -> Result<Response<AnyBody>, Refusal> {
        let mut permit = self.permit(asking, verdict).await?;
        asking.request.trace.end(Phase::Hold);
        let execution = permit.take_execution();
        let (result, state) = self.carry(asking, permit, body).await;
        if let Some(execution) = execution {
            execution.end(state).await;
        }
        result
    }

    /// Opens, forwards, answers; and says what an approval of this request has come to.
    async fn carry(
        self: &Arc<Self>,
        asking: &Asking<'_>,
        permit: Permit,
        body: Outgoing,
    ) -> (Result<Response<AnyBody>, Refusal>, ApprovalState) {
        let exchange = match self.open(asking, &permit).await {
            Ok(exchange) => exchange,
            Err(refusal) => return (Err(refusal), ApprovalState::Failed),
        };
        let bounds = self.bounds(asking);
        asking.request.trace.end(Phase::Log);
        let forwarded = self.forward(asking, permit, &exchange, body, &bounds).await;
        asking.request.trace.end(Phase::Upstream);
        let (result, state) = match forwarded {
            Ok((upstream, place)) => {
                if let (StatusCode::UNAUTHORIZED, Some(inject)) = (upstream.status(), &asking.route.inject) {
                    inject.refused(asking.injected);
                }
                let done = upstream.status().is_success() || upstream.status() == StatusCode::SWITCHING_PROTOCOLS;
                let state = if done { ApprovalState::Done } else { ApprovalState::Failed };
                (self.answer(asking, upstream, &exchange, bounds, place).await, state)
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
    fn bounds(&self, asking: &Asking<'_>) -> Bounds {
        let token = &asking.caller.token;
        let mut until = self.stores.clock.now().plus(self.stream_max).min(token.svid_end);
        if asking.route.ends_with_token {
            until = until.min(token.claims.exp);
        }
        Bounds { subject: asking.caller.subject.clone(), until, ending: self.ending.clone() }
    }

    async fn answer(
        self: &Arc<Self>,
        asking: &Asking<'_>,
        mut upstream: Response<IncomingBody>,
        exchange: &Exchange,
        bounds: Bounds,
        place: Place,
    ) -> Result<Response<AnyBody>, Refusal> {
        let upgraded = upstream.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        let (mut parts, body) = upstream.into_parts();
        let secret = asking.injected.map(|i| i.secret.as_slice());
        if let (StatusCode::SWITCHING_PROTOCOLS, Some(handshake), Some(upgraded)) =
            (parts.status, &asking.request.handshake, upgraded)
        {
            let shown = headers::towards_client(&parts.headers, asking.route.mask.is_some(), secret);
            exchange.response_head(parts.status, &shown)?;
            let relay = self.relay(asking, exchange, bounds, place);
            return websocket::open(relay, handshake, &parts.headers, shown, upgraded);
        }
        let mut treatment = mask::treatment(asking.route, asking.request, &parts, body.is_end_stream(), secret)?;
        let events =
            parts.headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
        let mut body = if self.judges_calls(asking) {
            self.gate(asking, &parts, body, &mut treatment).await?
        } else {
            body::streaming(body)
        };
        let idle = asking.route.upstream.idle();
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
        let masked = asking.route.mask.is_some() || secret.is_some();
        parts.headers = headers::towards_client(&parts.headers, masked, secret);
        if decoded {
            parts.headers.remove(header::CONTENT_ENCODING);
        }
        if let Some(rules) = mask::rules(asking.route, secret) {
            mask::headers(&rules, &mut parts.headers);
        }
        parts.version = http::Version::HTTP_11;
        parts.extensions.clear();
        exchange.response_head(parts.status, &parts.headers)?;
        let bodiless = asking.request.head.method == Method::HEAD
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let course = Course { idle, events, first, resized: bodiless || resized, place };
        let body = pump::start(body, treatment, exchange.clone(), bounds, course, self.stores.clone());
        Ok(Response::from_parts(parts, body))
    }

    fn relay(self: &Arc<Self>, asking: &Asking<'_>, exchange: &Exchange, bounds: Bounds, place: Place) -> Relay {
        Relay {
            gateway: self.clone(),
            caller: asking.caller.clone(),
            request: asking.request.clone(),
            route: asking.route.name.clone(),
            websocket: asking.websocket,
            mask: mask::rules(asking.route, asking.injected.map(|i| i.secret.as_slice())),
            reads: asking.route.mask.is_some(),
            exchange: exchange.clone(),
            bounds,
            idle: asking.route.upstream.idle(),
            place,
        }
    }

    async fn held(&self, body: Outgoing) -> Result<Outgoing, Refusal> {
        match body {
            Outgoing::Held(bytes) => Ok(Outgoing::Held(bytes)),
            Outgoing::Streaming(body) => match body::read(body, self.held_body).await {
                Ok(bytes) => Ok(Outgoing::Held(bytes)),
                Err(e @ ReadError::TooLong(_)) => {
                    Err(Refusal::new(413, "body", format!("{e}, and a rule must read all of it")))
                }
                Err(e @ ReadError::Slow(_)) => Err(Refusal::new(408, "body", e.to_string())),
                Err(e @ ReadError::Broken) => Err(Refusal::new(400, "body", e.to_string())),
            },
        }
    }
}

fn bytes_of(body: &Outgoing) -> Option<&Bytes> {
    match body {
        Outgoing::Held(bytes) => Some(bytes),
        Outgoing::Streaming(_) => None,
    }
}

/// What a proved caller reads whose path leads nowhere.
pub(super) fn no_route() -> Refusal {
    Refusal::new(404, "no-route", "no route has this path")
}

/// What a route asks of its callers.
pub(super) fn demand(route: Option<&Route>) -> Demand<'_> {
    Demand {
        resource: route.map(|r| r.resource.as_str()),
        certificate: route.is_some_and(|r| r.access == Access::ProofAndCertificate),
        nonce: route.is_some_and(|r| r.nonce_required),
    }
}

impl From<Unproved> for Refusal {
    fn from(unproved: Unproved) -> Self {
        unproved.refusal
    }
}
