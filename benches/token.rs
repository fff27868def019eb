//! What a token costs: client credentials with a proof over kept-alive mTLS, in CPU time of the service's process, against
//! the limit of one ES256 verification and one signature; and npm oidc-provider doing the same grant in the same run, where
//! `POPGATE_TEST_NODE_MODULES` says where it is.
//!
//! `POPGATE_BENCH_TOKENS` sets how many.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use popgate::client::identity::Identity;
use popgate::domain::time::Clock as _;
use popgate::net::keys::P256Key;
use popgate::net::{fetch, files};
use popgate::protocol::jwk::PublicKey;
use popgate::protocol::{dpop, form};
use popgate::store::clock::SystemClock;
use popgate::store::entropy;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::runtime::Runtime;

#[path = "common/cpu.rs"]
mod cpu;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/web.rs"]
mod web;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/world.rs"]
mod world;

use web::WebCa;
use world::{SOLVER, Service, registrations};

const IN_FLIGHT: usize = 16;

fn main() {
    let check = std::env::args().any(|a| a == "--test");
    let set = std::env::var("POPGATE_BENCH_TOKENS").ok().and_then(|n| n.parse().ok());
    let tokens = set.unwrap_or(if check { 100 } else { 20_000 });
    let limit = limit(if check { 100 } else { 5000 });
    let runtime = Runtime::new().expect("a runtime");
    let (ours, identity) = runtime.block_on(ours(tokens));
    println!(
        "mint, {tokens} tokens: {ours:.0} us of CPU each, limit {limit:.0} us (one verification, one signature), so {:.0} % of it",
        limit / ours * 100.0
    );
    let Ok(node) = std::env::var("POPGATE_TEST_NODE_MODULES") else {
        println!("npm oidc-provider is left out: POPGATE_TEST_NODE_MODULES is not set");
        return;
    };
    let peers = runtime.block_on(peer(&node, &identity, tokens / 10));
    println!(
        "npm oidc-provider, the same grant, {} tokens: {peers:.0} us of CPU each, so {:.1} times as much",
        tokens / 10,
        peers / ours
    );
}

/// One verification and one signature, by themselves.
fn limit(times: u32) -> f64 {
    let key = P256Key::generate();
    let public = PublicKey::from_spki(key.spki()).expect("P-256");
    let message = b"a message of about the length of a token's signing input".repeat(8);
    let signature = key.sign(&message);
    let began = Instant::now();
    for _ in 0..times {
        assert!(black_box(&public).verifies(&message, &signature));
        black_box(key.sign(&message));
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(times)
}

/// Asks for tokens with fresh proofs over kept-alive connections.
struct Load<'a> {
    http: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    identity: &'a Identity,
    url: String,
    form: String,
}

impl<'a> Load<'a> {
    fn new(mut tls: rustls::ClientConfig, identity: &'a Identity, url: String, resource: Option<&str>) -> Self {
        // Both sides by the version that both have.
        tls.alpn_protocols.clear();
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1().build();
        let mut pairs = vec![("grant_type", "client_credentials"), ("client_id", SOLVER), ("scope", "tot.read")];
        pairs.extend(resource.map(|r| ("resource", r)));
        Self { http: Client::builder(TokioExecutor::new()).build(https), identity, url, form: form::write(&pairs) }
    }

    async fn one(&self, nonce: Option<&str>) -> (HeaderMap, Value) {
        let (jti, now) = (entropy::random_id(), SystemClock.now());
        let asked = dpop::Request { method: "POST", url: &self.url, token: None, nonce, jti: &jti, now, body: None };
        let request = Request::post(&self.url).header("dpop", dpop::prove(&asked, self.identity.signer()));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let request = request.body(Full::from(self.form.clone())).expect("builds");
        let (parts, body) = self.http.request(request).await.expect("answers").into_parts();
        let body = body.collect().await.expect("reads").to_bytes();
        (parts.headers, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// The CPU time a token of a process, in microseconds, after its caches and compilers have seen the way.
    async fn measure(&self, pid: u32, tokens: usize) -> f64 {
        let (headers, _) = self.one(None).await;
        let nonce = headers.get("dpop-nonce").map(|n| n.to_str().expect("text").to_owned());
        let ask = async |n: usize| {
            futures_util::stream::iter(0..n)
                .map(|_| self.one(nonce.as_deref()))
                .buffer_unordered(IN_FLIGHT)
                .for_each(|(_, answer)| async move { assert_eq!(answer["token_type"], "DPoP", "{answer}") })
                .await;
        };
        ask(500.min(tokens)).await;
        let cpu = cpu::us(pid);
        ask(tokens).await;
        (cpu::us(pid) - cpu) / f64::from(u32::try_from(tokens).expect("small"))
    }
}

async fn ours(tokens: usize) -> (f64, Arc<Identity>) {
    let service = Service::start_domain("example.org", "", "@tokenclient_rate = 0\nsource_rate = 0\n", &[]).await;
    service.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
    let identity = service.enrol(SOLVER).await;
    let resource = service.url("gateway", "/v1");
    let tls = identity.tls(true).expect("TLS");
    let load = Load::new(tls, &identity, service.url("token", "/token"), Some(&resource));
    let each = load.measure(u32::try_from(service.pid()).expect("a pid"), tokens).await;
    (each, identity.clone())
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn peer(node: &str, identity: &Arc<Identity>, tokens: usize) -> f64 {
    let dir = tempfile::tempdir().expect("tempdir");
    let ca = WebCa::new("peer CA");
    let (der, key) = ca.leaf("localhost", &["localhost"]);
    let file = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).expect("writes");
        dir.path().join(name)
    };
    let (certificate, key) = (file("tls.pem", &files::pem(&der)), file("tls.key", &key));
    let clients = file("clients.pem", &web::pem(&identity.roots));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/oidc_provider.mjs");
    let mut command = Command::new("node");
    command.arg(script).arg(node).args([certificate, key, clients]).args([SOLVER, "https://gw.example/v1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("node runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut read = lines.by_ref().map_while(Result::ok).filter_map(|l| serde_json::from_str::<Value>(&l).ok());
    let issuer = read.next().expect("it starts")["issuer"].as_str().expect("an issuer").to_owned();
    // Whoever is not read from stops.
    std::thread::spawn(move || lines.for_each(drop));
    let child = Peer(child);
    let load = Load::new(tls(&ca, identity), identity, format!("{issuer}/token"), None);
    load.measure(child.0.id(), tokens).await
}

/// Trusts a CA of the web and presents the workload's certificate.
fn tls(ca: &WebCa, identity: &Identity) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    for der in fetch::pem_certificates(&ca.pem).expect("certificates") {
        roots.add(CertificateDer::from(der)).expect("a root");
    }
    let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let dir = tempfile::tempdir().expect("tempdir");
    identity.save(dir.path()).expect("saves");
    let key = P256Key::read(&dir.path().join("key.pem")).expect("reads");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    builder.expect("versions").with_root_certificates(roots).with_client_auth_cert(chain, key).expect("a client")
}
