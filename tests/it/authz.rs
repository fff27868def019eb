//! The edges of others ask: nginx with `auth_request`, and Envoy's ext_authz over HTTP and gRPC. The same token, proof,
//! policy and evidence decide.

use std::io::Write as _;
use std::process::Stdio;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use popgate::domain::secret::AccessToken;
use serde_json::{Value, json};

use crate::interop::script;
use crate::nginx::Nginx;
use crate::protocols::{operation, route};
use crate::world::process::bounded;
use crate::world::{Client, Service, provided, respond, run, stderr, stdout};

/// What the edge is called by its clients; its TLS is not the matter here.
const EDGE: &str = "edge.test";
/// nginx as the documentation sets it up.
const DOCUMENTED: &str = include_str!("../../docs/integrations/edges.md");

struct World {
    service: Service,
    solver: Client,
    token: AccessToken,
}

impl World {
    async fn new(peers: &str) -> Self {
        // Its upstream is set below: a route without a mask, and ones that ask for what an edge cannot keep.
        let upstream = crate::world::Upstream::start().await;
        let url = format!("url = \"http://{}\"", upstream.address);
        let mut routes = format!("[authz]\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n");
        routes += &route("plain", "/plain", &url, "");
        routes += &operation("x.get", "GET /plain/**", "");
        routes += &operation("x.wipe", "DELETE /plain/**", "");
        routes += &operation("x.asked", "PUT /plain/**", "");
        for (name, more) in [
            ("masked", "mask = \"pii\""),
            ("injected", "inject = { header = \"x-api-key\", file = \"engine-key\" }"),
            ("signed", "content_digest = true"),
            ("bound", "access = \"proof_and_certificate\""),
        ] {
            routes += &route(name, &format!("/{name}"), &url, more);
            routes += &operation("x.get", &format!("GET /{name}/**"), "");
        }
        routes += &route("calls", "/calls", &url, "");
        routes += &operation("x.get", "POST /calls/**", "");
        routes += "[[route.operation]]\nname = \"x.call\"\nmatch = \"CALL /calls/**\"\nobject = \"/calls\"\n";
        routes += &route("ws", "/ws", &url, "");
        routes += &operation("x.get", "GET /ws/judged", "websocket = \"judge\"");
        routes += &operation("x.get", "GET /ws/off", "");
        routes += &route("ends", "/ends", &url, "ends_with_token = true");
        routes += &operation("x.get", "GET /ends/**", "");
        routes += &route("changed", "/changed", &url, "response_headers = { remove = [\"server\"] }");
        routes += &operation("x.get", "GET /changed/**", "");
        routes += &route("open", "/open", &url, "access = \"danger_public\"");
        routes += &operation("open.get", "GET /open/**", "");
        routes += &route("read", "/read", &url, "");
        routes += "[[route.operation]]\nname = \"x.get\"\nmatch = \"POST /read/**\"\nobject = \"/read\"\nbody.n = { pointer = \"/n\", type = \"long\" }\n";
        let asked = r#"@id("asked") @approval("1 of security") permit (principal in Group::"solvers", action == Action::"x.asked", resource);"#;
        let mut service = Service::start_routes(&routes, &["x.get"], &[("asked.cedar", asked)]).await;
        service.crash();
        let path = service.base().join("popgate.toml");
        let text = std::fs::read_to_string(&path).expect("reads");
        let origins = format!("[gateway]\norigins = [\"{}\", \"https://{EDGE}\"]\n", service.addresses["gateway"]);
        std::fs::write(&path, text.replacen("[gateway]\n", &origins, 1)).expect("writes");
        service.restart();
        upstream.on_request(|_| respond(200, "text/plain", "hello"));
        service.upstream = upstream;
        let solver = service.solver().await;
        assert_eq!(solver.get(&service.url("gateway", "/plain/x")).await.status, 200, "learns the nonce");
        let token = solver.token(&service.url("gateway", "/plain/x")).await;
        let world = Self { service, solver, token };
        // The edge's origin has nonces of its own.
        let first = world.credentials("GET", "/plain/x");
        let (_, headers, _) = send(world.authz(), "GET", "/envoy/plain/x", EDGE, &first).await;
        if let Some(nonce) = headers.get("dpop-nonce") {
            let nonce = nonce.to_str().expect("text").to_owned();
            world.solver.session.learn_nonce(&format!("https://{EDGE}/plain/x"), nonce);
        }
        world
    }

    fn authz(&self) -> &str {
        self.service.addresses["authz"].trim_start_matches("http://")
    }

    /// What a client sends for a call of the edge.
    fn credentials(&self, method: &str, path: &str) -> Vec<(String, String)> {
        self.credentials_of(&self.token, method, path)
    }

    fn credentials_of(&self, token: &AccessToken, method: &str, path: &str) -> Vec<(String, String)> {
        let proof = self.solver.session.prove(method, &format!("https://{EDGE}{path}"), Some(token));
        vec![("authorization".into(), format!("DPoP {}", token.expose())), ("dpop".into(), proof)]
    }

    /// Its entries in the log.
    fn log(&self) -> String {
        stdout(&run(&["audit", "export", "--format", "ocsf", "--data-dir", self.service.data.to_str().expect("UTF-8")]))
    }
}

async fn send(
    address: &str,
    method: &str,
    path: &str,
    host: &str,
    headers: &[(String, String)],
) -> (u16, HeaderMap, String) {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::new())).expect("builds");
    let response: Response<_> = sender.send_request(request).await.expect("answers");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("reads").to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned())
}

/// The block of the documentation, with this test's addresses.
fn documented(world: &World, port: u16) -> String {
    let block = DOCUMENTED.split("```nginx").nth(1).and_then(|t| t.split("```").next()).expect("the set-up is there");
    let upstream = &world.service.upstream.address;
    let said = block.replace("127.0.0.1:8446", world.authz()).replace("127.0.0.1:8024", upstream);
    let said = said.replace("api.example.org", EDGE).replace("X-Original-Route  tot;", "X-Original-Route  plain;");
    let from = "listen 443 ssl;";
    assert!(
        said.contains("plain;")
            && said.contains(EDGE)
            && said.contains(from)
            && said.contains(world.authz())
            && said.contains(upstream),
        "{said}"
    );
    let lines = said.replace(from, &format!("listen 127.0.0.1:{port};"));
    // TLS is not the matter here.
    lines.lines().filter(|l| !l.trim_start().starts_with("ssl_")).collect::<Vec<_>>().join("\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_lets_pass_what_the_gateway_would_and_nothing_else() {
    let Some(nginx) = provided("POPGATE_TEST_NGINX", "nginx that asks by auth_request") else { return };
    let world = World::new("\"127.0.0.1\"").await;
    let dir = tempfile::tempdir().expect("tempdir");
    let nginx = Nginx::start(&nginx, dir.path(), |port| documented(&world, port)).await;
    let before = world.service.upstream.count();
    let call = async |method: &str, path: &str, headers: Vec<(String, String)>| {
        send(&nginx.address, method, path, EDGE, &headers).await
    };
    let claim = ("x-forwarded-for".to_owned(), "192.0.2.9".to_owned());
    let good = [world.credentials("GET", "/plain/a"), vec![claim]].concat();
    let (status, _, body) = call("GET", "/plain/a?q=1", good.clone()).await;
    assert_eq!((status, body.as_str()), (200, "hello"));
    let seen = world.service.upstream.seen().pop().expect("one");
    assert_eq!(seen.target, "/plain/a?q=1");
    assert_eq!(seen.headers["x-forwarded-for"], "127.0.0.1", "the edge's own word, not its client's");
    for gone in ["authorization", "dpop", "x-original-uri", "x-original-method"] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    let token = seen.headers["txn-token"].to_str().expect("text").split('.').nth(1).expect("claims").to_owned();
    let claims: Value = serde_json::from_slice(
        &base64::Engine::decode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, token).expect("base64url"),
    )
    .expect("JSON");
    assert_eq!(claims["sub"], "spiffe://example.org/ci/solver", "{claims}");
    assert!(seen.headers.contains_key("popgate-request-id") && seen.headers.contains_key("traceparent"));
    // A client's own claims to be decided about otherwise count for nothing.
    let mut lying = world.credentials("GET", "/plain/b");
    lying.push(("x-original-uri".into(), "/plain/b".into()));
    lying.push(("x-original-method".into(), "GET".into()));
    for (what, method, path, headers, want) in [
        ("the same proof again", "GET", "/plain/a", good, 401),
        ("no credentials", "GET", "/plain/a", vec![], 401),
        ("a proof for another path", "GET", "/plain/c", world.credentials("GET", "/plain/d"), 401),
        ("a proof for another method", "DELETE", "/plain/a", world.credentials("GET", "/plain/a"), 401),
        ("what the client says of itself", "DELETE", "/plain/b", lying, 401),
        ("what policy denies", "DELETE", "/plain/a", world.credentials("DELETE", "/plain/a"), 403),
        ("what needs an approval", "PUT", "/plain/a", world.credentials("PUT", "/plain/a"), 403),
        ("a path without a route", "GET", "/nowhere", world.credentials("GET", "/nowhere"), 403),
    ] {
        let (status, headers, _) = call(method, path, headers).await;
        assert_eq!(status, want, "{what}");
        assert_eq!(headers.contains_key("www-authenticate"), want == 401, "{what}: {headers:?}");
    }
    assert_eq!(world.service.upstream.count(), before + 1, "nothing else went upstream");
    // A nonce reaches the client through nginx.
    let unknown = world.service.solver().await;
    let proof = unknown.session.prove("GET", &format!("https://{EDGE}/plain/a"), Some(&world.token));
    let bare = vec![("authorization".into(), format!("DPoP {}", world.token.expose())), ("dpop".into(), proof)];
    let (status, headers, _) = call("GET", "/plain/a", bare).await;
    assert!(status == 401 && headers.contains_key("dpop-nonce"), "{status} {headers:?}");
    let verified = world.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
    let log = world.log();
    let left = log.lines().find(|l| l.contains("left_to_edge")).expect("its end");
    assert!(!left.contains("http_response"), "nothing of the answer was seen: {left}");
    let checked =
        run(&["config", "check", "--config", world.service.base().join("popgate.toml").to_str().expect("UTF-8")]);
    let said = stdout(&checked) + &stderr(&checked);
    assert!(said.contains("\"masked\"") && said.contains("past an edge"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_edge_cannot_keep_is_refused_and_strangers_are_not_heard() {
    let world = World::new("\"127.0.0.1\"").await;
    let call = async |method: &str, path: &str| {
        let headers = world.credentials(method, path);
        let (status, _, body) = send(world.authz(), method, &format!("/envoy{path}"), EDGE, &headers).await;
        (status, body)
    };
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let upgrade: Vec<(String, String)> = upgrade.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
    let key = vec![("sec-websocket-key".to_owned(), "dGhlIHNhbXBsZSBub25jZQ==".to_owned())];
    for (method, path, more, status, why) in [
        ("GET", "/masked/x", vec![], 403, "masked"),
        ("GET", "/injected/x", vec![], 403, "a credential of its own"),
        ("GET", "/signed/x", vec![], 403, "sign for the body"),
        ("GET", "/ends/x", vec![], 403, "end with their token"),
        ("GET", "/bound/x", vec![], 401, "certificate"),
        ("GET", "/changed/x", vec![], 403, "headers are changed"),
        ("POST", "/read/x", vec![], 403, "read the body"),
        ("POST", "/calls/x", vec![], 403, "tool calls"),
        ("GET", "/ws/judged", vec![], 403, "messages are judged"),
        ("GET", "/ws/judged", [upgrade.clone(), key.clone()].concat(), 403, "messages are judged"),
        ("GET", "/ws/off", [upgrade, key].concat(), 403, "opens no WebSocket"),
    ] {
        let token = world.solver.token(&world.service.url("gateway", path)).await;
        let headers = [world.credentials_of(&token, method, path), more].concat();
        let (got, _, body) = send(world.authz(), method, &format!("/envoy{path}"), EDGE, &headers).await;
        assert!(got == status && body.contains(why), "{method} {path}: {got} {body}");
    }
    let (public, _, _) = send(world.authz(), "GET", "/envoy/open/x", EDGE, &[]).await;
    assert_eq!(public, 401, "an edge that asks is told no: what is public it passes by itself");
    for name in [
        "x-http-method-override",
        "x-rewrite-url",
        "x-original-uri",
        "txn_token",
        "popgate-request-id",
        "txn-token",
        "x-forwarded-user",
        "x-forwarded-client-cert",
        "client-cert",
        "remote-user",
    ] {
        let headers = [world.credentials("GET", "/plain/x"), vec![(name.to_owned(), "DELETE".to_owned())]].concat();
        let (status, _, body) = send(world.authz(), "GET", "/envoy/plain/x", EDGE, &headers).await;
        assert!(status == 400 && body.contains(name), "{name}: {status} {body}");
    }
    for (told, want) in [("plain", 200), ("masked", 403)] {
        let asked = [("x-original-method", "GET"), ("x-original-uri", "/plain/x"), ("x-original-route", told)];
        let asked = asked.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let headers = [world.credentials("GET", "/plain/x"), asked].concat();
        let (status, ..) = send(world.authz(), "GET", "/auth", EDGE, &headers).await;
        assert_eq!(status, want, "an edge that passes it on to {told}");
    }
    for (method, path, status, why) in [
        ("GET", "/plain/%2e%2e/x", 400, "path"),
        ("GET", "/.popgate/approvals/x", 404, "nothing here"),
        ("PUT", "/plain/x", 403, "approval"),
    ] {
        let (got, body) = call(method, path).await;
        assert!(got == status && body.contains(why), "{method} {path}: {got} {body}");
    }
    let twice = [("x-original-method", "GET"), ("x-original-uri", "/plain/x"), ("x-original-route", "plain")];
    let twice = twice.iter().chain([&("x-original-route", "masked")]).map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    let headers = [world.credentials("GET", "/plain/x"), twice.collect()].concat();
    let (status, ..) = send(world.authz(), "GET", "/auth", EDGE, &headers).await;
    assert_eq!(status, 403, "an edge that names two routes");
    let (status, ..) = send(world.authz(), "GET", "/auth", EDGE, &world.credentials("GET", "/plain/x")).await;
    assert_eq!(status, 403, "an edge that does not say what it asks about");
    let (status, ..) =
        send(world.authz(), "GET", "/envoy/plain/x", "other.test", &world.credentials("GET", "/plain/x")).await;
    assert_eq!(status, 421);
    let strangers = World::new("\"192.0.2.0/24\"").await;
    let (status, _, body) =
        send(strangers.authz(), "GET", "/envoy/plain/x", EDGE, &strangers.credentials("GET", "/plain/x")).await;
    assert!(status == 403 && body.contains("authz.peers"), "{status} {body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoys_grpc_question_gets_its_answer() {
    let Some(python) = provided("POPGATE_TEST_PYTHON", "Envoy's ext_authz over gRPC") else { return };
    let world = World::new("\"127.0.0.1\"").await;
    let ask = |method: &str, path: &str, headers: Vec<(String, String)>| {
        let headers: std::collections::BTreeMap<_, _> = headers.into_iter().collect();
        json!({"method": method, "path": path, "host": EDGE, "headers": headers})
    };
    let good = world.credentials("GET", "/plain/a");
    let asks = json!([
        ask("GET", "/plain/a?q=1", good.clone()),
        ask("GET", "/plain/a", good),
        ask("GET", "/plain/a", vec![]),
        ask("DELETE", "/plain/a", world.credentials("DELETE", "/plain/a")),
        ask("GET", "https://edge.test/plain/a", world.credentials("GET", "/plain/a")),
        ask("GET", "/plain/a#/../b", world.credentials("GET", "/plain/a")),
        ask(
            "GET",
            "/plain/a",
            [world.credentials("GET", "/plain/a"), vec![("x-method-override".into(), "PUT".into())]].concat()
        ),
        json!({"route": "masked", "method": "GET", "path": "/plain/a", "host": EDGE, "headers": world.credentials("GET", "/plain/a").into_iter().collect::<std::collections::BTreeMap<_, _>>()}),
    ]);
    let mut child = bounded(&python)
        .arg(script("ext_authz.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    let told = json!({"address": world.authz(), "asks": asks}).to_string();
    child.stdin.take().expect("piped").write_all(told.as_bytes()).expect("writes");
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", stderr(&output));
    let answers: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let [passed, replayed, bare, denied, absolute, fragment, overridden, elsewhere] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!((&passed["code"], &passed["kind"]), (&json!(0), &json!("ok_response")), "{passed}");
    assert!(
        passed["headers"]["txn-token"].is_string() && passed["headers"]["popgate-request-id"].is_string(),
        "{passed}"
    );
    assert_eq!(passed["removed"], json!(["authorization", "dpop", "popgate-approval"]));
    assert!(passed["append"].as_array().expect("some").iter().all(|a| a == 2), "they replace a client's own: {passed}");
    for (answer, status, what) in [
        (replayed, 401, "used before"),
        (bare, 401, "no credentials"),
        (denied, 403, "policy"),
        (absolute, 400, "no path"),
        (fragment, 400, "fragment"),
        (overridden, 400, "x-method-override"),
        (elsewhere, 404, "no route"),
    ] {
        assert_eq!((&answer["code"], &answer["status"]), (&json!(7), &json!(status)), "{answer}");
        assert!(answer["body"].as_str().expect("text").contains(what), "{answer}");
        assert_eq!(answer["headers"]["www-authenticate"].is_string(), status == 401, "{answer}");
    }
    let verified = world.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}
