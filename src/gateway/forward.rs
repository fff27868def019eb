//! Permit → upstream. The credential stays here; upstream gets a transaction token for this one request.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Request, Response, Version};
use hyper::body::{Body, Frame, Incoming as IncomingBody, SizeHint};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::domain::refusal::Refusal;
use crate::gateway::approve::{Asking, Permit};
use crate::gateway::bounds::Bounds;
use crate::gateway::config::UpstreamConfig;
use crate::gateway::headers;
use crate::gateway::record::Exchange;
use crate::gateway::serve::Gateway;
use crate::net::body::{AnyBody, BoxError};
use crate::net::tls;
use crate::protocol::txn_token::{self, request_digest};
use crate::store::entropy;

/// A protected service and the pool of connections to it.
pub struct Upstream {
    scheme: Scheme,
    authority: Authority,
    url: String,
    idle: Duration,
    client: Client<HttpsConnector<HttpConnector>, AnyBody>,
}

impl Upstream {
    /// Checks the URL and builds the pool; nothing is dialled yet.
    pub fn new(config: &UpstreamConfig, base: &Path) -> Result<Self, String> {
        let uri: Uri = config.url.parse().map_err(|e| format!("url {:?}: {e}", config.url))?;
        let bare = uri.path_and_query().is_none_or(|p| p.as_str() == "/");
        let (Some(scheme), Some(authority), true) = (uri.scheme(), uri.authority(), bare) else {
            return Err(format!("url {:?} is not http://host:port or https://host:port without a path", config.url));
        };
        let roots = match &config.ca_file {
            None => Vec::new(),
            Some(file) => CertificateDer::pem_file_iter(base.join(file))
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|e| format!("ca_file {}: {e}", file.display()))?,
        };
        if *scheme == Scheme::HTTPS && roots.is_empty() {
            return Err("an https upstream needs ca_file, the roots that its certificate leads to".into());
        }
        let roots: Vec<Vec<u8>> = roots.into_iter().map(|c| c.to_vec()).collect();
        let tls = tls::web_client(&roots).map_err(|e| e.to_string())?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(config.connect_timeout.0));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_mins(1))
            .build(connector);
        Ok(Self {
            scheme: scheme.clone(),
            authority: authority.clone(),
            url: config.url.clone(),
            idle: config.idle_timeout.0,
            client,
        })
    }

    /// How long it may be silent.
    pub const fn idle(&self) -> Duration {
        self.idle
    }
}

/// The request's body on its way: counted, recorded, and held back by upstream's own pace.
struct Recorded<B> {
    body: B,
    exchange: Exchange,
}

impl<B> Body for Recorded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(match frame {
            None => self.exchange.request_end().err().map(|e| Err(e.into())),
            Some(Err(error)) => {
                self.exchange.request_broke();
                Some(Err(error.into()))
            }
            Some(Ok(frame)) => {
                let recorded = frame.data_ref().map_or(Ok(()), |chunk| self.exchange.request_chunk(chunk));
                if recorded.is_err() {
                    self.exchange.request_unrecorded();
                }
                Some(recorded.map(|()| frame).map_err(Into::into))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body that is forwarded: read whole before, or streaming.
pub enum Outgoing {
    /// Held for a rule or an approval.
    Held(Bytes),
    /// Passed on as it comes.
    Streaming(IncomingBody),
}

impl Outgoing {
    fn recorded(self, exchange: &Exchange) -> AnyBody {
        use http_body_util::{BodyExt as _, Full};
        let exchange = exchange.clone();
        match self {
            Self::Held(bytes) => Recorded { body: Full::new(bytes), exchange }.boxed_unsync(),
            Self::Streaming(body) => Recorded { body, exchange }.boxed_unsync(),
        }
    }
}

/// Upstream gave no answer.
pub struct Unanswered {
    /// What the client reads.
    pub refusal: Refusal,
    /// Whether upstream may have acted on the request.
    pub sent: bool,
}

impl From<Refusal> for Unanswered {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, sent: false }
    }
}

impl Gateway {
    /// Sends the permitted request; the permit is used up.
    pub async fn forward(
        &self,
        asking: &Asking<'_>,
        permit: Permit,
        exchange: &Exchange,
        body: Outgoing,
        bounds: &Bounds,
    ) -> Result<Response<IncomingBody>, Unanswered> {
        let upstream = &asking.route.upstream;
        let mut request = Request::new(body.recorded(exchange));
        let target = asking.request.target();
        *request.method_mut() = asking.request.head.method.clone();
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = Uri::builder()
            .scheme(upstream.scheme.clone())
            .authority(upstream.authority.clone())
            .path_and_query(
                PathAndQuery::try_from(target.as_str())
                    .map_err(|_| Refusal::new(400, "path", "the path or query is malformed"))?,
            )
            .build()
            .map_err(|_| Refusal::new(400, "path", "the path or query is malformed"))?;
        *request.headers_mut() = self.headers(asking, &permit, &target)?;
        drop(permit);
        let answered = tokio::select! {
            biased;
            cut = bounds.over(&self.stores) => return Err(Unanswered { refusal: cut.refusal(), sent: true }),
            answered = patient(upstream.client.request(request), exchange, upstream.idle) => answered,
        };
        match answered {
            Some(Ok(response)) => Ok(response),
            Some(Err(error)) => {
                if let Some(refusal) = exchange.request_fault() {
                    return Err(Unanswered { refusal: refusal.because(chain(&error)), sent: true });
                }
                let name = &asking.route.name;
                let detail = if error.is_connect() {
                    format!("the protected service of route {name} does not answer; it may be down")
                } else {
                    format!("the protected service of route {name} broke off, or does not speak HTTP")
                };
                let refusal = Refusal { retry_after: Some(5), ..Refusal::new(502, "upstream", detail) };
                Err(Unanswered { refusal: refusal.because(chain(&error)), sent: !error.is_connect() })
            }
            None => {
                let refusal = Refusal::new(504, "upstream", "the protected service did not answer in time");
                Err(Unanswered { refusal, sent: true })
            }
        }
    }

    fn headers(&self, asking: &Asking<'_>, permit: &Permit, target: &str) -> Result<HeaderMap, Refusal> {
        let upstream = &asking.route.upstream;
        let request = asking.request;
        let mut headers = headers::towards_upstream(
            &request.head.headers,
            asking.route.mask.is_some() || asking.route.inject.is_some(),
        );
        let text = |value: &str| {
            HeaderValue::from_str(value)
                .map_err(|e| Refusal::new(400, "header", "a header cannot be written").because(e))
        };
        let host = text(upstream.authority.as_str())?;
        let context = txn_token::Context {
            upstream: upstream.url.clone(),
            operation: asking.intent.operation.clone(),
            object: asking.intent.object.clone(),
            rule: permit.verdict().rule().to_owned(),
            policy_version: permit.verdict().policy_version.clone(),
            request_sha256: request_digest(request.head.method.as_str(), upstream.authority.as_str(), target),
            body_sha256: asking.body.map(|b| crate::domain::digest::Sha256::of(b)),
        };
        let now = self.stores.clock.now();
        let token = txn_token::sign(
            &self.trust_domain,
            &request.id,
            &asking.intent.principal.spiffe_id,
            &context,
            now,
            &self.txn_key,
        );
        let mut token = text(&token)?;
        token.set_sensitive(true);
        headers.insert(HOST, host);
        headers.insert(HeaderName::from_static("txn-token"), token);
        headers.insert(
            HeaderName::from_static("forwarded"),
            text(&format!("proto=https;host=\"{}\"", request.origin.authority()))?,
        );
        headers.insert(HeaderName::from_static("popgate-request-id"), text(&request.id)?);
        let parent = headers.get("traceparent").and_then(|v| v.to_str().ok()).and_then(trace_id);
        let parent =
            format!("00-{}-{}-01", parent.unwrap_or_else(|| request.id.clone()), hex::encode(entropy::random::<8>()));
        headers.insert(HeaderName::from_static("traceparent"), text(&parent)?);
        if let (Some(inject), Some(injected)) = (&asking.route.inject, asking.injected) {
            headers.insert(inject.header.clone(), injected.value.clone());
        }
        Ok(headers)
    }
}

/// Waits for an answer as long as something moves: a long upload is not silence.
async fn patient<F: Future>(answer: F, exchange: &Exchange, idle: Duration) -> Option<F::Output> {
    let mut answer = std::pin::pin!(answer);
    let mut since = Instant::now();
    loop {
        tokio::select! {
            answer = &mut answer => return Some(answer),
            () = tokio::time::sleep_until(since + idle) => {}
        }
        let moved = exchange.last_request_chunk();
        if moved <= since {
            return None;
        }
        since = moved;
    }
}

/// The trace id of a W3C `traceparent`, which is continued.
fn trace_id(value: &str) -> Option<String> {
    let mut parts = value.split('-');
    let (version, id) = (parts.next()?, parts.next()?);
    let hex = |t: &str, n: usize| t.len() == n && t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (hex(version, 2) && hex(id, 32)).then(|| id.to_owned())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
