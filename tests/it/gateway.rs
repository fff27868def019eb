//! The data path: what upstream gets, what the client gets, and what neither gets.

use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::world::{ENGINE_KEY, Service, plain_get, respond, streaming};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_gets_the_request_without_its_credential_and_with_a_transaction_token() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs?x=1&y=%20");
    let headers = [
        ("x-app", "kept"),
        ("x-forwarded-for", "1.2.3.4"),
        ("txn-token", "forged"),
        ("forwarded", "for=evil"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    let answer = solver.call("POST", &url, &headers, r#"{"a":1}"#).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = service.upstream.seen().pop().expect("one");
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), &seen.body[..]),
        ("POST", "/v1/runs?x=1&y=%20", &br#"{"a":1}"#[..])
    );
    for gone in ["authorization", "dpop", "x-forwarded-for"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(seen.headers["x-app"], "kept");
    assert_eq!(seen.headers.get_all("txn-token").iter().count(), 1);
    assert_ne!(seen.headers["txn-token"], "forged");
    assert!(
        seen.headers["traceparent"].to_str().expect("text").starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"),
        "the trace is continued"
    );
    assert!(seen.headers["forwarded"].to_str().expect("text").contains("proto=https"));
    assert_eq!(answer.header("popgate-request-id").len(), 32);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_two_readings_are_refused_before_anything_else() {
    let service = Service::start().await;
    let solver = service.solver().await;
    for (path, status, problem) in [
        ("/v1/runs/%2e%2e/x", 400, "path"),
        ("/v1/runs/a%2Fb", 400, "path"),
        ("/v1/runs/a%5Cb", 400, "path"),
        ("/v1/runs/a%00", 400, "path"),
    ] {
        let answer = solver.raw("GET", &service.url("gateway", path), &[], false).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{path}");
    }
    let url = service.url("gateway", "/v1/runs/r1");
    let answer = solver.raw("GET", &url, &[("host", "evil.example")], false).await;
    assert!(matches!(answer.status, 400 | 421), "{}", answer.status);
    assert_eq!(service.upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_denies_what_nothing_permits_and_names_the_reason() {
    let service = Service::start().await;
    let (solver, narrow) = (service.solver().await, service.workload("spiffe://example.org/ci/narrow").await);
    let cases = [
        (&solver, "PATCH", "/v1/runs/r1", "", 403, "unlisted"),
        (&solver, "DELETE", "/v1/runs/r1", "", 403, "policy"),
        (&narrow, "GET", "/v1/runs/r1", "", 403, "policy"),
        (&solver, "POST", "/v1/runs/r1/nodes/n1/prune", "", 415, "body"),
        (&solver, "POST", "/v1/runs/r1/nodes/n1/prune", r#"{"if_version":"1"}"#, 400, "body"),
        (&solver, "POST", "/v1/runs/r1/nodes/n1/prune", r#"{"if_version":1,"if_version":2}"#, 400, "body"),
        (&solver, "POST", "/v1/runs/r1/nodes/n1/prune", r#"{"if_version":0}"#, 403, "policy"),
    ];
    for (client, method, path, body, status, problem) in cases {
        let answer = client.call(method, &service.url("gateway", path), &[], body).await;
        assert_eq!(
            (answer.status, answer.problem().as_str()),
            (status, problem),
            "{method} {path} {body}: {}",
            answer.text()
        );
        if problem == "policy" {
            assert_eq!(answer.json()["policy_version"].as_str().map(str::len), Some(64));
            assert!(answer.json()["rule"].is_string());
        }
    }
    let absent = solver.call("POST", &service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), &[], "{}").await;
    assert!(
        absent.json()["detail"].as_str().is_some_and(|d| d.contains("/if_version") && d.contains("long")),
        "{}",
        absent.text()
    );
    assert_eq!(service.upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proved_request_to_no_route_is_404_and_an_unproved_one_learns_nothing() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let known = service.url("gateway", "/v1/runs/r1");
    crate::proofs::learn_nonce(&service, &solver, &known).await;
    let (url, token) = (service.url("gateway", "/nowhere"), solver.token(&known).await);
    let proof = solver.session.prove("GET", &url, Some(&token));
    let authorization = format!("DPoP {}", token.expose());
    let answer = solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], false).await;
    assert_eq!((answer.status, answer.problem().as_str()), (404, "no-route"), "{}", answer.text());
    assert_eq!(solver.raw("GET", &url, &[], false).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_a_rule_must_read_has_a_limit() {
    let service = Service::start_with("[limits]\nheld_body = 1000\n").await;
    let solver = service.solver().await;
    let body = format!(r#"{{"if_version":1,"pad":"{}"}}"#, "x".repeat(2000));
    let answer = solver.call("POST", &service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), &[], &body).await;
    assert_eq!((answer.status, answer.problem().as_str()), (413, "body"));
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let form = solver.call("POST", &service.url("gateway", "/raw/x"), &kind, &format!("a={}", "x".repeat(2000))).await;
    assert_eq!((form.status, form.problem().as_str()), (413, "body"), "a form is held, too: it may hide a token");
    assert_eq!(service.upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_are_masked_and_what_the_mask_cannot_read_is_held_back() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    service.upstream.on_request(|_| {
        let mut response = respond(200, "application/json", r#"{"mail":"ada@example.org","card":"4111111111111111"}"#);
        response.headers_mut().insert("etag", "\"x\"".parse().expect("value"));
        response
    });
    let answer = solver.get(&url).await;
    assert_eq!(answer.text(), r#"{"mail":"[redacted:email]","card":"[redacted:card]"}"#);
    assert!(!answer.headers.contains_key("etag"), "a changed body has another tag");
    assert_eq!(service.upstream.seen().last().expect("seen").headers["accept-encoding"], "identity");
    let secret = "ada@example.org";
    for (kind, coding, status) in [
        ("application/octet-stream", "", 200),
        ("image/png", "", 200),
        ("application/json", "gzip", 200),
        ("text/plain; charset=utf-7", "", 200),
        ("application/json", "", 206),
    ] {
        service.upstream.on_request(move |_| {
            let mut response = respond(status, kind, secret);
            if !coding.is_empty() {
                response.headers_mut().insert("content-encoding", coding.parse().expect("value"));
            }
            response
        });
        let answer = solver.get(&url).await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "unmaskable"), "{kind} {coding} {status}");
        assert!(!answer.text().contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_events_value_is_masked_although_it_comes_in_pieces() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |_| {
        let (response, pieces) = streaming("text/event-stream");
        sender.send(pieces).expect("sends");
        response
    });
    let mut response = solver.open("GET", &service.url("gateway", "/v1/runs/r1/events"), &[], "").await;
    let pieces = receiver.recv().expect("opened");
    pieces.send(Bytes::from_static(b"data: first\n\n")).expect("sends");
    let first = response.body_mut().frame().await.expect("a frame").expect("good").into_data().expect("data");
    assert_eq!(first, "data: first\n\n", "an event goes out at once, before the next one comes");
    for piece in [&b"data: 4111 11"[..], b"11 1111 1", b"111\n", b"\n"] {
        pieces.send(Bytes::copy_from_slice(piece)).expect("sends");
    }
    drop(pieces);
    let rest = response.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(rest, "data: [redacted:card]\n\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_injected_credential_goes_upstream_and_comes_back_to_nobody() {
    let service = Service::start().await;
    let solver = service.solver().await;
    service.upstream.on_request(|seen| {
        let key = seen.headers["x-api-key"].clone();
        let mut response =
            respond(200, "application/octet-stream", format!("you sent {}", key.to_str().expect("text")));
        response.headers_mut().insert("x-echo", key);
        response
    });
    let answer = solver.get(&service.url("gateway", "/raw/a")).await;
    assert_eq!(answer.text(), "you sent Key [redacted:credential]");
    assert!(!answer.headers.contains_key("x-echo"));
    assert_eq!(service.upstream.seen()[0].headers["x-api-key"], format!("Key {ENGINE_KEY}").as_str());
    // The file is read again on change.
    std::fs::write(service.base().join("engine-key"), "rotated-9a8b7c\n").expect("writes");
    let answer = solver.get(&service.url("gateway", "/raw/a")).await;
    assert_eq!(answer.text(), "you sent Key [redacted:credential]");
    assert_eq!(service.upstream.seen()[1].headers["x-api-key"], "Key rotated-9a8b7c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_stream_both_ways_and_head_has_none() {
    let service = Service::start().await;
    let solver = service.solver().await;
    service.upstream.on_request(|seen| respond(200, "application/octet-stream", seen.body.clone()));
    let body = "0123456789abcdef".repeat(1 << 16);
    let answer = solver
        .call("POST", &service.url("gateway", "/raw/echo"), &[("content-type", "application/octet-stream")], &body)
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body.len(), body.len());
    assert!(answer.body == body.as_bytes());
    let head = solver.call("HEAD", &service.url("gateway", "/raw/x"), &[], "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_down_is_told_as_such() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let answer = solver.get(&service.url("gateway", "/dead/x")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream"));
    assert!(answer.text().contains("may be down"), "{}", answer.text());
    assert!(!answer.text().contains("127.0.0.1:1"), "the inside is not told outside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_a_certificate_bound_token_needs_its_certificate_on_the_connection() {
    let service = Service::start().await;
    let (solver, other) = (service.solver().await, service.workload("spiffe://example.org/ai/other").await);
    let url = service.url("gateway", "/cert/x");
    assert_eq!(solver.get(&url).await.status, 200, "with the certificate");
    let token = solver.token(&url).await;
    let authorization = format!("DPoP {}", token.expose());
    let proof = solver.session.prove("GET", &url, Some(&token));
    let without = solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], false).await;
    assert_eq!((without.status, without.error()), (401, "invalid_token"), "without it");
    let proof = solver.session.prove("GET", &url, Some(&token));
    let anothers = other.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], true).await;
    assert_eq!((anothers.status, anothers.error()), (401, "invalid_token"), "with another workload's");
    // A token for the broad resource is no good at the narrow one.
    let broad = solver.token(&service.url("gateway", "/v1/runs/r1")).await;
    let proof = solver.session.prove("GET", &url, Some(&broad));
    let answer = solver
        .raw("GET", &url, &[("authorization", &format!("DPoP {}", broad.expose())), ("dpop", &proof)], true)
        .await;
    assert_eq!((answer.status, answer.error()), (401, "invalid_token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resource_metadata_names_the_token_service() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let answer =
        solver.raw("GET", &service.url("gateway", "/.well-known/oauth-protected-resource/v1"), &[], false).await;
    let document = answer.json();
    assert_eq!(document["resource"], service.url("gateway", "/v1"));
    assert_eq!(document["authorization_servers"][0], service.addresses["token"]);
    assert_eq!(document["dpop_bound_access_tokens_required"], true);
    assert_eq!(solver.raw("GET", &service.url("gateway", "/.popgate/x"), &[], false).await.status, 404);
    let bare = service.url("gateway", "/.well-known/oauth-protected-resource");
    assert_eq!(solver.raw("GET", &bare, &[], false).await.status, 404, "no resource has the bare origin as its URL");
    assert_eq!(solver.raw("POST", &format!("{bare}/v1"), &[], false).await.status, 405);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_replaces_the_policy_and_a_bad_file_changes_nothing() {
    use nix::sys::signal::Signal;
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let policies = service.base().join("p.cedar");
    let logged = |text: &str| std::fs::read_to_string(service.base().join("serve.log")).expect("log").contains(text);
    let until = async |text: &'static str| {
        while !logged(text) {
            tokio::task::yield_now().await;
        }
    };
    std::fs::write(&policies, "permit (broken").expect("writes");
    service.signal(Signal::SIGHUP);
    until("not reloaded").await;
    assert_eq!(solver.get(&url).await.status, 200, "the old policy holds");
    let mint = "@id(\"may-ask\") permit (principal, action == Action::\"token.mint\", resource);";
    let nobody = "@id(\"nobody\") forbid (principal, action, resource) unless { action == Action::\"token.mint\" };";
    std::fs::write(&policies, format!("{mint}{nobody}")).expect("writes");
    service.signal(Signal::SIGHUP);
    until(" reloaded ").await;
    let answer = solver.get(&url).await;
    assert_eq!((answer.status, answer.json()["rule"].as_str()), (403, Some("nobody")));
    // A new route's resource is one that tokens can be for, at once.
    let later = "@id(\"later\") permit (principal, action == Action::\"later.get\", resource);";
    std::fs::write(&policies, format!("{mint}{later}")).expect("writes");
    let routes = service.base().join("routes.toml");
    let later = std::fs::read_to_string(&routes).expect("reads").replace("dead", "later");
    std::fs::write(&routes, later.replace("http://127.0.0.1:1\"", &format!("http://{}\"", service.upstream.address)))
        .expect("writes");
    let entry = serde_json::json!({"entry": [{"spiffe_id": crate::world::SOLVER, "owner": crate::world::BOB, "operations": ["later.*"]}]});
    service.admin(http::Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    service.signal(Signal::SIGHUP);
    let later = service.url("gateway", "/later/x");
    while solver
        .raw("GET", &format!("{}/later", service.url("gateway", "/.well-known/oauth-protected-resource")), &[], false)
        .await
        .status
        == 404
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(solver.get(&later).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    use nix::sys::signal::Signal;
    let mut service = Service::start().await;
    let solver = service.solver().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |_| {
        let (response, pieces) = streaming("text/event-stream");
        sender.send(pieces).expect("sends");
        response
    });
    let response = solver.open("GET", &service.url("gateway", "/v1/runs/r1/events"), &[], "").await;
    let pieces = receiver.recv().expect("opened");
    service.signal(Signal::SIGTERM);
    while tokio::net::TcpStream::connect(service.addresses["gateway"].trim_start_matches("https://")).await.is_ok() {
        tokio::task::yield_now().await;
    }
    pieces.send(Bytes::from_static(b"data: last\n\n")).expect("sends");
    drop(pieces);
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    assert_eq!(body, "data: last\n\n");
    assert_eq!(tokio::task::block_in_place(|| service.wait()), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_outlives_the_grace_is_told_cut_and_closed_in_the_log() {
    use nix::sys::signal::Signal;
    let mut service = Service::start().await;
    let config = service.base().join("popgate.toml");
    let text = std::fs::read_to_string(&config).expect("reads");
    std::fs::write(&config, format!("shutdown_grace = \"100ms\"\n{text}")).expect("writes");
    service.crash_and_restart();
    let solver = service.solver().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |seen| {
        let (response, pieces) =
            streaming(if seen.target.ends_with("events") { "text/event-stream" } else { "text/plain" });
        sender.send(pieces).expect("sends");
        response
    });
    let events = solver.open("GET", &service.url("gateway", "/v1/runs/r1/events"), &[], "").await;
    let plain = solver.open("GET", &service.url("gateway", "/v1/runs/r1"), &[], "").await;
    let pieces = [receiver.recv().expect("opened"), receiver.recv().expect("opened")];
    service.signal(Signal::SIGTERM);
    assert!(plain.into_body().collect().await.is_err(), "a cut is no end");
    let mut body = events.into_body();
    let mut told = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        told.extend(frame.into_data().unwrap_or_default());
    }
    assert!(String::from_utf8_lossy(&told).contains("urn:popgate:problem:drained"), "a reader of events is told");
    assert_eq!(tokio::task::block_in_place(|| service.wait()), Some(0));
    drop(pieces);
    let data = service.data.to_str().expect("UTF-8");
    let report = crate::world::run(&["audit", "verify", data, "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("JSON");
    let report = &report["report"];
    assert_eq!(
        (report["links"]["decision"].as_u64(), report["links"]["bytes"].as_u64()),
        (Some(2), Some(2)),
        "{report}"
    );
    assert_eq!(report["incomplete"], 0, "each exchange has its end: {report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_answer_to_their_own_host_alone() {
    let service = Service::start().await;
    let solver = service.solver().await;
    solver.get(&service.url("gateway", "/v1/runs/r1")).await;
    let telemetry = &service.addresses["telemetry"];
    assert_eq!(plain_get(&format!("{telemetry}/livez")).await, (200, "ok\n".into()));
    assert_eq!(plain_get(&format!("{telemetry}/readyz")).await.0, 200);
    let (status, text) = plain_get(&format!("{telemetry}/metrics")).await;
    assert_eq!(status, 200);
    for metric in [
        "popgate_tokens_minted_total",
        "popgate_certificates_issued_total",
        "popgate_exchange_seconds",
        "popgate_requests_refused_total",
    ] {
        assert!(text.contains(metric), "{metric} in {text}");
    }
}

/// Over HTTP/1.1 a body that is empty is dropped before anybody asks for it: that is no client who went.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_answers_over_http_1_1_are_whole() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let token = solver.token(&url).await;
    service.upstream.on_request(|seen| {
        let mut response = respond(200, "application/json", "");
        if seen.target.ends_with("none") {
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            response.headers_mut().remove("content-type");
        }
        response
    });
    let root = std::fs::read(service.data.join("ca.pem")).expect("reads");
    let root =
        rustls::pki_types::pem::PemObject::from_pem_slice(&root).map(|c: rustls::pki_types::CertificateDer| c.to_vec());
    let mut tls = popgate::net::tls::web_client(&[root.expect("a certificate")]).expect("a client");
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls));
    let address = service.addresses["gateway"].trim_start_matches("https://").to_owned();
    let stream = tokio::net::TcpStream::connect(&address).await.expect("connects");
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
    let stream = connector.connect(name, stream).await.expect("shakes hands");
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("speaks HTTP");
    tokio::spawn(connection);
    let mut ids = Vec::new();
    for n in 0..20 {
        let path = if n % 2 == 0 { "/v1/runs/empty" } else { "/v1/runs/none" };
        let proof = solver.session.prove("GET", &service.url("gateway", path), Some(&token));
        let request = http::Request::get(path)
            .header("host", &address)
            .header("authorization", format!("DPoP {}", token.expose()))
            .header("dpop", proof)
            .body(http_body_util::Full::new(Bytes::new()))
            .expect("builds");
        sender.ready().await.expect("kept alive");
        let response = sender.send_request(request).await.expect("answers");
        assert!(matches!(response.status().as_u16(), 200 | 204), "{}", response.status());
        ids.push(response.headers()["popgate-request-id"].to_str().expect("an id").to_owned());
        response.into_body().collect().await.expect("reads");
    }
    assert!(service.verify().await.status.success());
    let data = service.data.to_str().expect("UTF-8");
    for id in ids {
        let shown = crate::world::stdout(&crate::world::run(&["audit", "show", &id, "--data-dir", data, "--json"]));
        assert!(shown.contains(r#""ended":"complete""#), "{shown}");
    }
}
