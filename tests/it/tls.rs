//! X5 and X6: who may shake hands, and how. OpenSSL's command line is the other side.

use std::process::Command;

use bytes::Bytes;
use http::{Method, Request};
use popgate::client::enrol;
use popgate::client::http::HttpClient;
use popgate::client::identity::Identity;

use crate::world::{SOLVER, Service};

/// What `openssl s_client` says of a listener.
fn openssl(service: &Service, listener: &str, args: &[&str]) -> String {
    let address =
        service.addresses[listener].split("://").nth(1).expect("an address").replace("localhost", "127.0.0.1");
    let ca = service.data.join("ca.pem");
    let output = Command::new("openssl")
        .args(["s_client", "-connect", &address, "-CAfile"])
        .arg(ca)
        .args(args)
        .stdin(std::process::Stdio::null())
        .output();
    let output = output.expect("openssl runs");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x6_every_listener_speaks_tls_1_3_alone_and_gives_no_ticket() {
    let service = Service::start().await;
    for listener in ["identity", "token", "gateway", "admin"] {
        let told = openssl(&service, listener, &["-tls1_3"]);
        assert!(told.contains("Verify return code: 0 (ok)") && told.contains("TLSv1.3"), "{listener}: {told}");
        assert!(!told.contains("New Session Ticket") && !told.contains("TLS session ticket:"), "{listener}: {told}");
        let old = openssl(&service, listener, &["-tls1_2"]);
        assert!(
            old.contains("alert") && !old.contains("Verify return code: 0 (ok)\n---\nread R BLOCK"),
            "{listener}: {old}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn issued_chains_verify_with_openssl() {
    let service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    let dir = tempfile::tempdir().expect("tempdir");
    identity.save(dir.path()).expect("saves");
    let svid = dir.path().join("svid.pem");
    let verify = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
        .arg(dir.path().join("bundle.pem"))
        .arg("-untrusted")
        .arg(&svid)
        .arg(&svid)
        .output()
        .expect("openssl runs");
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    let text =
        Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(&svid).output().expect("openssl runs");
    assert!(String::from_utf8_lossy(&text.stdout).contains(&format!("URI:{SOLVER}")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x5_a_foreign_certificate_fails_the_handshake() {
    let (service, foreign) = (Service::start().await, Service::start().await);
    let (ours, theirs) = (service.enrol(SOLVER).await, foreign.enrol(SOLVER).await);
    // Their certificate and key, our bundle: the same name, another root.
    let dir = tempfile::tempdir().expect("tempdir");
    theirs.save(dir.path()).expect("saves");
    let (own, mixed) = (tempfile::tempdir().expect("tempdir"), dir.path());
    ours.save(own.path()).expect("saves");
    std::fs::copy(own.path().join("bundle.pem"), mixed.join("bundle.pem")).expect("copies");
    std::fs::copy(own.path().join("popgate.json"), mixed.join("popgate.json")).expect("copies");
    let mixed = Identity::load(mixed).expect("loads");
    for listener in ["identity", "token", "gateway", "admin"] {
        let http = HttpClient::new(mixed.tls(true).expect("TLS"));
        let request =
            Request::builder().method(Method::GET).uri(service.url(listener, "/")).body(Bytes::new()).expect("builds");
        let error = http.fetch(request).await.expect_err("refused").to_string();
        assert!(error.contains("handshake") || error.contains("does not answer"), "{listener}: {error}");
    }
    assert!(enrol::renew(&mixed).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn persons_administer_and_call_nothing_else() {
    let service = Service::start().await;
    let alice = service.enrol("spiffe://example.org/popgate/person/alice").await;
    let session = popgate::client::session::Session::new(alice.clone()).expect("session");
    let target = session.target(&service.url("gateway", "/v1/runs/r1")).await.expect("discovers");
    let mint = session.mint(&target, None).await.err().expect("refused");
    assert_eq!((mint.status(), mint.code()), (Some(401), "invalid_client"));
    let solver = service.enrol(SOLVER).await;
    let as_workload = popgate::client::admin::Admin::server(&service.addresses["admin"], &solver).expect("client");
    let refused = as_workload.call(Method::GET, "/v1/status", None).await.expect_err("refused");
    assert_eq!(refused.status(), Some(401));
    enrol::renew(&alice).await.expect("a person renews");
}
