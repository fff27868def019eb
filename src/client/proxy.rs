//! A local proxy for clients and SDKs that know nothing of DPoP: it signs each request with the workload's key.
//!
//! Whoever reaches it acts as the workload, so it is for the workload's own user or its own host, and for no page in a
//! browser.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Body as _;

use crate::client::ClientError;
use crate::client::session::{Call, Session};
use crate::client::source::Sessions;
use crate::domain::refusal::Refusal;
use crate::net::body::{AnyBody, full, read, streaming};
use crate::net::inbound::Inbound;
use crate::net::interim::{Interim, OnInterim};
use crate::net::listener::{Peer, Serve};
use crate::net::problem;
use crate::net::upgrade::Upgrading;

/// Longest body that is held, so that it can be signed for, and sent again with a nonce.
const MAX_HELD: u64 = 1 << 20;
/// How long the gateway may hold a request for people, where the client says nothing of it.
const PATIENT: HeaderValue = HeaderValue::from_static("wait=25");

/// Headers of one hop, and what the proxy writes itself.
const NOT_PASSED: [&str; 10] = [
    "authorization",
    "dpop",
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "transfer-encoding",
    "content-length",
    "expect",
];

/// Where requests go and whom they are signed as.
pub struct Proxy {
    sessions: Sessions,
    /// `https://host:port`, and what stands before each path.
    to: String,
    /// Names that it answers to; none: any, as on a Unix socket.
    hosts: Option<Vec<String>>,
}

/// A [`Proxy`] as a listener's service.
#[derive(Clone)]
pub struct ProxyService(Arc<Proxy>);

impl ProxyService {
    /// A proxy to `to`, an `https` URL whose path stands before each request's. `hosts` are the names it answers to; none on
    /// a Unix socket.
    pub fn new(sessions: Sessions, to: &str, hosts: Option<Vec<String>>) -> Result<Self, ClientError> {
        let uri: http::Uri = to.parse().map_err(|e| ClientError::Input(format!("{to} is not a URL: {e}")))?;
        if uri.scheme_str() != Some("https") || uri.authority().is_none() || uri.query().is_some() {
            return Err(ClientError::Input(format!(
                "{to}: write https://host:port of the gateway, with a path at most"
            )));
        }
        Ok(Self(Arc::new(Proxy { sessions, to: to.trim_end_matches('/').to_owned(), hosts })))
    }
}

impl Serve for ProxyService {
    async fn serve(&self, _: Arc<Peer>, request: Request<Inbound>) -> Response<AnyBody> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        let grpc = kind.is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
        match self.0.pass(request).await {
            Ok(response) => response,
            Err(refusal) => {
                tracing::warn!(status = refusal.status, detail = refusal.detail, "not passed on");
                let refused = problem::response(&refusal, "");
                if grpc { problem::in_grpc(refused, "") } else { refused }
            }
        }
    }
}

impl Proxy {
    async fn pass(&self, mut request: Request<Inbound>) -> Result<Response<AnyBody>, Refusal> {
        self.admits(&request)?;
        let client = Upgrading::take(&mut request);
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |p| p.as_str());
        let url = format!("{}{target}", self.to);
        let websocket = head.method == Method::GET
            && head.headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"websocket"));
        // Other protocols, such as h2c, are not switched to: the request goes on as it is.
        let upgrade = head.headers.get(header::UPGRADE).filter(|_| websocket).cloned();
        let mut headers = passed(&head.headers);
        let asked = headers.contains_key("prefer");
        if !asked {
            headers.insert("prefer", PATIENT);
        }
        let session = self.sessions.session().map_err(unreachable)?;
        let mut call = Call::new(head.method, &url, headers, Bytes::new());
        call.told = head.extensions.get::<Interim>().map(passing_on);
        if let (Some(protocol), Some(client)) = (upgrade, client) {
            return switched(&session, call, protocol, client).await;
        }
        let held = body.size_hint().upper().is_some_and(|n| n <= MAX_HELD);
        let mut response = if held {
            let limit = usize::try_from(MAX_HELD).unwrap_or(usize::MAX);
            call.body = read(body, limit).await.map_err(|e| Refusal::new(400, "body", e.to_string()))?;
            session.call(&call).await
        } else {
            session.stream(&call, streaming(body), false).await
        }
        .map_err(unreachable)?;
        // Who did not ask to be told of an approval must not take "accepted" for done.
        if !asked && response.status() == StatusCode::ACCEPTED && is_approval(response.headers()) {
            *response.status_mut() = StatusCode::FORBIDDEN;
        }
        Ok(answered(response))
    }

    /// Local requests by a local name, and none that a page in a browser makes.
    fn admits(&self, request: &Request<Inbound>) -> Result<(), Refusal> {
        let refuse = |kind, detail: &str| Err(Refusal::new(403, kind, detail));
        if request.method() == Method::CONNECT {
            return Err(Refusal::new(501, "method", "CONNECT is not served: give this address as the server's"));
        }
        let headers = request.headers();
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if headers.contains_key(header::ORIGIN) || site.is_some_and(|s| s != b"none" && s != b"same-origin") {
            return refuse("cross-site", "pages in a browser may not call as this workload");
        }
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let named = headers.get(header::HOST).and_then(|h| h.to_str().ok());
        let named = request.uri().authority().map(http::uri::Authority::as_str).or(named).unwrap_or_default();
        if hosts.iter().any(|h| h.eq_ignore_ascii_case(named)) {
            return Ok(());
        }
        Err(Refusal::new(421, "misdirected", format!("this proxy answers to {}", hosts.join(", "))))
    }
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let listed = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let listed: Vec<HeaderName> = listed.flat_map(|v| v.split(',')).filter_map(|n| n.trim().parse().ok()).collect();
    let mut passed = headers.clone();
    for name in NOT_PASSED.iter().map(|n| HeaderName::from_static(n)).chain(listed).chain([header::UPGRADE]) {
        passed.remove(name);
    }
    passed
}

fn is_approval(headers: &HeaderMap) -> bool {
    headers.get(header::LOCATION).is_some_and(|l| l.as_bytes().starts_with(b"/.popgate/approvals/"))
}

/// What of an answer's headers is not of its connection.
fn of_an_answer(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers
}

fn answered(response: Response<Inbound>) -> Response<AnyBody> {
    let (mut parts, body) = response.into_parts();
    parts.headers = of_an_answer(&parts.headers);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    Response::from_parts(parts, streaming(body))
}

/// Passes on what the gateway says before its answer (RFC 9110 section 15.2).
fn passing_on(interim: &Interim) -> OnInterim {
    let interim = interim.clone();
    OnInterim::new(move |status, headers| {
        // What the client expected was answered here, and protocols are switched by hand.
        if !matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            interim.send(status, &of_an_answer(headers), || true);
        }
    })
}

/// Switches protocols on both sides and carries the bytes between them.
async fn switched(
    session: &Session,
    mut call: Call<'_>,
    protocol: HeaderValue,
    client: Upgrading,
) -> Result<Response<AnyBody>, Refusal> {
    call.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    call.headers.insert(header::UPGRADE, protocol.clone());
    // What the gateway could not use anyway.
    call.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    let mut response = session.stream(&call, full(""), true).await.map_err(unreachable)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answered(response));
    }
    let gateway =
        Upgrading::switched(&mut response).ok_or_else(|| Refusal::new(502, "gateway", "it did not switch"))?;
    tokio::spawn(async move {
        if let (Some(mut client), Some(mut gateway)) = tokio::join!(client.ready(), gateway.ready()) {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut gateway).await;
        }
    });
    let mut answer = answered(response).map(|_| full(""));
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, protocol);
    Ok(answer)
}

fn unreachable(error: ClientError) -> Refusal {
    match error.status() {
        Some(status @ 400..500) => Refusal::new(status, "refused", error.to_string()),
        _ => Refusal::new(502, "gateway", error.to_string()),
    }
}
