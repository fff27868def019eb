//! Decides for the edges of others: nginx `auth_request`, and Envoy's ext_authz over HTTP and gRPC.
//!
//! Token, proof, policy and evidence are the gateway's own. Masks, approvals and rules about bodies need the bytes or hold
//! the request, and both stay with the edge: what a route asks of that is refused here, never skipped. Recordings are
//! skipped, and the log says so.

mod edges;
mod envoy;
pub mod peers;

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, Uri};

use crate::domain::leaf::LEFT_TO_EDGE;
use crate::domain::refusal::Refusal;
use crate::domain::verdict::Decision;
use crate::gateway::answer::stamp;
use crate::gateway::approve::Asking;
use crate::gateway::authenticate::Caller;
use crate::gateway::authorize;
use crate::gateway::config::Access;
use crate::gateway::headers;
use crate::gateway::matching::Wanted;
use crate::gateway::read::Incoming;
use crate::gateway::routes::{Route, Rules};
use crate::gateway::serve::{Gateway, demand, matched, no_route, opens};
use crate::gateway::trace::{Phase, Trace};
use crate::net::body::AnyBody;
use crate::net::listener::Peer;
use crate::protocol::operation::{self, WebSocket};
use crate::store::entropy;

pub use self::edges::router;

/// What an edge says of a request that it has.
struct Told {
    method: Method,
    /// Path and query, as the client sent them.
    target: Uri,
    headers: HeaderMap,
    /// The route that the edge passes it on to, where it says so.
    route: Option<String>,
}

impl Told {
    fn new(method: &str, target: &str, headers: HeaderMap, route: Option<String>) -> Result<Self, Refusal> {
        let method = method.parse().map_err(|_| Refusal::new(400, "edge", "the edge names no method"))?;
        // An absolute target would name another host than the one that is checked, and what is behind a `#` would be
        // passed on unread.
        let read = target.starts_with('/').then(|| target.parse::<Uri>().ok()).flatten();
        let read = read.filter(|_| !target.contains('#'));
        let target = read.ok_or_else(|| Refusal::new(400, "edge", "the edge names no path, or one with a fragment"))?;
        if let Some(name) = headers.keys().find(|name| headers::changes_request(name.as_str())) {
            let detail = format!("the header {name} would make another request of this one: leave it out");
            return Err(Refusal::new(400, "header", detail));
        }
        Ok(Self { method, target, headers, route })
    }

    fn head(self) -> Parts {
        let mut request = Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.target;
        *request.headers_mut() = self.headers;
        request.into_parts().0
    }
}

impl Gateway {
    /// Decides about a request that an edge holds: what to add to it on its way upstream, or what its client reads.
    async fn for_edge(self: &Arc<Self>, told: Result<Told, Refusal>) -> Result<HeaderMap, Response<AnyBody>> {
        let id = entropy::random_id();
        let (none, get) = (HeaderMap::new(), Method::GET);
        let (method, headers) = told.as_ref().map_or((&get, &none), |t| (&t.method, &t.headers));
        let trace = Arc::new(Trace::begin(self.tracer.as_ref(), method, headers, &id));
        let judged = self.judged(&id, told, &trace).await;
        judged.map_err(|response| {
            trace.answered(response.status());
            stamp(response, &id)
        })
    }

    async fn judged(
        self: &Arc<Self>,
        id: &str,
        told: Result<Told, Refusal>,
        trace: &Arc<Trace>,
    ) -> Result<HeaderMap, Response<AnyBody>> {
        let path = told.as_ref().map(|t| t.target.path().to_owned()).unwrap_or_default();
        let meant = told.as_ref().ok().and_then(|t| t.route.clone());
        let read = told.and_then(|told| self.read_head(told.head(), None, id, trace));
        let request = match read.and_then(foreign) {
            Ok(request) => Arc::new(request),
            Err(refusal) => return Err(self.refuse(id, &path, refusal.into()).await),
        };
        let rules = self.rules.load_full();
        let route = rules.route(&Wanted {
            origin: &request.origin,
            path: request.path.as_str(),
            method: request.method().as_str(),
            headers: &request.head.headers,
        });
        if let Some(route) = route {
            trace.route(&route.name);
        }
        // Whatever certificate the edge saw, it is not on this connection.
        let peer = Peer::new(None, None, None);
        let caller = match self.authenticate(&peer, &request, &demand(route)).await {
            Ok(caller) => Arc::new(caller),
            Err(unproved) => return Err(self.refuse(id, &path, unproved).await),
        };
        trace.end(Phase::Authenticate);
        trace.caller(&caller.token.claims.client_id);
        let mut operation = None;
        let route = route.filter(|r| meant.as_ref().is_none_or(|meant| *meant == r.name));
        match self.leave(&rules, route, &request, &caller, &mut operation).await {
            Ok(headers) => Ok(headers),
            Err(refusal) => Err(self.deny(&request, &caller, operation.as_deref(), &refusal).await),
        }
    }

    async fn leave(
        self: &Arc<Self>,
        rules: &Rules,
        route: Option<&Route>,
        request: &Arc<Incoming>,
        caller: &Arc<Caller>,
        operation: &mut Option<String>,
    ) -> Result<HeaderMap, Refusal> {
        let route = route.ok_or_else(no_route)?;
        can_be_left(route)?;
        let method = request.method().as_str();
        if operation::needs_body(&route.operations, method, request.path.as_str()) {
            return Err(only_here("its operations read the body"));
        }
        if operation::judges_calls(&route.operations, request.path.as_str()) {
            return Err(only_here("tool calls in its answers are judged"));
        }
        let matched = matched(rules, route, request, None)?;
        *operation = Some(matched.operation.name.clone());
        opens(rules, request, &matched)?;
        // Whether or not the edge tells of the handshake.
        if matched.operation.websocket == WebSocket::Judge {
            return Err(only_here("its messages are judged"));
        }
        let websocket = matched.operation.websocket;
        let intent = authorize::intent(caller, route, &matched, method, self.stores.clock.now());
        let verdict = authorize::decide(&rules.policy, caller, &intent)?;
        request.trace.end(Phase::Decide);
        if matches!(verdict.decision, Decision::AllowWithApproval(_)) {
            return Err(Refusal {
                policy: Some(authorize::reason(&verdict)),
                ..Refusal::new(403, "approval-required", "it needs an approval, which the gateway alone waits for")
            });
        }
        let (body, injected) = (None, None);
        let asking =
            Asking { rules, route, caller, intent: &intent, request, body, injected, websocket, for_edge: true };
        let permit = self.permit(&asking, verdict).await?;
        let exchange = self.open(&asking.carry(), &permit).await?;
        request.trace.end(Phase::Log);
        let headers = self.own_headers(&asking.carry(), &permit, &request.target(), &request.trace.parent());
        // What becomes of it is the edge's to know.
        if let Err(refusal) = &headers {
            exchange.answered(refusal.status);
        }
        exchange.seal(if headers.is_ok() { LEFT_TO_EDGE } else { "failed" });
        headers
    }
}

/// Documents and approvals are the gateway's own listener's.
fn foreign(request: Incoming) -> Result<Incoming, Refusal> {
    if request.path.as_str().starts_with("/.popgate") {
        return Err(Refusal::new(404, "not-found", "there is nothing here for you"));
    }
    Ok(request)
}

fn only_here(why: &str) -> Refusal {
    Refusal::new(403, "edge", format!("this request is answered by the gateway alone, not past another edge: {why}"))
}

/// What no edge can keep of these routes, for whoever checks a configuration.
pub fn warnings(rules: &Rules) -> Vec<String> {
    let refused = |route: &Route| {
        let why = can_be_left(route).err()?.detail;
        Some(format!("route {:?}: past an edge of [authz] every request of it is refused ({why})", route.name))
    };
    rules.routes().iter().filter_map(refused).collect()
}

/// A route may ask for what an edge cannot keep.
fn can_be_left(route: &Route) -> Result<(), Refusal> {
    let asks = [
        (route.mask.is_some(), "its answers are masked"),
        (route.inject.is_some(), "its upstream has a credential of its own"),
        (!route.request_headers.is_empty() || !route.response_headers.is_empty(), "its headers are changed"),
        (route.content_digest, "its proofs sign for the body"),
        (route.ends_with_token, "its streams end with their token"),
        (route.access == Access::ProofAndCertificate, "it demands the certificate on the connection"),
        (route.access == Access::DangerPublic, "it is public: let the edge pass it without asking"),
    ];
    asks.iter().find(|(asked, _)| *asked).map_or(Ok(()), |(_, why)| Err(only_here(why)))
}
