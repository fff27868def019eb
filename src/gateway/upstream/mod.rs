//! A protected service: a pool of endpoints, from which each request gets the fittest.

pub mod config;
pub mod endpoint;
mod names;
#[cfg(test)]
mod tests;
mod tries;
mod watch;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::header::HeaderValue;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{Request, Response, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};

use crate::domain::spiffe_id::SpiffeId;
use crate::gateway::upstream::config::{Protocol, UpstreamConfig};
use crate::gateway::upstream::endpoint::{Endpoint, Place};
use crate::gateway::upstream::names::Names;
use crate::gateway::upstream::tries::Tried;
use crate::net::body::AnyBody;
use crate::net::connections::{Dialling, Fate, Versions};
use crate::net::inbound::Inbound;
use crate::net::tls::{self, LeafCheck, OwnTls};
use crate::protocol::svid::X509Svid;

/// Most endpoints that are tried for one request.
const TRIES: usize = 3;

/// Most times that a request is sent which nobody looked at.
const MOST_UNSEEN: usize = 8;

/// One URL of an upstream.
struct Site {
    scheme: Scheme,
    host: String,
    port: u16,
    dialling: Dialling,
}

/// A protected service.
pub struct Upstream {
    config: UpstreamConfig,
    /// Roots as they were read: a reload keeps the pool if nothing has changed.
    roots: Vec<Vec<u8>>,
    sites: Vec<Site>,
    authority: Authority,
    host: HeaderValue,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    names: Names,
    resolving: tokio::sync::Mutex<()>,
    total: Arc<AtomicUsize>,
    turn: AtomicUsize,
}

/// Why upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unsent {
    /// All that may be under way is.
    #[error("as many requests are under way as max_requests allows")]
    Overloaded,
    /// No endpoint is fit.
    #[error("no endpoint is well")]
    NoneFit,
    /// No address, or no connection. Nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// Upstream says that it did not look at the request, each time.
    #[error("{0}")]
    Unseen(String),
    /// The connection ended, or what came is not HTTP. Upstream may have acted.
    #[error("{0}")]
    Broke(String),
}

impl Upstream {
    /// Checks the configuration; nothing is resolved or dialled yet.
    pub fn new(config: &UpstreamConfig, base: &Path, own: Option<&OwnTls>) -> Result<Self, String> {
        if config.spiffe_id.is_some() && (config.ca_file.is_some() || config.server_name.is_some()) {
            return Err("spiffe_id stands instead of ca_file and server_name: leave those out".into());
        }
        let roots = match &config.ca_file {
            None => Vec::new(),
            Some(file) => CertificateDer::pem_file_iter(base.join(file))
                .and_then(|certificates| certificates.map(|c| c.map(|c| c.to_vec())).collect())
                .map_err(|e| format!("ca_file {}: {e}", file.display()))?,
        };
        let tls = Arc::new(client_tls(config, &roots, own)?);
        let sites =
            config.url.all().iter().map(|url| site(url, config, &roots, &tls)).collect::<Result<Vec<_>, _>>()?;
        let first = sites.first().ok_or("url is an empty list: name at least one http://host:port")?;
        let named = config.host.clone().unwrap_or_else(|| written(first));
        let authority: Authority = named.parse().map_err(|e| format!("host {named:?}: {e}"))?;
        let host = HeaderValue::from_str(&named).map_err(|e| format!("host {named:?}: {e}"))?;
        let times = [Some(config.connect_timeout), Some(config.idle_timeout), config.response_timeout];
        if config.max_requests == 0 || config.eject.at_most > 100 || times.into_iter().flatten().any(|t| t.0.is_zero())
        {
            return Err(
                "max_requests is at least 1, eject.at_most at most 100, and no timeout is 0: nothing would pass".into(),
            );
        }
        if config.health.as_ref().is_some_and(|h| !h.path.starts_with('/') || h.fall == 0 || h.rise == 0) {
            return Err("health: path begins with a slash, fall and rise are at least 1".into());
        }
        Ok(Self {
            config: config.clone(),
            roots,
            sites,
            authority,
            host,
            endpoints: ArcSwap::default(),
            names: Names::default(),
            resolving: tokio::sync::Mutex::default(),
            total: Arc::default(),
            turn: AtomicUsize::new(0),
        })
    }

    /// Begins to resolve names and to check health; both end when the upstream is dropped.
    pub fn start(self: &Arc<Self>) {
        watch::start(self);
    }

    /// Whether another configuration comes to the same pool.
    pub fn is_same(&self, other: &Self) -> bool {
        self.config == other.config && self.roots == other.roots
    }

    /// Its configuration.
    pub const fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// Its first URL, which names it.
    pub fn url(&self) -> &str {
        self.config.url.all().first().map_or("", String::as_str)
    }

    /// The authority that it reads.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The same as a header.
    pub const fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// How long it may be silent.
    pub const fn idle(&self) -> Duration {
        self.config.idle_timeout.0
    }

    /// How long it may think.
    pub fn thinking(&self) -> Duration {
        self.config.response_timeout.map_or(self.config.idle_timeout.0, |t| t.0)
    }

    /// Whether any of its URLs has a name that may come to other addresses later.
    fn is_named(&self) -> bool {
        self.sites.iter().any(|s| s.host.parse::<std::net::IpAddr>().is_err())
    }

    fn uri(&self, endpoint: &Endpoint, target: &str) -> Result<Uri, http::Error> {
        let scheme = self.sites.get(endpoint.site).map_or(Scheme::HTTP, |s| s.scheme.clone());
        let target = PathAndQuery::try_from(target)?;
        Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(target).build()
    }

    /// Its endpoints; the first call resolves them.
    async fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        if self.endpoints.load().is_empty() {
            self.refresh().await;
        }
        self.endpoints.load().to_vec()
    }

    /// Resolves every name. Endpoints that are there already stay, and so does everything if nothing can be resolved.
    async fn refresh(&self) {
        let before = self.endpoints.load_full();
        let _one = self.resolving.lock().await;
        if !Arc::ptr_eq(&before, &self.endpoints.load_full()) {
            return;
        }
        let mut found = Vec::new();
        for (number, site) in self.sites.iter().enumerate() {
            match self.names.resolve(&site.host, site.port, self.config.connect_timeout.0).await {
                Ok(addresses) => found.extend(addresses.into_iter().map(|a| (number, a))),
                Err(why) => {
                    tracing::warn!(host = site.host, why, "an upstream's name cannot be resolved");
                    found.extend(before.iter().filter(|e| e.site == number).map(|e| (number, e.address)));
                }
            }
        }
        let known = |site: usize, address: SocketAddr| {
            let known = before.iter().find(|e| e.site == site && e.address == address).cloned();
            known.unwrap_or_else(|| Arc::new(Endpoint::new(site, address, &self.sites[site].dialling)))
        };
        let endpoints: Vec<Arc<Endpoint>> = found.into_iter().map(|(site, address)| known(site, address)).collect();
        self.endpoints.store(Arc::new(endpoints));
    }

    /// The fit endpoint with the fewest requests under way, of those that were not tried; ties go round.
    fn choose(&self, endpoints: &[Arc<Endpoint>], tried: &[SocketAddr], now: Instant) -> Option<Arc<Endpoint>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..endpoints.len())
            .map(|i| &endpoints[(turn.wrapping_add(i)) % endpoints.len()])
            .filter(|e| !tried.contains(&e.address) && e.is_fit(now))
            .min_by_key(|e| e.in_flight())
            .cloned()
    }

    /// Sends a request. It is sent again only if nobody looked at it: no connection came about, or upstream says so (RFC 9113
    /// sections 6.8 and 8.7). `blameless` says whether a failure is the client's.
    pub async fn send(
        &self,
        head: &Parts,
        target: &str,
        body: AnyBody,
        blameless: &(dyn Fn() -> bool + Sync),
    ) -> Result<(Response<Inbound>, Place), Unsent> {
        let endpoints = self.endpoints().await;
        if endpoints.is_empty() {
            return Err(Unsent::Unreachable("its name comes to no address".into()));
        }
        let body = Tried::new(body);
        let (mut tried, mut unseen) = (Vec::new(), Vec::new());
        let mut last = Unsent::NoneFit;
        while tried.len() < TRIES && unseen.len() < MOST_UNSEEN {
            let Some(endpoint) = self.choose(&endpoints, &tried, Instant::now()) else { break };
            let Some(lent) = body.lend() else { break };
            let place = Place::take(endpoint, &self.total, self.config.max_requests).ok_or(Unsent::Overloaded)?;
            match self.once(head, target, lent, &place, blameless).await {
                Ok(response) => {
                    body.settle();
                    return Ok((response, place));
                }
                Err((error, fate)) => {
                    last = error;
                    let address = place.endpoint().address;
                    match fate {
                        Fate::Unknown => break,
                        Fate::Undialled => tried.push(address),
                        // Who refuses twice has its reasons.
                        Fate::Refused if unseen.contains(&address) => tried.push(address),
                        // Only the connection went, or had no room, and its endpoint may have another.
                        Fate::Gone | Fate::Refused => unseen.push(address),
                    }
                }
            }
        }
        Err(last)
    }

    async fn once(
        &self,
        head: &Parts,
        target: &str,
        body: AnyBody,
        place: &Place,
        blameless: &(dyn Fn() -> bool + Sync),
    ) -> Result<Response<Inbound>, (Unsent, Fate)> {
        let endpoint = place.endpoint();
        let mut request = Request::from_parts(head.clone(), body);
        let uri = self.uri(endpoint, target).map_err(|e| (Unsent::Unreachable(e.to_string()), Fate::Unknown))?;
        *request.uri_mut() = uri;
        let switches = head.headers.contains_key(http::header::UPGRADE);
        let connections = &endpoint.connections;
        let answered = if switches { connections.switching(request).await } else { connections.request(request).await };
        match answered {
            Ok(response) => {
                // What a proxy before the service says of it speaks against the endpoint, too.
                match response.status() {
                    StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                        self.blame(endpoint);
                    }
                    _ => endpoint.succeeded(),
                }
                Ok(response)
            }
            Err(unanswered) => {
                // A client that went, or whose body is malformed, says nothing of the endpoint.
                if !blameless() && unanswered.fate != Fate::Gone {
                    self.blame(endpoint);
                }
                let unsent = match unanswered.fate {
                    Fate::Undialled => Unsent::Unreachable,
                    Fate::Gone | Fate::Refused => Unsent::Unseen,
                    Fate::Unknown => Unsent::Broke,
                };
                Err((unsent(unanswered.why()), unanswered.fate))
            }
        }
    }

    fn blame(&self, endpoint: &Endpoint) {
        let now = Instant::now();
        let endpoints = self.endpoints.load();
        let out = endpoints.iter().filter(|e| e.is_ejected(now)).count();
        let allowed = (out + 1) * 100 <= endpoints.len() * usize::from(self.config.eject.at_most);
        if endpoint.failed(&self.config.eject, now, allowed) {
            let address = endpoint.address;
            tracing::warn!(upstream = self.url(), %address, "an endpoint failed again and again and is left out for a while");
            metrics::counter!("popgate_upstream_ejections_total").increment(1);
        }
    }
}

fn written(site: &Site) -> String {
    let host = if site.host.contains(':') { format!("[{}]", site.host) } else { site.host.clone() };
    let default = if site.scheme == Scheme::HTTPS { 443 } else { 80 };
    if site.port == default { host } else { format!("{host}:{}", site.port) }
}

fn client_tls(config: &UpstreamConfig, roots: &[Vec<u8>], own: Option<&OwnTls>) -> Result<ClientConfig, String> {
    let identity = own.filter(|_| config.mtls).map(|own| own.identity.clone());
    let made = match (&config.spiffe_id, own) {
        (Some(id), own) => {
            let id: SpiffeId = id.parse().map_err(|e| format!("spiffe_id {id:?}: {e}"))?;
            match own {
                Some(own) => tls::workload_client(own, answers_as(id), identity),
                None => tls::web_client(&[]),
            }
        }
        (None, _) => tls::web_client_as(roots, identity),
    };
    made.map_err(|e| e.to_string())
}

/// Whether a leaf is one workload's.
fn answers_as(id: SpiffeId) -> LeafCheck {
    Arc::new(move |der, _| match X509Svid::parse(der) {
        Ok(svid) if svid.spiffe_id == id => Ok(()),
        Ok(svid) => Err(format!("{} answered instead of {id}", svid.spiffe_id)),
        Err(error) => Err(error.to_string()),
    })
}

fn site(url: &str, config: &UpstreamConfig, roots: &[Vec<u8>], tls: &Arc<ClientConfig>) -> Result<Site, String> {
    let uri: Uri = url.parse().map_err(|e| format!("url {url:?}: {e}"))?;
    let bare = uri.path_and_query().is_none_or(|p| p.as_str() == "/");
    let (Some(scheme), Some(authority), true) = (uri.scheme(), uri.authority(), bare) else {
        return Err(format!("url {url:?} is not http://host:port or https://host:port without a path"));
    };
    let secure = *scheme == Scheme::HTTPS;
    if authority.port().is_none() && authority.as_str().rsplit_once(':').is_some_and(|(_, port)| !port.contains(']')) {
        return Err(format!("url {url:?}: its port is no number up to 65535"));
    }
    if !secure && *scheme != Scheme::HTTP || authority.as_str().contains('@') {
        return Err(format!("url {url:?} is not http://host:port or https://host:port"));
    }
    if secure && roots.is_empty() && config.spiffe_id.is_none() {
        return Err("an https upstream needs ca_file, the roots that its certificate leads to, or spiffe_id".into());
    }
    if !secure && (config.mtls || config.spiffe_id.is_some()) {
        return Err(format!("url {url:?}: mtls and spiffe_id need https"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = config.server_name.clone().unwrap_or_else(|| host.clone());
    // In the clear nobody looks at it, and hosts need not be names of the DNS.
    let named = |name: String| ServerName::try_from(name.clone()).map_err(|e| format!("server name {name:?}: {e}"));
    let server_name = secure.then(|| named(name)).transpose()?;
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let versions = match config.protocol {
        Protocol::Auto => Versions::Either,
        Protocol::Http1 => Versions::Http1,
        Protocol::Http2 => Versions::Http2,
    };
    let dialling = Dialling { timeout: config.connect_timeout.0, versions, tls: tls.clone(), server_name };
    Ok(Site { scheme: scheme.clone(), host, port, dialling })
}
