//! Connections that are made to cost: floods of HTTP/2 frames, headers without an end, requests that never come. The gateway
//! ends them, and others do not notice.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::smuggling::{frame, integer};
use crate::world::Service;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const END_STREAM: u8 = 1;

fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(SETTINGS, 0, 0, &[], &mut bytes);
    bytes
}

/// A request's header block, without credentials.
fn block(more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    let good = [(":method", "GET"), (":scheme", "https"), (":authority", "127.0.0.1"), (":path", "/v1/runs/r1")];
    for (name, value) in good.iter().chain(more) {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Writes pieces until the other side has had enough; whether it had, before this many.
async fn flood(stream: TlsStream<TcpStream>, times: usize, mut piece: impl FnMut(usize) -> Vec<u8>) -> bool {
    let (mut from, mut to) = tokio::io::split(stream);
    let told = tokio::spawn(async move {
        let mut all: Vec<u8> = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(n) = from.read(&mut buffer).await {
            if n == 0 {
                break;
            }
            // The end is what counts.
            all.extend(&buffer[..n]);
            let keep = all.len().saturating_sub(4096);
            all.drain(..keep);
        }
        all
    });
    let mut ended = to.write_all(&preface()).await.is_err();
    for n in 0..times {
        if to.write_all(&piece(n)).await.is_err() {
            ended = true;
            break;
        }
    }
    // Reading ends by itself where the connection was ended.
    let read = tokio::time::timeout(Duration::from_secs(3), told).await;
    ended || read.is_ok()
}

fn memory(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("lives");
    let resident = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a size");
    resident.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http_2_frames_end_their_connection_and_nothing_else() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let before = memory(&service);
    let h2 = async || service.raw(&solver, b"h2").await;
    let stream = |n: usize| u32::try_from(2 * n + 1).expect("a stream");
    // Rapid reset (CVE-2023-44487): requests that are taken back at once.
    let rapid = flood(h2().await, 20_000, |n| {
        let mut bytes = Vec::new();
        frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &block(&[]), &mut bytes);
        frame(RESET, 0, stream(n), &8_u32.to_be_bytes(), &mut bytes);
        bytes
    });
    assert!(rapid.await, "rapid reset");
    // CONTINUATION without an end (CVE-2024-27316).
    let endless = flood(h2().await, 20_000, |n| {
        let mut bytes = Vec::new();
        if n == 0 {
            frame(HEADERS, END_STREAM, 1, &block(&[]), &mut bytes);
        }
        let mut more = vec![0];
        integer(6, &mut more);
        more.extend(format!("x-{:04}", n % 10_000).as_bytes());
        integer(512, &mut more);
        more.extend([b'a'; 512]);
        frame(CONTINUATION, 0, 1, &more, &mut bytes);
        bytes
    });
    assert!(endless.await, "CONTINUATION");
    // Settings and pings that each want an answer, which nobody reads fast enough.
    for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[7; 8])] {
        let stream = h2().await;
        let mut bytes = preface();
        for _ in 0..50_000 {
            frame(kind, 0, 0, payload, &mut bytes);
        }
        let (from, mut to) = tokio::io::split(stream);
        let _ = tokio::time::timeout(Duration::from_secs(3), to.write_all(&bytes)).await;
        assert_eq!(solver.get(&url).await.status, 200, "others are served beside {kind}");
        drop((from, to));
    }
    // A small block that becomes a large list of headers: one long value, named again and again (HPACK).
    let bomb = flood(h2().await, 1, |_| {
        let mut bytes = Vec::new();
        let mut packed = block(&[]);
        // With incremental indexing: `x` and four thousand bytes go into the table as entry 62.
        packed.push(0x40);
        integer(1, &mut packed);
        packed.push(b'x');
        integer(4000, &mut packed);
        packed.extend([b'a'; 4000]);
        packed.extend(std::iter::repeat_n(0x80 | 62, 12_000));
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &packed, &mut bytes);
        bytes
    });
    let _ = bomb.await;
    assert_eq!(solver.get(&url).await.status, 200, "others are served");
    let grown = memory(&service).saturating_sub(before);
    assert!(grown < 100 * 1024, "{grown} KiB more than before the floods");
    assert_eq!(service.upstream.seen().iter().filter(|s| !s.headers.contains_key("txn-token")).count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_and_streams_have_limits() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    // One header, or many, of more than the limit: refused, and nothing held for it.
    for (name, count) in [("long", 1), ("many", 300)] {
        let mut stream = service.raw(&solver, b"http/1.1").await;
        let value = "a".repeat(if count == 1 { 200_000 } else { 1000 });
        let lines: String = (0..count).map(|n| format!("x-{n}: {value}\r\n")).collect();
        let request = format!("GET /v1/runs/r1 HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}\r\n");
        let _ = stream.write_all(request.as_bytes()).await;
        let mut told = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut told)).await;
        let told = String::from_utf8_lossy(&told);
        assert!(
            told.is_empty() || told.starts_with("HTTP/1.1 431") || told.starts_with("HTTP/1.1 400"),
            "{name}: {told}"
        );
    }
    // More streams than the limit says at once: those beyond are refused, the connection goes on.
    let mut stream = service.raw(&solver, b"h2").await;
    let mut bytes = preface();
    for n in 0..300_u32 {
        frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&[("content-length", "5")]), &mut bytes);
    }
    stream.write_all(&bytes).await.expect("writes");
    let mut told: Vec<u8> = Vec::new();
    let mut buffer = [0; 65536];
    while let Ok(Ok(n)) = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut buffer)).await {
        if n == 0 {
            break;
        }
        told.extend(&buffer[..n]);
    }
    assert!(!told.is_empty());
    assert_eq!(solver.get(&url).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_slow_nobody_down_and_are_closed() {
    // A thousand here; `POPGATE_TEST_LORIS=10000` is the long form.
    let count: usize = std::env::var("POPGATE_TEST_LORIS").map_or(1000, |n| n.parse().expect("a number"));
    popgate::app::raise_open_files();
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let mut idle = Vec::new();
    for n in 0..count {
        let address = service.addresses["gateway"].trim_start_matches("https://");
        // Some do not even begin a handshake; others begin a request and do not end it.
        if n % 4 == 0 {
            let mut stream = service.raw(&solver, b"http/1.1").await;
            stream.write_all(b"GET /v1/runs/r1 HTTP/1.1\r\nhost: ").await.expect("writes");
            idle.push((None, Some(stream)));
        } else {
            idle.push((Some(TcpStream::connect(address).await.expect("connects")), None));
        }
    }
    for _ in 0..50 {
        assert_eq!(solver.get(&url).await.status, 200);
        let other = service.raw(&solver, b"http/1.1").await;
        assert_eq!(other.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "newcomers are served, too");
    }
    // Each is closed in its time: a handshake has ten seconds, a request fifteen.
    for (plain, secured) in idle {
        let mut rest = Vec::new();
        let closed = async {
            match (plain, secured) {
                (Some(mut stream), _) => drop(stream.read_to_end(&mut rest).await),
                (_, Some(mut stream)) => drop(stream.read_to_end(&mut rest).await),
                _ => {}
            }
        };
        tokio::time::timeout(Duration::from_secs(40), closed).await.expect("closed by the gateway");
    }
    assert_eq!(solver.get(&url).await.status, 200);
}
