//! A1: nodes and CI jobs that prove themselves by tokens of their platform and by certificates they have already.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use popgate::client::ClientError;
use popgate::client::enrol::{self, Enrolment, Proof};
use popgate::client::identity::Identity;
use popgate::domain::digest::Sha256;
use popgate::domain::spiffe_id::{SpiffeId, TrustDomain};
use popgate::domain::time::Clock as _;
use popgate::net::keys::P256Key;
use popgate::protocol::csr::possession_message;
use popgate::store::clock::SystemClock;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::host::Host;
use crate::issuer::{IssuerKey, issuer};
use crate::web::{Web, WebCa, pem};
use crate::world::{Service, popgate, stderr, stdout};

const AUDIENCE: &str = "spiffe://example.org";

fn now() -> u64 {
    SystemClock.now().unix()
}

/// What GitHub signs for a job.
fn github(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": AUDIENCE, "sub": "repo:acme/site:ref:refs/heads/main", "exp": now() + 300, "iat": now(), "nbf": now() - 5,
        "jti": "1", "repository": "acme/site", "repository_owner": "acme", "repository_id": "74", "ref": "refs/heads/main",
        "workflow": "deploy", "environment": "production", "runner_environment": "github-hosted", "actor": "octo",
    })
}

/// What GitLab signs for a job: truth values as texts, and the user.
fn gitlab(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": [AUDIENCE, "other"], "sub": "project_path:acme/api:ref_type:branch:ref:main", "exp": now() + 300,
        "iat": now(), "namespace_path": "acme", "project_path": "acme/api", "project_id": "22", "ref": "main", "ref_type": "branch",
        "ref_protected": "true", "pipeline_source": "push", "environment_protected": "false", "user_login": "jane",
    })
}

async fn trusting(web: &Web, name: &str) -> Service {
    let extra =
        format!("[[trust.oidc]]\nname = \"{name}\"\nissuer = \"{}\"\nkeys = {{ ca_file = \"web-ca.pem\" }}\n", web.url);
    Service::start_domain("example.org", &extra, "", &[("web-ca.pem", &web.ca)]).await
}

async fn entry(service: &Service, id: &str, selectors: &[&str]) {
    let entry = json!({"spiffe_id": id, "owner": "https://idp.example.org#bob", "selectors": selectors, "operations": ["raw.*"], "groups": ["solvers"]});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
}

async fn pin(service: &Service) -> String {
    let status = service.admin(Method::GET, "/v1/status", None).await.expect("status");
    status["ca"]["pin"].as_str().expect("a pin").to_owned()
}

async fn attest(service: &Service, token: &str, wanted: Option<&str>) -> Result<Identity, ClientError> {
    let proof = Proof::Token { method: "oidc", token: Zeroizing::new(token.to_owned()) };
    let wanted: Option<SpiffeId> = wanted.map(|w| w.parse().expect("an ID"));
    let enrolment = Enrolment {
        server: &service.addresses["identity"],
        pin: Sha256::from_hex(&pin(service).await),
        proof: &proof,
        spiffe_id: wanted.as_ref(),
        node: false,
    };
    enrol::attest(&enrolment).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_ci_job_gets_the_identity_that_its_claims_fit_and_attests_again_instead_of_renewing() {
    let key = IssuerKey::rsa("k1");
    let web = issuer(&key).await;
    let service = trusting(&web, "github").await;
    let id = "spiffe://example.org/ci/deploy";
    entry(&service, id, &["github:repository:acme/site", "github:environment:production"]).await;
    entry(&service, "spiffe://example.org/ci/staging", &["github:environment:staging"]).await;
    let token = key.token(&github(&web.url));
    let identity = attest(&service, &token, None).await.expect("attests");
    assert_eq!(identity.spiffe_id.as_str(), id);
    let refused = enrol::renew(&identity).await.err().expect("refused");
    assert_eq!(refused.status(), Some(403));
    assert!(refused.to_string().contains("attests anew"), "{refused}");
    // Whoever has some token of a public platform is no node.
    let proof = Proof::Token { method: "oidc", token: Zeroizing::new(token.clone()) };
    let pinned = Sha256::from_hex(&pin(&service).await);
    let server = &service.addresses["identity"];
    let as_node = enrol::attest(&Enrolment { server, pin: pinned, proof: &proof, spiffe_id: None, node: true }).await;
    assert_eq!(as_node.err().and_then(|e| e.status()), Some(403));
    attest(&service, &token, None).await.expect("the same token serves the job while it lives");
    // In one command, as a job would.
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("t"), format!("{token}\n")).expect("writes");
    let called = popgate()
        .args([
            "call",
            "--oidc-token-file",
            dir.path().join("t").to_str().expect("UTF-8"),
            "--pin",
            &pin(&service).await,
        ])
        .args(["--server", &service.addresses["identity"], &service.url("gateway", "/raw/x")])
        .output()
        .expect("runs");
    assert_eq!(stdout(&called).trim(), r#"{"ok":true}"#, "{}", stderr(&called));
    // The log names the attestor, and nothing on disk is the token.
    let verify = service.verify().await;
    assert!(verify.status.success(), "{}", stderr(&verify));
    let test = popgate()
        .args(["trust", "test", "--json", "--token-file", dir.path().join("t").to_str().expect("UTF-8"), "--config"])
        .arg(service.base().join("popgate.toml"))
        .output()
        .expect("runs");
    assert!(stdout(&test).contains("github:repository:acme/site"), "{}", stderr(&test));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_gitlabs_claims_become_selectors_too() {
    let key = IssuerKey::ec("k1");
    let web = issuer(&key).await;
    let service = trusting(&web, "gitlab").await;
    let id = "spiffe://example.org/ci/api";
    entry(&service, id, &["gitlab:project_path:acme/api", "gitlab:ref_protected:true", "gitlab:user_login:jane"]).await;
    let identity = attest(&service, &key.token(&gitlab(&web.url)), None).await.expect("attests");
    assert_eq!(identity.spiffe_id.as_str(), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_each_bad_token_is_refused_with_one_text_and_the_log_tells_which() {
    let (key, other) = (IssuerKey::rsa("k1"), IssuerKey::rsa("k1"));
    let web = issuer(&key).await;
    let service = trusting(&web, "github").await;
    entry(&service, "spiffe://example.org/ci/deploy", &["github:repository:acme/site"]).await;
    let with = |name: &str, value: Value| {
        let mut claims = github(&web.url);
        let members = claims.as_object_mut().expect("an object");
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.into(), value)),
        }
        key.token(&claims)
    };
    let good = key.token(&github(&web.url));
    let (head, _) = good.rsplit_once('.').expect("dots");
    let none = format!("{}.{}.", base64_url(r#"{"alg":"none","typ":"JWT"}"#), good.split('.').nth(1).expect("claims"));
    let rows = [
        ("another audience", with("aud", "sigstore".into())),
        ("no audience", with("aud", Value::Null)),
        ("expired", with("exp", (now() - 120).into())),
        ("without an end", with("exp", Value::Null)),
        ("not yet valid", with("nbf", (now() + 600).into())),
        ("another issuer", with("iss", "https://evil.example".into())),
        ("without a subject", with("sub", Value::Null)),
        ("another's key under the same kid", other.token(&github(&web.url))),
        ("an unknown kid", IssuerKey::rsa("k9").token(&github(&web.url))),
        ("no signature", format!("{head}.")),
        ("alg none", none),
        ("no token", String::new()),
    ];
    for (name, token) in rows {
        let refused = attest(&service, &token, None).await.err().unwrap_or_else(|| panic!("{name} is accepted"));
        assert_eq!(refused.status(), Some(401), "{name}: {refused}");
        assert!(refused.to_string().contains("the evidence is not accepted here"), "{name}: {refused}");
    }
    let log = std::fs::read_to_string(service.base().join("serve.log")).expect("a log");
    assert!(log.contains("aud does not name this receiver") && log.contains("the token has expired"), "{log}");
    assert!(!log.contains(&good[..60]), "no token is in the log");
    attest(&service, &good, None).await.expect("the good one passes");
    web.on_request(|_, _, _, _| (500, String::new()));
    attest(&service, &good, None).await.expect("known keys serve on while the issuer is away");
}

fn base64_url(text: &str) -> String {
    base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_an_issuer_may_change_its_key_and_one_that_names_another_is_no_issuer() {
    let (first, second) = (IssuerKey::rsa("k1"), IssuerKey::ec("k2"));
    let web = issuer(&first).await;
    let service = trusting(&web, "github").await;
    entry(&service, "spiffe://example.org/ci/deploy", &["github:repository:acme/site"]).await;
    web.serve(&[
        (
            "/.well-known/openid-configuration",
            json!({"issuer": "https://evil.example", "jwks_uri": format!("{}/keys", web.url)}).to_string(),
        ),
        ("/keys", first.set()),
    ]);
    let refused = attest(&service, &first.token(&github(&web.url)), None).await.err().expect("refused");
    assert_eq!(refused.status(), Some(503), "its discovery document names another issuer: {refused}");
    let discovery = json!({"issuer": web.url, "jwks_uri": format!("{}/keys", web.url)}).to_string();
    web.serve(&[("/.well-known/openid-configuration", discovery), ("/keys", second.set())]);
    attest(&service, &second.token(&github(&web.url)), None).await.expect("keys are read when they are there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_a_template_makes_an_entry_for_each_repository_and_takes_them_with_it() {
    let key = IssuerKey::ec("k1");
    let web = issuer(&key).await;
    let service = trusting(&web, "github").await;
    let template = "spiffe://example.org/ci/{github:repository}";
    entry(&service, template, &["github:repository_owner:acme"]).await;
    let token = |repository: &str, owner: &str| {
        let mut claims = github(&web.url);
        (claims["repository"], claims["repository_owner"]) = (repository.into(), owner.into());
        key.token(&claims)
    };
    let site = attest(&service, &token("acme/site", "acme"), None).await.expect("attests");
    assert_eq!(site.spiffe_id.as_str(), "spiffe://example.org/ci/acme/site");
    attest(&service, &token("acme/site", "acme"), None).await.expect("again");
    attest(&service, &token("acme/api", "acme"), None).await.expect("another repository");
    let outside = attest(&service, &token("evil/site", "evil"), None).await.err().expect("refused");
    assert!(outside.to_string().contains("no registration entry fits") && outside.to_string().contains("evil/site"));
    for trick in ["../popgate/server", "popgate/../x", "acme/ö", ""] {
        let refused = attest(&service, &token(trick, "acme"), None).await.err();
        assert_eq!(refused.and_then(|e| e.status()), Some(403), "{trick:?}");
    }
    let entries = service.admin(Method::GET, "/v1/entries", None).await.expect("lists");
    assert_eq!(entries.as_array().map(Vec::len), Some(2), "{entries}");
    assert_eq!(entries[0]["template"], template);
    let export = service.admin(Method::GET, "/v1/entries/export", None).await.expect("exports");
    assert_eq!(export["entry"].as_array().map(Vec::len), Some(1), "what a template made is not exported");
    let stop = json!({"kind": "entry", "value": template, "reason": "the owner left"});
    let stopped = service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    let refused = attest(&service, &token("acme/site", "acme"), None).await.err().expect("refused");
    assert_eq!(refused.status(), Some(403));
    let id = stopped["revocation"]["id"].as_i64().expect("a number");
    service.admin(Method::POST, &format!("/v1/revocations/{id}/lift"), None).await.expect("lifts");
    let path = format!("/v1/entries?id={}", template.replace('{', "%7B").replace('}', "%7D"));
    service.admin(Method::DELETE, &path, None).await.expect("deletes");
    let entries = service.admin(Method::GET, "/v1/entries", None).await.expect("lists");
    assert_eq!(entries, json!([]), "the entries that it made went with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_of_several_fitting_entries_the_job_names_one() {
    let key = IssuerKey::ec("k1");
    let web = issuer(&key).await;
    let service = trusting(&web, "github").await;
    for id in ["spiffe://example.org/ci/a", "spiffe://example.org/ci/b"] {
        entry(&service, id, &["github:repository:acme/site"]).await;
    }
    entry(&service, "spiffe://example.org/ci/c", &["github:repository:acme/other"]).await;
    let token = key.token(&github(&web.url));
    let refused = attest(&service, &token, None).await.err().expect("refused");
    assert!(
        refused.status() == Some(409) && refused.to_string().contains("/ci/a, spiffe://example.org/ci/b"),
        "{refused}"
    );
    let chosen = attest(&service, &token, Some("spiffe://example.org/ci/b")).await.expect("attests");
    assert_eq!(chosen.spiffe_id.path(), "/ci/b");
    let refused = attest(&service, &token, Some("spiffe://example.org/ci/c")).await.err();
    assert_eq!(refused.and_then(|e| e.status()), Some(403), "one that does not fit");
}

/// What the API server signs for a pod.
fn pod(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": [AUDIENCE], "sub": "system:serviceaccount:popgate:agent", "exp": now() + 600, "iat": now(), "nbf": now(),
        "kubernetes.io": {
            "namespace": "popgate", "serviceaccount": {"name": "agent", "uid": "u-1"},
            "pod": {"name": "agent-x7", "uid": "p-1"}, "node": {"name": "worker-3", "uid": "n-3"},
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_pods_agent_attests_by_its_projected_token_while_the_cluster_knows_the_pod() {
    let key = IssuerKey::rsa("c1");
    let web = Web::start(&[]).await;
    let alive = Arc::new(AtomicBool::new(true));
    let answers = alive.clone();
    web.on_request(move |method, path, headers, body| {
        let ask: Value = serde_json::from_slice(body).unwrap_or_default();
        let reviewer = headers.get("authorization").is_some_and(|h| h == "Bearer reviewer-token");
        if method != Method::POST || path != "/reviews" || !reviewer || ask["spec"]["audiences"] != json!([AUDIENCE]) {
            return (403, String::new());
        }
        let authenticated = answers.load(Ordering::Relaxed);
        (
            201,
            json!({"status": {"authenticated": authenticated, "audiences": [AUDIENCE], "error": "pod is gone"}})
                .to_string(),
        )
    });
    let extra = format!(
        "[[trust.kubernetes]]\nname = \"prod\"\nissuer = \"https://kubernetes.default.svc\"\nnodes = [\"prod:ns:popgate\", \"prod:sa:agent\"]\nkeys = {{ file = \"jwks.json\", ca_file = \"web-ca.pem\" }}\ntoken_review = {{ url = \"{}/reviews\", token_file = \"reviewer\" }}\n",
        web.url
    );
    let files = [("jwks.json", key.set()), ("web-ca.pem", web.ca.clone()), ("reviewer", "reviewer-token\n".into())];
    let files: Vec<(&str, &str)> = files.iter().map(|(n, t)| (*n, t.as_str())).collect();
    let service = Service::start_domain("example.org", &extra, "", &files).await;
    let pin = pin(&service).await;
    let start = |claims: &Value| {
        let dir = tempfile::Builder::new().prefix("pga-").tempdir().expect("tempdir");
        std::fs::write(dir.path().join("t"), key.token(claims)).expect("writes");
        let file = dir.path().join("t");
        Host::start_in(&service, dir, &["--kubernetes-token-file", file.to_str().expect("UTF-8"), "--pin", &pin])
    };
    let issuer = "https://kubernetes.default.svc";
    let host = start(&pod(issuer)).expect("starts");
    assert_eq!(host.node, "spiffe://example.org/popgate/node/k8s/prod/popgate/agent/worker-3");
    let node = service.admin(Method::GET, &format!("/v1/nodes?id={}", host.node), None).await.expect("shows");
    assert!(node["selectors"].as_array().expect("a list").contains(&json!("prod:pod-uid:p-1")), "{node}");
    assert_eq!(node["renewable"], false);
    let mut no_pod = pod(issuer);
    no_pod["kubernetes.io"] = json!({"namespace": "popgate"});
    assert!(start(&no_pod).err().expect("refused").contains("the evidence is not accepted"));
    let mut workload = pod(issuer);
    workload["kubernetes.io"]["serviceaccount"]["name"] = "web".into();
    assert!(start(&workload).err().expect("refused").contains("may not be a node here"));
    alive.store(false, Ordering::Relaxed);
    assert!(start(&pod(issuer)).err().expect("refused").contains("the evidence is not accepted"));
    let log = std::fs::read_to_string(service.base().join("serve.log")).expect("a log");
    assert!(log.contains("TokenReview: pod is gone"), "{log}");
    web.on_request(|_, _, _, _| (500, String::new()));
    assert!(start(&pod(issuer)).err().expect("refused").contains("not available"), "closed, not open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_machine_attests_by_the_certificate_that_it_has() {
    let (fleet, stranger) = (WebCa::new("fleet CA"), WebCa::new("another CA"));
    let extra = "[[trust.x509]]\nname = \"fleet\"\nca_file = \"fleet.pem\"\n";
    let service = Service::start_domain("example.org", extra, "", &[("fleet.pem", &fleet.pem)]).await;
    let pin = pin(&service).await;
    let start = |(leaf, key): (Vec<u8>, String)| {
        let dir = tempfile::Builder::new().prefix("pga-").tempdir().expect("tempdir");
        std::fs::write(dir.path().join("c"), pem(&[leaf])).expect("writes");
        std::fs::write(dir.path().join("k"), key).expect("writes");
        let file = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        let (chain, key) = (file("c"), file("k"));
        Host::start_in(
            &service,
            dir,
            &["--x509-chain", &chain, "--x509-key", &key, "--trust-domain", "example.org", "--pin", &pin],
        )
    };
    let machine = fleet.leaf("db-1", &["db-1.internal"]);
    let digest = Sha256::of(&machine.0).to_string();
    let host = start(machine).expect("starts");
    assert_eq!(host.node, format!("spiffe://example.org/popgate/node/x509/fleet/{}", &digest[..32]));
    let node = service.admin(Method::GET, &format!("/v1/nodes?id={}", host.node), None).await.expect("shows");
    for fact in ["fleet:cn:db-1", "fleet:dns:db-1.internal"] {
        assert!(node["selectors"].as_array().expect("a list").contains(&json!(fact)), "{fact}: {node}");
    }
    assert!(start(stranger.leaf("db-1", &[])).err().expect("refused").contains("the evidence is not accepted"));
    // A signature that was made over another request proves nothing about this one.
    let (leaf, key) = fleet.leaf("db-2", &[]);
    let key: rustls::pki_types::PrivateKeyDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).expect("a key");
    let (own, others) = (P256Key::generate().csr().expect("makes"), P256Key::generate().csr().expect("makes"));
    let domain = TrustDomain::parse("example.org").expect("legal");
    let sign = |message: Vec<u8>| popgate::net::tls::sign_message(key.clone_key(), &message).expect("signs");
    let body = |signature: Vec<u8>| {
        json!({
            "method": "x509_pop", "node": true, "chain": [BASE64_STANDARD.encode(&leaf)], "csr": BASE64_STANDARD.encode(&own),
            "signature": BASE64_STANDARD.encode(signature),
        })
    };
    let other_domain = TrustDomain::parse("other.org").expect("legal");
    for (name, message) in [
        ("another request's", possession_message(&domain, &others)),
        ("another trust domain's", possession_message(&other_domain, &own)),
        ("a bare CSR's", own.clone()),
    ] {
        assert_eq!(post(&service, &body(sign(message))).await, 401, "{name}");
    }
    assert_eq!(post(&service, &body(vec![0; 64])).await, 401);
    assert_eq!(post(&service, &json!({"method": "x509_pop", "csr": BASE64_STANDARD.encode(&own)})).await, 400);
    assert_eq!(post(&service, &body(sign(possession_message(&domain, &own)))).await, 201);
    assert_eq!(
        post(&service, &json!({"method": "aws_iid", "csr": BASE64_STANDARD.encode(&own)})).await,
        400,
        "unknown"
    );
}

/// The status of a bare request to `/v1/attest`.
async fn post(service: &Service, body: &Value) -> u16 {
    let roots = vec![popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots").remove(0)];
    let trust = popgate::net::tls::ClientTrust {
        roots: popgate::net::tls::fixed_roots(roots),
        check: popgate::client::identity::server_check(None),
        clock: Arc::new(SystemClock),
    };
    let http = popgate::client::http::HttpClient::new(popgate::net::tls::client(trust, None).expect("TLS"));
    let response = enrol::post(&http, &service.url("identity", "/v1/attest"), body).await.expect("answers");
    response.status().as_u16()
}
