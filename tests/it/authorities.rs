//! Authorities as an operator works on them, with OpenSSL's command line as the other CA and as the verifier.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use http::Method;
use popgate::client::enrol;
use popgate::client::identity::Identity;
use serde_json::{Value, json};

use crate::agent::wait;
use crate::world::{SOLVER, Service, popgate, stderr, stdout};

fn admin(service: &Service, args: &[&str]) -> Output {
    popgate().args(args).arg("--data-dir").arg(&service.data).output().expect("runs")
}

fn openssl(dir: &Path, args: &[&str]) -> Output {
    Command::new("openssl").args(args).current_dir(dir).stdin(Stdio::null()).output().expect("openssl runs")
}

/// The revocation lists of the service, PEM, into a file.
async fn lists(service: &Service, dir: &Path) {
    let roots = popgate::net::fetch::certificates(&service.data.join("ca.pem")).expect("roots");
    let fetcher = popgate::net::fetch::Fetcher::new(popgate::net::tls::web_client(&roots).expect("TLS"));
    let pem = fetcher.get(&service.url("identity", "/crl.pem")).await.expect("lists");
    std::fs::write(dir.join("crl.pem"), &pem).expect("writes");
    let der = fetcher.get(&service.url("identity", "/crl.der")).await.expect("a list");
    std::fs::write(dir.join("crl.der"), &der).expect("writes");
}

/// Whether OpenSSL accepts an identity under the lists.
fn accepted(dir: &Path, identity: &Identity) -> Result<(), String> {
    identity.save(dir).expect("saves");
    let args = [
        "verify",
        "-x509_strict",
        "-crl_check_all",
        "-CRLfile",
        "crl.pem",
        "-CAfile",
        "bundle.pem",
        "-untrusted",
        "svid.pem",
        "svid.pem",
    ];
    let output = openssl(dir, &args);
    if output.status.success() { Ok(()) } else { Err(format!("{}{}", stdout(&output), stderr(&output))) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_openssl_refuses_by_the_signed_lists_what_is_revoked_by_serial_id_key_or_group() {
    let service = Service::start().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let serial = service.enrol(SOLVER).await;
    let key = service.enrol(SOLVER).await;
    let by_id = service.enrol("spiffe://example.org/ai/other").await;
    let untouched = service.enrol("spiffe://example.org/ci/narrow").await;
    lists(&service, dir.path()).await;
    for identity in [&serial, &key, &by_id, &untouched] {
        accepted(dir.path(), identity).expect("nothing is revoked");
    }
    let stop = async |kind: &str, value: String| {
        let body = json!({"kind": kind, "value": value, "reason": "test"});
        service.admin(Method::POST, "/v1/revocations", Some(body)).await.expect("stops")
    };
    stop("serial", serial.svid.serial.clone()).await;
    stop("jkt", key.jkt().to_string()).await;
    let lifted = stop("spiffe-id", "SPIFFE://Example.org/ai/other".into()).await;
    assert_eq!(lifted["revocation"]["value"], "spiffe://example.org/ai/other", "kept as everybody writes it");
    lists(&service, dir.path()).await;
    for identity in [&serial, &key, &by_id] {
        let why = accepted(dir.path(), identity).expect_err("revoked");
        assert!(why.contains("certificate revoked"), "{why}");
    }
    accepted(dir.path(), &untouched).expect("another's is not");
    let id = lifted["revocation"]["id"].as_i64().expect("a number");
    service.admin(Method::POST, &format!("/v1/revocations/{id}/lift"), None).await.expect("lifts");
    lists(&service, dir.path()).await;
    accepted(dir.path(), &by_id).expect("lifted");
    let shown = openssl(dir.path(), &["crl", "-inform", "DER", "-in", "crl.der", "-noout", "-text"]);
    let text = stdout(&shown);
    assert!(text.contains("X509v3 CRL Number") && text.contains("X509v3 Authority Key Identifier"), "{text}");
    assert!(text.to_lowercase().contains(&serial.svid.serial), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_an_external_root_signs_by_csr_through_the_commands_and_its_successor_follows() {
    let service = Service::start_domain("example.org", "", "upstream = true\n", &[]).await;
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path();
    let entry = json!({"spiffe_id": SOLVER, "owner": "https://idp.example.org#bob"});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("administration goes on");
    let config = "[ext]\nbasicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectAltName=URI:spiffe://example.org\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n[bad]\nbasicConstraints=critical,CA:FALSE\nsubjectAltName=URI:spiffe://example.org\n[constrained]\nbasicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectAltName=URI:spiffe://example.org\nextendedKeyUsage=codeSigning\n";
    std::fs::write(path.join("ext.cnf"), config).expect("writes");
    let made = openssl(
        path,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "root.key",
            "-out",
            "root.pem",
            "-days",
            "365",
            "-subj",
            "/CN=Corporate Root",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ],
    );
    assert!(made.status.success(), "{}", stderr(&made));
    let csr = || {
        let output = admin(&service, &["ca", "csr"]);
        assert!(output.status.success(), "{}", stderr(&output));
        std::fs::write(path.join("ca.csr"), output.stdout).expect("writes");
    };
    let sign = |section: &str| {
        let signed = openssl(
            path,
            &[
                "x509",
                "-req",
                "-in",
                "ca.csr",
                "-CA",
                "root.pem",
                "-CAkey",
                "root.key",
                "-CAcreateserial",
                "-days",
                "30",
                "-extfile",
                "ext.cnf",
                "-extensions",
                section,
                "-out",
                "issuing.pem",
            ],
        );
        assert!(signed.status.success(), "{}", stderr(&signed));
        let chain = [
            std::fs::read(path.join("issuing.pem")).expect("reads"),
            std::fs::read(path.join("root.pem")).expect("reads"),
        ];
        std::fs::write(path.join("chain.pem"), chain.concat()).expect("writes");
        admin(&service, &["ca", "install", path.join("chain.pem").to_str().expect("UTF-8")])
    };
    csr();
    for (section, says) in [("bad", "may not sign certificates"), ("constrained", "not accepted by a peer")] {
        let refused = sign(section);
        assert!(!refused.status.success(), "{section}");
        let told = stderr(&refused);
        assert!(told.contains(says) || told.contains("not a CA"), "{section}: {told}");
    }
    let installed = sign("ext");
    assert!(installed.status.success(), "{}", stderr(&installed));
    let ready = || async {
        let token =
            service.admin(Method::POST, "/v1/join-tokens", Some(json!({"spiffe_id": SOLVER}))).await.expect("a token");
        let token =
            popgate::domain::secret::JoinToken::parse(token["join_token"].as_str().expect("text")).expect("a token");
        enrol::join(&service.addresses["identity"], &token).await.is_ok()
    };
    wait(ready, "a certificate under the corporate root").await;
    let identity = service.enrol(SOLVER).await;
    identity.save(path).expect("saves");
    let verified =
        openssl(path, &["verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "svid.pem", "svid.pem"]);
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
    // The next one: asked for, installed, activated by hand; what the first one signed goes on.
    csr();
    assert!(sign("ext").status.success());
    let activated = admin(&service, &["ca", "activate", "issuing"]);
    assert!(activated.status.success(), "{}", stderr(&activated));
    enrol::renew(&identity).await.expect("renews under the next");
    let status = admin(&service, &["ca", "status", "--json"]);
    let all: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let states = |kind: &str| {
        all.as_array()
            .expect("a list")
            .iter()
            .filter(|a| a["kind"] == kind)
            .map(|a| a["state"].as_str().expect("text").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (states("root"), states("issuing")),
        (vec!["active".to_owned()], vec!["old".to_owned(), "active".to_owned()]),
        "{all}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l4_authority_keys_are_sealed_with_a_key_that_the_service_needs_to_start() {
    let kek = "ab".repeat(32);
    let identity = "key_encryption_key_file = \"kek\"\n";
    // Begun without, so that every key lies open first, the root's, too.
    let mut service = Service::start_domain("example.org", "", "", &[("kek", &kek)]).await;
    service.signal(nix::sys::signal::Signal::SIGKILL);
    service.wait();
    let path = service.base().join("popgate.toml");
    let config = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, config.replace("[identity]\n", &format!("[identity]\n{identity}"))).expect("writes");
    service.restart();
    let entry = json!({"spiffe_id": SOLVER, "owner": "https://idp.example.org#bob"});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    let ca = service.data.join("ca");
    let keys: Vec<String> = std::fs::read_dir(&ca)
        .expect("lists")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|x| x == "key"))
        .map(|p| std::fs::read_to_string(p).expect("reads"))
        .collect();
    assert!(keys.len() >= 3 && keys.iter().all(|k| !k.contains("PRIVATE KEY")), "sealed: {}", keys.len());
    service.crash_and_restart();
    service.enrol(SOLVER).await;
    let config = std::fs::read_to_string(&path).expect("reads");
    std::fs::write(&path, config.replace(identity, "")).expect("writes");
    service.signal(nix::sys::signal::Signal::SIGKILL);
    service.wait();
    let output = popgate().args(["serve", "--config"]).arg(service.base().join("popgate.toml")).output().expect("ends");
    assert!(
        !output.status.success() && stderr(&output).contains("identity.key_encryption_key_file"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x4_a_downstream_entry_gets_a_ca_certificate_and_its_leaves_are_no_persons() {
    let service = Service::start_configured("", "downstream = true\n").await;
    let id = "spiffe://example.org/region/eu";
    let entry = json!({"spiffe_id": id, "owner": "https://idp.example.org#bob", "downstream": true});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    let (region, solver) = (service.enrol(id).await, service.enrol(SOLVER).await);
    let key = popgate::net::keys::P256Key::generate();
    let ask = async |identity: &Identity| {
        let http = popgate::client::http::HttpClient::new(identity.tls(true).expect("TLS"));
        let csr = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, key.csr().expect("makes"));
        let url = service.url("identity", "/v1/downstream");
        let response = enrol::post(&http, &url, &json!({"csr": csr})).await.expect("answers");
        (response.status().as_u16(), serde_json::from_slice::<Value>(response.body()).unwrap_or_default())
    };
    assert_eq!(ask(&solver).await.0, 403, "its entry does not say so");
    let (status, document) = ask(&region).await;
    assert_eq!(status, 201, "{document}");
    let chain = enrol::chain(&document["chain"]).expect("a chain");
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("ca.pem"), crate::web::pem(&chain)).expect("writes");
    std::fs::write(dir.path().join("root.pem"), crate::web::pem(&region.roots)).expect("writes");
    let verified =
        openssl(dir.path(), &["verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "ca.pem", "ca.pem"]);
    assert!(verified.status.success(), "{}{}", stdout(&verified), stderr(&verified));
    let listed = admin(&service, &["ca", "status", "--json"]);
    assert!(stdout(&listed).contains("\"downstream\""), "{}", stdout(&listed));
    let verify = service.verify().await;
    assert!(verify.status.success(), "{}", stderr(&verify));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_a_life_that_is_cut_short_is_told_once() {
    let service =
        Service::start_with_identity("danger_short_lives = true\nissuing_life = \"1h\"\njwt_key_life = \"6h\"\n").await;
    for _ in 0..3 {
        service.enrol(SOLVER).await;
    }
    let log = std::fs::read_to_string(service.base().join("serve.log")).expect("a log");
    let told = log.lines().filter(|l| l.contains("cut short") && l.contains(SOLVER)).count();
    assert_eq!(told, 1, "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_entries_are_exported_compared_and_imported_as_files_and_a_dry_run_changes_nothing() {
    let service = Service::start().await;
    let file = service.base().join("entries.toml");
    let export = admin(&service, &["entry", "export"]);
    assert!(export.status.success(), "{}", stderr(&export));
    std::fs::write(&file, &export.stdout).expect("writes");
    let diff = || admin(&service, &["entry", "diff", "--json", file.to_str().expect("UTF-8")]);
    let same = diff();
    assert_eq!(same.status.code(), Some(0), "an export is no change: {}", stdout(&same));
    let text = stdout(&export);
    let changed = text.replacen("operations = [\"tot.read\"]", "operations = [\"tot.read\", \"raw.*\"]", 1)
        + "\n[[entry]]\nspiffe_id = \"spiffe://example.org/new\"\nowner = \"https://idp.example.org#bob\"\nparent = \"spiffe://example.org/popgate/node/k8s/*\"\nselectors = [\"unix:uid:7\", \"unix:uid:7\"]\nhint = \"internal\"\njwt_svid_ttl = \"1m\"\n";
    assert_ne!(changed.len(), text.len());
    std::fs::write(&file, &changed).expect("writes");
    let told = diff();
    assert_eq!(told.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&told.stdout).expect("JSON");
    assert_eq!(document["added"][0]["spiffe_id"], "spiffe://example.org/new");
    assert_eq!(document["changed"][0]["spiffe_id"], "spiffe://example.org/ci/narrow");
    assert_eq!(document["changed"][0]["members"]["operations"]["here"], json!(["tot.read"]));
    assert!(admin(&service, &["entry", "import", file.to_str().expect("UTF-8")]).status.success());
    assert_eq!(diff().status.code(), Some(0), "imported");
    let dry = admin(
        &service,
        &[
            "entry",
            "create",
            "spiffe://example.org/dry",
            "--owner",
            "https://idp.example.org#bob",
            "--parent",
            "spiffe://example.org/popgate/node/n",
            "--selector",
            &crate::host::own_user(),
            "--dry-run",
            "--json",
        ],
    );
    let document: Value = serde_json::from_slice(&dry.stdout).unwrap_or_else(|_| panic!("{}", stderr(&dry)));
    let own = std::process::id();
    assert!(document["would_match_here"].as_array().expect("a list").iter().any(|p| p["pid"] == own), "{document}");
    assert!(!admin(&service, &["entry", "show", "spiffe://example.org/dry"]).status.success(), "nothing was created");
    for (flags, says) in [
        (vec!["--parent", "spiffe://example.org/popgate/node/n"], "needs selectors"),
        (vec!["--selector", "uid:0:"], "would"),
        (vec!["--selector", "Unix:uid:0"], "TYPE:VALUE"),
        (vec!["--parent", "spiffe://example.org/ci/solver", "--selector", "unix:uid:0"], "a parent is a node's"),
    ] {
        let mut args =
            vec!["entry", "create", "spiffe://example.org/bad", "--owner", "https://idp.example.org#bob", "--dry-run"];
        args.extend(flags.iter().copied());
        let output = admin(&service, &args);
        let told = format!("{}{}", stdout(&output), stderr(&output));
        assert!(told.contains(says), "{flags:?}: {told}");
    }
}
