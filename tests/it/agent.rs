//! The agent as workloads meet it, through the Rust `spiffe` crate, unmodified, and through our own commands.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::Method;
use nix::sys::signal::{Signal, kill};
use popgate::client::workload::WorkloadApi;
use popgate::domain::time::Clock as _;
use popgate::protocol::svid::X509Svid;
use popgate::store::clock::SystemClock;
use serde_json::json;
use spiffe::WorkloadApiClient;

use crate::host::{Host, own_user, register};
use crate::world::process::Running;
use crate::world::{Service, popgate, stderr, stdout};

const WEB: &str = "spiffe://example.org/web";

async fn served(service: &Service) -> Host {
    let host = Host::start(service, "build-1").await;
    register(service, WEB, &host.node, &[&own_user()]).await;
    host
}

/// A client whose first answer is there: registration and certificate are on their way.
async fn client(host: &Host) -> WorkloadApiClient {
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    wait(|| async { client.fetch_x509_svid().await.is_ok() }, "an identity").await;
    client
}

/// Polls until something holds; fails after a time in which it surely should.
pub async fn wait<F: Future<Output = bool>>(holds: impl Fn() -> F, what: &str) {
    wait_for(|| async { holds().await.then_some(()) }, what).await;
}

/// The same for something that comes with a value.
pub async fn wait_for<T, F: Future<Output = Option<T>>>(look: impl Fn() -> F, what: &str) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{what} did not come");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w1_w2_the_rust_spiffe_crate_gets_certificates_bundles_and_tokens() {
    let service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    let svid = client.fetch_x509_svid().await.expect("a certificate");
    assert_eq!(svid.spiffe_id().to_string(), WEB);
    let context = client.fetch_x509_context().await.expect("a context");
    let domain = "example.org".parse().expect("a trust domain");
    assert_eq!(context.bundle_set().get(&domain).expect("ours").authorities().len(), 1);
    let token = client.fetch_jwt_svid(["reporter"], None).await.expect("a token");
    assert_eq!(token.spiffe_id().to_string(), WEB);
    client.validate_jwt_token("reporter", token.token()).await.expect("holds");
    client.validate_jwt_token("another", token.token()).await.expect_err("another audience");
    let keys = client.fetch_jwt_bundles().await.expect("bundles");
    assert!(keys.get(&domain).is_some());
    // Each JWT-SVID is in the log, and what it was made from is not.
    let verify = service.verify().await;
    assert!(verify.status.success(), "{}", stderr(&verify));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_a_change_is_pushed_to_open_streams_and_what_is_taken_away_ends_them() {
    let service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    let mut stream = client.stream_x509_contexts().await.expect("streams");
    let first = stream.next().await.expect("a message").expect("ok");
    assert_eq!(first.svids().len(), 1);
    register(&service, "spiffe://example.org/web-2", &host.node, &[&own_user()]).await;
    // By push: the server's next word of its own would come after ten seconds; `benches/agent.rs` says how soon this is.
    let second = tokio::time::timeout(Duration::from_secs(9), stream.next()).await.expect("pushed");
    let second = second.expect("a message").expect("ok");
    assert_eq!(second.svids().len(), 2, "always the full state");
    assert_eq!(second.svids()[0].spiffe_id().to_string(), WEB, "the default identity stays the default");
    for id in [WEB, "spiffe://example.org/web-2"] {
        service.admin(Method::DELETE, &format!("/v1/entries?id={id}"), None).await.expect("deletes");
    }
    // The first deletion is told, then there is nothing left to tell: the stream ends with PermissionDenied.
    let mut ended = None;
    while let Some(message) = stream.next().await {
        match message {
            Ok(context) => assert_eq!(context.svids().len(), 1),
            Err(error) => ended = Some(error.to_string()),
        }
    }
    let ended = ended.expect("an error ends it");
    assert!(ended.to_lowercase().contains("permission") || ended.contains("no identity"), "{ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w2_who_has_no_entry_is_denied_in_the_standards_words() {
    let service = Service::start().await;
    let host = Host::start(&service, "build-1").await;
    register(&service, WEB, &host.node, &["unix:uid:4242"]).await;
    wait(|| async { host.log().contains("\"entries\":1") }, "the entry").await;
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    let denied = client.fetch_x509_svid().await.expect_err("denied");
    assert!(
        format!("{denied:?}").contains("no identity issued") || denied.to_string().contains("no identity"),
        "{denied:?}"
    );
    client.fetch_x509_bundles().await.expect_err("no bundles either");
    client.fetch_jwt_svid(["a"], None).await.expect_err("no tokens either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a2_selectors_tell_workloads_of_one_host_apart() {
    let service = Service::start().await;
    let host = Host::start(&service, "build-1").await;
    // The workload is the command line itself; this test's process is another executable.
    let program = std::fs::canonicalize(env!("CARGO_BIN_EXE_popgate")).expect("built");
    let digest = popgate::domain::digest::Sha256::of(&std::fs::read(&program).expect("reads"));
    let (path, digest) = (format!("unix:path:{}", program.display()), format!("unix:sha256:{digest}"));
    register(&service, "spiffe://example.org/by-path", &host.node, &[&own_user(), &path]).await;
    register(&service, "spiffe://example.org/by-digest", &host.node, &[&digest]).await;
    register(&service, "spiffe://example.org/other", &host.node, &[&own_user(), "unix:path:/usr/bin/other"]).await;
    wait(|| async { host.log().contains("\"entries\":3") }, "the entries").await;
    let fetch = |id: &str| {
        let out = host.path().join("out");
        let mut command = popgate();
        command
            .args(["svid", "fetch", "--spiffe-id", id, "--out"])
            .arg(out)
            .env("SPIFFE_ENDPOINT_SOCKET", host.endpoint());
        command.output().expect("runs")
    };
    for id in ["spiffe://example.org/by-path", "spiffe://example.org/by-digest"] {
        wait(|| async { fetch(id).status.success() }, id).await;
    }
    let other = fetch("spiffe://example.org/other");
    assert!(stderr(&other).contains("by-digest, spiffe://example.org/by-path"), "{}", stderr(&other));
    let client = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    client.fetch_x509_svid().await.expect_err("this process is another executable");
    // What an operator is told about a process is what the agent finds.
    let suggest =
        popgate().args(["entry", "suggest", "--json", "--pid", &host.pid().to_string()]).output().expect("runs");
    let told: serde_json::Value = serde_json::from_slice(&suggest.stdout).expect("JSON");
    let has = |list: &str, fact: &str| told[list].as_array().is_some_and(|all| all.contains(&json!(fact)));
    assert!(has("found", &digest) && has("suggested", &path) && !has("suggested", &digest), "{told}");
    let matching = popgate().args(["entry", "suggest", "--json", "--selector", &digest]).output().expect("runs");
    let told: serde_json::Value = serde_json::from_slice(&matching.stdout).expect("JSON");
    let pids: Vec<i64> =
        told["would_match"].as_array().expect("a list").iter().filter_map(|p| p["pid"].as_i64()).collect();
    assert!(pids.contains(&i64::from(host.pid())), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w5_the_agent_serves_on_while_its_server_is_away_and_over_its_own_restart() {
    let mut service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    service.signal(Signal::SIGKILL);
    service.wait();
    wait(|| async { host.log().contains("the server is away") }, "the notice").await;
    assert_eq!(client.fetch_x509_svid().await.expect("from memory").spiffe_id().to_string(), WEB);
    service.restart();
    let id = "spiffe://example.org/later";
    register(&service, id, &host.node, &[&own_user()]).await;
    wait(|| async { client.fetch_all_x509_svids().await.is_ok_and(|all| all.len() == 2) }, "the later entry").await;
    // The node's identity is kept, so that no second join token is needed.
    let host = host.restart(&service, &[]).expect("starts again");
    let again = WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    wait(|| async { again.fetch_all_x509_svids().await.is_ok_and(|all| all.len() == 2) }, "both entries").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_an_evicted_node_loses_everything_that_came_through_it() {
    let service = Service::start().await;
    let host = served(&service).await;
    let agent = WorkloadApi::new(&host.endpoint()).expect("an address");
    client(&host).await;
    let identity = agent.identity(None).await.expect("an identity");
    let shown = service.admin(Method::GET, &format!("/v1/nodes?id={}", host.node), None).await.expect("shows");
    assert_eq!(shown["entries"], json!([WEB]));
    service.admin(Method::DELETE, &format!("/v1/nodes?id={}", host.node), None).await.expect("evicts");
    let stops = service.admin(Method::GET, "/v1/revocations", None).await.expect("lists");
    let stopped = |serial: &str| stops.as_array().is_some_and(|all| all.iter().any(|s| s["value"] == serial));
    assert!(stopped(&identity.svid.serial), "the workload's certificate: {stops}");
    wait(|| async { host.log().contains("evicted") }, "the refusal").await;
    // A token for the same node lets it attest again, as a node with nothing left from before.
    assert!(service.admin(Method::GET, &format!("/v1/nodes?id={}", host.node), None).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l5_a_revoked_node_does_not_attest_again_and_its_workloads_get_nothing() {
    let service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    let stop = json!({"kind": "node", "value": host.node, "reason": "the machine was stolen"});
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    wait(|| async { host.log().contains("revoked") }, "the refusal").await;
    client.fetch_jwt_svid(["another"], None).await.expect_err("nothing new");
    let token = service.join_token(&host.node).await;
    let dir = tempfile::Builder::new().prefix("pga-").tempdir().expect("tempdir");
    std::fs::write(dir.path().join("t"), token.expose().as_str()).expect("writes");
    let file = dir.path().join("t");
    let refused = Host::start_in(&service, dir, &["--join-token-file", file.to_str().expect("UTF-8")]).err();
    assert!(refused.expect("does not start").contains("revoked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_tainted_certificates_are_replaced_at_once_and_a_revoked_issuer_is_refused() {
    let service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    let agent = WorkloadApi::new(&host.endpoint()).expect("an address");
    let before = agent.identity(None).await.expect("an identity");
    let act = async |body| service.admin(Method::POST, "/v1/authorities", Some(body)).await;
    let old = act(json!({"action": "prepare", "kind": "issuing"})).await.expect("prepares");
    assert_eq!(old["changes"][0]["state"], "prepared");
    let all = service.admin(Method::GET, "/v1/authorities", None).await.expect("lists");
    let active = |kind: &str| {
        let found = all.as_array().expect("a list").iter().find(|a| a["kind"] == kind && a["state"] == "active");
        found.expect("one signs")["id"].as_str().expect("text").to_owned()
    };
    let first = active("issuing");
    assert!(act(json!({"action": "taint", "id": first})).await.is_err(), "it signs");
    act(json!({"action": "activate", "kind": "issuing"})).await.expect("activates");
    assert_eq!(agent.identity(None).await.expect("an identity").svid.serial, before.svid.serial, "nothing hurries");
    let mut stream = client.stream_x509_contexts().await.expect("streams");
    stream.next().await.expect("a message").expect("ok");
    act(json!({"action": "taint", "id": first})).await.expect("taints");
    let fresh = stream.next().await.expect("a message").expect("ok");
    let leaf = X509Svid::parse(fresh.default_svid().expect("one").leaf().as_bytes()).expect("reads");
    assert_ne!(leaf.serial, before.svid.serial, "replaced at once");
    // The node's own certificate comes from the same issuer: its agent goes on with a new one.
    act(json!({"action": "revoke", "id": first})).await.expect("revokes");
    let refused = popgate::client::enrol::renew(&on_server(&before, &service)).await.err().expect("refused");
    assert_eq!(refused.status(), None, "the handshake fails, and nobody reads the request: {refused}");
    let log = || std::fs::read_to_string(service.base().join("serve.log")).unwrap_or_default();
    wait(|| async { log().contains("trusted no more") }, "the reason in the server's log").await;
    assert!(leaf.not_after > SystemClock.now());
}

/// The same identity, told where the server is: an agent's tells it not.
fn on_server(identity: &popgate::client::identity::Identity, service: &Service) -> popgate::client::identity::Identity {
    let dir = tempfile::tempdir().expect("tempdir");
    identity.save(dir.path()).expect("saves");
    let servers = json!({"identity": service.addresses["identity"], "token": "", "gateway": "", "admin": ""});
    std::fs::write(dir.path().join("popgate.json"), servers.to_string()).expect("writes");
    popgate::client::identity::Identity::load(dir.path()).expect("loads")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w4_our_own_commands_take_their_identity_from_the_agent() {
    let service = Service::start().await;
    let host = served(&service).await;
    client(&host).await;
    let out = host.path().join("out");
    let run =
        |args: &[&str]| popgate().args(args).env("SPIFFE_ENDPOINT_SOCKET", host.endpoint()).output().expect("runs");
    let fetched = run(&["svid", "fetch", "--json", "--out", out.to_str().expect("UTF-8")]);
    assert!(stdout(&fetched).contains(WEB), "{}", stderr(&fetched));
    let called = run(&["call", &service.url("gateway", "/raw/x")]);
    assert_eq!(stdout(&called).trim(), r#"{"ok":true}"#, "{}", stderr(&called));
    let jwt = run(&["svid", "jwt", "--audience", "reporter"]);
    assert_eq!(stdout(&jwt).trim().split('.').count(), 3, "{}", stderr(&jwt));
    let wrong =
        run(&["svid", "fetch", "--spiffe-id", "spiffe://example.org/nobody", "--out", out.to_str().expect("UTF-8")]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains(WEB), "it names what is there: {}", stderr(&wrong));
    for bad in ["tcp://127.0.0.1:1", "unix:relative", "/path"] {
        let refused = popgate().args(["svid", "fetch"]).env("SPIFFE_ENDPOINT_SOCKET", bad).output().expect("runs");
        assert!(stderr(&refused).contains("unix:///"), "{bad}: {}", stderr(&refused));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_agent_ends_its_streams_as_unavailable_and_removes_its_socket() {
    let service = Service::start().await;
    let host = served(&service).await;
    let client = client(&host).await;
    let mut stream = client.stream_x509_contexts().await.expect("streams");
    stream.next().await.expect("a message").expect("ok");
    kill(nix::unistd::Pid::from_raw(host.pid()), Signal::SIGTERM).expect("signals");
    let ended = stream.next().await.expect("an end").expect_err("an error").to_string();
    assert!(ended.to_lowercase().contains("unavailable") || ended.contains("agent ends"), "{ended}");
    wait(|| async { !host.socket().exists() }, "the socket's removal").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_cannot_start_says_what_to_do() {
    let service = Service::start().await;
    let new = || tempfile::Builder::new().prefix("pga-").tempdir().expect("tempdir");
    let none = Host::start_in(&service, new(), &[]).err().expect("does not start");
    assert!(none.contains("--join-token-file") && none.contains("--x509-chain"), "{none}");
    let dir = new();
    let token = service.join_token("spiffe://example.org/ci/solver").await;
    std::fs::write(dir.path().join("t"), token.expose().as_str()).expect("writes");
    let file = dir.path().join("t");
    let workload = Host::start_in(&service, dir, &["--join-token-file", file.to_str().expect("UTF-8")]).err();
    assert!(workload.expect("does not start").contains("--node NAME"));
}

/// A cgroup of a unit's name, in systemd's hierarchy or the unified one.
fn unit(name: &str) -> Option<std::path::PathBuf> {
    let places = ["/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    places.iter().map(|p| std::path::Path::new(p).join(name)).find(|dir| {
        std::fs::create_dir(dir).is_ok() && (dir.join("cgroup.procs").exists() || std::fs::remove_dir(dir).is_err())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a2_a_service_is_known_by_its_systemd_unit() {
    let name = format!("pgt-{}.service", std::process::id());
    let Some(dir) = unit(&name) else {
        use std::io::Write as _;
        let _ =
            writeln!(std::io::stderr(), "left out: the systemd unit selector; it needs a writable cgroup hierarchy");
        return;
    };
    let service = Service::start().await;
    let host = Host::start(&service, "build-1").await;
    register(&service, "spiffe://example.org/unit", &host.node, &[&format!("systemd:id:{name}")]).await;
    wait(|| async { host.log().contains("\"entries\":1") }, "the entry").await;
    let fetch = |prefix: &str| {
        let script = format!(
            "{prefix}exec {} svid fetch --out {}",
            env!("CARGO_BIN_EXE_popgate"),
            host.path().join("o").display()
        );
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env("SPIFFE_ENDPOINT_SOCKET", host.endpoint());
        shell.output().expect("runs")
    };
    let inside = format!("echo $$ > {}/cgroup.procs; ", dir.display());
    wait(|| async { fetch(&inside).status.success() }, "an identity inside the unit").await;
    let outside = fetch("");
    let _ = std::fs::remove_dir(&dir);
    assert!(stderr(&outside).contains("no identity issued"), "{}", stderr(&outside));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l2_svid_watch_renews_by_itself_and_signals_a_process() {
    let service = Service::start_with_identity("danger_short_lives = true\n").await;
    let entry = json!({"entry": [{"spiffe_id": crate::world::SOLVER, "owner": "https://idp.example.org#bob", "svid_ttl": "8s"}]});
    service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    let dir = tempfile::tempdir().expect("tempdir");
    let file = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(file("token"), service.join_token(crate::world::SOLVER).await.expose().as_str()).expect("writes");
    let count = format!(
        "n=0; trap 'n=$((n+1)); echo $n > {}' HUP; echo $$ > {}; while :; do sleep 0.05; done",
        file("count"),
        file("pid")
    );
    let mut shell = std::process::Command::new("sh");
    let process =
        Running { child: shell.args(["-c", &count]).stdout(std::process::Stdio::null()).spawn().expect("runs") };
    wait(|| async { std::path::Path::new(&file("pid")).exists() }, "the process").await;
    let watch = popgate()
        .args([
            "svid",
            "watch",
            "--join-token-file",
            &file("token"),
            "--out",
            &file("out"),
            "--signal",
            "HUP",
            "--pid-file",
            &file("pid"),
        ])
        .args(["--server", &service.addresses["identity"], "--quiet"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .map(|child| Running { child })
        .expect("runs");
    let told = || std::fs::read_to_string(file("count")).ok().and_then(|t| t.trim().parse::<u32>().ok()).unwrap_or(0);
    wait(|| async { told() >= 3 }, "three certificates").await;
    drop((watch, process));
    let kept = popgate::client::identity::Identity::load(&dir.path().join("out")).expect("key and certificate fit");
    assert_eq!(kept.spiffe_id.as_str(), crate::world::SOLVER);
    let stops = service.admin(Method::GET, "/v1/revocations", None).await.expect("lists");
    assert_eq!(stops, json!([]), "nobody took a renewal for a thief's");
    for (args, says) in [(["--signal", "NOPE"], "is no signal"), (["--signal", "HUP"], "--pid-file")] {
        let bad = popgate()
            .args(["svid", "watch"])
            .args(args)
            .args(if says == "is no signal" { vec!["--pid-file", "/nowhere"] } else { vec![] })
            .output()
            .expect("runs");
        assert!(bad.status.code() == Some(2) && stderr(&bad).contains(says), "{}", stderr(&bad));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_one_socket_or_directory_leaves_the_first_alone() {
    let service = Service::start().await;
    let host = served(&service).await;
    client(&host).await;
    let again = |data: &str, socket: &std::path::Path| {
        popgate()
            .args(["agent", "--server", &service.addresses["identity"], "--data-dir"])
            .arg(host.path().join(data))
            .arg("--socket")
            .arg(socket)
            .output()
            .expect("ends")
    };
    let same_socket = again("other", &host.socket());
    assert!(stderr(&same_socket).contains("another process listens on it"), "{}", stderr(&same_socket));
    let same_data = again("data", &host.path().join("s2"));
    assert!(stderr(&same_data).contains("in use by the service or agent with pid"), "{}", stderr(&same_data));
    let file = host.path().join("precious");
    std::fs::write(&file, "x").expect("writes");
    assert!(stderr(&again("other", &file)).contains("no socket"));
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "x");
    client(&host).await;
}
