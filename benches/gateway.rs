//! What the whole data path costs beside a bare TLS proxy on the same parts: token, proof, policy, replay claim, evidence,
//! mask and recording, in processes of their own, over real sockets, in one run. The same without the recording tells what
//! its files cost on this file system.
//!
//! Criterion times one request after the other. The last lines count the CPU time that each process spent a request, with
//! several in flight. `POPGATE_BENCH_REQUESTS` sets how many.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use popgate::client::http::HttpClient;
use popgate::client::session::Session;
use popgate::domain::secret::AccessToken;
use popgate::domain::spiffe_id::TrustDomain;
use popgate::domain::time::Clock as _;
use popgate::identity::authority::Authority;
use popgate::identity::authority::keys::FileKeys;
use popgate::identity::config::IdentityConfig;
use popgate::net::body::{AnyBody, BoxError};
use popgate::net::keys::P256Key;
use popgate::net::tls::{self, ServerIdentity};
use popgate::store::clock::SystemClock;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

#[path = "common/cpu.rs"]
mod cpu;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/world.rs"]
mod world;

use world::{Service, respond};

const IN_FLIGHT: u32 = 16;
/// A page of reasoning output of about a kilobyte, with one value to mask.
const NOTE: &str = "the proposer wrote to ada@example.org about the sum of the four numbers";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("bare-proxy") => bare_proxy(&arguments[2], Path::new(&arguments[3])),
        _ => measure(arguments.iter().any(|a| a == "--test")),
    }
}

/// TLS in front, a pool behind, and nothing between.
fn bare_proxy(upstream: &str, dir: &Path) {
    Runtime::new().expect("a runtime").block_on(async {
        let now = SystemClock.now();
        let domain = TrustDomain::parse("example.org").expect("a trust domain");
        let keys = FileKeys::new(&dir.join("ca"), None).expect("a key store");
        let policy = IdentityConfig::default().policy();
        let authority = Authority::open(&dir.join("ca"), &domain, Box::new(keys), policy, now).expect("a CA");
        std::fs::write(dir.join("root.der"), &authority.bundle().roots[0]).expect("writes");
        let key = P256Key::generate();
        let made = authority.issue_server(&key, &["127.0.0.1".into()], now).expect("a certificate");
        let identity = ServerIdentity::new(made.chain, key.tls()).expect("an identity");
        let acceptor = TlsAcceptor::from(tls::server(identity, None, tls::Versions::Tls13).expect("a configuration"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        println!("{}", listener.local_addr().expect("bound"));
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(http);
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            stream.set_nodelay(true).expect("sets");
            let (acceptor, client, upstream) = (acceptor.clone(), client.clone(), upstream.to_owned());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(move |request| pass(client.clone(), upstream.clone(), request));
                let connection = auto::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn pass(
    client: Client<HttpConnector, Incoming>,
    upstream: String,
    mut request: Request<Incoming>,
) -> Result<Response<AnyBody>, BoxError> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    *request.uri_mut() = format!("http://{upstream}{path}").parse::<Uri>()?;
    *request.version_mut() = http::Version::HTTP_11;
    let mut response = client.request(request).await?;
    *response.version_mut() = http::Version::HTTP_11;
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// The bare proxy as a process; it ends with its standard input.
struct Bare {
    child: Child,
    url: String,
    http: HttpClient,
    _dir: tempfile::TempDir,
}

impl Bare {
    fn start(upstream: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("ca")).expect("creates");
        let mut child = Command::new(std::env::current_exe().expect("a path"))
            .arg("bare-proxy")
            .arg(upstream)
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut address).expect("an address");
        let root = std::fs::read(dir.path().join("root.der")).expect("reads");
        let http = HttpClient::new(tls::web_client(&[root]).expect("a client"));
        Self { child, url: format!("https://{}/v1/runs/r1", address.trim()), http, _dir: dir }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A workload that proves each request.
struct Proved {
    session: Arc<Session>,
    token: AccessToken,
    url: String,
    http: HttpClient,
}

impl Proved {
    async fn start(service: &Service, path: &str) -> Self {
        let (solver, url) = (service.solver().await, service.url("gateway", path));
        assert_eq!(solver.get(&url).await.status, 200, "learns the nonce");
        let root = CertificateDer::from_pem_file(service.data.join("ca.pem")).expect("a root");
        let http = HttpClient::new(tls::web_client(&[root.to_vec()]).expect("a client"));
        let token = solver.token(&url).await;
        Self { session: solver.session, token, url, http }
    }

    fn request(&self) -> Request<Bytes> {
        let mut request = get(&self.url);
        let text = |value: String| HeaderValue::from_str(&value).expect("a value");
        request.headers_mut().insert("authorization", text(format!("DPoP {}", self.token.expose())));
        request.headers_mut().insert("dpop", text(self.session.prove("GET", &self.url, Some(&self.token))));
        request
    }
}

fn get(url: &str) -> Request<Bytes> {
    Request::get(url).body(Bytes::new()).expect("builds")
}

async fn send(http: HttpClient, request: Request<Bytes>) {
    let response = http.fetch(request).await.expect("answers");
    assert_eq!(response.status(), 200, "{}", String::from_utf8_lossy(response.body()));
}

fn measure(check: bool) {
    let runtime = Runtime::new().expect("a runtime");
    let service = runtime.block_on(Service::start());
    let page = serde_json::json!({"notes": vec![NOTE; 14]}).to_string();
    service.upstream.on_request(move |_| respond(200, "application/json", page.clone()));
    let bare = Bare::start(&service.upstream.address);
    let proved = runtime.block_on(Proved::start(&service, "/v1/runs/r1"));
    let unrecorded = runtime.block_on(Proved::start(&service, "/off/runs/r1"));

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("one request");
    group.bench_function("bare TLS proxy", |b| {
        b.iter_batched(
            || get(&bare.url),
            |request| runtime.block_on(send(bare.http.clone(), request)),
            BatchSize::PerIteration,
        );
    });
    for (name, client) in [("popgate, enforced", &proved), ("popgate, enforced, not recorded", &unrecorded)] {
        group.bench_function(name, |b| {
            b.iter_batched(
                || client.request(),
                |request| runtime.block_on(send(client.http.clone(), request)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    let wanted = std::env::var("POPGATE_BENCH_REQUESTS").ok().and_then(|n| n.parse().ok());
    let requests = wanted.unwrap_or(if check { 64 } else { 8000 });
    let bare_cost = cost(&runtime, bare.child.id(), requests, &bare.http, || get(&bare.url));
    let pid = u32::try_from(service.pid()).expect("a pid");
    println!("CPU a request, {requests} requests, {IN_FLIGHT} in flight: bare {bare_cost:.0} us");
    for (name, client) in [("enforced", &proved), ("enforced, not recorded", &unrecorded)] {
        let cost = cost(&runtime, pid, requests, &client.http, || client.request());
        println!("{name}: {cost:.0} us, ratio {:.1}", cost / bare_cost.max(1.0));
    }
}

/// Microseconds of CPU that a process spends on each of `requests` requests.
fn cost(runtime: &Runtime, pid: u32, requests: u32, http: &HttpClient, make: impl Fn() -> Request<Bytes>) -> f64 {
    let before = cpu::us(pid);
    for _ in 0..requests.div_ceil(IN_FLIGHT) {
        let sent: Vec<_> = (0..IN_FLIGHT).map(|_| runtime.spawn(send(http.clone(), make()))).collect();
        for one in sent {
            runtime.block_on(one).expect("runs");
        }
    }
    (cpu::us(pid) - before) / f64::from(requests.div_ceil(IN_FLIGHT) * IN_FLIGHT)
}
