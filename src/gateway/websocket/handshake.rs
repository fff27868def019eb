//! The opening handshake: RFC 6455 section 4, and RFC 8441 over HTTP/2.

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::domain::refusal::Refusal;
use crate::net::body::{AnyBody, full};
use crate::net::upgrade::Upgrading;
use crate::store::entropy;

/// A client's opening handshake.
pub struct Handshake {
    /// `Sec-WebSocket-Accept` for the client; none over HTTP/2.
    accept: Option<String>,
    /// Our key towards upstream.
    key: String,
    /// Subprotocols that the client offers.
    protocols: Option<HeaderValue>,
    upgrade: std::sync::Mutex<Option<Upgrading>>,
}

impl Handshake {
    /// The handshake of a request, if it is one. `CONNECT` for anything else is refused.
    pub fn of(head: &Parts, upgrade: Option<Upgrading>) -> Result<Option<Self>, Refusal> {
        let refuse = |detail: &str| Err(Refusal::new(400, "websocket", detail));
        let extended = head.extensions.get::<Protocol>().map(Protocol::as_str);
        if head.method == Method::CONNECT {
            return match extended {
                Some("websocket") => {
                    version(&head.headers)?;
                    Ok(Some(Self::new(None, &head.headers, upgrade)))
                }
                _ => Err(Refusal::new(501, "method", "CONNECT is not served, but for WebSocket by RFC 8441")),
            };
        }
        if head.version != Version::HTTP_11 || !asks_for_websocket(&head.headers) {
            return Ok(None);
        }
        if head.method != Method::GET {
            return refuse("a WebSocket opens with GET");
        }
        let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
        if framed.iter().any(|name| head.headers.get(name).is_some_and(|v| v != "0")) {
            return refuse("the opening handshake of a WebSocket has no body");
        }
        version(&head.headers)?;
        let mut keys = head.headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return refuse("the handshake needs one Sec-WebSocket-Key");
        };
        if key.len() != 24 {
            return refuse("Sec-WebSocket-Key is not 16 bytes in base64");
        }
        Ok(Some(Self::new(Some(derive_accept_key(key.as_bytes())), &head.headers, upgrade)))
    }

    fn new(accept: Option<String>, headers: &HeaderMap, upgrade: Option<Upgrading>) -> Self {
        use base64::Engine as _;
        let key = base64::prelude::BASE64_STANDARD.encode(entropy::random::<16>());
        let protocols = headers.get(header::SEC_WEBSOCKET_PROTOCOL).cloned();
        Self { accept, key, protocols, upgrade: std::sync::Mutex::new(upgrade) }
    }

    /// Writes our handshake towards upstream: HTTP/1.1, no extensions.
    pub fn ask(&self, headers: &mut HeaderMap) {
        for name in [
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_EXTENSIONS,
            header::SEC_WEBSOCKET_VERSION,
            header::SEC_WEBSOCKET_ACCEPT,
            header::TE,
        ] {
            headers.remove(name);
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.extend(HeaderValue::from_str(&self.key).map(|key| (header::SEC_WEBSOCKET_KEY, key)));
    }

    /// Holds upstream's 101 against our handshake (RFC 6455 §4.1).
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), &'static str> {
        if !asks_for_websocket(headers) {
            return Err("it did not switch to WebSocket");
        }
        let accept = derive_accept_key(self.key.as_bytes());
        if headers.get(header::SEC_WEBSOCKET_ACCEPT).is_none_or(|a| a.as_bytes() != accept.as_bytes()) {
            return Err("its Sec-WebSocket-Accept is wrong");
        }
        if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err("it uses extensions that nobody offered");
        }
        let offered = self.protocols.as_ref().and_then(|p| p.to_str().ok()).unwrap_or_default();
        match headers.get(header::SEC_WEBSOCKET_PROTOCOL).map(HeaderValue::to_str) {
            None => Ok(()),
            Some(Ok(chosen)) if offered.split(',').any(|p| p.trim() == chosen) => Ok(()),
            Some(_) => Err("it chose a subprotocol that nobody offered"),
        }
    }

    /// The client's end, once.
    pub(super) fn take(&self) -> Option<Upgrading> {
        self.upgrade.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    /// What the client reads: 101, or 200 over HTTP/2.
    pub(super) fn answer(&self, mut headers: HeaderMap) -> Response<AnyBody> {
        let mut response = Response::new(full(""));
        for name in [header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH] {
            headers.remove(name);
        }
        *response.headers_mut() = headers;
        match &self.accept {
            None => *response.status_mut() = StatusCode::OK,
            Some(accept) => {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.extend(HeaderValue::from_str(accept).map(|a| (header::SEC_WEBSOCKET_ACCEPT, a)));
            }
        }
        response
    }
}

fn asks_for_websocket(headers: &HeaderMap) -> bool {
    let lists = |name, wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
    };
    lists(header::CONNECTION, "upgrade") && lists(header::UPGRADE, "websocket")
}

fn version(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter();
    match (versions.next(), versions.next()) {
        (Some(v), None) if v == "13" => Ok(()),
        _ => Err(Refusal::new(426, "websocket", "the only version of WebSocket here is 13")),
    }
}
