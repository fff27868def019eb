//! B1, B2: bundles between two popgate trust domains by both endpoint profiles, from a file, and by hand.

use std::process::Command;
use std::sync::Arc;

use http::Method;
use popgate::client::session::Session;
use popgate::domain::spiffe_id::TrustDomain;
use popgate::protocol::bundle::TrustBundle;
use serde_json::{Value, json};

use crate::agent::wait;
use crate::web::{Web, WebCa, pem};
use crate::world::{Client, Service, popgate, stderr, stdout};

const PARTNER: &str = "partner.example";
const JOB: &str = "spiffe://partner.example/ci/job";

async fn bundle(service: &Service, domain: &str) -> Value {
    service.admin(Method::GET, &format!("/v1/bundles?id={domain}"), None).await.expect("shows")
}

async fn knows(service: &Service, domain: &str) -> bool {
    service.admin(Method::GET, &format!("/v1/bundles?id={domain}"), None).await.is_ok()
}

/// A partner with one workload.
async fn partner(extra: &str, identity: &str, files: &[(&str, &str)]) -> Service {
    let service = Service::start_domain(PARTNER, extra, identity, files).await;
    let entry = json!({"spiffe_id": JOB, "owner": "https://idp.partner.example#pat"});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    service
}

async fn register_foreign(service: &Service) {
    let entry = json!({"spiffe_id": JOB, "owner": "https://idp.example.org#bob", "groups": ["solvers"], "operations": ["raw.*", "cert.*"]});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b2_a_bundle_is_fetched_by_https_spiffe_and_follows_the_partners_rotation() {
    let partner = partner("", "danger_short_lives = true\nissuing_life = \"30s\"\n", &[]).await;
    let first = bundle(&partner, PARTNER).await;
    let extra = format!(
        "[[federation]]\ntrust_domain = \"{PARTNER}\"\nurl = \"{}\"\nprofile = \"https_spiffe\"\nendpoint_spiffe_id = \"spiffe://{PARTNER}/popgate/server\"\nbundle_file = \"partner.json\"\n",
        partner.url("identity", "/bundle.json")
    );
    let service = Service::start_domain("example.org", &extra, "", &[("partner.json", &first.to_string())]).await;
    wait(|| async { knows(&service, PARTNER).await }, "the file's bundle").await;
    let roots = async || {
        bundle(&service, PARTNER).await["bundle"]["keys"]
            .as_array()
            .map(|keys| keys.iter().filter(|k| k["use"] == "x509-svid").count())
    };
    assert_eq!(roots().await, Some(1));
    let act = json!({"action": "prepare", "kind": "root"});
    partner.admin(Method::POST, "/v1/authorities", Some(act)).await.expect("prepares");
    wait(|| async { roots().await == Some(2) }, "the partner's next root, before it signs").await;
    let refused = service.admin(Method::DELETE, &format!("/v1/bundles?id={PARTNER}"), None).await.expect_err("refused");
    assert!(refused.to_string().contains("[[federation]]"), "what is configured comes back: {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b2_https_web_has_a_listener_of_its_own_whose_certificate_is_re_read() {
    let ca = WebCa::new("web CA");
    let (leaf, key) = ca.leaf("localhost", &["localhost"]);
    let endpoint =
        "[bundle_endpoint]\nlisten = \"127.0.0.1:0\"\ncertificate_file = \"web.pem\"\nkey_file = \"web.key\"\n";
    let partner = partner(endpoint, "", &[("web.pem", &pem(&[leaf])), ("web.key", &key)]).await;
    let url = partner.addresses["bundle"].replace("127.0.0.1", "localhost");
    let extra = format!(
        "[[federation]]\ntrust_domain = \"{PARTNER}\"\nurl = \"{url}/\"\nprofile = \"https_web\"\nca_file = \"web-ca.pem\"\n"
    );
    let service = Service::start_domain("example.org", &extra, "", &[("web-ca.pem", &ca.pem)]).await;
    wait(|| async { knows(&service, PARTNER).await }, "the partner's bundle").await;
    let (leaf, key) = ca.leaf("second", &["localhost"]);
    std::fs::write(partner.base().join("web.key"), key).expect("writes");
    std::fs::write(partner.base().join("web.pem"), pem(&[leaf])).expect("writes");
    let address = partner.addresses["bundle"].trim_start_matches("https://").to_owned();
    let subject = || {
        let script =
            format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -subject");
        String::from_utf8_lossy(&Command::new("sh").args(["-c", &script]).output().expect("runs").stdout).into_owned()
    };
    wait(|| async { subject().contains("second") }, "the new certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x5_b2_a_federated_workload_calls_under_its_own_domains_bundle_and_administers_nothing() {
    let (service, partner) = (Service::start().await, partner("", "", &[]).await);
    let job = Arc::new(
        popgate::client::enrol::join(&partner.addresses["identity"], &partner.join_token(JOB).await)
            .await
            .expect("enrols"),
    );
    // Our roots, so that its client believes our servers; a certificate of its own domain.
    let client = |service: &Service| {
        let dir = tempfile::tempdir().expect("tempdir");
        job.save(dir.path()).expect("saves");
        let mixed = popgate::client::identity::Identity::load(dir.path()).expect("loads");
        let _ = service;
        mixed
    };
    let entry = json!({"spiffe_id": JOB, "owner": "https://idp.example.org#bob"});
    let refused = service.admin(Method::POST, "/v1/entries", Some(entry)).await.err();
    assert_eq!(refused.and_then(|e| e.status()), Some(400), "not before its bundle is known");
    assert!(
        handshake(&service, "gateway", &client(&service)).contains("unknown ca")
            || !handshake(&service, "gateway", &client(&service)).contains("HTTP/1.1")
    );
    let set = json!({"trust_domain": PARTNER, "bundle": bundle(&partner, PARTNER).await});
    service.admin(Method::POST, "/v1/bundles", Some(set)).await.expect("sets");
    register_foreign(&service).await;
    assert!(handshake(&service, "token", &client(&service)).contains("HTTP/1.1"), "it may speak to the token service");
    for listener in ["identity", "admin"] {
        assert!(
            !handshake(&service, listener, &client(&service)).contains("HTTP/1.1 200"),
            "{listener} is for our own"
        );
    }
    // It gets tokens here and calls with them, as whom its own trust domain says it is.
    let mut caller = popgate::client::identity::Identity::load(&saved(&job)).expect("loads");
    caller.roots = popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots");
    caller.trusted_domain = Some(TrustDomain::parse("example.org").expect("legal"));
    let session = Client { session: Arc::new(Session::new(Arc::new(caller)).expect("session")) };
    let answer = session.get(&service.url("gateway", "/cert/x")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let verify = service.verify().await;
    assert!(verify.status.success(), "its certificate is in its own domain's log: {}", stderr(&verify));
    // Without the bundle it is nobody again.
    service.admin(Method::DELETE, &format!("/v1/bundles?id={PARTNER}"), None).await.expect("deletes");
    assert!(!handshake(&service, "token", &client(&service)).contains("HTTP/1.1"));
    service
        .admin(Method::DELETE, &format!("/v1/entries?id={JOB}"), None)
        .await
        .expect("what is registered can be deleted");
}

fn saved(identity: &popgate::client::identity::Identity) -> std::path::PathBuf {
    let dir = tempfile::tempdir().expect("tempdir").keep();
    identity.save(&dir).expect("saves");
    dir
}

/// What a listener answers to a client with this certificate, as OpenSSL sees it.
fn handshake(service: &Service, listener: &str, identity: &popgate::client::identity::Identity) -> String {
    let dir = saved(identity);
    let address =
        service.addresses[listener].split("://").nth(1).expect("an address").replace("localhost", "127.0.0.1");
    let script = format!(
        "printf 'GET /none HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' | openssl s_client -quiet -connect {address} -cert {d}/svid.pem -cert_chain {d}/svid.pem -key {d}/key.pem -CAfile {ca} 2>&1",
        d = dir.display(),
        ca = service.data.join("ca.pem").display(),
    );
    let output = Command::new("timeout").args(["10", "sh", "-c", &script]).output().expect("runs");
    let _ = std::fs::remove_dir_all(dir);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b2_what_is_no_whole_bundle_replaces_nothing() {
    let good = bundle(&partner("", "", &[]).await, PARTNER).await;
    let web = Web::start(&[("/bundle", good.to_string())]).await;
    let mut hinted = good.clone();
    hinted["spiffe_refresh_hint"] = 1.into();
    web.serve(&[("/bundle", hinted.to_string())]);
    let extra = format!(
        "[[federation]]\ntrust_domain = \"{PARTNER}\"\nurl = \"{}/bundle\"\nprofile = \"https_web\"\nca_file = \"web-ca.pem\"\n",
        web.url
    );
    let service = Service::start_domain("example.org", &extra, "", &[("web-ca.pem", &web.ca)]).await;
    wait(|| async { knows(&service, PARTNER).await }, "the first bundle").await;
    let sequence = good["spiffe_sequence"].as_u64().expect("a number");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut document = hinted.clone();
        document["spiffe_sequence"] = (sequence + 5).into();
        change(&mut document);
        document.to_string()
    };
    let leaf = WebCa::new("x").leaf("x", &["x"]).0;
    let log = || std::fs::read_to_string(service.base().join("serve.log")).unwrap_or_default();
    for (name, document, says) in [
        ("not JSON", "<html>".to_owned(), "strict JSON"),
        ("no keys", changed(&|d| d["keys"] = json!([])), "neither"),
        (
            "two certificates in one key",
            changed(&|d| d["keys"][0]["x5c"] = json!([d["keys"][0]["x5c"][0], d["keys"][0]["x5c"][0]])),
            "exactly one certificate",
        ),
        ("a leaf for a root", changed(&|d| d["keys"][0]["x5c"][0] = base64(&leaf).into()), "not a CA certificate"),
        ("a JWT key without kid", changed(&|d| drop(d["keys"][1].as_object_mut().map(|k| k.remove("kid")))), "no kid"),
        (
            "a symmetric JWT key",
            changed(&|d| d["keys"][1] = json!({"use": "jwt-svid", "kid": "k", "kty": "oct", "k": "AA"})),
            "no key of an algorithm",
        ),
        (
            "an older sequence",
            changed(&|d| {
                d["spiffe_sequence"] = 1.into();
                d["keys"] = json!([d["keys"][0]]);
            }),
            "older than the known",
        ),
    ] {
        let before = log().matches("could not be fetched").count();
        web.serve(&[("/bundle", document)]);
        wait(|| async { log().matches("could not be fetched").count() > before }, name).await;
        let told = log();
        let last = told.lines().rfind(|l| l.contains("could not be fetched")).unwrap_or_default().to_owned();
        assert!(last.contains(says), "{name}: {last}");
        assert_eq!(
            bundle(&service, PARTNER).await["bundle"]["spiffe_sequence"],
            sequence,
            "{name} replaced the bundle"
        );
    }
}

fn base64(der: &[u8]) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(der)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b1_the_bundle_is_a_jwks_whose_sequence_grows_with_each_change_and_commands_show_and_set_it() {
    let service = Service::start().await;
    let show = |service: &Service, domain: &str| {
        let output =
            popgate().args(["bundle", "show", domain, "--data-dir"]).arg(&service.data).output().expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let first: Value = serde_json::from_str(&show(&service, "example.org")).expect("JSON");
    let keys = first["keys"].as_array().expect("a list");
    let x509: Vec<&Value> = keys.iter().filter(|k| k["use"] == "x509-svid").collect();
    let jwt: Vec<&Value> = keys.iter().filter(|k| k["use"] == "jwt-svid").collect();
    assert_eq!((x509.len(), jwt.len()), (1, 1));
    assert!(x509[0]["x5c"].as_array().is_some_and(|c| c.len() == 1) && x509[0].get("kid").is_none(), "{first}");
    assert!(jwt[0]["kid"].is_string() && jwt[0].get("d").is_none());
    assert!(first["spiffe_refresh_hint"].as_u64().is_some_and(|hint| hint > 0));
    let tokens = service.solver().await.session.identity().servers.token.clone();
    let access: Value = fetch(&service, &format!("{tokens}/jwks.json")).await;
    assert!(
        access["keys"].as_array().is_some_and(|k| k.iter().all(|k| k["x"] != jwt[0]["x"])),
        "keys of access tokens are others"
    );
    let act = json!({"action": "prepare", "kind": "jwt-svid"});
    service.admin(Method::POST, "/v1/authorities", Some(act)).await.expect("prepares");
    let second: Value = serde_json::from_str(&show(&service, "example.org")).expect("JSON");
    assert!(second["spiffe_sequence"].as_u64() > first["spiffe_sequence"].as_u64());
    let domain = TrustDomain::parse("example.org").expect("legal");
    let read = TrustBundle::parse(domain, second.to_string().as_bytes()).expect("reads");
    assert_eq!((read.roots.len(), read.jwt_keys.len()), (1, 2));
    // By hand into another trust domain.
    let other = Service::start_domain(PARTNER, "", "", &[]).await;
    let file = other.base().join("b.json");
    std::fs::write(&file, second.to_string()).expect("writes");
    let set = |domain: &str| {
        popgate().args(["bundle", "set", domain]).arg(&file).arg("--data-dir").arg(&other.data).output().expect("runs")
    };
    assert!(set("example.org").status.success());
    assert!(stderr(&set("third.example")).contains("names another trust domain"));
    assert!(stderr(&set(PARTNER)).contains("this server's own bundle"), "its own is not set by hand");
    assert_eq!(serde_json::from_str::<Value>(&show(&other, "example.org")).expect("JSON")["keys"], second["keys"]);
    std::fs::write(&file, "{\"keys\":[]}").expect("writes");
    assert!(stderr(&set("example.org")).contains("neither"), "{}", stderr(&set("example.org")));
}

async fn fetch(service: &Service, url: &str) -> Value {
    let roots = popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots");
    let fetcher = popgate::net::fetch::Fetcher::new(popgate::net::tls::web_client(&roots).expect("TLS"));
    serde_json::from_slice(&fetcher.get(url).await.expect("fetches")).expect("JSON")
}

#[test]
fn b2_a_federation_that_makes_no_sense_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("popgate.toml");
    let rows = [
        ("trust_domain = \"example.org\"\nbundle_file = \"b\"", "own trust domain"),
        ("trust_domain = \"p.example\"", "name a url, a bundle_file, or both"),
        ("trust_domain = \"p.example\"\nurl = \"http://x\"\nprofile = \"https_web\"", "not https"),
        ("trust_domain = \"p.example\"\nurl = \"https://x\"", "needs profile"),
        ("trust_domain = \"p.example\"\nurl = \"https://x\"\nprofile = \"https_spiffe\"", "needs endpoint_spiffe_id"),
        (
            "trust_domain = \"p.example\"\nurl = \"https://x\"\nprofile = \"https_spiffe\"\nendpoint_spiffe_id = \"spiffe://p.example/s\"",
            "bundle_file must hold the first",
        ),
        ("trust_domain = \"P Q\"\nbundle_file = \"b\"", "trust domain"),
    ];
    for (text, says) in rows {
        std::fs::write(&path, format!("[[federation]]\n{text}\n")).expect("writes");
        let output = popgate().args(["config", "check", "--config"]).arg(&path).output().expect("runs");
        assert!(!output.status.success() && stderr(&output).contains(says), "{text}: {}", stderr(&output));
    }
}
