//! A request of a public route (`access = "danger_public"`): nobody is proved and policy is not asked, but its operation must
//! be one that the route lists, and all the rest of the way is every request's.

use std::sync::Arc;

use http::Response;

use crate::domain::refusal::Refusal;
use crate::gateway::approve::Permit;
use crate::gateway::authenticate;
use crate::gateway::authorize;
use crate::gateway::carry::Carry;
use crate::gateway::read::Incoming;
use crate::gateway::routes::{Route, Rules};
use crate::gateway::serve::{Gateway, bytes_of, injected, matched, opens};
use crate::gateway::trace::Phase;
use crate::net::body::AnyBody;
use crate::net::inbound::Arriving;

impl Gateway {
    /// Answers a request of a public route.
    pub(super) async fn public(
        self: &Arc<Self>,
        rules: &Rules,
        route: &Route,
        request: &Arc<Incoming>,
        body: Arriving,
    ) -> Response<AnyBody> {
        match self.carry_publicly(rules, route, request, body).await {
            Ok(response) => response,
            Err(refusal) => self.refuse(&request.id, request.path.as_str(), refusal.into()).await,
        }
    }

    async fn carry_publicly(
        self: &Arc<Self>,
        rules: &Rules,
        route: &Route,
        request: &Arc<Incoming>,
        body: Arriving,
    ) -> Result<Response<AnyBody>, Refusal> {
        authenticate::without_token(request.query())?;
        let body = self.judged_body(route, request, body).await?;
        let matched = matched(rules, route, request, bytes_of(&body))?;
        opens(rules, request, &matched)?;
        let permit = Permit::public(route, rules.policy.version())
            .ok_or_else(|| authorize::unlisted(&rules.policy, "this route is not public"))?;
        let (held, injected) = (bytes_of(&body).cloned(), injected(route).await?);
        request.trace.end(Phase::Decide);
        let carry = Carry {
            route,
            request,
            caller: None,
            operation: &matched.operation.name,
            object: &matched.object,
            body: held.as_ref(),
            injected: injected.as_ref(),
            websocket: matched.operation.websocket,
            for_edge: false,
        };
        self.carry(&carry, permit, body).await.0
    }
}
