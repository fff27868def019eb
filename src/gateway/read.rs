//! Request → Incoming: the target gets its one reading, before anything is believed.

use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, header};

use crate::domain::refusal::Refusal;
use crate::gateway::serve::Gateway;
use crate::gateway::trace::Trace;
use crate::gateway::websocket::handshake::Handshake;
use crate::net::inbound::{Arriving, Inbound};
use crate::net::upgrade::Upgrading;
use crate::protocol::htu::{CanonicalPath, Origin};

/// A request whose target has one reading.
pub struct Incoming {
    /// Key to its evidence.
    pub id: String,
    /// Method and headers.
    pub head: Parts,
    /// The origin it is for.
    pub origin: Origin,
    /// The one path that proof, policy and upstream see.
    pub path: CanonicalPath,
    /// The opening handshake of a WebSocket.
    pub handshake: Option<Handshake>,
    /// Its time and trace.
    pub trace: Arc<Trace>,
}

impl Incoming {
    /// The method that routes and operations know: GET for a WebSocket, however it is opened.
    pub fn method(&self) -> &Method {
        if self.handshake.is_some() { &Method::GET } else { &self.head.method }
    }

    /// The query as sent, without its question mark.
    pub fn query(&self) -> &str {
        self.head.uri.query().unwrap_or_default()
    }

    /// Path and query, as upstream gets them.
    pub fn target(&self) -> String {
        match self.head.uri.query() {
            None => self.path.as_str().to_owned(),
            Some(query) => format!("{}?{query}", self.path.as_str()),
        }
    }
}

impl Gateway {
    /// Gives the target its one reading. `Host` is held against configuration and then forgotten.
    pub(super) fn read(
        &self,
        mut request: Request<Inbound>,
        request_id: &str,
        trace: &Arc<Trace>,
    ) -> Result<(Incoming, Arriving), Refusal> {
        let upgrade = Upgrading::take(&mut request);
        let (head, body) = request.into_parts();
        let body = Arriving::new(body, &head.headers);
        Ok((self.read_head(head, upgrade, request_id, trace)?, body))
    }

    /// The same of a request whose body is not here.
    pub(super) fn read_head(
        &self,
        head: Parts,
        upgrade: Option<Upgrading>,
        request_id: &str,
        trace: &Arc<Trace>,
    ) -> Result<Incoming, Refusal> {
        let handshake = Handshake::of(&head, upgrade)?;
        if head.uri.scheme_str().is_some_and(|scheme| scheme != "https") {
            return Err(Refusal::new(400, "scheme", "the request is for another scheme than https"));
        }
        let coded = |v: &http::HeaderValue| !v.as_bytes().eq_ignore_ascii_case(b"chunked");
        if head.headers.get_all(header::TRANSFER_ENCODING).iter().any(coded) {
            return Err(Refusal::new(501, "coding", "the only transfer coding here is chunked"));
        }
        let mut hosts = head.headers.get_all(header::HOST).iter();
        let (host, second) = (hosts.next(), hosts.next());
        let host = host.and_then(|h| h.to_str().ok());
        let named = head.uri.authority().map(http::uri::Authority::as_str);
        if second.is_some() || matches!((named, host), (Some(a), Some(b)) if !a.eq_ignore_ascii_case(b)) {
            return Err(Refusal::new(400, "host", "the request names more than one host"));
        }
        if head.headers.get_all(header::CONTENT_TYPE).iter().count() > 1 {
            return Err(Refusal::new(400, "header", "the request has more than one Content-Type"));
        }
        let named = named.or(host).unwrap_or_default();
        let origin = self.origins.iter().find(|o| o.is_named_by(named)).cloned();
        let origin = origin.ok_or_else(|| Refusal::new(421, "misdirected", "this gateway does not serve that host"))?;
        let path =
            CanonicalPath::parse(head.uri.path()).map_err(|e| Refusal::new(400, "path", format!("the path {e}")))?;
        Ok(Incoming { id: request_id.to_owned(), head, origin, path, handshake, trace: trace.clone() })
    }
}
