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

/// The service's own issuing CA, as a thief of its data directory would have it.
fn stolen_ca(service: &Service) -> (Vec<u8>, rcgen::Issuer<'static, rcgen::KeyPair>) {
    let text = std::fs::read_to_string(service.data.join("ca/authorities.json")).expect("reads");
    let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let signs = |r: &&serde_json::Value| r["kind"] == "issuing" && r["state"] == "active";
    let record = state["records"].as_array().expect("a list").iter().find(signs).expect("one signs").clone();
    let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, record["chain"][0].as_str().expect("text"));
    let der = der.expect("base64");
    let key = service.data.join(format!("ca/{}.key", record["id"].as_str().expect("text")));
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(key).expect("reads")).expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_der(&rustls::pki_types::CertificateDer::from(der.clone()), key);
    (der, issuer.expect("an issuer"))
}

/// Each leaf is signed by our own CA and has one fault, so that only the SPIFFE rules stand in its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x5_our_own_cas_signature_makes_no_leaf_of_what_is_none() {
    let service = Service::start().await;
    let (ca, issuer) = stolen_ca(&service);
    let roots = popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots");
    let now = time::OffsetDateTime::now_utc();
    let hour = time::Duration::hours(1);
    let good = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        (params.not_before, params.not_after) = (now - hour, now + hour);
        params.subject_alt_names = vec![rcgen::SanType::URI(SOLVER.try_into().expect("ASCII"))];
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        params
    };
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().expect("ASCII"));
    let two = |p: &mut rcgen::CertificateParams| p.subject_alt_names.push(uri("spiffe://example.org/ci/other"));
    let rows: [(&str, rcgen::CertificateParams, bool); 9] = [
        ("nothing wrong", good(&|_| {}), true),
        ("two URIs", good(&two), false),
        ("no path", good(&|p| p.subject_alt_names = vec![uri("spiffe://example.org")]), false),
        ("a path with dots", good(&|p| p.subject_alt_names = vec![uri("spiffe://example.org/a/../b")]), false),
        ("a foreign trust domain", good(&|p| p.subject_alt_names = vec![uri("spiffe://other.org/ci/solver")]), false),
        ("a CA as leaf", good(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0))), false),
        ("expired", good(&|p| p.not_after = now - time::Duration::seconds(5)), false),
        ("not yet valid", good(&|p| p.not_before = now + hour / 2), false),
        (
            "for servers alone",
            good(&|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
            false,
        ),
    ];
    for (name, params, accepted) in rows {
        let key = rcgen::KeyPair::generate().expect("makes");
        let leaf = params.signed_by(&key, &issuer).expect("signs").der().to_vec();
        let trust = popgate::net::tls::ClientTrust {
            roots: popgate::net::tls::fixed_roots(roots.clone()),
            check: popgate::client::identity::server_check(Some("example.org".into())),
            clock: std::sync::Arc::new(popgate::store::clock::SystemClock),
        };
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let tls = popgate::net::tls::client(trust, Some((vec![leaf, ca.clone()], key))).expect("TLS");
        let url = service.url("token", "/jwks.json");
        let request = Request::get(&url).body(Bytes::new()).expect("builds");
        let answered = HttpClient::new(tls).fetch(request).await;
        assert_eq!(answered.is_ok(), accepted, "{name}: {:?}", answered.err().map(|e| e.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x6_the_key_exchange_is_hybrid_where_the_client_has_it_and_no_early_data_is_taken() {
    let service = Service::start().await;
    let roots = popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots");
    let config = std::sync::Arc::new(popgate::net::tls::web_client(&roots).expect("TLS"));
    for listener in ["identity", "token", "gateway", "admin"] {
        let address = service.addresses[listener].split("://").nth(1).expect("an address").to_owned();
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let stream =
            tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await.expect("shakes hands");
        let (_, session) = stream.get_ref();
        let group = session.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
        assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768), "{listener}");
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert!(!session.is_early_data_accepted(), "{listener}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x6_tls_1_2_is_spoken_where_the_configuration_dares_and_nowhere_else() {
    let service = Service::start_with_gateway("danger_tls_1_2 = true\n").await;
    assert!(openssl(&service, "gateway", &["-tls1_2"]).contains("Verify return code: 0 (ok)"));
    assert!(openssl(&service, "token", &["-tls1_2"]).contains("alert"));
}
