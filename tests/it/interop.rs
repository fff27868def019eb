//! Other people's software against ours, unmodified: the table of `docs/integrations/spiffe.md` is what these runs say.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use futures_util::StreamExt as _;
use http::Method;
use serde_json::{Value, json};
use spiffe::{JwtSource, WorkloadApiClient, X509Source};

use crate::agent::wait;
use crate::documented::{self, Page};
use crate::host::{Host, own_user, register};
use crate::nginx::Nginx;
use crate::world::process::{Running, bounded};
use crate::world::{SOLVER, Service, popgate, provided, stderr};

const WEB: &str = "spiffe://example.org/web";
const PARTNER: &str = "partner.example";

/// One row of the table: client, version, call, result.
pub type Row = [String; 4];

pub fn row(client: &str, version: &str, call: &str, result: &str) -> Row {
    [client, version, call, result].map(ToOwned::to_owned)
}

pub fn rows(lines: impl Iterator<Item = String>) -> Vec<Row> {
    let read = |line: String| {
        let value: Value = serde_json::from_str(&line).ok()?;
        let text = |name: &str| value[name].as_str().map(ToOwned::to_owned);
        Some([text("client")?, text("version")?, text("call")?, text("result")?])
    };
    lines.filter_map(read).collect()
}

pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

/// A trust domain with a partner, and a host with an agent that serves this process and its children.
async fn world() -> (Service, Service, Host) {
    let (service, partner) = (Service::start().await, Service::start_domain(PARTNER, "", "", &[]).await);
    let bundle = partner.admin(Method::GET, &format!("/v1/bundles?id={PARTNER}"), None).await.expect("shows");
    let set = json!({"trust_domain": PARTNER, "bundle": bundle});
    service.admin(Method::POST, "/v1/bundles", Some(set)).await.expect("sets");
    let host = Host::start(&service, "build-1").await;
    register(&service, WEB, &host.node, &[&own_user()]).await;
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    wait(|| async { client.fetch_x509_svid().await.is_ok() }, "an identity").await;
    (service, partner, host)
}

/// Has every certificate replaced: a new issuing CA, and the old one tainted.
async fn rotate(service: &Service) {
    let act = async |body| service.admin(Method::POST, "/v1/authorities", Some(body)).await.expect("acts");
    let all = service.admin(Method::GET, "/v1/authorities", None).await.expect("lists");
    let signs = |a: &&Value| a["kind"] == "issuing" && a["state"] == "active";
    let old = all.as_array().expect("a list").iter().find(signs).expect("one signs")["id"].clone();
    act(json!({"action": "prepare", "kind": "issuing"})).await;
    act(json!({"action": "activate", "kind": "issuing"})).await;
    act(json!({"action": "taint", "id": old})).await;
}

async fn rust_crate(service: &Service, host: &Host) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut done = |call: &str, result: Result<(), String>| {
        rows.push(row("Rust spiffe", "0.19.0", call, &result.err().unwrap_or_else(|| "ok".into())));
    };
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    let svid = client.fetch_x509_svid().await.map_err(|e| e.to_string());
    done(
        "FetchX509SVID",
        svid.and_then(|s| if s.spiffe_id().to_string() == WEB { Ok(()) } else { Err("another".into()) }),
    );
    let partner = PARTNER.parse().expect("a trust domain");
    let bundles = client.fetch_x509_bundles().await.map_err(|e| e.to_string());
    done(
        "FetchX509Bundles, federated",
        bundles.and_then(|b| b.get(&partner).map(drop).ok_or_else(|| "missing".into())),
    );
    let token = client.fetch_jwt_svid(["reporter"], None).await.expect("a token");
    let valid = client.validate_jwt_token("reporter", token.token()).await.map(drop).map_err(|e| e.to_string());
    done("FetchJWTSVID, ValidateJWTSVID", valid);
    done("FetchJWTBundles", client.fetch_jwt_bundles().await.map(drop).map_err(|e| e.to_string()));
    let mut stream = client.stream_x509_contexts().await.expect("streams");
    let first = stream.next().await.expect("a message").expect("ok");
    rotate(service).await;
    let second = stream.next().await.expect("a message").expect("ok");
    let serials = [&first, &second].map(|c| c.default_svid().expect("one").leaf().as_bytes().to_vec());
    let changed = if serials[0] == serials[1] { Err("nothing new".into()) } else { Ok(()) };
    done("X.509 context stream, over a rotation", changed);
    let source = X509Source::builder().endpoint(host.endpoint()).build().await.map_err(|e| e.to_string());
    let jwt = JwtSource::builder().endpoint(host.endpoint()).build().await.map_err(|e| e.to_string());
    done(
        "X509Source, JwtSource",
        source.and_then(|s| s.svid().map(drop).map_err(|e| e.to_string())).and(jwt.map(drop)),
    );
    rows
}

/// Runs a script to its end; at the line `waiting` the certificates rotate.
async fn run(service: &Service, mut command: Command) -> Vec<Row> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().expect("piped")).lines() {
        let line = line.expect("UTF-8");
        if line == "waiting" {
            rotate(service).await;
        }
        lines.push(line);
    }
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{lines:?}\n{}", stderr(&output));
    rows(lines.into_iter())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w3_unmodified_clients_work_and_the_documented_table_says_what_they_did() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "clients in Python and Node, and a certificate linter") else {
        return;
    };
    let node = provided("POPGATE_TEST_NODE_MODULES", "the Node client").expect("`./test` provides both");
    let (service, _partner, host) = world().await;
    let mut table = rust_crate(&service, &host).await;
    let socket = host.socket();
    let mut spiffe = bounded(&python);
    spiffe.arg(script("python_spiffe.py")).arg(&socket).args([WEB, PARTNER]);
    table.extend(run(&service, spiffe).await);
    let mut grpcio = bounded(&python);
    grpcio.arg(script("plain_grpcio.py")).arg(&socket).arg(WEB);
    table.extend(run(&service, grpcio).await);
    let mut js = bounded("node");
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/spiffe_workload.proto");
    js.arg(script("node_client.js")).arg(&socket).args([WEB, &node]).arg(proto);
    table.extend(run(&service, js).await);
    let failed: Vec<&Row> = table.iter().filter(|r| r[3] != "ok").collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(table.len() >= 30, "every script ran to its end: {table:?}");
    table.insert(0, row("client", "version", "call", "result"));
    documented::compare(Page::Spiffe, &table);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_x3_x4_a_certificate_linter_finds_no_error_in_what_is_issued() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "clients in Python and Node, and a certificate linter") else {
        return;
    };
    let service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    let with_names = "spiffe://example.org/named";
    let entry =
        json!({"spiffe_id": with_names, "owner": "https://idp.example.org#bob", "dns_names": ["named.internal"]});
    service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("creates");
    let named = service.enrol(with_names).await;
    let dir = tempfile::tempdir().expect("tempdir");
    let linter = Path::new(&python).with_file_name("lint_pkix_cert");
    let person = service.enrol("spiffe://example.org/popgate/person/alice").await;
    let host = Host::start(&service, "build-1").await;
    let node = popgate::client::identity::Identity::load(&host.path().join("data/node")).expect("the node's");
    let script = format!(
        "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509",
        service.addresses["identity"].trim_start_matches("https://")
    );
    let server = Command::new("sh").args(["-c", &script]).output().expect("openssl runs").stdout;
    let server =
        popgate::net::fetch::pem_certificates(&String::from_utf8_lossy(&server)).expect("a certificate").remove(0);
    let all = [
        &identity.chain[0],
        &identity.chain[1],
        &named.chain[0],
        &identity.roots[0],
        &person.chain[0],
        &node.chain[0],
        &server,
    ];
    for (i, der) in all.into_iter().enumerate() {
        let file = dir.path().join(format!("{i}.pem"));
        std::fs::write(&file, popgate::net::files::pem(der)).expect("writes");
        let output =
            Command::new(&linter).args(["lint", "-s", "ERROR", "-f", "CSV"]).arg(&file).output().expect("runs");
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        // Its check of URIs knows the web's schemes alone, and takes no other for a URI (docs/decisions/0010).
        let scheme = |l: &str| {
            let uri = l.contains("pkix.invalid_uri_syntax") && l.contains("\"\"spiffe://example.org");
            uri || l.contains("pkix.invalid_domain_name_syntax") && l.contains("\"\"localhost\"\"")
        };
        let findings: Vec<&str> = told.lines().skip(1).filter(|l| !l.trim().is_empty() && !scheme(l)).collect();
        assert!(told.starts_with("node_path,") && findings.is_empty(), "certificate {i}: {told}{}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_nginx_serves_on_while_svid_watch_rotates_its_certificate_under_load() {
    let Some(nginx) = provided("POPGATE_TEST_NGINX", "nginx with certificates that rotate") else { return };
    let (service, _partner, host) = world().await;
    let dir = host.path().to_owned();
    let out = dir.join("svid");
    let reload = format!("test -e {d}/nginx.pid && kill -HUP $(cat {d}/nginx.pid); exit 0", d = dir.display());
    let mut watch = popgate();
    watch.args(["svid", "watch", "--out", out.to_str().expect("UTF-8"), "--exec", &reload]);
    watch.env("SPIFFE_ENDPOINT_SOCKET", host.endpoint()).stdin(Stdio::null()).stdout(Stdio::null());
    let _watch = Running { child: watch.spawn().expect("runs") };
    wait(|| async { out.join("popgate.json").exists() }, "the first files").await;
    let server = Nginx::start(&nginx, &dir, |port| {
        format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_protocols TLSv1.3; ssl_certificate {o}/svid.pem; ssl_certificate_key {o}/key.pem; ssl_client_certificate {o}/bundle.pem; ssl_verify_client on; ssl_verify_depth 2; location / {{ return 200 \"$ssl_client_serial\"; }} }}",
            o = out.display(),
        )
    })
    .await;
    let agent = popgate::client::workload::WorkloadApi::new(&host.endpoint()).expect("an address");
    let ask = async || -> Result<Vec<u8>, String> {
        // A new connection each time, with the present certificate: each handshake is judged by both sides anew.
        let identity = agent.identity(None).await.map_err(|e| e.to_string())?;
        let check: popgate::net::tls::LeafCheck = std::sync::Arc::new(|der, _| {
            popgate::protocol::svid::X509Svid::parse(der).map(drop).map_err(|e| e.to_string())
        });
        let trust = popgate::net::tls::ClientTrust {
            roots: popgate::net::tls::fixed_roots(identity.roots.clone()),
            check,
            clock: std::sync::Arc::new(popgate::store::clock::SystemClock),
        };
        let tls =
            popgate::net::tls::client(trust, Some((identity.chain.clone(), identity.private_key()))).expect("TLS");
        let http = popgate::client::http::HttpClient::new(tls);
        let request =
            http::Request::get(format!("https://{}/", server.address)).body(bytes::Bytes::new()).expect("a request");
        let response = http.fetch(request).await.map_err(|e| e.to_string())?;
        if response.status() == 200 { Ok(response.body().to_vec()) } else { Err(response.status().to_string()) }
    };
    wait(|| async { ask().await.is_ok() }, "nginx").await;
    let serial_served = || {
        let output = Command::new("sh")
            .args([
                "-c",
                &format!(
                    "openssl s_client -connect {} </dev/null 2>/dev/null | openssl x509 -noout -serial -checkend 0",
                    server.address
                ),
            ])
            .output()
            .expect("openssl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut serials = std::collections::BTreeSet::from([serial_served()]);
    let (mut answered, mut lost) = (0, Vec::new());
    for _ in 0..4 {
        rotate(&service).await;
        let before = serials.len();
        // Load goes on until nginx shows the new certificate, and a little beyond.
        while serials.len() == before {
            for _ in 0..5 {
                match ask().await {
                    Ok(_) => answered += 1,
                    Err(error) => lost.push(error),
                }
            }
            serials.insert(serial_served());
        }
    }
    assert!(lost.is_empty(), "{} of {answered} lost: {lost:?}", lost.len());
    assert!(serials.len() >= 5 && answered >= 20, "{serials:?}, {answered} requests");
}
