//! Parts of an exchange that are operations of their own: a message of a WebSocket, a tool call in an answer.
//!
//! Each is judged by the rules of its moment. Nobody can be asked while an exchange runs, and nothing is counted: what needs
//! an approval, or comes out of a counted grant, is refused.

use std::sync::Arc;

use http::header;
use http::response::Parts;
use hyper::body::Body as _;

use crate::domain::refusal::Refusal;
use crate::domain::verdict::Decision;
use crate::gateway::authenticate::Caller;
use crate::gateway::authorize;
use crate::gateway::carry::Carry;
use crate::gateway::details;
use crate::gateway::mask::{CallJudge, Treatment};
use crate::gateway::read::Incoming as Request;
use crate::gateway::serve::Gateway;
use crate::net::body::{AnyBody, full, read, streaming};
use crate::net::inbound::Inbound;
use crate::protocol::operation::calls::{CallGate, Held, ToolCall};
use crate::protocol::operation::{self, CALL, MESSAGE, Seen};

impl Gateway {
    /// Judges a message of a WebSocket's client.
    pub fn judge_message(
        &self,
        caller: &Caller,
        request: &Request,
        route: &str,
        message: &[u8],
    ) -> Result<(), Refusal> {
        self.judge(caller, request, route, MESSAGE, message)
    }

    /// Judges a tool call: its arguments are the body, and its tool the parameter `tool`.
    fn judge_call(&self, caller: &Caller, request: &Request, route: &str, call: &ToolCall) -> Result<(), Refusal> {
        // Free text of a custom tool is no object, and has no fields.
        let arguments = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
        let document = format!("{{\"tool\":{},\"arguments\":{}}}", serde_json::json!(call.name), either(arguments));
        self.judge(caller, request, route, CALL, document.as_bytes())
    }

    fn judge(&self, caller: &Caller, request: &Request, route: &str, method: &str, body: &[u8]) -> Result<(), Refusal> {
        let rules = self.rules.load();
        let gone = || authorize::unlisted(&rules.policy, "the route is configured no more");
        let route = rules.routes().iter().find(|r| r.name == route).ok_or_else(gone)?;
        let seen = Seen {
            method,
            path: request.path.as_str(),
            query: "",
            body: Some(body),
            header: &|_| Ok(None),
            headers_named: &|_| Vec::new(),
        };
        let matched = authorize::classify(route, &seen, &rules.policy)?;
        let now = self.stores.clock.now();
        // The registration as it is now counts, as for a request.
        let (entry, _) = self.standing(&caller.token, now)?;
        if entry != caller.entry || self.acted_for(&caller.token.claims) != caller.acted_for {
            let detail = "a registration changed while the exchange ran; begin it again";
            return Err(Refusal::new(403, "registration-changed", detail));
        }
        let intent = authorize::intent(caller, route, &matched, method, now);
        let verdict = authorize::decide(&rules.policy, caller, &intent)?;
        if verdict.decision != Decision::Allow || details::counted(&caller.token.claims, &intent) {
            let detail = format!(
                "{} is part of a running exchange, where nobody can approve it and no use be counted",
                intent.operation
            );
            return Err(Refusal { policy: Some(authorize::reason(&verdict)), ..Refusal::new(403, "policy", detail) });
        }
        Ok(())
    }

    /// Whether the answer to this request is looked through for tool calls.
    pub fn judges_calls(&self, carry: &Carry<'_>) -> bool {
        operation::judges_calls(&carry.route.operations, carry.request.path.as_str())
    }

    /// Puts a gate before an answer whose tool calls are judged. A whole answer is judged here, so that the client reads
    /// why it does not get it; a stream is judged as it comes.
    pub async fn gate(
        self: &Arc<Self>,
        carry: &Carry<'_>,
        parts: &Parts,
        body: Inbound,
        treatment: &mut Treatment,
    ) -> Result<AnyBody, Refusal> {
        let unreadable =
            |why: &str| Refusal::new(502, "unmaskable", format!("tool calls in the answer are judged, and {why}"));
        if !parts.status.is_success() || body.is_end_stream() {
            return Ok(streaming(body));
        }
        if parts.headers.get_all(header::CONTENT_ENCODING).iter().any(|v| v != "identity") {
            return Err(unreadable("it is in a coding"));
        }
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let mut gate = CallGate::for_content_type(kind).ok_or_else(|| unreadable("its type holds none"))?;
        // A public route has no operations of calls: its configuration is refused.
        let caller = carry.caller.cloned().ok_or_else(|| unreadable("nobody is there to judge them for"))?;
        let (gateway, request) = (self.clone(), carry.request.clone());
        let route = carry.route.name.clone();
        if matches!(gate, CallGate::Events(_)) {
            let judge: CallJudge = Box::new(move |call| {
                let judged = gateway.judge_call(&caller, &request, &route, call);
                judged.inspect_err(|refusal| gateway.note_denial(&request, &caller, None, refusal))
            });
            treatment.calls = Some((gate, judge));
            return Ok(streaming(body));
        }
        let mut judge = |call: &ToolCall| gateway.judge_call(&caller, &request, &route, call);
        let whole = read(body, self.held_body).await.map_err(|e| unreadable(&e.to_string()))?;
        let mut out = Vec::new();
        let judged = gate.push(&whole, &mut out, &mut judge).and_then(|()| gate.finish(&mut out, &mut judge));
        judged.map_err(|held| match held {
            Held::Refused(refusal) => refusal,
            Held::TooLong => unreadable("it is longer than can be held"),
            Held::Unreadable => unreadable("it is no strict JSON"),
        })?;
        Ok(full(whole))
    }
}

/// The arguments as JSON, or as a string where they are none.
fn either(arguments: &str) -> String {
    match crate::protocol::json::parse(arguments.as_bytes()) {
        Ok(_) => arguments.to_owned(),
        Err(_) => serde_json::json!(arguments).to_string(),
    }
}
