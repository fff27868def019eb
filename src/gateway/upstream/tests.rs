//! Which endpoint a request gets, over loopback sockets.

use std::time::Duration;

use http::Version;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::domain::time::Span;
use crate::gateway::upstream::config::{EjectConfig, HealthConfig};
use crate::net::body::full;

fn config(toml: &str) -> UpstreamConfig {
    toml::from_str(toml).expect("a configuration")
}

fn upstream(toml: &str) -> Arc<Upstream> {
    Arc::new(Upstream::new(&config(toml), Path::new("."), None).expect("an upstream"))
}

/// Answers every request with its own name; tells what it got.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound")
}

async fn get(upstream: &Upstream) -> Result<String, Unsent> {
    ask(upstream, "").await
}

async fn ask(upstream: &Upstream, body: &'static str) -> Result<String, Unsent> {
    let method = if body.is_empty() { "GET" } else { "POST" };
    let request = Request::builder().method(method).uri("/x").version(Version::HTTP_11);
    let (head, ()) = request.body(()).expect("builds").into_parts();
    let (response, _place) = upstream.send(&head, "/x", full(body), &|| false).await?;
    let body = crate::net::body::read(response.into_body(), 100).await.expect("reads");
    Ok(String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_and_is_left_out_in_the_end() {
    let (dead, alive) = (nobody().await, server("alive").await);
    let pool = upstream(&format!("url = [\"http://{dead}\", \"http://{alive}\"]\neject = {{ failures = 2 }}"));
    for _ in 0..10 {
        assert_eq!(get(&pool).await.expect("another endpoint answers"), "alive");
    }
    let out = |e: &Arc<Endpoint>| e.is_ejected(Instant::now());
    let endpoints = pool.endpoints().await;
    assert!(endpoints.iter().any(|e| e.address == dead && out(e)));
    assert!(endpoints.iter().all(|e| e.address == dead || !out(e)));
}

#[tokio::test]
async fn no_more_are_left_out_than_may_be() {
    let (a, b) = (nobody().await, nobody().await);
    let pool = upstream(&format!("url = [\"http://{a}\", \"http://{b}\"]\neject = {{ failures = 1 }}"));
    for _ in 0..5 {
        assert!(matches!(get(&pool).await, Err(Unsent::Unreachable(_))));
    }
    let out = pool.endpoints().await.iter().filter(|e| e.is_ejected(Instant::now())).count();
    assert_eq!(out, 1, "half of two");
    let alone = upstream(&format!("url = \"http://{a}\"\neject = {{ failures = 1 }}"));
    for _ in 0..3 {
        assert!(matches!(get(&alone).await, Err(Unsent::Unreachable(_))), "the only one is asked each time");
    }
}

#[tokio::test]
async fn a_request_whose_bytes_went_out_is_not_sent_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let rude = listener.local_addr().expect("bound");
    let counted = Arc::new(AtomicUsize::new(0));
    let seen = counted.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    let pool = upstream(&format!("url = [\"http://{rude}\"]"));
    assert!(matches!(get(&pool).await, Err(Unsent::Broke(_))));
    assert_eq!(counted.load(Ordering::SeqCst), 1);
    let other = server("other").await;
    let pool = upstream(&format!("url = [\"http://{rude}\", \"http://{other}\"]"));
    let mut broke = 0;
    for _ in 0..4 {
        broke += usize::from(get(&pool).await.is_err());
    }
    assert_eq!(broke, 2, "each request that reached it failed, and none went on to the other");
    assert_eq!(counted.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_least_busy_gets_the_request_and_a_full_upstream_refuses() {
    let (a, b) = (server("a").await, server("b").await);
    let pool = upstream(&format!("url = [\"http://{a}\", \"http://{b}\"]\nmax_requests = 3"));
    let endpoints = pool.endpoints().await;
    let busy: Vec<Place> = (0..2).map(|_| Place::take(endpoints[0].clone(), &pool.total, 3).expect("room")).collect();
    for _ in 0..6 {
        assert_eq!(get(&pool).await.expect("answers"), "b");
    }
    let third = Place::take(endpoints[1].clone(), &pool.total, 3).expect("room");
    assert!(matches!(get(&pool).await, Err(Unsent::Overloaded)));
    drop((busy, third));
    assert!(get(&pool).await.is_ok());
    assert_eq!(pool.total.load(Ordering::SeqCst), 0, "each place is given back");
}

#[tokio::test]
async fn connecting_has_a_time_limit() {
    // Nothing accepts, and the backlog is full.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).expect("a backlog")).expect("listens");
    let address = listener.local_addr().expect("bound");
    let _filling: Vec<_> =
        (0..4).filter_map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(50)).ok()).collect();
    let pool = upstream(&format!("url = \"http://{address}\"\nconnect_timeout = \"200ms\""));
    let refused = get(&pool).await;
    assert!(
        matches!(&refused, Err(Unsent::Unreachable(why)) if why.contains("no connection within 200ms")),
        "{refused:?}"
    );
}

#[test]
fn health_needs_its_number_of_answers_in_a_row() {
    let pool = upstream("url = \"http://127.0.0.1:1\"");
    let address = "127.0.0.1:1".parse().expect("an address");
    let endpoint = Endpoint::new(0, address, &pool.sites[0].dialling);
    let span = Span(Duration::from_secs(1));
    let health = HealthConfig { path: "/".into(), every: span, timeout: span, fall: 3, rise: 2 };
    let now = Instant::now();
    assert_eq!(endpoint.checked(false, &health), Some(false), "the first check decides alone");
    assert!(!endpoint.is_fit(now));
    assert_eq!([true, false, true].map(|well| endpoint.checked(well, &health)), [None, None, None]);
    assert_eq!(endpoint.checked(true, &health), Some(true));
    assert!(endpoint.is_fit(now));
    assert_eq!([false, false, true, false, false].map(|well| endpoint.checked(well, &health)), [None; 5]);
    assert_eq!(endpoint.checked(false, &health), Some(false));
}

#[test]
fn an_endpoint_that_fails_again_stays_out_longer_and_comes_back() {
    let pool = upstream("url = \"http://127.0.0.1:1\"");
    let address = "127.0.0.1:1".parse().expect("an address");
    let endpoint = Endpoint::new(0, address, &pool.sites[0].dialling);
    let eject = EjectConfig { failures: 2, time: Span(Duration::from_secs(30)), at_most: 100 };
    let at = |seconds| Instant::now() + Duration::from_secs(seconds);
    assert!(!endpoint.failed(&eject, at(0), true));
    endpoint.succeeded();
    assert!(!endpoint.failed(&eject, at(0), true), "a success in between counts anew");
    assert!(endpoint.failed(&eject, at(0), true));
    assert!(!endpoint.is_fit(at(29)) && endpoint.is_fit(at(31)));
    assert!(!endpoint.failed(&eject, at(40), true));
    assert!(endpoint.failed(&eject, at(40), true));
    assert!(!endpoint.is_fit(at(99)) && endpoint.is_fit(at(101)), "sixty seconds the second time");
}

#[test]
fn configurations_that_cannot_work_are_refused_and_say_why() {
    for (toml, why) in [
        ("url = \"127.0.0.1:80\"", "http://host:port"),
        ("url = \"http://127.0.0.1:80/path\"", "without a path"),
        ("url = \"ftp://127.0.0.1:80\"", "http://host:port"),
        ("url = \"http://user@127.0.0.1:80\"", "http://host:port"),
        ("url = \"http://127.0.0.1:99999\"", "65535"),
        ("url = \"http://[::1]:99999\"", "65535"),
        ("url = \"https://127.0.0.1:80\"", "ca_file"),
        ("url = []", "at least one"),
        ("url = \"http://a:1\"\nmtls = true", "need https"),
        ("url = \"https://a:1\"\nspiffe_id = \"spiffe://x/y\"\nca_file = \"x\"", "instead of"),
        ("url = \"https://a:1\"\nspiffe_id = \"x\"", "spiffe_id"),
        ("url = \"http://a:1\"\nhealth = { path = \"x\" }", "slash"),
        ("url = \"http://a:1\"\nhost = \"a b\"", "host"),
    ] {
        let error = Upstream::new(&config(toml), Path::new("."), None).err().unwrap_or_default();
        assert!(error.contains(why), "{toml}: {error}");
    }
    for url in ["http://127.0.0.1", "http://[::1]", "http://[::1]:80", "http://engine"] {
        assert!(Upstream::new(&config(&format!("url = \"{url}\"")), Path::new("."), None).is_ok(), "{url}");
    }
}

/// A name whose addresses a test changes.
fn named(toml: &str) -> (Arc<Upstream>, Arc<std::sync::Mutex<Vec<SocketAddr>>>) {
    let addresses = Arc::<std::sync::Mutex<Vec<SocketAddr>>>::default();
    let told = addresses.clone();
    let mut upstream = Upstream::new(&config(toml), Path::new("."), None).expect("an upstream");
    upstream.names = names::Names::new(move |host, _| {
        let found = told.lock().expect("whole").clone();
        async move { if host == "engine.example" { Ok(found) } else { Err(std::io::Error::other("unknown")) } }
    });
    (Arc::new(upstream), addresses)
}

#[tokio::test]
async fn a_name_that_comes_to_another_address_is_followed_and_one_that_comes_to_none_stays() {
    let (first, second) = (server("first").await, server("second").await);
    let (pool, addresses) = named("url = \"http://engine.example:8024\"\nresolve_every = \"10ms\"");
    *addresses.lock().expect("whole") = vec![first];
    pool.start();
    assert_eq!(get(&pool).await.expect("answers"), "first");
    *addresses.lock().expect("whole") = vec![second];
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    while get(&pool).await.expect("one of them answers") == "first" {
        assert!(tokio::time::Instant::now() < until, "the new address is never asked");
    }
    // What cannot be resolved leaves the pool as it was.
    addresses.lock().expect("whole").clear();
    let before = pool.endpoints.load_full();
    while Arc::ptr_eq(&before, &pool.endpoints.load_full()) {
        assert_eq!(get(&pool).await.expect("the last address answers"), "second");
        assert!(tokio::time::Instant::now() < until, "it is resolved again and again");
    }
    assert_eq!(get(&pool).await.expect("it still does"), "second");
    let (unknown, _) = named("url = \"http://other.example\"");
    assert!(matches!(get(&unknown).await, Err(Unsent::Unreachable(_))));
}

/// Takes connections of HTTP/2. The first one's goes once its request has come, and says that it looked at `looked_at` streams; later
/// ones answer. Tells how many came.
async fn going(looked_at: u8) -> (SocketAddr, Arc<AtomicUsize>) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let counted = Arc::new(AtomicUsize::new(0));
    let seen = counted.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if seen.fetch_add(1, Ordering::SeqCst) == 0 {
                stream.write_all(&SETTINGS).await.expect("writes");
                let mut read = Vec::new();
                while !has_head(&read) {
                    assert!(stream.read_buf(&mut read).await.expect("reads") > 0);
                }
                let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, looked_at, 0, 0, 0, 0];
                stream.write_all(&go_away).await.expect("writes");
                continue;
            }
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let (mut sent, mut all) = (request.into_body(), b"later".to_vec());
                        while let Some(data) = sent.data().await {
                            all.extend(data.expect("sound"));
                        }
                        let mut body = respond.send_response(Response::new(()), false).expect("sends");
                        body.send_data(all.into(), true).expect("sends");
                    });
                }
            });
        }
    });
    (address, counted)
}

/// Whether the frames that begin behind the preface have one of type HEADERS.
fn has_head(read: &[u8]) -> bool {
    let mut at = 24;
    while let Some(head) = read.get(at..at + 9) {
        if head[3] == 1 {
            return true;
        }
        at += 9 + (usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]));
    }
    false
}

#[tokio::test]
async fn what_its_connection_did_not_look_at_goes_over_another_and_nothing_else_does() {
    let (address, counted) = going(0).await;
    let pool = upstream(&format!("url = \"http://{address}\"\nprotocol = \"http2\"\neject = {{ failures = 1 }}"));
    assert_eq!(get(&pool).await.expect("answers"), "later");
    assert_eq!(counted.load(Ordering::SeqCst), 2);
    let (address, _) = going(0).await;
    let pool = upstream(&format!("url = \"http://{address}\"\nprotocol = \"http2\""));
    assert_eq!(ask(&pool, ", with its body").await.expect("answers"), "later, with its body");

    let (address, counted) = going(1).await;
    let pool = upstream(&format!("url = \"http://{address}\"\nprotocol = \"http2\""));
    assert!(matches!(get(&pool).await, Err(Unsent::Broke(_))), "it may have acted");
    assert_eq!(counted.load(Ordering::SeqCst), 1);
    assert_eq!(get(&pool).await.expect("answers"), "later", "the next one dials");
}

#[tokio::test]
async fn who_waits_for_a_connection_learns_with_it_that_there_is_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let pool = upstream(&format!(
        "url = \"https://{address}\"\nprotocol = \"http2\"\nspiffe_id = \"spiffe://example.org/engine\"\neject = {{ failures = 0 }}"
    ));
    assert_eq!(pool.endpoints().await.len(), 1);
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { get(&pool).await })
        })
        .collect();
    // All four are at it before the first hears that the handshake failed.
    drop(listener.accept().await.expect("accepts"));
    for one in asking {
        assert!(matches!(one.await.expect("runs"), Err(Unsent::Unreachable(_))));
    }
    let again = tokio::time::timeout(Duration::from_millis(20), listener.accept());
    assert!(again.await.is_err(), "none of the others dialled again");
}

#[tokio::test]
async fn what_an_endpoint_refuses_unseen_is_sent_again_and_what_it_always_refuses_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let (refusals, counted) = (Arc::new(AtomicUsize::new(1)), Arc::new(AtomicUsize::new(0)));
    let (left, seen) = (refusals.clone(), counted.clone());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut connection = h2::server::handshake::<_>(stream).await.expect("HTTP/2");
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            if left.load(Ordering::SeqCst) > 0 {
                left.fetch_sub(1, Ordering::SeqCst);
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                continue;
            }
            let mut body = respond.send_response(Response::new(()), false).expect("sends");
            body.send_data(bytes::Bytes::from_static(b"at last"), true).expect("sends");
        }
    });
    let pool = upstream(&format!("url = \"http://{address}\"\nprotocol = \"http2\"\neject = {{ failures = 0 }}"));
    assert_eq!(ask(&pool, "a body").await.expect("answers"), "at last");
    assert_eq!(counted.load(Ordering::SeqCst), 2);
    refusals.store(99, Ordering::SeqCst);
    assert!(matches!(get(&pool).await, Err(Unsent::Unseen(_))));
    assert_eq!(counted.load(Ordering::SeqCst), 4, "once more, and no more");
}
