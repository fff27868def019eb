//! Where requests go: pools with health checks, upstreams that prove who they are, and bodies that are signed for.

use std::sync::Arc;

use http::{HeaderMap, Method};
use hyper_util::rt::{TokioExecutor, TokioIo};
use popgate::client::session::Call;
use popgate::domain::secret::AccessToken;
use popgate::net::tls::{self, ClientTrust, ServerIdentity, Versions};
use popgate::protocol::svid::X509Svid;
use popgate::store::clock::SystemClock;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::protocols::{operation, route};
use crate::world::{BOB, Client, HandMade, Service, Upstream, key_of, respond, stdout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_that_signs_for_another_body_is_refused() {
    let upstream = Upstream::start().await;
    let routes = route("d", "/d", &format!("url = \"http://{}\"", upstream.address), "content_digest = true")
        + &operation("x.post", "POST /d/**", "")
        + &operation("x.get", "GET /d/**", "");
    let service = Service::start_routes(&routes, &["x.post", "x.get"], &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/d/x");
    assert_eq!(solver.call("POST", &url, &[], "{\"a\":1}").await.status, 200, "our clients sign");
    assert_eq!(solver.get(&url).await.status, 200, "nothing to sign for");
    let token = solver.token(&url).await;
    let key = || key_of(solver.session.identity());
    for (claim, status) in [
        (None, 401),
        (Some("sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"), 401),
        (Some("nonsense"), 401),
        (Some("sha-256=:AVq9f1zFei3ZS3WQ8ErYCEJzkFzOQ7iE+oe+jEiN+7w=:"), 401),
    ] {
        let mut nonce: Option<String> = None;
        let answer = loop {
            let mut proof = HandMade::new(key(), "POST", &url, Some(&token));
            if let Some(claim) = claim {
                proof.payload["content_digest"] = claim.into();
            }
            if let Some(nonce) = &nonce {
                proof.payload["nonce"] = nonce.as_str().into();
            }
            let call = Call::new(Method::POST, &url, HeaderMap::new(), "{\"a\":2}".into());
            let mut headers = HeaderMap::new();
            headers.insert("authorization", format!("DPoP {}", token.expose()).parse().expect("a value"));
            headers.insert("dpop", proof.sign().parse().expect("a value"));
            headers.insert("content-type", "application/json".parse().expect("a value"));
            let response = solver.session.raw(&call, headers, false).await.expect("answered");
            let answer = crate::world::Answer::read(response).await;
            if answer.error() != "use_dpop_nonce" {
                break answer;
            }
            nonce = Some(answer.header("dpop-nonce").to_owned());
        };
        assert_eq!((answer.status, answer.error()), (status, "invalid_dpop_proof"), "{claim:?}: {}", answer.text());
        assert!(answer.text().contains("content_digest"), "{}", answer.text());
    }
    assert_eq!(upstream.count(), 2, "none of them reached upstream");
}

/// A server that shows an identity of the trust domain, and tells in its answer who called.
fn serve_as(identity: &popgate::client::identity::Identity, listener: TcpListener) {
    let own = ServerIdentity::new(identity.chain.clone(), identity.private_key()).expect("an identity");
    let check: tls::LeafCheck = Arc::new(|der, _| X509Svid::parse(der).map(drop).map_err(|e| e.to_string()));
    let trust = ClientTrust { roots: tls::fixed_roots(identity.roots.clone()), check, clock: Arc::new(SystemClock) };
    let config = tls::server(own, Some(trust), Versions::Tls13).expect("a configuration");
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let caller = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
            let caller =
                caller.and_then(|c| X509Svid::parse(c).ok()).map_or("nobody".into(), |s| s.spiffe_id.to_string());
            let answer = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let told = format!("{caller} over {:?}", request.version());
                async move { Ok::<_, std::convert::Infallible>(respond(200, "text/plain", told)) }
            });
            let connection = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::spawn(
                async move { connection.serve_connection(TokioIo::new(stream), answer).await.map_err(|_| ()) },
            );
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_is_who_it_must_be_and_sees_the_gateways_own_certificate() {
    let listeners = [
        TcpListener::bind("127.0.0.1:0").await.expect("binds"),
        TcpListener::bind("127.0.0.1:0").await.expect("binds"),
    ];
    let ports = [&listeners[0], &listeners[1]].map(|l| l.local_addr().expect("bound").port());
    let url = |n: usize| format!("url = \"https://127.0.0.1:{}\", spiffe_id = \"spiffe://example.org/tot\"", ports[n]);
    let routes = route("m", "/m", &(url(0) + ", mtls = true"), "")
        + &operation("x.m", "GET /m/**", "")
        + &route("n", "/n", &url(0), "")
        + &operation("x.n", "GET /n/**", "")
        + &route("w", "/w", &url(1), "")
        + &operation("x.w", "GET /w/**", "");
    let service = Service::start_routes(&routes, &["x.m", "x.n", "x.w"], &[]).await;
    for id in ["spiffe://example.org/tot", "spiffe://example.org/other"] {
        let entry = json!({"spiffe_id": id, "owner": BOB, "groups": [], "operations": []});
        service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    }
    let [first, second] = listeners;
    serve_as(service.enrol("spiffe://example.org/tot").await.as_ref(), first);
    serve_as(service.enrol("spiffe://example.org/other").await.as_ref(), second);
    let solver = service.solver().await;
    let told = solver.get(&service.url("gateway", "/m/x")).await;
    assert_eq!((told.status, told.text().as_str()), (200, "spiffe://example.org/popgate/server over HTTP/2.0"));
    assert_eq!(solver.get(&service.url("gateway", "/n/x")).await.text(), "nobody over HTTP/2.0");
    let wrong = solver.get(&service.url("gateway", "/w/x")).await;
    assert_eq!((wrong.status, wrong.problem().as_str()), (502, "upstream"), "another workload answers");
    assert!(!wrong.text().contains("other"), "the inside is not told: {}", wrong.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_unwell_gets_no_requests_until_it_is_well_and_a_reload_keeps_the_pool() {
    let (good, bad) = (Upstream::start().await, Upstream::start().await);
    let unwell = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = unwell.clone();
    bad.on_request(move |seen| {
        let status =
            if seen.target == "/healthz" && state.load(std::sync::atomic::Ordering::SeqCst) { 500 } else { 200 };
        respond(status, "text/plain", "bad")
    });
    good.on_request(|_| respond(200, "text/plain", "good"));
    let upstream = format!(
        "url = [\"http://{}\", \"http://{}\"], health = {{ path = \"/healthz\", every = \"50ms\", fall = 1, rise = 1 }}",
        good.address, bad.address
    );
    let routes = route("p", "/p", &upstream, "") + &operation("x.get", "GET /p/**", "");
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/p/x");
    let checked = |upstream: &Upstream| upstream.seen().iter().filter(|s| s.target == "/healthz").count();
    while checked(&bad) < 2 || checked(&good) < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..8 {
        assert_eq!(solver.get(&url).await.text(), "good");
    }
    let connections = good.seen().len();
    service.signal(nix::sys::signal::Signal::SIGHUP);
    unwell.store(false, std::sync::atomic::Ordering::SeqCst);
    let mut both = std::collections::BTreeSet::new();
    while both.len() < 2 {
        both.insert(solver.get(&url).await.text());
    }
    assert!(good.seen().len() > connections);
    let host = good.seen().into_iter().find(|s| s.target == "/p/x").expect("one").headers["host"].clone();
    assert_eq!(host, good.address.as_str(), "the pool is one authority to all of its endpoints");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_named_may_call_and_read_answers_and_others_learn_nothing() {
    let upstream = Upstream::start().await;
    let routes = route(
        "c",
        "/c",
        &format!("url = \"http://{}\"", upstream.address),
        "cors = { origins = [\"https://app.example\"], headers = [\"x-app\"] }",
    ) + &operation("x.get", "GET /c/**", "");
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/c/x");
    let asking = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
    let told = solver.raw("OPTIONS", &url, &asking, false).await;
    assert_eq!((told.status, told.header("access-control-allow-origin")), (204, "https://app.example"));
    assert_eq!(told.header("access-control-allow-methods"), "GET");
    assert_eq!(
        told.header("access-control-allow-headers"),
        "authorization, dpop, content-type, popgate-approval, x-app"
    );
    let refused = solver.raw("GET", &url, &asking[..1], false).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, "https://app.example"));
    assert!(refused.header("access-control-expose-headers").contains("dpop-nonce"));
    let answer = solver.call("GET", &url, &asking[..1], "").await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "https://app.example"));
    for other in ["https://evil.example", "http://app.example", "https://app.example:444", "null"] {
        let told = solver.raw("OPTIONS", &url, &[("origin", other), asking[1]], false).await;
        assert_eq!((told.status, told.header("access-control-allow-origin")), (401, ""), "{other}");
        assert_eq!(told.header("vary"), "origin", "what is kept of it is not for the pages that may");
        let answer = solver.call("GET", &url, &[("origin", other)], "").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, ""), "{other}");
    }
    let elsewhere = solver.raw("OPTIONS", &service.url("gateway", "/v1/runs/r1"), &asking, false).await;
    assert_eq!(elsewhere.status, 401, "a route that names no pages");
    assert_eq!(upstream.seen().iter().filter(|s| s.method == "OPTIONS").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_sets_and_removes_headers_both_ways() {
    let upstream = Upstream::start().await;
    upstream.on_request(|_| {
        let mut response = respond(200, "text/plain", "x");
        for (name, value) in [("server", "engine/1"), ("x-kept", "1"), ("cache-control", "public")] {
            response.headers_mut().append(name, value.parse().expect("a value"));
        }
        response
    });
    let rules = "request_headers = { set = { x-team = \"ours\", x-forwarded-proto = \"https\" }, remove = [\"x-debug\"] }\nresponse_headers = { set = { cache-control = \"no-store\" }, remove = [\"server\"] }";
    let routes = route("h", "/h", &format!("url = \"http://{}\"", upstream.address), rules)
        + &operation("x.get", "GET /h/**", "");
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let solver = service.solver().await;
    let sent = [("x-team", "theirs"), ("x-debug", "1"), ("x-own", "2"), ("x-forwarded-proto", "http")];
    let answer = solver.call("GET", &service.url("gateway", "/h/x"), &sent, "").await;
    assert_eq!((answer.status, answer.header("server"), answer.header("x-kept")), (200, "", "1"));
    let controls: Vec<_> = answer.headers.get_all("cache-control").iter().collect();
    assert_eq!(controls, ["no-store"]);
    let seen = upstream.seen().pop().expect("one");
    let got = |name: &str| seen.headers.get_all(name).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
    assert_eq!((got("x-team"), got("x-debug"), got("x-own")), (vec!["ours"], vec![], vec!["2"]));
    assert_eq!(got("x-forwarded-proto"), ["https"]);
    assert_eq!(got("txn-token").len(), 1, "ours is written after");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_answers_to_head_have_a_head_alone() {
    let service = Service::start().await;
    let solver = service.solver().await;
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    for (path, proved, status) in [
        ("/v1/runs/r1", false, 401),
        ("/v1/unlisted/x", true, 403),
        ("/nowhere", false, 401),
        ("/.well-known/oauth-protected-resource/v1", false, 200),
        ("/.popgate/x", false, 404),
    ] {
        let url = service.url("gateway", path);
        let call = Call::new(Method::HEAD, &url, HeaderMap::new(), "".into());
        let response = match proved {
            true => solver.session.call(&call).await,
            false => solver.session.raw(&call, HeaderMap::new(), false).await,
        };
        let response = response.expect("answered");
        assert_eq!((response.status().as_u16(), response.version()), (status, http::Version::HTTP_2), "{path}");
        let length = response.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        assert!(length.is_some_and(|n| n > 10), "what GET would get: {length:?}");
        let body = popgate::net::body::read(response.into_body(), 1000).await;
        assert!(body.is_ok_and(|b| b.is_empty()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_signs_for_a_body_is_held_to_it_on_any_route() {
    let upstream = Upstream::start().await;
    let routes = route("p", "/p", &format!("url = \"http://{}\"", upstream.address), "")
        + &operation("x.post", "POST /p/**", "")
        + &operation("x.get", "GET /p/**", "");
    let service = Service::start_routes(&routes, &["x.post", "x.get"], &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/p/x");
    let token = solver.token(&url).await;
    assert_eq!(solver.get(&url).await.status, 200, "learns the nonce");
    for (signed, sent, status) in [("{\"n\":1}", "{\"n\":9999}", 401), ("{\"n\":1}", "{\"n\":1}", 200)] {
        let call = Call::new(Method::POST, &url, HeaderMap::new(), sent.into());
        let proof = solver.session.prove_body("POST", &url, Some(&token), Some(signed.as_bytes()));
        let mut headers = HeaderMap::new();
        headers.insert("authorization", format!("DPoP {}", token.expose()).parse().expect("a value"));
        headers.insert("dpop", proof.parse().expect("a value"));
        headers.insert("content-type", "application/json".parse().expect("a value"));
        let response = solver.session.raw(&call, headers, false).await.expect("answered");
        assert_eq!(response.status().as_u16(), status, "signed {signed}, sent {sent}");
    }
    assert_eq!(upstream.count(), 2);
    // Of unknown length, and of one that nobody holds: the last of it does not go out.
    for length in [7, 3 << 20] {
        let body = " ".repeat(length - 7) + "{\"n\":1}";
        for (signed, status) in [("another", "401 "), (body.as_str(), "200 ")] {
            let proof = solver.session.prove_body("POST", &url, Some(&token), Some(signed.as_bytes()));
            let answer = chunked(&service, &solver, &token, &proof, &body).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")),
                "{length} bytes, signed {:.9}: {answer}",
                signed
            );
        }
    }
    assert_eq!(upstream.count(), 4, "upstream had no other body whole");
    let report = service.verify().await;
    assert!(stdout(&report).contains("\"signed_bodies\":3,\"signed_otherwise\":2"), "{}", stdout(&report));
}

/// Posts a body of unknown length to `/p/x`, and reads the answer.
async fn chunked(service: &Service, client: &Client, token: &AccessToken, proof: &str, body: &str) -> String {
    let host = service.addresses["gateway"].trim_start_matches("https://");
    let head = format!(
        "POST /p/x HTTP/1.1\r\nhost: {host}\r\nauthorization: DPoP {}\r\ndpop: {proof}\r\nprefer: wait=0\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        token.expose()
    );
    let mut stream = service.raw(client, b"http/1.1").await;
    stream.write_all(head.as_bytes()).await.expect("writes");
    for chunk in body.as_bytes().chunks(16 << 10) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.expect("writes");
        stream.write_all(chunk).await.expect("writes");
        stream.write_all(b"\r\n").await.expect("writes");
    }
    stream.write_all(b"0\r\n\r\n").await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_for_an_approval_is_what_was_signed_for_whatever_length_it_told() {
    let upstream = Upstream::start().await;
    let routes = route("p", "/p", &format!("url = \"http://{}\"", upstream.address), "")
        + &operation("x.post", "POST /p/**", "")
        + &operation("x.get", "GET /p/**", "");
    let held = r#"@id("held") @approval("1 of security") permit (principal in Group::"solvers", action == Action::"x.post", resource);"#;
    let service = Service::start_routes(&routes, &["x.get"], &[("held.cedar", held)]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/p/x");
    let token = solver.token(&url).await;
    assert_eq!(solver.get(&url).await.status, 200, "learns the nonce");
    for (signed, status) in [("{\"n\":2}", "401 "), ("{\"n\":1}", "202 ")] {
        let proof = solver.session.prove_body("POST", &url, Some(&token), Some(signed.as_bytes()));
        let answer = chunked(&service, &solver, &token, &proof, "{\"n\":1}").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "signed {signed}: {answer}");
    }
    assert_eq!(upstream.count(), 1);
}
