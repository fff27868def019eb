//! Other people's clients through the gateway, unmodified: those that cannot sign go through `popgate proxy`. The table of
//! `docs/integrations/gateway.md` is what these runs say.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::documented::{self, Page};
use crate::interop::{Row, row, rows, script};
use crate::protocols::{echo, grpc_server, operation, route};
use crate::world::process::{Running, bounded};
use crate::world::{SOLVER, Service, popgate, provided, respond, stderr, stdout};

/// Starts a process of ours that tells where it listens.
pub fn start(args: &[&str], name: &str, log: &Path) -> (Running, String) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(log).expect("log");
    let (process, ready) = Running::start(popgate().args(args).stderr(file), |_| {});
    let said = || std::fs::read_to_string(log).unwrap_or_default();
    let address = ready["ready"][name].as_str().unwrap_or_else(|| panic!("no ready line of {name}: {}", said()));
    (process, address.to_owned())
}

/// Starts a signing proxy of the solver's on a port of this host; `dir` keeps its identity and its log.
pub async fn signing_proxy(service: &Service, dir: &Path) -> (Running, String) {
    let own = dir.join("solver");
    service.enrol(SOLVER).await.save(&own).expect("saves");
    let (own, to) = (own.to_str().expect("UTF-8"), &service.addresses["gateway"]);
    start(&["proxy", "--json", "--identity", own, "--listen", "127.0.0.1:0", "--to", to], "proxy", &dir.join("log"))
}

fn routes(engine: &str, grpc: &str, sockets: &str, hints: &str) -> String {
    let engine = format!("url = \"{engine}\"");
    let mut text = route("llm", "/v1/chat", &engine, "mask = \"pii\"");
    text += &operation("x.chat", "POST /v1/chat/completions", "reads = \"chat\"");
    text += "[[route.operation]]\nname = \"x.call\"\nmatch = \"CALL /v1/chat/completions\"\nselect = { \"/tool\" = \"solve\" }\nparams = { tool = \"/tool\" }\nobject = \"/tools/{tool}\"\n";
    text += "[[route.operation]]\nname = \"x.other\"\nmatch = \"CALL /v1/chat/completions\"\nparams = { tool = \"/tool\" }\nobject = \"/tools/{tool}\"\n";
    text += &route("models", "/v1/models", &engine, "");
    text += &operation("x.models", "GET /v1/models", "");
    text += &route("mcp", "/mcp", &engine, "");
    text += "[[route.operation]]\nname = \"x.tool\"\nmatch = \"POST /mcp\"\nreads = \"mcp\"\nselect = { \"/method\" = \"tools/call\" }\nparams = { tool = \"/params/name\" }\nobject = \"/tools/{tool}\"\n";
    text += &operation("x.mcp", "POST /mcp", "reads = \"mcp\"");
    text += &operation("x.mcp.get", "GET /mcp", "");
    text += &operation("x.mcp.end", "DELETE /mcp", "");
    let grpc = format!("url = \"http://{grpc}\", protocol = \"http2\"");
    for service in ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
        text += &route(service, &format!("/{service}"), &grpc, "");
        if service == "grpc.health.v1.Health" {
            text += &operation("x.list", "POST /grpc.health.v1.Health/List", "");
        }
        text += &operation("x.rpc", &format!("POST /{service}/{{m}}"), "reads = \"grpc\"");
    }
    text += &route("ws", "/ws", &format!("url = \"http://{sockets}\""), "");
    text += &operation("x.pass", "GET /ws/pass", "websocket = \"pass\"");
    text += &operation("x.judged", "GET /ws/judged", "websocket = \"judge\"");
    text += &operation("x.say", "MESSAGE /ws/judged", "select = { \"/kind\" = \"say\" }");
    text += &operation("x.wipe", "MESSAGE /ws/judged", "select = { \"/kind\" = \"wipe\" }");
    text += &route("hints", "/hints", &format!("url = \"{hints}\", protocol = \"http2\""), "");
    text + &operation("x.hints", "GET /hints", "")
}

const PERMITS: [&str; 11] = [
    "x.hints",
    "x.chat",
    "x.call",
    "x.models",
    "x.mcp",
    "x.mcp.get",
    "x.mcp.end",
    "x.rpc",
    "x.pass",
    "x.judged",
    "x.say",
];

const TOOLS: &str = r#"@id("one-tool") permit (principal in Group::"solvers", action == Action::"x.tool", resource) when { context.mcp.name == "solve" };"#;

fn client(mut command: Command) -> Vec<Row> {
    let output = command.output().expect("runs");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    rows(stdout(&output).lines().map(ToOwned::to_owned))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unmodified_clients_work_and_the_documented_table_says_what_they_did() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "clients in Python and Node, and a certificate linter") else {
        return;
    };
    let node = provided("POPGATE_TEST_NODE_MODULES", "the Node clients").expect("`./test` provides both");
    let dir = tempfile::tempdir().expect("tempdir");
    let log = dir.path().join("log");
    let (_engine, engine) = start(&["tot", "serve", "--json", "--listen", "127.0.0.1:0"], "engine", &log);
    let (grpc, _switch) = grpc_server().await;
    let sockets = echo().await;
    let mut hints = Command::new("node");
    let (_hints, ready) = Running::start(hints.arg(script("hints.mjs")), |_| {});
    let hints = format!("http://127.0.0.1:{}", ready["port"]);
    let service =
        Service::start_routes(&routes(&engine, &grpc, &sockets, &hints), &PERMITS, &[("tools.cedar", TOOLS)]).await;
    service.upstream.on_request(|_| respond(200, "application/json", r#"{"ok":true}"#));
    let (_proxy, proxy) = signing_proxy(&service, dir.path()).await;
    let own = dir.path().join("solver");
    let own = own.to_str().expect("UTF-8");
    let world = dir.path().join("world.json");
    std::fs::write(&world, json!({"proxy": proxy}).to_string()).expect("writes");
    let mut table = vec![row("client", "version", "call", "result")];
    let mut py = bounded(&python);
    py.arg(script("proxied_clients.py")).arg(&world);
    table.extend(client(py));
    let mut js = bounded("node");
    js.arg(script("ws_client.mjs")).args([&node, &proxy]);
    table.extend(client(js));
    table.extend(tonic_client(&proxy).await);
    let url = format!("{}/v1/runs/r1", proxy);
    for (label, flag, want) in
        [("GET over HTTP/1.1", "--http1.1", "200 1.1"), ("GET over HTTP/2", "--http2-prior-knowledge", "200 2")]
    {
        let output =
            bounded("curl").args(["-s", flag, "-o", "/dev/null", "-w", "%{http_code} %{http_version}", &url]).output();
        let told = stdout(&output.expect("curl runs"));
        table.push(row("curl", "Debian's", label, if told == want { "ok" } else { &told }));
    }
    for (label, flag) in [
        ("103 from Node's HTTP/2 server, over HTTP/1.1", "--http1.1"),
        ("the same over HTTP/2", "--http2-prior-knowledge"),
    ] {
        let told = bounded("curl").args(["-si", flag, &format!("{proxy}/hints")]).output();
        let told = stdout(&told.expect("curl runs"));
        let (hint, answer) = told.split_once("\r\n\r\n").unwrap_or_default();
        let good = hint.contains(" 103") && hint.contains("rel=preload") && answer.contains(" 200");
        table.push(row("curl", "Debian's", label, if good { "ok" } else { &told }));
    }
    let direct = direct_curl(&service, own).await;
    table.push(row(
        "curl",
        "Debian's",
        "GET over HTTP/2 to the gateway, with `popgate token` and `popgate proof`",
        &direct,
    ));
    let load = bounded("h2load").args(["-n", "200", "-c", "4", "-m", "8", &url]).output().expect("h2load runs");
    let good =
        stdout(&load).contains("200 succeeded, 0 failed, 0 errored, 0 timeout") && stdout(&load).contains("200 2xx");
    table.push(row(
        "h2load",
        "Debian's",
        "200 requests, 4 connections of 8 streams",
        if good { "ok" } else { "failed" },
    ));
    let failed: Vec<&Row> = table.iter().skip(1).filter(|r| r[3] != "ok").collect();
    let logs = || std::fs::read_to_string(&log).unwrap_or_default();
    assert!(failed.is_empty(), "{failed:#?}\n{}", logs());
    assert!(table.len() > 20, "every script ran to its end: {table:?}");
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
    documented::compare(Page::Gateway, &table);
}

/// A client of tonic's own, whose channel knows nothing of proofs.
async fn tonic_client(proxy: &str) -> Vec<Row> {
    let channel = tonic::transport::Channel::from_shared(proxy.to_owned()).expect("a URL").connect().await;
    let mut health = HealthClient::new(channel.expect("connects"));
    let ask = |service: &str| HealthCheckRequest { service: service.into() };
    let unary = health.check(ask("tot")).await.map(|r| r.into_inner().status);
    let unknown = health.check(ask("nobody")).await.map_err(|status| status.code());
    let streamed = match health.watch(ask("tot")).await {
        Ok(stream) => stream.into_inner().message().await.ok().flatten().map(|m| m.status),
        Err(_) => None,
    };
    let told = |call: &str, good: bool| row("crates.io tonic", "0.14", call, if good { "ok" } else { "failed" });
    vec![
        told("unary call", matches!(unary, Ok(1))),
        told("status in the trailers", matches!(unknown, Err(tonic::Code::NotFound))),
        told("server streaming", streamed == Some(1)),
    ]
}

/// curl itself, with a token and proofs of our commands.
async fn direct_curl(service: &Service, own: &str) -> String {
    let url = service.url("gateway", "/v1/runs/r1");
    let token = popgate().args(["token", "--identity", own, "--resource", &url]).output().expect("runs");
    let token = stdout(&token).trim().to_owned();
    let file = Path::new(own).join("token");
    std::fs::write(&file, &token).expect("writes");
    let mut nonce: Option<String> = None;
    for _ in 0..2 {
        let mut proof = popgate();
        proof.args(["proof", "--identity", own, "--url", &url, "--token-file"]).arg(&file);
        if let Some(nonce) = &nonce {
            proof.args(["--nonce", nonce]);
        }
        let proof = stdout(&proof.output().expect("runs")).trim().to_owned();
        let (authorization, proof) = (format!("Authorization: DPoP {token}"), format!("DPoP: {proof}"));
        let output = bounded("curl")
            .args([
                "-s",
                "--http2",
                "-D",
                "-",
                "-o",
                "/dev/null",
                "--cacert",
                &format!("{own}/bundle.pem"),
                "-H",
                &authorization,
                "-H",
                &proof,
                &url,
            ])
            .output();
        let told = stdout(&output.expect("curl runs"));
        if told.starts_with("HTTP/2 200") {
            return "ok".into();
        }
        let found = told.lines().find_map(|l| l.strip_prefix("dpop-nonce: ")).map(|n| n.trim().to_owned());
        let Some(found) = found else { return told.lines().next().unwrap_or_default().to_owned() };
        nonce = Some(found);
    }
    "a nonce was not enough".into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_is_for_its_own_host_and_for_no_page_in_a_browser() {
    if provided("POPGATE_TEST_NODE_MODULES", "the proxy before curl").is_none() {
        return;
    }
    let service = Service::start().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let (_proxy, proxy) = signing_proxy(&service, dir.path()).await;
    let (own, log) = (dir.path().join("solver"), dir.path().join("log"));
    let (own, to) = (own.to_str().expect("UTF-8"), service.addresses["gateway"].clone());
    let curl = |args: &[&str]| {
        let output = bounded("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]).args(args).output();
        stdout(&output.expect("curl runs"))
    };
    let url = format!("{}/v1/runs/r1", proxy);
    assert_eq!(curl(&[&url]), "200");
    assert_eq!(curl(&[&format!("{proxy}/nowhere")]), "404", "no route leads there");
    assert_eq!(curl(&["-H", "Host: evil.example", &url]), "421");
    assert_eq!(curl(&["-H", "Origin: https://evil.example", &url]), "403");
    assert_eq!(curl(&["-H", "Sec-Fetch-Site: cross-site", &url]), "403");
    assert_eq!(
        curl(&["-H", "Authorization: Bearer sk-unused", &url]),
        "200",
        "a key that an SDK must have is left out"
    );
    assert_eq!(curl(&["-X", "DELETE", &url]), "403", "policy counts");
    let big = dir.path().join("big");
    std::fs::write(&big, vec![b'x'; 3 << 20]).expect("writes");
    let sent = format!("@{}", big.display());
    assert_eq!(curl(&["-H", "content-type: text/plain", "--data-binary", &sent, &format!("{}/v1/runs", proxy)]), "200");
    assert_eq!(service.upstream.seen().last().expect("one").body.len(), 3 << 20);
    let socket = dir.path().join("s");
    let listen = format!("unix:{}", socket.display());
    let (_local, local) =
        start(&["proxy", "--json", "--identity", own, "--listen", &listen, "--to", &to], "proxy", &log);
    assert_eq!(local, listen);
    assert_eq!(curl(&["--unix-socket", socket.to_str().expect("UTF-8"), "http://anything/v1/runs/r1"]), "200");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&socket).expect("there").permissions().mode() & 0o777, 0o600);
    for (listen, why) in [("0.0.0.0:0", "this host alone"), ("nowhere", "unix:PATH")] {
        let refused =
            popgate().args(["proxy", "--identity", own, "--listen", listen, "--to", &to]).output().expect("runs");
        assert_eq!(refused.status.code(), Some(2), "{listen}");
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    let seen = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(!seen.contains("eyJ") && !seen.contains("sk-unused"), "{seen}");
}
