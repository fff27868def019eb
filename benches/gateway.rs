//! What the whole data path costs beside a bare TLS proxy on the same parts: token, proof, policy, replay claim, evidence,
//! mask and recording, in processes of their own, over real sockets, in one run. The same without the recording tells what
//! its files cost on this file system.
//!
//! Criterion times one request after the other. The last lines count the CPU time that each process spent a request, with
//! several in flight. `POPGATE_BENCH_REQUESTS` sets how many.

use criterion::{BatchSize, Criterion};
use tokio::runtime::Runtime;

#[path = "common/bare.rs"]
mod bare;
#[path = "common/cpu.rs"]
mod cpu;
#[allow(dead_code, reason = "the peers use all of it")]
#[path = "common/load.rs"]
mod load;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../tests/it/world.rs"]
mod world;

use bare::{Bare, Work};
use load::{IN_FLIGHT, Proved, cost, get, send};
use world::{Service, respond};

/// A page of reasoning output of about a kilobyte, with one value to mask.
const NOTE: &str = "the proposer wrote to ada@example.org about the sum of the four numbers";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(bare::NAME) => bare::run(&arguments[2..]),
        _ => measure(arguments.iter().any(|a| a == "--test")),
    }
}

fn measure(check: bool) {
    let runtime = Runtime::new().expect("a runtime");
    let service = runtime.block_on(Service::start());
    let page = serde_json::json!({"notes": vec![NOTE; 14]}).to_string();
    service.upstream.on_request(move |_| respond(200, "application/json", page.clone()));
    let bare = Bare::start(&service.upstream.address, Work::Nothing);
    let bare_url = format!("{}/v1/runs/r1", bare.origin);
    let proved = runtime.block_on(Proved::start(&service, "/v1/runs/r1"));
    let unrecorded = runtime.block_on(Proved::start(&service, "/off/runs/r1"));

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("one request");
    group.bench_function("bare TLS proxy", |b| {
        b.iter_batched(
            || get(&bare_url),
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
    let bare_cost = cost(&runtime, &[bare.pid()], requests, &bare.http, || get(&bare_url)).cpu;
    let pid = u32::try_from(service.pid()).expect("a pid");
    println!("CPU a request, {requests} requests, {IN_FLIGHT} in flight: bare {bare_cost:.0} us");
    for (name, client) in [("enforced", &proved), ("enforced, not recorded", &unrecorded)] {
        let cost = cost(&runtime, &[pid], requests, &client.http, || client.request()).cpu;
        println!("{name}: {cost:.0} us, ratio {:.1}", cost / bare_cost.max(1.0));
    }
}
