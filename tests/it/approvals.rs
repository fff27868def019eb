//! A request that waits for people: hold, decide, exact binding, single use.

use http::Method;
use serde_json::json;

use crate::world::{Answer, Client, Service};

const BODY: &str = r#"{"if_version":3}"#;

async fn prune(service: &Service, client: &Client, headers: &[(&'static str, &str)], body: &str) -> Answer {
    client.call("POST", &service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), headers, body).await
}

/// Asks until a request waits.
async fn pending(service: &Service) -> String {
    loop {
        let list = service.admin(Method::GET, "/v1/approvals", None).await.expect("lists");
        if let Some(id) = list[0]["id"].as_str() {
            return id.to_owned();
        }
        tokio::task::yield_now().await;
    }
}

fn id(answer: &Answer) -> String {
    answer.header("location").rsplit('/').next().expect("an id").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_held_approved_by_another_person_and_carried_out_once() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let plain = prune(&service, &solver, &[], BODY).await;
    assert_eq!(
        (plain.status, plain.problem().as_str()),
        (403, "approval-required"),
        "no plain client takes it for done"
    );
    let held = prune(&service, &solver, &[("prefer", "wait=0")], BODY).await;
    assert_eq!(held.status, 202);
    assert!(held.headers.contains_key("retry-after"));
    assert_eq!(id(&plain), id(&held), "repeats of one request fold into one");
    for (prefer, status) in [("return=minimal", 403), ("respond-async", 202), ("return=minimal, Wait=0", 202)] {
        assert_eq!(prune(&service, &solver, &[("prefer", prefer)], BODY).await.status, status, "{prefer}");
    }
    let id = id(&held);
    let named = [("popgate-approval", id.as_str())];
    assert_eq!(prune(&service, &solver, &named, BODY).await.problem(), "approval-pending");
    let own = solver.get(&service.url("gateway", &format!("/.popgate/approvals/{id}"))).await;
    // Who asks for one is about to send what is good once: the refusal brings a nonce along, as others do not.
    let bare = async |path: &str| solver.raw("GET", &service.url("gateway", path), &[], false).await;
    let (asked, other) = (bare(&format!("/.popgate/approvals/{id}")).await, bare("/v1/runs/r1").await);
    assert_eq!((asked.status, other.status, other.header("dpop-nonce")), (401, 401, ""));
    assert!(!asked.header("dpop-nonce").is_empty());
    assert_eq!((own.status, own.json()["state"].as_str()), (200, Some("pending")), "{}", own.text());
    assert_eq!(own.json().as_object().expect("object").len(), 3, "id, state, expires_at and nothing else");

    let path = format!("/v1/approvals/{id}");
    let approve = json!({"approve": true, "reason": "checked"});
    let decide = async |person: &str| service.person(person).await.call(Method::POST, &path, Some(&approve)).await;
    let status = |r: Result<serde_json::Value, popgate::client::ClientError>| r.err().and_then(|e| e.status());
    assert_eq!(
        status(service.admin(Method::POST, &path, Some(approve.clone())).await),
        Some(403),
        "the socket cannot approve"
    );
    assert_eq!(status(decide("bob").await), Some(403), "the requester's owner");
    assert_eq!(status(decide("eve").await), Some(403), "an approver of another group");
    assert_eq!(status(decide("root").await), Some(403), "an admin who is no approver");
    assert_eq!(service.upstream.count(), 0);
    let alice = service.person("alice").await;
    let shown = alice.call(Method::GET, &path, None).await.expect("shown");
    assert_eq!(
        (shown["body"].as_str(), shown["method"].as_str(), shown["operation"].as_str()),
        (Some(BODY), Some("POST"), Some("tot.prune"))
    );
    let approved = alice.call(Method::POST, &path, Some(&approve)).await.expect("approved");
    assert_eq!(approved["state"], "approved");
    assert_eq!(
        status(alice.call(Method::POST, &path, Some(&json!({"approve": false}))).await),
        Some(409),
        "decided is decided"
    );

    let other = service.workload("spiffe://example.org/ai/other").await;
    assert_eq!(prune(&service, &other, &named, BODY).await.problem(), "approval-unknown", "another workload's");
    for (what, headers, body) in [
        ("body", vec![named[0]], r#"{"if_version":4}"#),
        ("white space in the body", vec![named[0]], r#"{"if_version": 3}"#),
        ("a header", vec![named[0], ("x-mode", "dry")], BODY),
        ("the content type", vec![named[0], ("content-type", "application/json; x=1")], BODY),
    ] {
        let answer = prune(&service, &solver, &headers, body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (403, "approval-mismatch"), "{what}");
    }
    let query = service.url("gateway", "/v1/runs/r1/nodes/n1/prune?x=1");
    assert_eq!(solver.call("POST", &query, &named, BODY).await.problem(), "approval-mismatch", "the query");
    assert_eq!(service.upstream.count(), 0);

    let copies: Vec<_> = (0..8)
        .map(|_| {
            let (solver, url, id) = (solver.clone(), service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), id.clone());
            tokio::spawn(async move { solver.call("POST", &url, &[("popgate-approval", &id)], BODY).await.status })
        })
        .collect();
    let mut done = 0;
    for copy in copies {
        done += u32::from(copy.await.expect("runs") == 200);
    }
    assert_eq!((done, service.upstream.count()), (1, 1), "of eight at once exactly one is carried out");
    assert_eq!(prune(&service, &solver, &named, BODY).await.problem(), "approval-spent");
    assert!(service.verify().await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approved_while_held_it_goes_through_with_the_proof_already_spent() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let alice = service.person("alice").await;
    let (url, waiting) = (service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), solver.clone());
    let held = tokio::spawn(async move { waiting.call("POST", &url, &[("prefer", "wait=25")], BODY).await });
    let id = pending(&service).await;
    alice.call(Method::POST, &format!("/v1/approvals/{id}"), Some(&json!({"approve": true}))).await.expect("approves");
    assert_eq!(held.await.expect("runs").status, 200);
    assert_eq!(service.upstream.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_is_final_and_a_stopped_approver_voids_the_approval() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let alice = service.person("alice").await;
    let held = prune(&service, &solver, &[("prefer", "wait=0")], BODY).await;
    let denied = id(&held);
    alice
        .call(Method::POST, &format!("/v1/approvals/{denied}"), Some(&json!({"approve": false, "reason": "no"})))
        .await
        .expect("denies");
    assert_eq!(prune(&service, &solver, &[("popgate-approval", &denied)], BODY).await.problem(), "approval-denied");
    let again = prune(&service, &solver, &[("prefer", "wait=0")], BODY).await;
    assert_ne!(id(&again), denied, "asking anew is another approval");
    let approved = id(&again);
    alice
        .call(Method::POST, &format!("/v1/approvals/{approved}"), Some(&json!({"approve": true})))
        .await
        .expect("approves");
    service.admin(Method::POST, "/v1/offboard", Some(json!({"person": crate::world::ALICE}))).await.expect("offboards");
    let void = prune(&service, &solver, &[("popgate-approval", &approved)], BODY).await;
    assert_eq!((void.status, void.problem().as_str()), (403, "approval-expired"));
    assert_eq!(service.upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_approver_sees_is_masked() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let headers = [
        ("prefer", "wait=0"),
        ("x-tenant", "a"),
        ("x-for", "ada@example.org"),
        ("cookie", "s=12345"),
        ("x-api-key", "k3y"),
        ("user-agent", "any"),
    ];
    let held = prune(&service, &solver, &headers, r#"{"if_version":3,"why":"ada@example.org asks"}"#).await;
    let shown = service.admin(Method::GET, &format!("/v1/approvals/{}", id(&held)), None).await.expect("shown");
    assert_eq!(shown["body"], r#"{"if_version":3,"why":"[redacted:email] asks"}"#);
    assert_eq!(
        shown["headers"],
        json!(["cookie: [7 bytes]", "x-api-key: [3 bytes]", "x-for: [redacted:email]", "x-tenant: a"]),
        "the headers that are bound"
    );
}

/// Asks until the approval has left `executing`.
async fn settled(service: &Service, id: &str) -> String {
    loop {
        let shown = service.admin(Method::GET, &format!("/v1/approvals/{id}"), None).await.expect("shown");
        match shown["state"].as_str() {
            Some("executing" | "approved") => tokio::task::yield_now().await,
            state => return state.expect("a state").to_owned(),
        }
    }
}

async fn approved(service: &Service, solver: &Client) -> String {
    let id = id(&prune(service, solver, &[("prefer", "wait=0")], BODY).await);
    let alice = service.person("alice").await;
    alice.call(Method::POST, &format!("/v1/approvals/{id}"), Some(&json!({"approve": true}))).await.expect("approves");
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approved_request_ends_in_one_state_whatever_becomes_of_it() {
    let service = Service::start().await;
    let solver = service.solver().await;
    // The client goes while upstream works.
    let id = approved(&service, &solver).await;
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let (arrived, told) = tokio::sync::mpsc::unbounded_channel();
    let hold = std::sync::Mutex::new(hold);
    service.upstream.on_request(move |_| {
        arrived.send(()).expect("sends");
        let _ = tokio::task::block_in_place(|| hold.lock().expect("no panic").recv());
        crate::world::respond(200, "application/json", "{}")
    });
    let mut told = told;
    let (url, gone, named) = (service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), solver.clone(), id.clone());
    let call =
        tokio::spawn(async move { gone.call("POST", &url, &[("popgate-approval", named.as_str())], BODY).await });
    told.recv().await.expect("upstream has it");
    call.abort();
    assert!(call.await.expect_err("aborted").is_cancelled());
    drop(solver);
    assert_eq!(settled(&service, &id).await, "unknown");
    drop(release);
    // Upstream breaks off before it answers.
    let solver = service.solver().await;
    let id = approved(&service, &solver).await;
    service.upstream.on_request(|_| std::panic::resume_unwind(Box::new("breaks off")));
    let broken = prune(&service, &solver, &[("popgate-approval", id.as_str())], BODY).await;
    assert_eq!((broken.status, settled(&service, &id).await.as_str()), (502, "unknown"));
    // Upstream says no.
    let id = approved(&service, &solver).await;
    service.upstream.on_request(|_| crate::world::respond(409, "application/json", "{}"));
    let refused = prune(&service, &solver, &[("popgate-approval", id.as_str())], BODY).await;
    assert_eq!((refused.status, settled(&service, &id).await.as_str()), (409, "failed"));
    let report = service.verify().await;
    assert!(report.status.success(), "{}", crate::world::stdout(&report));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_the_requester_or_the_approver_withdraws_what_is_open() {
    let service = Service::start().await;
    let (solver, other) = (service.solver().await, service.workload("spiffe://example.org/ai/other").await);
    let (url, waiting) = (service.url("gateway", "/v1/runs/r1/nodes/n1/prune"), solver.clone());
    let held = tokio::spawn(async move { waiting.call("POST", &url, &[("prefer", "wait=25")], BODY).await });
    let pending = pending(&service).await;
    let decided = approved(&service, &other).await;
    let stop = json!({"kind": "spiffe-id", "value": crate::world::SOLVER, "reason": "test"});
    let receipt = service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("revokes");
    assert_eq!(receipt["withdrawn_approvals"], json!([pending]), "the requester's, and nobody else's");
    let told = held.await.expect("runs");
    assert_eq!((told.status, told.problem().as_str()), (403, "approval-expired"), "a held request is told at once");
    let person = json!({"kind": "spiffe-id", "value": "spiffe://example.org/popgate/person/alice", "reason": "test"});
    let receipt = service.admin(Method::POST, "/v1/revocations", Some(person)).await.expect("stops");
    assert_eq!(receipt["withdrawn_approvals"], json!([decided]), "the approver's");
    let shown = service.admin(Method::GET, &format!("/v1/approvals/{decided}"), None).await.expect("shown");
    assert_eq!(shown["state"], "withdrawn");
    assert_eq!(service.upstream.count(), 0);
}
