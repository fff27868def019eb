//! Enrolment and renewal: A3, A4, L6, X7.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request};
use popgate::client::enrol;
use popgate::client::http::HttpClient;
use popgate::client::identity::Identity;
use popgate::domain::secret::JoinToken;
use popgate::net::keys::P256Key;
use serde_json::{Value, json};

use crate::world::{SOLVER, Service};

async fn attest(service: &Service, identity: &Identity, body: &Value) -> (u16, Value) {
    let http = HttpClient::new(identity.tls(false).expect("TLS"));
    let request = Request::builder()
        .method(Method::POST)
        .uri(service.url("identity", "/v1/attest"))
        .body(Bytes::from(body.to_string()))
        .expect("builds");
    let response = http.fetch(request).await.expect("answers");
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or(Value::Null))
}

fn form(token: &JoinToken, key: &P256Key) -> Value {
    json!({"method": "join_token", "join_token": token.expose().as_str(), "csr": BASE64_STANDARD.encode(key.csr().expect("makes"))})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_of_a_thousand_racing_uses_of_one_token_one_wins() {
    let service = Service::start().await;
    let identity = service.enrol("spiffe://example.org/ai/other").await;
    let token = service.join_token(SOLVER).await;
    let http = HttpClient::new(identity.tls(false).expect("TLS"));
    let bodies: Vec<String> = (0..1000).map(|_| form(&token, &P256Key::generate()).to_string()).collect();
    let mut racing = Vec::new();
    for body in bodies {
        let http = http.clone();
        let request = Request::builder()
            .method(Method::POST)
            .uri(service.url("identity", "/v1/attest"))
            .body(Bytes::from(body))
            .expect("builds");
        racing.push(tokio::spawn(async move { http.fetch(request).await.expect("answers").status().as_u16() }));
    }
    let mut statuses = Vec::new();
    for racer in racing {
        statuses.push(racer.await.expect("runs"));
    }
    assert_eq!(statuses.iter().filter(|s| **s == 201).count(), 1, "one wins");
    assert_eq!(statuses.iter().filter(|s| **s == 401).count(), 999, "all others read the one text of a spent token");
    let mine = service.admin(Method::GET, "/v1/status", None).await.expect("status");
    assert!(mine["now"].is_string(), "the service is well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a3_the_same_request_again_gets_the_same_certificate() {
    let service = Service::start().await;
    let identity = service.enrol("spiffe://example.org/ai/other").await;
    let body = form(&service.join_token(SOLVER).await, &P256Key::generate());
    let (first, second) = (attest(&service, &identity, &body).await, attest(&service, &identity, &body).await);
    assert_eq!((first.0, second.0), (201, 201));
    assert_eq!(first.1["svid"][0], second.1["svid"][0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_bad_enrolments_are_refused_and_cost_no_token() {
    let service = Service::start().await;
    let identity = service.enrol("spiffe://example.org/ai/other").await;
    let token = service.join_token(SOLVER).await;
    let key = P256Key::generate();
    let good = form(&token, &key);
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body[name] = value;
        body
    };
    let mut forged = key.csr().expect("makes");
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let in_use = crate::world::key_of(&identity).csr().expect("makes");
    let unknown = JoinToken::new("00".repeat(32), token.pin());
    for (name, body, status) in [
        ("no JSON", Value::Null, 400),
        ("another method", with("method", "magic".into()), 400),
        ("no CSR", with("csr", Value::Null), 400),
        ("CSR not base64", with("csr", "%%".into()), 400),
        ("CSR not signed by its key", with("csr", BASE64_STANDARD.encode(forged).into()), 400),
        ("key of another identity", with("csr", BASE64_STANDARD.encode(in_use).into()), 409),
        ("malformed token", with("join_token", "pgj1.x.y".into()), 401),
        ("unknown token", with("join_token", unknown.expose().as_str().into()), 401),
    ] {
        let (got, document) = attest(&service, &identity, &body).await;
        assert_eq!(got, status, "{name}: {document}");
        assert!(document["detail"].is_string() && document["request_id"].is_string(), "{name}: {document}");
    }
    assert_eq!(attest(&service, &identity, &good).await.0, 201, "the token is still good");
    let (status, document) = attest(&service, &identity, &form(&token, &P256Key::generate())).await;
    assert_eq!(
        (status, document["detail"].as_str().unwrap_or_default().contains("unknown, spent or expired")),
        (401, true),
        "one text for all three"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_certificate_renews_once_with_a_new_key() {
    let service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    let renewed = enrol::renew(&identity).await.expect("renews");
    assert_eq!(renewed.spiffe_id, identity.spiffe_id);
    assert_ne!(renewed.jkt(), identity.jkt());
    assert_ne!(renewed.svid.serial, identity.svid.serial);
    let again = enrol::renew(&renewed).await.expect("the new one renews");
    assert_eq!(enrol::renew(&identity).await.err().and_then(|e| e.status()), Some(409), "with a second new key");
    // Somebody has a copy of the first, and nobody can say who is who: all that came of it is stopped.
    for copied in [&renewed, &again] {
        assert_eq!(enrol::renew(copied).await.err().and_then(|e| e.status()), Some(403), "the lineage is revoked");
    }
    let stops = service.admin(Method::GET, "/v1/revocations", None).await.expect("lists");
    assert_eq!(stops.as_array().map(Vec::len), Some(3), "{stops}");
    enrol::renew(&*service.enrol(SOLVER).await).await.expect("a new lineage begins");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_the_same_new_key_gets_the_same_answer_again() {
    let service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    let key = P256Key::generate().pkcs8().to_vec();
    let renew = async || enrol::renew_with(&identity, P256Key::from_pkcs8(&key).expect("a key")).await.expect("renews");
    let (first, second) = (renew().await, renew().await);
    assert_eq!(first.svid.serial, second.svid.serial, "a lost answer costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_an_entry_may_keep_its_lineage_when_a_certificate_was_copied() {
    let service = Service::start().await;
    let id = "spiffe://example.org/ci/kept";
    let entry = json!({"spiffe_id": id, "owner": "https://idp.example.org#bob", "keep_lineage": true});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("creates");
    let identity = service.enrol(id).await;
    let renewed = enrol::renew(&identity).await.expect("renews");
    assert_eq!(enrol::renew(&identity).await.err().and_then(|e| e.status()), Some(409));
    enrol::renew(&renewed).await.expect("goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_a_lineage_ends_and_its_workload_enrols_again() {
    let service = Service::start_with_identity("reattest_after = \"0s\"\n").await;
    let identity = service.enrol(SOLVER).await;
    let refused = enrol::renew(&identity).await.err().expect("refused").to_string();
    assert!(refused.contains("403") && refused.contains("enrol again"), "{refused}");
    service.enrol(SOLVER).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_trusts_the_pinned_server_alone() {
    let (service, other) = (Service::start().await, Service::start().await);
    let token = other.join_token(SOLVER).await;
    let refused = enrol::join(&service.addresses["identity"], &token).await.err().expect("refused").to_string();
    assert!(refused.contains("wrong server, or a join token of another installation"), "{refused}");
    let entries = other.admin(Method::GET, "/v1/entries", None).await.expect("lists");
    assert!(entries.as_array().is_some_and(|e| !e.is_empty()));
    enrol::join(&other.addresses["identity"], &token)
        .await
        .expect("the token was not shown to the wrong server, so it is good");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_entries_bound_what_may_be_registered() {
    let service = Service::start().await;
    let base = json!({"spiffe_id": "spiffe://example.org/new", "owner": "https://idp#x"});
    let with = |name: &str, value: Value| {
        let mut body = base.clone();
        body[name] = value;
        body
    };
    for (name, body) in [
        ("foreign trust domain", with("spiffe_id", "spiffe://other.org/a".into())),
        ("reserved path", with("spiffe_id", "spiffe://example.org/popgate/server".into())),
        ("malformed id", with("spiffe_id", "spiffe://example.org/a/".into())),
        ("no owner", with("owner", "bob".into())),
        ("star in the middle", with("operations", json!(["a*b"]))),
        ("life too short", with("svid_ttl", "1m".into())),
        ("life too long", with("svid_ttl", "5h".into())),
        ("a server's name", with("dns_names", json!(["localhost"]))),
        ("a wildcard name", with("dns_names", json!(["*.example.org"]))),
        ("an address as a name", with("dns_names", json!(["127.0.0.1"]))),
        ("a hexadecimal address", with("dns_names", json!(["0x7f000001"]))),
        ("a name in two spellings", with("dns_names", json!(["Solver.example.org"]))),
        ("a name with a final dot", with("dns_names", json!(["localhost."]))),
        ("unknown member", with("ownr", "x".into())),
    ] {
        let refused = service.admin(Method::POST, "/v1/entries", Some(body)).await;
        assert_eq!(refused.err().and_then(|e| e.status()), Some(400), "{name}");
    }
    service.admin(Method::POST, "/v1/entries", Some(base.clone())).await.expect("creates");
    assert_eq!(
        service.admin(Method::POST, "/v1/entries", Some(base)).await.err().and_then(|e| e.status()),
        Some(409),
        "twice"
    );
    let unknown =
        service.admin(Method::POST, "/v1/join-tokens", Some(json!({"spiffe_id": "spiffe://example.org/nobody"}))).await;
    assert_eq!(unknown.err().and_then(|e| e.status()), Some(404));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l6_what_was_answered_is_in_the_ledger_and_in_the_log_after_a_crash() {
    let mut service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    service.crash_and_restart();
    enrol::renew(&identity).await.expect("the ledger knows it");
    service.admin(Method::POST, "/v1/evidence/publish", None).await.expect("publishes");
    let data = service.data.to_str().expect("UTF-8");
    let export = crate::world::run(&["audit", "export", "--data-dir", data, "--format", "ocsf"]);
    let text = crate::world::stdout(&export);
    assert!(text.contains(&identity.svid.serial), "the log knows it: {}", crate::world::stderr(&export));
}
