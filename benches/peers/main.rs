//! `cargo bench --bench peers`: the gateway beside a bare TLS proxy, that proxy with one ES256 verification, haproxy with
//! `jwt_verify` and nginx with mTLS, each in processes of its own, on one machine, in one run.
//!
//! CPU microseconds a request are medians of five rounds in which all take turns. Then latency at half and at a quarter of the
//! gateway's own rate, memory over idle streams, and memory over a large body. `POPGATE_BENCH_REQUESTS` sets the requests of a round.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use popgate::client::http::HttpClient;
use popgate::net::body::BoxError;
use tokio::runtime::Runtime;

#[path = "../common/bare.rs"]
mod bare;
#[path = "../common/cpu.rs"]
mod cpu;
#[path = "../common/load.rs"]
mod load;
mod others;
#[allow(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/it/world.rs"]
mod world;

use bare::{Bare, Work};
use load::{Proved, cost, get, median, paced, percentile};
use others::Other;
use world::{Service, respond};

const ANSWER: &str = r#"{"id":"r1","state":"done","answer":"(13 - 9) * (10 - 4) = 24"}"#;
/// Streams of one connection; the gateway takes 256.
const STREAMS_EACH: usize = 200;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some(bare::NAME) => bare::run(&arguments[2..]),
        _ => Bench::new(arguments.iter().any(|a| a == "--test")).run(),
    }
}

/// One that is measured.
struct Subject<'a> {
    name: String,
    pids: Vec<u32>,
    http: HttpClient,
    make: Box<dyn Fn() -> Request<Bytes> + 'a>,
    cpu: Vec<f64>,
    rate: Vec<f64>,
}

struct Bench {
    runtime: Runtime,
    service: Service,
    requests: u32,
    rounds: usize,
    streams: usize,
    body: u64,
}

fn routes(upstream: &str) -> String {
    let route = |name: &str, more: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\nmatch = {{ path = \"/{name}/**\" }}\nresource = \"/{name}\"\n{more}\nupstream = {{ url = \"http://{upstream}\", idle_timeout = \"10m\" }}\n[[route.operation]]\nname = \"x.{name}\"\nmatch = \"GET /{name}/**\"\nobject = \"/{name}\"\n"
        )
    };
    route("p", "") + &route("m", "mask = \"pii\"") + &route("n", "record = \"off\"")
}

impl Bench {
    fn new(check: bool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let upstream = runtime.block_on(world::Upstream::start());
        let text = routes(&upstream.address);
        let mut service = runtime.block_on(Service::start_routes(&text, &["x.p", "x.m", "x.n"], &[]));
        service.upstream = upstream;
        service.upstream.on_request(|seen| match seen.target.rsplit('/').next() {
            Some("events") => {
                let head = Bytes::from_static(b": open\n\n");
                let open = futures_util::stream::iter([Ok::<_, BoxError>(Frame::data(head))]);
                let mut response = respond(200, "text/event-stream", "");
                *response.body_mut() = StreamBody::new(open.chain(futures_util::stream::pending())).boxed_unsync();
                response
            }
            Some(size) if size.parse::<u64>().is_ok() => {
                let chunk = Bytes::from(vec![b'x'; 64 << 10]);
                let count = size.parse::<u64>().expect("checked") / chunk.len() as u64;
                let chunks = (0..count).map(move |_| Ok::<_, BoxError>(Frame::data(chunk.clone())));
                let mut response = respond(200, "application/octet-stream", "");
                *response.body_mut() = StreamBody::new(futures_util::stream::iter(chunks)).boxed_unsync();
                response
            }
            _ => respond(200, "application/json", ANSWER),
        });
        let wanted = std::env::var("POPGATE_BENCH_REQUESTS").ok().and_then(|n| n.parse().ok());
        Self {
            runtime,
            service,
            requests: wanted.unwrap_or(if check { 32 } else { 4000 }),
            rounds: if check { 1 } else { 5 },
            streams: if check { 100 } else { 8000 },
            body: if check { 8 << 20 } else { 1 << 30 },
        }
    }

    fn pid(&self) -> u32 {
        u32::try_from(self.service.pid()).expect("a pid")
    }

    fn proved(&self, path: &str) -> Proved {
        self.runtime.block_on(Proved::start(&self.service, path))
    }

    fn run(&self) {
        let upstream = &self.service.upstream.address;
        let bares = [
            ("bare hyper TLS proxy", Work::Nothing),
            ("bare proxy and one ES256 verification", Work::Verify),
            ("the least: that, one ES256 signature and a durable entry", Work::Least),
        ]
        .map(|(name, work)| (name, Bare::start(upstream, work)));
        let solver = self.runtime.block_on(self.service.solver());
        let others = [Other::nginx(upstream, &solver, &self.service.data.join("ca.pem")), Other::haproxy(upstream)];
        let gates = ["p", "n", "m"].map(|name| self.proved(&format!("/{name}/r1")));
        let mut subjects = Vec::new();
        for (name, bare) in &bares {
            let url = format!("{}/p/r1", bare.origin);
            subjects.push(subject(name, vec![bare.pid()], &bare.http, move || get(&url)));
        }
        for other in others.iter().flatten() {
            subjects.push(subject(other.name, other.pids(), &other.http, || other.request()));
        }
        let names = ["popgate: every check, recorded", "popgate: every check, not recorded", "popgate: and masked"];
        for (name, gate) in names.into_iter().zip(&gates) {
            subjects.push(subject(name, vec![self.pid()], &gate.http, || gate.request()));
        }
        let renew = || gates.iter().for_each(|gate| self.runtime.block_on(gate.renew(&self.service)));
        for _ in 0..self.rounds {
            renew();
            for subject in &mut subjects {
                let cost = cost(&self.runtime, &subject.pids, self.requests, &subject.http, &subject.make);
                subject.cpu.push(cost.cpu);
                subject.rate.push(cost.rate);
            }
        }
        report(&subjects);
        let all: Vec<_> = subjects.iter().collect();
        let [bare, gate] =
            ["bare hyper", "popgate"].map(|n| subjects.iter().find(|s| s.name.starts_with(n)).expect("is there"));
        let rate = median(gate.rate.clone());
        self.latency(&all, rate / 2.0, &renew);
        self.latency(&[bare, gate], rate / 4.0, &renew);
        self.idle_streams();
        self.large_body();
    }

    /// Latency where each gets so many requests a second: medians of rounds in which all take turns, and the worst of them.
    fn latency(&self, subjects: &[&Subject<'_>], rate: f64, renew: &dyn Fn()) {
        let (names, sync) = (subjects.iter().map(|s| s.name.as_str()), "one sync of 1 KiB on that disk");
        let mut rows: Vec<_> = names.chain([sync]).map(|name| (name, Vec::new(), Vec::new())).collect();
        let mut note = |row: usize, took: &[Duration]| {
            let ms = |of| percentile(took, of).as_secs_f64() * 1000.0;
            rows[row].1.push(ms(50));
            rows[row].2.push(ms(99));
        };
        for _ in 0..self.rounds {
            renew();
            for (row, subject) in subjects.iter().enumerate() {
                note(row, &paced(&self.runtime, rate, self.requests, &subject.http, &subject.make));
            }
            note(subjects.len(), &self.syncs());
        }
        println!("\n| at {rate:.0} requests a second | p50 ms | p99 ms | worst p99 ms |\n|---|---|---|---|");
        for (name, middle, late) in rows {
            let worst = late.iter().copied().fold(0.0, f64::max);
            println!("| {name} | {:.2} | {:.2} | {worst:.2} |", median(middle), median(late));
        }
    }

    fn syncs(&self) -> Vec<Duration> {
        let path = self.service.data.join("sync-probe");
        let mut file = std::fs::File::create(&path).expect("creates");
        let mut took: Vec<Duration> = (0..200)
            .map(|_| {
                let began = Instant::now();
                file.write_all(&[1; 1024]).and_then(|()| file.sync_data()).expect("syncs");
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        took
    }

    fn memory(&self, what: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("lives");
        let line = status.lines().find(|l| l.starts_with(what)).expect("a line");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
    }

    fn idle_streams(&self) {
        let gate = self.proved("/p/events");
        let before = self.memory("VmRSS");
        let mut open = Vec::new();
        for _ in 0..self.streams.div_ceil(STREAMS_EACH) {
            let http = gate.another();
            for _ in 0..STREAMS_EACH.min(self.streams) {
                let response = self.runtime.block_on(http.send(gate.request())).expect("answers");
                assert_eq!(response.status(), 200);
                open.push(response);
            }
        }
        let opened = self.memory("VmRSS");
        std::thread::sleep(Duration::from_secs(if self.streams > 1000 { 20 } else { 1 }));
        let later = self.memory("VmRSS");
        let each = (opened - before) * 1024.0 / f64::from(u32::try_from(open.len()).expect("few"));
        println!(
            "\nidle event streams: {}; memory before {before:.0} MiB, once open {opened:.0} MiB ({each:.0} KiB each), later {later:.0} MiB",
            open.len()
        );
    }

    fn large_body(&self) {
        let gate = self.proved("/p/0");
        let large = gate.to(&self.service.url("gateway", &format!("/p/{}", self.body)));
        let before = self.memory("VmHWM");
        let began = Instant::now();
        let read = self.runtime.block_on(async {
            let mut body = gate.http.send(large).await.expect("answers").into_body();
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.expect("whole").into_data().map_or(0, |d| d.len() as u64);
            }
            read
        });
        assert_eq!(read, self.body);
        let rate = f64::from(u32::try_from(read >> 20).expect("few")) / began.elapsed().as_secs_f64();
        println!(
            "a body of {} MiB, recorded, {rate:.0} MiB/s: peak memory {before:.0} MiB before, {:.0} MiB after",
            self.body >> 20,
            self.memory("VmHWM")
        );
    }
}

fn subject<'a>(name: &str, pids: Vec<u32>, http: &HttpClient, make: impl Fn() -> Request<Bytes> + 'a) -> Subject<'a> {
    Subject { name: name.into(), pids, http: http.clone(), make: Box::new(make), cpu: Vec::new(), rate: Vec::new() }
}

fn report(subjects: &[Subject<'_>]) {
    let of = |subject: usize| subjects.get(subject).map_or(1.0, |s| median(s.cpu.clone()));
    let (verified, least) = (of(1), of(2));
    println!(
        "\n| | µs of CPU a request | (bare and one verification) ÷ this | (the least) ÷ this | requests a second |\n|---|---|---|---|---|"
    );
    for subject in subjects {
        let (cpu, rate) = (median(subject.cpu.clone()), median(subject.rate.clone()));
        println!("| {} | {cpu:.0} | {:.2} | {:.2} | {rate:.0} |", subject.name, verified / cpu, least / cpu);
    }
}
