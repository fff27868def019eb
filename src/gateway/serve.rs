//! One request, top to bottom: read → Caller → Intent → Verdict → Permit → Exchange → forward → mask → seal → answer.
//!
//! Each step takes the previous step's value, so skipping one does not compile.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Body as _;
use opentelemetry::global::BoxedTracer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationSet;
use crate::domain::verdict::{Decision, Verdict};
use crate::gateway::answer::{headless, stamp};
use crate::gateway::approve::Asking;
use crate::gateway::authenticate::{Caller, Demand, Unproved, bad_proof};
use crate::gateway::authorize;
use crate::gateway::config::Access;
use crate::gateway::cors;
use crate::gateway::forward::Outgoing;
use crate::gateway::inject::Injected;
use crate::gateway::matching::Wanted;
use crate::gateway::read::Incoming;
use crate::gateway::routes::{Route, Rules};
use crate::gateway::tokens::Caches;
use crate::gateway::trace::{Phase, Trace};
use crate::net::body::{self, AnyBody, ReadError};
use crate::net::inbound::{Arriving, Inbound};
use crate::net::listener::{Peer, Serve};
use crate::net::problem;
use crate::net::tls::OwnTls;
use crate::protocol::dpop::{ProofError, SignedBody, Window};
use crate::protocol::htu::Origin;
use crate::protocol::jws::SigningKey;
use crate::protocol::nonce::NonceKey;
use crate::protocol::operation::{self, Matched, Seen, WebSocket};
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
    const TUNNELS: bool = true;

    async fn serve(&self, peer: Arc<Peer>, request: Request<Inbound>) -> Response<AnyBody> {
        let request_id = entropy::random_id();
        let grpc =
            request.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        let bodiless = request.method() == Method::HEAD;
        let trace = Trace::begin(self.0.tracer.as_ref(), request.method(), request.headers(), &request_id);
        let trace = Arc::new(trace);
        // On the heap once: a future of many kilobytes is not moved from hand to hand.
        let response = Box::pin(self.0.handle(&peer, request, &request_id, &trace)).await;
        trace.answered(response.status());
        let response = if bodiless { headless(response) } else { response };
        stamp(if grpc { problem::in_grpc(response, &request_id) } else { response }, &request_id)
    }
}

impl Gateway {
    async fn handle(
        self: &Arc<Self>,
        peer: &Peer,
        request: Request<Inbound>,
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
        let open = route.filter(|r| r.access == Access::DangerPublic);
        let mut response = match open {
            Some(route) => self.public(&rules, route, &Arc::new(request), body).await,
            None => self.demanding(peer, &rules, route, request, body).await,
        };
        if let Some(page) = page {
            cors::show(&page, response.headers_mut());
        }
        if route.is_some_and(|r| r.cors.is_some()) {
            // Whoever keeps an answer must know that another page would get another.
            response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
        }
        response
    }

    /// A request to a route, or to none, that demands a proof.
    async fn demanding(
        self: &Arc<Self>,
        peer: &Peer,
        rules: &Rules,
        route: Option<&Route>,
        request: Incoming,
        body: Arriving,
    ) -> Response<AnyBody> {
        match self.authenticate(peer, &request, &demand(route)).await {
            Err(unproved) => self.refuse(&request.id, request.path.as_str(), unproved).await,
            Ok(caller) => {
                request.trace.end(Phase::Authenticate);
                request.trace.caller(&caller.token.claims.client_id);
                self.proved(rules, route, &Arc::new(request), body, &Arc::new(caller)).await
            }
        }
    }

    async fn proved(
        self: &Arc<Self>,
        rules: &Rules,
        route: Option<&Route>,
        request: &Arc<Incoming>,
        body: Arriving,
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
    pub(super) async fn judged_body(
        &self,
        route: &Route,
        request: &Incoming,
        body: Arriving,
    ) -> Result<Outgoing, Refusal> {
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
        body: Arriving,
        caller: &Arc<Caller>,
        operation: &mut Option<String>,
    ) -> Result<Response<AnyBody>, Refusal> {
        let method = request.method().as_str();
        let mut body = self.judged_body(route, request, body).await?;
        if route.content_digest || (caller.signed_body.is_claimed() && self.is_short(&body)) {
            body = self.held(body).await?;
        }
        signed_for(caller, route, &body)?;
        let matched = matched(rules, route, request, bytes_of(&body))?;
        *operation = Some(matched.operation.name.clone());
        opens(rules, request, &matched)?;
        let intent = authorize::intent(caller, route, &matched, method, self.stores.clock.now());
        let verdict = authorize::decide(&rules.policy, caller, &intent)?;
        if matches!(verdict.decision, Decision::AllowWithApproval(_)) {
            body = self.held(body).await?;
            signed_for(caller, route, &body)?;
        }
        let held = bytes_of(&body).cloned();
        let injected = injected(route).await?;
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
        let (result, state) = self.carry(&asking.carry(), permit, body).await;
        if let Some(execution) = execution {
            execution.end(state).await;
        }
        result
    }

    /// Whether a body says itself that it can be held. Who signs for such a one is held to it on any route.
    fn is_short(&self, body: &Outgoing) -> bool {
        match body {
            Outgoing::Held(_) => true,
            Outgoing::Streaming(body) => body.size_hint().exact().is_some_and(|length| length <= self.held_body as u64),
        }
    }

    async fn held(&self, body: Outgoing) -> Result<Outgoing, Refusal> {
        match body {
            Outgoing::Held(bytes) => Ok(Outgoing::Held(bytes)),
            // One that says itself that it is too long is not asked for: its client may wait to be told to go on.
            Outgoing::Streaming(body) if body.size_hint().lower() > self.held_body as u64 => {
                Err(too_long(ReadError::TooLong(self.held_body)))
            }
            Outgoing::Streaming(body) => match body::read(body, self.held_body).await {
                Ok(bytes) => Ok(Outgoing::Held(bytes)),
                Err(e @ ReadError::TooLong(_)) => Err(too_long(e)),
                Err(e @ ReadError::Slow(_)) => Err(Refusal::new(408, "body", e.to_string())),
                Err(e @ ReadError::Broken) => Err(Refusal::new(400, "body", e.to_string())),
            },
        }
    }
}

fn too_long(error: ReadError) -> Refusal {
    Refusal::new(413, "body", format!("{error}, and a rule must read all of it"))
}

pub(super) fn bytes_of(body: &Outgoing) -> Option<&Bytes> {
    match body {
        Outgoing::Held(bytes) => Some(bytes),
        Outgoing::Streaming(_) => None,
    }
}

/// Holds a body that is read whole against what its proof says of it. Another is held to it as it goes.
fn signed_for(caller: &Caller, route: &Route, body: &Outgoing) -> Result<(), Refusal> {
    match (bytes_of(body), caller.signed_body) {
        (Some(held), signed) => signed.check(held, route.content_digest).map_err(bad_proof),
        (None, SignedBody::Unreadable) => Err(bad_proof(ProofError::ContentDigest)),
        (None, _) => Ok(()),
    }
}

/// The operation of a request, by what is known of it; `body` where it was read.
pub(super) fn matched<'r>(
    rules: &Rules,
    route: &'r Route,
    request: &Incoming,
    body: Option<&Bytes>,
) -> Result<Matched<'r>, Refusal> {
    let headers = &request.head.headers;
    let seen = Seen {
        method: request.method().as_str(),
        path: request.path.as_str(),
        query: request.query(),
        body: body.map(|b| &b[..]),
        header: &|name| authorize::one_header(headers, name),
        headers_named: &|prefix| authorize::headers_named(headers, prefix),
    };
    let matched = authorize::classify(route, &seen, &rules.policy)?;
    if matched.operation.reads_body() {
        authorize::readable(headers)?;
    }
    request.trace.operation(&matched.operation.name);
    Ok(matched)
}

/// A handshake needs an operation that opens a WebSocket.
pub(super) fn opens(rules: &Rules, request: &Incoming, matched: &Matched<'_>) -> Result<(), Refusal> {
    if request.handshake.is_some() && matched.operation.websocket == WebSocket::Off {
        return Err(authorize::unlisted(&rules.policy, "the operation with this path opens no WebSocket"));
    }
    Ok(())
}

/// The upstream's own credential, where the route injects one.
pub(super) async fn injected(route: &Route) -> Result<Option<Injected>, Refusal> {
    match &route.inject {
        None => Ok(None),
        Some(inject) => inject.read().await.map(Some).map_err(|e| Refusal::unavailable("the upstream's credential", e)),
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
