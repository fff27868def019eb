//! What identity costs. Issuance over the network, kept-alive mTLS, against the limit of one CSR verification and one
//! signature; the registry's selector match among a million entries; the agent's fan-out of one rotation to ten thousand
//! Workload API streams, with the memory of each.
//!
//! `POPGATE_BENCH_ORDERS`, `POPGATE_BENCH_ENTRIES` and `POPGATE_BENCH_STREAMS` set how many.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::StreamExt as _;
use http::Method;
use hyper_util::rt::TokioIo;
use popgate::client::enrol;
use popgate::client::http::HttpClient;
use popgate::domain::people::{Entry, Seconds};
use popgate::domain::registry::Registry;
use popgate::domain::selector::Selector;
use popgate::net::keys::P256Key;
use popgate::net::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use popgate::net::workload_api::{SECURITY_HEADER, X509svidRequest};
use popgate::protocol::csr;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

#[path = "common/cpu.rs"]
mod cpu;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/host.rs"]
mod host;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/world.rs"]
mod world;

use host::{Host, own_user, register};
use world::Service;

const STREAMS_A_CONNECTION: usize = 100;

fn main() {
    let check = std::env::args().any(|a| a == "--test");
    let wanted = |name: &str, whole: usize, little: usize| {
        let set = std::env::var(name).ok().and_then(|n| n.parse().ok());
        set.unwrap_or(if check { little } else { whole })
    };
    registry(wanted("POPGATE_BENCH_ENTRIES", 1_000_000, 10_000));
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(issuance(wanted("POPGATE_BENCH_ORDERS", 20_000, 200)));
    runtime.block_on(fan_out(wanted("POPGATE_BENCH_STREAMS", 10_000, 200)));
}

/// Each entry has a repository of its own, and shares owner and environment with thousands.
fn registry(entries: usize) {
    let mut registry = Registry::default();
    let selector = |text: String| text.parse::<Selector>().expect("a selector");
    for n in 0..entries {
        let id = format!("spiffe://example.org/ci/r{n}").parse().expect("an ID");
        let mut entry = Entry::new(id, "https://idp#bob".into(), Seconds(3600));
        entry.selectors = vec![
            selector(format!("github:repository_owner:o{}", n % 50)),
            selector(format!("github:environment:e{}", n % 3)),
            selector(format!("github:repository:o/r{n}")),
        ];
        registry.insert(entry);
    }
    let found = |n: usize| -> BTreeSet<Selector> {
        let own =
            [format!("repository_owner:o{}", n % 50), format!("environment:e{}", n % 3), format!("repository:o/r{n}")];
        let others = (0..9).map(|i| format!("claim{i}:value"));
        own.into_iter().chain(others).map(|t| selector(format!("github:{t}"))).collect()
    };
    let asked: Vec<BTreeSet<Selector>> = (0..1000).map(|i| found(i * 7919 % entries)).collect();
    let began = Instant::now();
    for found in &asked {
        assert_eq!(black_box(registry.direct(found)).len(), 1);
    }
    let each = began.elapsed() / 1000;
    println!("registry, {entries} entries: a selector match takes {:.1} us", each.as_secs_f64() * 1e6);
}

/// One CSR verification and one signature, by themselves.
fn limit(csrs: &[Vec<u8>]) -> Duration {
    let key = P256Key::generate();
    let began = Instant::now();
    for csr in csrs {
        csr::verify(csr).expect("holds");
        black_box(key.sign(csr));
    }
    began.elapsed() / u32::try_from(csrs.len()).expect("small")
}

async fn issuance(orders: usize) {
    let service = Service::start().await;
    let host = Host::start(&service, "bench").await;
    register(&service, "spiffe://example.org/web", &host.node, &["unix:uid:4242"]).await;
    let identity =
        popgate::client::identity::Identity::load(&host.path().join("data/node")).expect("the node's identity");
    let http = HttpClient::new(identity.tls(true).expect("TLS"));
    let url = service.url("identity", "/v1/agent/svids");
    let csrs: Vec<Vec<u8>> = (0..orders).map(|_| P256Key::generate().csr().expect("makes")).collect();
    let bodies: Vec<Value> = csrs
        .chunks(128)
        .map(|batch| {
            let order =
                |csr: &Vec<u8>| json!({"spiffe_id": "spiffe://example.org/web", "csr": BASE64_STANDARD.encode(csr)});
            json!({"orders": batch.iter().map(order).collect::<Vec<_>>()})
        })
        .collect();
    let limit = limit(&csrs[..csrs.len().min(2000)]);
    let pid = u32::try_from(service.pid()).expect("a pid");
    let (cpu, began) = (cpu::us(pid), Instant::now());
    // Two batches are under way at a time, on one connection.
    let answers = futures_util::stream::iter(&bodies).map(|body| enrol::post(&http, &url, body)).buffer_unordered(2);
    let issued = answers
        .map(|answer| {
            let document: Value = serde_json::from_slice(answer.expect("answers").body()).expect("JSON");
            document["svids"].as_array().expect("a list").iter().filter(|s| s["svid"].is_array()).count()
        })
        .fold(0, |sum, n| async move { sum + n })
        .await;
    let wall = began.elapsed();
    assert_eq!(issued, orders, "every order is issued");
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let each = (cpu::us(pid) - cpu) / orders as f64;
    let limit = limit.as_secs_f64() * 1e6;
    println!(
        "issuance, {orders} orders: {each:.0} us of CPU each, limit {limit:.0} us, so {:.0} % of it; {:.0} a second",
        limit / each * 100.0,
        f64::from(u32::try_from(orders).expect("small")) / wall.as_secs_f64(),
    );
}

async fn client(host: &Host) -> SpiffeWorkloadApiClient<Channel> {
    let path = host.socket();
    let dial = move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?)) }
    };
    let channel = Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await;
    SpiffeWorkloadApiClient::new(channel.expect("connects"))
}

fn request() -> tonic::Request<X509svidRequest> {
    let mut request = tonic::Request::new(X509svidRequest {});
    request.metadata_mut().insert(SECURITY_HEADER, tonic::metadata::MetadataValue::from_static("true"));
    request
}

async fn fan_out(streams: usize) {
    let service = Service::start().await;
    let host = Host::start(&service, "bench").await;
    register(&service, "spiffe://example.org/web", &host.node, &[&own_user()]).await;
    let mut first = client(&host).await;
    while first.fetch_x509svid(request()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = resident(host.pid());
    let (opened, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for at in (0..streams).step_by(STREAMS_A_CONNECTION) {
        let client = client(&host).await;
        for _ in at..(at + STREAMS_A_CONNECTION).min(streams) {
            let (mut client, opened, told) = (client.clone(), opened.clone(), told.clone());
            tasks.spawn(async move {
                let mut stream = client.fetch_x509svid(request()).await.expect("opens").into_inner();
                let one = stream.next().await.expect("a message").expect("ok").svids.remove(0).x509_svid;
                opened.fetch_add(1, Ordering::Relaxed);
                let two = stream.next().await.expect("a message").expect("ok").svids.remove(0).x509_svid;
                assert_ne!(one, two, "another certificate");
                told.fetch_add(1, Ordering::Relaxed);
            });
        }
    }
    while opened.load(Ordering::Relaxed) < streams {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let memory = (resident(host.pid()) - before) / f64::from(u32::try_from(streams).expect("small"));
    let act = async |body| service.admin(Method::POST, "/v1/authorities", Some(body)).await.expect("acts");
    let all = service.admin(Method::GET, "/v1/authorities", None).await.expect("lists");
    let signs = |a: &&Value| a["kind"] == "issuing" && a["state"] == "active";
    let old = all.as_array().expect("a list").iter().find(signs).expect("one signs")["id"].clone();
    act(json!({"action": "prepare", "kind": "issuing"})).await;
    act(json!({"action": "activate", "kind": "issuing"})).await;
    let began = Instant::now();
    act(json!({"action": "taint", "id": old})).await;
    while let Some(done) = tasks.join_next().await {
        done.expect("a stream");
    }
    println!(
        "fan-out, {streams} streams: one rotation told to {} of them, the last after {:.0} ms; {memory:.1} KiB a stream",
        told.load(Ordering::Relaxed),
        began.elapsed().as_secs_f64() * 1e3,
    );
}

/// Resident memory of a process in KiB (proc(5), `VmRSS`).
fn resident(pid: i32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line");
    f64::from(line.split_whitespace().next().and_then(|n| n.parse::<u32>().ok()).expect("a number"))
}
