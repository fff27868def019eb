//! Requests in a number, some of them in flight, and what they cost the process that serves them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request};
use popgate::client::http::HttpClient;
use popgate::client::session::Session;
use popgate::domain::secret::AccessToken;
use popgate::net::tls;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::runtime::Runtime;

use crate::cpu;
use crate::world::Service;

pub const IN_FLIGHT: u32 = 16;

/// A workload that proves each request.
pub struct Proved {
    now: Mutex<(Arc<Session>, AccessToken)>,
    url: String,
    tls: ClientConfig,
    pub http: HttpClient,
}

impl Proved {
    pub async fn start(service: &Service, path: &str) -> Self {
        let (solver, url) = (service.solver().await, service.url("gateway", path));
        assert_eq!(solver.get(&url).await.status, 200, "learns the nonce");
        let root = CertificateDer::from_pem_file(service.data.join("ca.pem")).expect("a root");
        let tls = tls::web_client(&[root.to_vec()]).expect("a client");
        let token = solver.token(&url).await;
        Self { now: Mutex::new((solver.session, token)), url, http: HttpClient::new(tls.clone()), tls }
    }

    pub fn request(&self) -> Request<Bytes> {
        self.to(&self.url)
    }

    /// A request for another path of the same resource.
    pub fn to(&self, url: &str) -> Request<Bytes> {
        let mut request = get(url);
        let text = |value: String| HeaderValue::from_str(&value).expect("a value");
        let (session, token) = self.now.lock().expect("whole").clone();
        request.headers_mut().insert("authorization", text(format!("DPoP {}", token.expose())));
        request.headers_mut().insert("dpop", text(session.prove("GET", url, Some(&token))));
        request
    }

    /// Begins anew, with a token and a nonce of now: both are good for minutes, and a run may last longer.
    pub async fn renew(&self, service: &Service) {
        let solver = service.solver().await;
        assert_eq!(solver.get(&self.url).await.status, 200, "learns the nonce");
        let token = solver.token(&self.url).await;
        *self.now.lock().expect("whole") = (solver.session, token);
    }

    /// A client with connections of its own.
    pub fn another(&self) -> HttpClient {
        HttpClient::new(self.tls.clone())
    }
}

pub fn get(url: &str) -> Request<Bytes> {
    Request::get(url).body(Bytes::new()).expect("builds")
}

/// Sends one and says how long it took.
pub async fn send(http: HttpClient, request: Request<Bytes>) -> Duration {
    let began = Instant::now();
    let response = http.fetch(request).await.expect("answers");
    assert_eq!(response.status(), 200, "{}", String::from_utf8_lossy(response.body()));
    began.elapsed()
}

/// What a number of requests came to.
pub struct Cost {
    /// Microseconds of CPU of the serving processes, a request.
    pub cpu: f64,
    /// Requests a second, the client on the same machine.
    pub rate: f64,
}

/// Sends `requests`, of which [`IN_FLIGHT`] at a time.
pub fn cost(
    runtime: &Runtime,
    pids: &[u32],
    requests: u32,
    http: &HttpClient,
    make: impl Fn() -> Request<Bytes>,
) -> Cost {
    let used = || pids.iter().map(|pid| cpu::us(*pid)).sum::<f64>();
    let (before, began) = (used(), Instant::now());
    let rounds = requests.div_ceil(IN_FLIGHT);
    for _ in 0..rounds {
        let sent: Vec<_> = (0..IN_FLIGHT).map(|_| runtime.spawn(send(http.clone(), make()))).collect();
        for one in sent {
            runtime.block_on(one).expect("runs");
        }
    }
    let count = f64::from(rounds * IN_FLIGHT);
    Cost { cpu: (used() - before) / count, rate: count / began.elapsed().as_secs_f64() }
}

/// Sends `requests` at `rate` a second, whatever is answered, and gives how long each took, sorted. They are made before:
/// elsewhere a client signs on cores of its own.
pub fn paced(
    runtime: &Runtime,
    rate: f64,
    requests: u32,
    http: &HttpClient,
    make: impl Fn() -> Request<Bytes>,
) -> Vec<Duration> {
    let made: Vec<_> = (0..requests).map(|_| make()).collect();
    let began = Instant::now();
    let sent: Vec<_> = (0..)
        .zip(made)
        .map(|(n, request): (u32, _)| {
            let due = began + Duration::from_secs_f64(f64::from(n) / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            runtime.spawn(send(http.clone(), request))
        })
        .collect();
    let mut took: Vec<Duration> = sent.into_iter().map(|one| runtime.block_on(one).expect("runs")).collect();
    took.sort_unstable();
    took
}

/// The value below which so many of a hundred lie.
pub fn percentile(sorted: &[Duration], of: usize) -> Duration {
    sorted[(sorted.len() * of / 100).min(sorted.len() - 1)]
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
