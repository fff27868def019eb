//! An axum router behind a listener that checks which host it is called by.

use std::sync::Arc;

use axum::Router;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::domain::refusal::Refusal;
use crate::net::body::{AnyBody, BoxError};
use crate::net::inbound::Inbound;
use crate::net::listener::{Peer, Serve};
use crate::net::problem;

/// A router with the host names it answers to; none: any, as on a Unix socket.
#[derive(Clone)]
pub struct Routed {
    router: TowerToHyperService<Router>,
    hosts: Option<Arc<Vec<String>>>,
}

impl Routed {
    /// A router that answers to `hosts`, whatever the port.
    pub fn new(router: Router, hosts: Option<Arc<Vec<String>>>) -> Self {
        Self { router: TowerToHyperService::new(router), hosts }
    }

    /// DNS rebinding makes a browser call a loopback listener by a foreign name: such calls are refused.
    fn answers_to(&self, request: &Request<Inbound>) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let header = request.headers().get(http::header::HOST).and_then(|h| h.to_str().ok());
        let authority = request.uri().authority().map(http::uri::Authority::as_str).or(header).unwrap_or_default();
        let host = authority
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(authority, |(h, _)| h);
        hosts.iter().any(|known| known.eq_ignore_ascii_case(host.trim_matches(['[', ']'])))
    }
}

impl Serve for Routed {
    async fn serve(&self, peer: Arc<Peer>, mut request: Request<Inbound>) -> Response<AnyBody> {
        if !self.answers_to(&request) {
            return problem::response(
                &Refusal::new(421, "misdirected", "this listener does not answer to that host name"),
                "",
            );
        }
        request.extensions_mut().insert(peer);
        match self.router.call(request).await {
            Ok(response) => response.map(|body| body.map_err(|e| Box::new(e) as BoxError).boxed_unsync()),
            Err(never) => match never {},
        }
    }
}
