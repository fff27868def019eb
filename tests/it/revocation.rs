//! Stops: mint, renewal, requests and open streams, at once.

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use popgate::client::enrol;
use serde_json::json;

use crate::world::{ALICE, BOB, SOLVER, Service, plain_get, streaming};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_stop_refuses_requests_mints_and_renewals_and_can_be_lifted() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let identity = solver.session.identity();
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let jkt = identity.jkt().to_string();
    for (kind, value) in
        [("spiffe-id", SOLVER), ("person", BOB), ("group", "solvers"), ("jkt", &jkt), ("serial", &identity.svid.serial)]
    {
        let stop = json!({"kind": kind, "value": value, "reason": "test"});
        let receipt = service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes");
        assert!(receipt["receipt"]["index"].is_u64() && receipt["receipt"]["replicas"][0]["effective_at"].is_string());
        let token = solver.token(&url).await;
        let proof = solver.session.prove("GET", &url, Some(&token));
        let call = solver
            .raw("GET", &url, &[("authorization", &format!("DPoP {}", token.expose())), ("dpop", &proof)], false)
            .await;
        assert_eq!((call.status, call.error()), (401, "invalid_token"), "{kind}");
        let target = solver.session.target(&url).await.expect("known");
        let mint = solver.session.mint(&target, None).await.err().expect("refused");
        assert_eq!((mint.status(), mint.code()), (Some(401), "invalid_client"), "{kind}");
        assert_eq!(enrol::renew(identity).await.err().and_then(|e| e.status()), Some(403), "{kind}");
        let id = receipt["revocation"]["id"].as_i64().expect("a number");
        service.admin(Method::POST, &format!("/v1/revocations/{id}/lift"), None).await.expect("lifts");
        assert_eq!(solver.get(&url).await.status, 200, "{kind} lifted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offboarding_a_person_cuts_the_streams_of_every_workload_they_own_and_no_others() {
    let service = Service::start().await;
    let (solver, other) = (service.solver().await, service.workload("spiffe://example.org/ai/other").await);
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |_| {
        let (response, pieces) = streaming("text/event-stream");
        sender.send(pieces).expect("sends");
        response
    });
    let url = service.url("gateway", "/v1/runs/r1/events");
    let cut = solver.open("GET", &url, &[], "").await;
    let first = receiver.recv().expect("opened");
    let kept = other.open("GET", &url, &[], "").await;
    let second = receiver.recv().expect("opened");
    first.send(Bytes::from_static(b"data: a\n\n")).expect("sends");
    let receipt = service
        .admin(Method::POST, "/v1/offboard", Some(json!({"person": BOB, "reason": "contract ended"})))
        .await
        .expect("offboards");
    assert!(receipt["workloads"].as_array().expect("list").iter().any(|w| w == SOLVER));
    let mut body = cut.into_body();
    let mut text = Vec::new();
    let ended = loop {
        match body.frame().await {
            None => break "as if nothing had happened",
            Some(Err(_)) => break "reset",
            Some(Ok(frame)) => text.extend(frame.into_data().unwrap_or_default()),
        }
    };
    assert_eq!(ended, "reset");
    assert!(String::from_utf8_lossy(&text).contains("event: error"), "a reader of events is told first");
    second.send(Bytes::from_static(b"data: b\n\n")).expect("sends");
    drop(second);
    assert_eq!(kept.into_body().collect().await.expect("whole").to_bytes(), "data: b\n\n");
    let live = service.workload("spiffe://example.org/ai/other").await;
    assert!(!live.token(&service.url("gateway", "/raw/x")).await.expose().is_empty(), "others go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_entry_ends_its_tokens_and_malformed_stops_are_refused() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    for stop in [
        json!({"kind": "spiffe-id", "value": "solver", "reason": "x"}),
        json!({"kind": "workload", "value": SOLVER, "reason": "x"}),
        json!({"kind": "spiffe-id", "value": SOLVER, "reason": " "}),
        json!({"kind": "serial", "value": "XY", "reason": "x"}),
        json!({"kind": "spiffe-id", "value": SOLVER, "reason": "x", "until": "tomorrow"}),
    ] {
        let refused = service.admin(Method::POST, "/v1/revocations", Some(stop.clone())).await;
        assert_eq!(refused.err().and_then(|e| e.status()), Some(400), "{stop}");
    }
    service.admin(Method::DELETE, &format!("/v1/entries?id={SOLVER}"), None).await.expect("deletes");
    let answer = solver.session.mint(&solver.session.target(&url).await.expect("known"), None).await;
    assert_eq!(answer.err().and_then(|e| e.status()), Some(401));
    let token = solver.token(&url).await;
    let proof = solver.session.prove("GET", &url, Some(&token));
    let call = solver
        .raw("GET", &url, &[("authorization", &format!("DPoP {}", token.expose())), ("dpop", &proof)], false)
        .await;
    assert_eq!((call.status, call.error()), (401, "invalid_token"));
}

async fn metric(service: &Service, line: &str) -> bool {
    plain_get(&service.url("telemetry", "/metrics")).await.1.lines().any(|l| l.starts_with(line))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_reader_has_stalled_is_cut_too() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |_| {
        let (response, pieces) = streaming("text/plain");
        sender.send(pieces).expect("sends");
        response
    });
    let stalled = solver.open("GET", &service.url("gateway", "/v1/runs/r1"), &[], "").await;
    let pieces = receiver.recv().expect("opened");
    for _ in 0..512 {
        pieces.send(Bytes::from(vec![b'a'; 64 << 10])).expect("sends");
    }
    let stop = json!({"kind": "spiffe-id", "value": SOLVER, "reason": "test"});
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes");
    while !metric(&service, r#"popgate_streams_cut_total{why="revoked"} 1"#).await {
        tokio::task::yield_now().await;
    }
    let rest = stalled.into_body().collect().await;
    assert!(rest.is_err(), "the reader finds a reset, not an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_registered_under_a_deleted_name_inherits_neither_its_certificates_nor_its_tokens() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let unspent = service.join_token(SOLVER).await;
    let alice = service.person("alice").await;
    let alice_unspent = service.join_token("spiffe://example.org/popgate/person/alice").await;
    service.admin(Method::DELETE, &format!("/v1/entries?id={SOLVER}"), None).await.expect("deletes");
    let again = json!({"entry": [{"spiffe_id": SOLVER, "owner": BOB, "groups": ["solvers"], "operations": ["tot.*"]}]});
    service.admin(Method::POST, "/v1/import", Some(again)).await.expect("imports");
    let target = solver.session.target(&url).await.expect("known");
    let mint = solver.session.mint(&target, None).await.err().expect("refused");
    assert_eq!((mint.status(), mint.code()), (Some(401), "invalid_client"), "the old certificate");
    let token = solver.token(&url).await;
    let proof = solver.session.prove("GET", &url, Some(&token));
    let headers = [("authorization", format!("DPoP {}", token.expose())), ("dpop", proof)];
    let headers = [(headers[0].0, headers[0].1.as_str()), (headers[1].0, headers[1].1.as_str())];
    let call = solver.raw("GET", &url, &headers, false).await;
    assert_eq!((call.status, call.error()), (401, "invalid_token"), "the old token");
    let joined = enrol::join(&service.addresses["identity"], &unspent).await;
    assert_eq!(joined.err().and_then(|e| e.status()), Some(401), "the old join token");
    assert_eq!(enrol::renew(solver.session.identity()).await.err().and_then(|e| e.status()), Some(403), "renewal");
    assert_eq!(service.solver().await.get(&url).await.status, 200, "the new one is served");

    let person = format!("/v1/people?id={}", ALICE.replace('#', "%23"));
    service.admin(Method::DELETE, &person, None).await.expect("deletes");
    let again = json!({"person": [{"id": ALICE, "name": "alice", "groups": ["security"], "roles": ["approver"]}]});
    service.admin(Method::POST, "/v1/import", Some(again)).await.expect("imports");
    let refused = alice.call(Method::GET, "/v1/approvals", None).await;
    assert!(matches!(refused.err().and_then(|e| e.status()), Some(401 | 403)), "a deleted person's certificate");
    let joined = enrol::join(&service.addresses["identity"], &alice_unspent).await;
    assert_eq!(joined.err().and_then(|e| e.status()), Some(401), "a deleted person's join token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_certificate_on_the_connection_carries_nobodys_token() {
    let service = Service::start_with("").await;
    let (solver, other) = (service.solver().await, service.workload("spiffe://example.org/ai/other").await);
    let url = service.url("gateway", "/raw/x");
    assert_eq!(other.get(&url).await.status, 200, "learns the nonce of this start");
    let token = other.token(&url).await;
    let send = async |certificate: bool| {
        let proof = other.session.prove("GET", &url, Some(&token));
        let credential = format!("DPoP {}", token.expose());
        let over = if certificate { &solver } else { &other };
        over.raw("GET", &url, &[("authorization", credential.as_str()), ("dpop", proof.as_str())], certificate).await
    };
    assert_eq!(send(true).await.status, 200, "any standing certificate may carry a token");
    let serial = solver.session.identity().svid.serial.clone();
    let stop = json!({"kind": "serial", "value": serial, "reason": "test"});
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes");
    let refused = send(true).await;
    assert_eq!((refused.status, refused.error()), (401, "invalid_token"));
    assert_eq!(send(false).await.status, 200, "the token itself stands");
}

/// Before upstream has answered nothing streams, and a stop counts all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_an_exchange_that_waits_for_upstream() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let (arrived, mut told) = tokio::sync::mpsc::unbounded_channel();
    let hold = std::sync::Mutex::new(hold);
    service.upstream.on_request(move |_| {
        arrived.send(()).expect("sends");
        let _ = tokio::task::block_in_place(|| hold.lock().expect("no panic").recv());
        crate::world::respond(200, "application/json", "{}")
    });
    let url = service.url("gateway", "/v1/runs/r1");
    let token = solver.token(&url).await;
    assert_eq!(solver.get(&service.url("gateway", "/dead/x")).await.status, 502, "learns the nonce");
    let (client, credential) = (solver.clone(), format!("DPoP {}", token.expose()));
    let proof = solver.session.prove("GET", &url, Some(&token));
    let call = tokio::spawn(async move {
        client.raw("GET", &url, &[("authorization", &credential), ("dpop", &proof)], false).await.status
    });
    told.recv().await.expect("upstream has it");
    let stop = json!({"kind": "spiffe-id", "value": SOLVER, "reason": "test"});
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes");
    let ended = tokio::time::timeout(std::time::Duration::from_secs(20), call).await.expect("at once, not at last");
    assert_eq!(ended.expect("runs"), 403, "nothing that a client would answer by sending it again");
    drop(release);
    let report = service.verify().await;
    assert!(report.status.success(), "{}", crate::world::stdout(&report));
}

/// What cannot be written did not happen: no receipt, and no stop that is forgotten later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_the_ledger_cannot_keep_is_no_stop_and_says_so() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    assert_eq!(solver.get(&url).await.status, 200);
    let join_token = service.join_token(SOLVER).await;
    let limit = |bytes: &str| {
        let pid = service.pid().to_string();
        let status =
            std::process::Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}:unlimited")]).status();
        assert!(status.expect("util-linux has prlimit").success());
    };
    let (prune, body) = (service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), r#"{"if_version":3}"#);
    let held = solver.call("POST", &prune, &[("prefer", "wait=0")], body).await;
    let approval = format!("/v1/approvals/{}", held.header("location").rsplit('/').next().expect("an id"));
    let alice = service.person("alice").await;
    let decide = async |approve: bool| alice.call(Method::POST, &approval, Some(&json!({"approve": approve}))).await;
    // No file may grow beyond the ledger's journal as it is now; the log's files are far smaller.
    let journal = std::fs::metadata(service.data.join("ledger.db-wal")).expect("there").len();
    limit(&journal.to_string());
    let stop = json!({"kind": "spiffe-id", "value": SOLVER, "reason": "test"});
    for _ in 0..3 {
        let refused = service.admin(Method::POST, "/v1/revocations", Some(stop.clone())).await.expect_err("refused");
        assert_eq!(refused.status(), Some(503), "{refused}");
    }
    assert_eq!(decide(true).await.err().and_then(|e| e.status()), Some(503), "an approval that cannot be kept");
    let joined = enrol::join(&service.addresses["identity"], &join_token).await;
    assert_eq!(joined.err().and_then(|e| e.status()), Some(503), "a token whose spending cannot be kept is not spent");
    assert_eq!(solver.get(&url).await.status, 200, "nothing was stopped");
    limit("unlimited");
    assert_eq!(decide(false).await.expect("another mind")["state"], "denied");
    enrol::join(&service.addresses["identity"], &join_token).await.expect("it is good still");
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes, with space again");
    let stops = service.admin(Method::GET, "/v1/revocations", None).await.expect("lists");
    assert_eq!(stops.as_array().map(Vec::len), Some(1), "{stops}");
    assert!(service.verify().await.status.success());
}
