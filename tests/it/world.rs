//! A running service with an upstream of the test's own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use popgate::client::admin::Admin;
use popgate::client::enrol;
use popgate::client::identity::Identity;
use popgate::client::session::{Call, Session, challenge};
use popgate::domain::digest::Sha256;
use popgate::domain::secret::{AccessToken, JoinToken};
use popgate::domain::time::Clock as _;
use popgate::net::body::{AnyBody, full, read};
use popgate::net::inbound::Inbound;
use popgate::net::keys::P256Key;
use popgate::protocol::jwk::PublicKey;
use popgate::store::clock::SystemClock;
use popgate::store::entropy::random_id;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[path = "process.rs"]
pub mod process;

use process::Running;

pub const SOLVER: &str = "spiffe://example.org/ci/solver";
pub const BOB: &str = "https://idp.example.org#bob";
pub const ALICE: &str = "https://idp.example.org#alice";

/// What upstream saw.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

type Handler = Arc<dyn Fn(&Seen) -> Response<AnyBody> + Send + Sync>;

/// An upstream that keeps what it sees.
#[derive(Clone)]
pub struct Upstream {
    pub address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    handler: Arc<Mutex<Handler>>,
}

impl Upstream {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound").to_string();
        let plain: Handler = Arc::new(|_| respond(200, "application/json", r#"{"ok":true}"#));
        let upstream = Self { address, seen: Arc::default(), handler: Arc::new(Mutex::new(plain)) };
        let shared = upstream.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let shared = shared.clone();
                    async move { Ok::<_, std::convert::Infallible>(shared.answer(request).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        upstream
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<AnyBody> {
        let (head, body) = request.into_parts();
        // A body that broke off is no request.
        let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
            return respond(400, "text/plain", "broke off");
        };
        let seen = Seen { method: head.method.to_string(), target: head.uri.to_string(), headers: head.headers, body };
        self.seen.lock().expect("no panic").push(seen.clone());
        let handler = self.handler.lock().expect("no panic").clone();
        handler(&seen)
    }

    pub fn on_request(&self, handler: impl Fn(&Seen) -> Response<AnyBody> + Send + Sync + 'static) {
        *self.handler.lock().expect("no panic") = Arc::new(handler);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub fn count(&self) -> usize {
        self.seen().len()
    }
}

/// A whole response.
pub fn respond(status: u16, kind: &str, body: impl Into<Bytes>) -> Response<AnyBody> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status.try_into().expect("a status");
    response.headers_mut().insert("content-type", HeaderValue::from_str(kind).expect("a type"));
    response
}

/// A streaming response with the sender of its pieces.
pub fn streaming(kind: &str) -> (Response<AnyBody>, tokio::sync::mpsc::UnboundedSender<Bytes>) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let stream = futures_util::stream::poll_fn(move |cx| {
        receiver.poll_recv(cx).map(|p| p.map(|b| Ok::<_, popgate::net::body::BoxError>(hyper::body::Frame::data(b))))
    });
    let mut response = Response::new(http_body_util::StreamBody::new(stream).boxed_unsync());
    response.headers_mut().insert("content-type", HeaderValue::from_str(kind).expect("a type"));
    (response, sender)
}

/// A running service.
pub struct Service {
    pub data: PathBuf,
    pub addresses: HashMap<String, String>,
    pub upstream: Upstream,
    process: Running,
    _dir: Option<TempDir>,
}

/// A process of the product, without the settings of who runs the tests.
pub fn popgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_popgate"));
    without_settings(&mut command);
    command
}

fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("POPGATE_")) {
        command.env_remove(name);
    }
    command
}

/// What `./test` provides for a group of tests. Without it the group is left out, and that is said where no test harness
/// swallows it.
pub fn provided(variable: &str, group: &str) -> Option<String> {
    use std::io::Write as _;
    let value = std::env::var(variable).ok();
    if value.is_none() {
        let _ = writeln!(std::io::stderr(), "left out: {group}; `./test` runs it");
    }
    value
}

/// Runs a command of the binary to its end.
pub fn run(args: &[&str]) -> Output {
    popgate().args(args).stdin(Stdio::null()).output().expect("runs")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Routes of the tests: `/v1/**` is masked, `/raw/**` is not, `/cert/**` demands the certificate.
fn routes(upstream: &str) -> String {
    let operation = |name: &str, matcher: &str, object: &str| {
        format!("[[route.operation]]\nname = \"{name}\"\nmatch = \"{matcher}\"\nobject = \"{object}\"\n")
    };
    let mut text = format!(
        "[[route]]\nname = \"tot\"\nmatch = {{ path = \"/v1/**\" }}\nresource = \"/v1\"\nintrospect = [\"spiffe://example.org/ci/narrow\"]\nmask = \"pii\"\nupstream = {{ url = \"http://{upstream}\", idle_timeout = \"20s\" }}\n"
    );
    text += &operation("tot.run", "POST /v1/runs", "/runs");
    text += &operation("tot.read", "GET /v1/runs/{run}/**", "/runs/{run}");
    text += &operation("tot.prune", "POST /v1/runs/{run}/nodes/{node}/prune", "/runs/{run}/nodes/{node}");
    text += "body.if_version = { pointer = \"/if_version\", type = \"long\" }\n";
    text += &operation("tot.delete", "DELETE /v1/runs/{run}", "/runs/{run}");
    text += &format!(
        "[[route]]\nname = \"raw\"\nmatch = {{ path = \"/raw/**\" }}\nresource = \"/raw\"\nupstream = {{ url = \"http://{upstream}\" }}\ninject = {{ header = \"x-api-key\", prefix = \"Key \", file = \"engine-key\" }}\n"
    );
    for method in ["GET", "POST", "HEAD"] {
        text += &operation(&format!("raw.{}", method.to_lowercase()), &format!("{method} /raw/**"), "/raw");
    }
    text += &format!(
        "[[route]]\nname = \"cert\"\nmatch = {{ path = \"/cert/**\" }}\nresource = \"/cert\"\naccess = \"proof_and_certificate\"\nupstream = {{ url = \"http://{upstream}\" }}\n"
    );
    text += &operation("cert.get", "GET /cert/**", "/cert");
    text += &format!(
        "[[route]]\nname = \"off\"\nmatch = {{ path = \"/off/**\" }}\nresource = \"/off\"\nmask = \"pii\"\nrecord = \"off\"\nupstream = {{ url = \"http://{upstream}\" }}\n"
    );
    text += &operation("off.get", "GET /off/**", "/off");
    text += "[[route]]\nname = \"dead\"\nmatch = { path = \"/dead/**\" }\nresource = \"/dead\"\nupstream = { url = \"http://127.0.0.1:1\" }\n";
    text + &operation("dead.get", "GET /dead/**", "/dead")
}

const POLICIES: &str = r#"
@id("may-ask") permit (principal, action == Action::"token.mint", resource);
@id("solvers-may") permit (principal in Group::"solvers", action in [Action::"tot.run", Action::"tot.read", Action::"raw.get", Action::"raw.post", Action::"raw.head", Action::"cert.get", Action::"off.get", Action::"dead.get"], resource);
@id("prune-approved") @approval("1 of security") permit (principal in Group::"solvers", action == Action::"tot.prune", resource in Route::"tot") when { context.body.if_version >= 1 };
@id("runs-stay") @fix("ask the run's owner; runs are kept for audit") forbid (principal, action == Action::"tot.delete", resource);
"#;

/// The secret that the gateway injects towards `/raw/**`.
pub const ENGINE_KEY: &str = "engine-key-5f0c1d";

impl Service {
    /// A TLS connection to the gateway with a workload's certificate, on which a test may write what it likes.
    pub async fn raw(&self, client: &Client, alpn: &[u8]) -> TlsStream<TcpStream> {
        let stream =
            TcpStream::connect(self.addresses["gateway"].trim_start_matches("https://")).await.expect("connects");
        let mut tls = client.session.identity().tls(false).expect("TLS");
        tls.alpn_protocols = vec![alpn.to_vec()];
        let name = rustls::pki_types::ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("TLS")
    }

    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts with further configuration.
    pub async fn start_with(extra: &str) -> Self {
        Self::start_configured(extra, "").await
    }

    /// Starts with further keys of `[identity]`.
    pub async fn start_with_identity(keys: &str) -> Self {
        Self::start_configured("", keys).await
    }

    /// Starts with further keys of `[gateway]`.
    pub async fn start_with_gateway(keys: &str) -> Self {
        // The marker tells which section they belong to.
        Self::start_configured("", &format!("@gateway{keys}")).await
    }

    /// Starts with further configuration and further keys of `[identity]`.
    pub async fn start_configured(extra: &str, identity: &str) -> Self {
        let service = Self::start_domain("example.org", extra, identity, &[]).await;
        service.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
        service
    }

    /// Starts with further routes, and policies besides: `permits` are names of operations that solvers may.
    pub async fn start_routes(routes: &str, permits: &[&str], files: &[(&str, &str)]) -> Self {
        let actions: Vec<String> = permits.iter().map(|p| format!("Action::{p:?}")).collect();
        let policy = format!(
            "@id(\"solvers-more\") permit (principal in Group::\"solvers\", action in [{}], resource);",
            actions.join(", ")
        );
        let files: Vec<(&str, &str)> = files.iter().copied().chain([("more.cedar", policy.as_str())]).collect();
        let service = Self::start_domain("example.org", routes, "", &files).await;
        service.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
        service
    }

    /// Starts a trust domain with nobody in it, and files beside its configuration.
    pub async fn start_domain(domain: &str, extra: &str, identity: &str, files: &[(&str, &str)]) -> Self {
        let dir = tempfile::Builder::new().prefix("pgt-").tempdir().expect("tempdir");
        let upstream = Upstream::start().await;
        let base = dir.path().to_owned();
        let listen: String = ["identity", "token", "gateway", "console", "telemetry"]
            .map(|s| {
                let keys = match identity.strip_prefix(&format!("@{s}")) {
                    Some(keys) => keys,
                    None if s == "identity" && !identity.starts_with('@') => identity,
                    None => "",
                };
                format!("[{s}]\nlisten = \"127.0.0.1:0\"\n{keys}")
            })
            .concat();
        let config = format!(
            "trust_domain = \"{domain}\"\ndata_dir = \"data\"\ninclude = [\"routes.toml\"]\n{listen}[policy]\nfiles = [\"*.cedar\"]\n[mask.pii]\ndetectors = [\"email\", \"card\", \"secret\"]\n{extra}"
        );
        for (name, text) in files {
            std::fs::write(base.join(name), text).expect("writes");
        }
        std::fs::write(base.join("popgate.toml"), config).expect("writes");
        std::fs::write(base.join("routes.toml"), routes(&upstream.address)).expect("writes");
        std::fs::write(base.join("p.cedar"), POLICIES).expect("writes");
        std::fs::write(base.join("engine-key"), format!("{ENGINE_KEY}\n")).expect("writes");
        let (process, addresses) = spawn(&base);
        Self { data: base.join("data"), addresses, upstream, process, _dir: Some(dir) }
    }

    pub fn base(&self) -> &Path {
        self.data.parent().expect("below the base")
    }

    pub fn url(&self, listener: &str, path: &str) -> String {
        format!("{}{path}", self.addresses[listener])
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.child.id()).expect("a pid")
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("signals");
    }

    /// Waits for the end and gives the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.process.child.wait().expect("waits").code()
    }

    /// Kills the process as a power cut would and starts it again on the same data and ports.
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.restart();
    }

    /// Kills the process.
    pub fn crash(&mut self) {
        self.process.child.kill().expect("kills");
        self.process.child.wait().expect("waits");
    }

    /// Another process on a copy of the data of one that has stopped, on ports of its own.
    pub fn replica(&self) -> Self {
        let dir = tempfile::Builder::new().prefix("pgt-").tempdir().expect("tempdir");
        let base = dir.path().join("r");
        let copied = Command::new("cp").arg("-a").arg(self.base()).arg(&base).status().expect("copies");
        assert!(copied.success());
        let (process, addresses) = spawn(&base);
        Self { data: base.join("data"), addresses, upstream: self.upstream.clone(), process, _dir: Some(dir) }
    }

    /// Starts again on the same data and the same ports.
    pub fn restart(&mut self) {
        let path = self.base().join("popgate.toml");
        let mut text = std::fs::read_to_string(&path).expect("reads");
        for (section, name) in [
            ("identity", "identity"),
            ("token", "token"),
            ("gateway", "gateway"),
            ("console", "admin"),
            ("telemetry", "telemetry"),
        ] {
            let port = self.addresses[name].rsplit(':').next().expect("a port");
            let begins = text.find(&format!("[{section}]\n")).expect("a section");
            let rest = text.split_off(begins);
            text += &rest.replacen("listen = \"127.0.0.1:0\"", &format!("listen = \"127.0.0.1:{port}\""), 1);
        }
        std::fs::write(&path, text).expect("writes");
        let (process, addresses) = spawn(self.base());
        self.process = process;
        self.addresses = addresses;
    }

    pub async fn admin(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, popgate::client::ClientError> {
        Admin::socket(&self.data).call(method, path, body.as_ref()).await
    }

    pub async fn join_token(&self, id: &str) -> JoinToken {
        let answer = self.admin(Method::POST, "/v1/join-tokens", Some(json!({"spiffe_id": id}))).await.expect("token");
        JoinToken::parse(answer["join_token"].as_str().expect("text")).expect("a token")
    }

    pub async fn enrol(&self, id: &str) -> Arc<Identity> {
        let token = self.join_token(id).await;
        Arc::new(enrol::join(&self.addresses["identity"], &token).await.expect("enrols"))
    }

    pub async fn workload(&self, id: &str) -> Client {
        Client { session: Arc::new(Session::new(self.enrol(id).await).expect("session")) }
    }

    pub async fn solver(&self) -> Client {
        self.workload(SOLVER).await
    }

    /// Administration as a person.
    pub async fn person(&self, name: &str) -> Admin {
        let identity = self.enrol(&format!("spiffe://example.org/popgate/person/{name}")).await;
        Admin::server(&self.addresses["admin"], &identity).expect("client")
    }

    /// `audit verify` on the running service's files.
    pub async fn verify(&self) -> Output {
        self.admin(Method::POST, "/v1/evidence/publish", None).await.expect("publishes");
        run(&["audit", "verify", self.data.to_str().expect("UTF-8"), "--json"])
    }
}

/// Who is registered where the tests begin.
pub fn registrations() -> Value {
    json!({
        "entry": [
            {"spiffe_id": SOLVER, "owner": BOB, "groups": ["solvers"], "operations": ["tot.*", "raw.*", "cert.*", "off.*", "dead.*", "x.*"]},
            {"spiffe_id": "spiffe://example.org/ai/other", "owner": "https://idp.example.org#carol", "groups": ["solvers"], "operations": ["tot.*", "raw.*"]},
            {"spiffe_id": "spiffe://example.org/ci/narrow", "owner": BOB, "groups": [], "operations": ["tot.read"]},
        ],
        "person": [
            {"id": ALICE, "name": "alice", "groups": ["security"], "roles": ["approver"]},
            {"id": BOB, "name": "bob", "groups": ["security"], "roles": ["approver"]},
            {"id": "https://idp.example.org#root", "name": "root", "groups": [], "roles": ["admin"]},
            {"id": "https://idp.example.org#eve", "name": "eve", "groups": ["sales"], "roles": ["approver"]},
        ],
    })
}

fn spawn(base: &Path) -> (Running, HashMap<String, String>) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(base.join("serve.log")).expect("log");
    // With SIGXFSZ ignored a test may make the disk full for this process alone: writes beyond its limit then fail.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_popgate")]);
    without_settings(&mut command).args(["serve", "--json", "--config"]).arg(base.join("popgate.toml")).stderr(log);
    let (process, ready) = Running::start(&mut command, |_| {});
    let log = || std::fs::read_to_string(base.join("serve.log")).unwrap_or_default();
    assert!(ready["ready"].is_object(), "no ready line: {}", log());
    let addresses = ready["ready"]
        .as_object()
        .expect("addresses")
        .iter()
        .map(|(k, v)| (k.clone(), v.as_str().expect("text").to_owned()))
        .collect();
    (process, addresses)
}

/// A workload's calls with the answers read whole.
#[derive(Clone)]
pub struct Client {
    pub session: Arc<Session>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn read<B>(response: Response<B>) -> Self
    where
        B: hyper::body::Body<Data = Bytes>,
        B::Error: Into<popgate::net::body::BoxError>,
    {
        let error = challenge(&response);
        let (parts, body) = response.into_parts();
        let read = read(body, 256 << 20).await;
        let mut headers = parts.headers;
        if let Some(error) = error {
            headers.insert("x-test-error", HeaderValue::from_str(&error).expect("token"));
        }
        Self { status: parts.status.as_u16(), headers, body: read.unwrap_or_default() }
    }

    /// The error code of the challenge.
    pub fn error(&self) -> &str {
        self.header("x-test-error")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Last part of the problem's type.
    pub fn problem(&self) -> String {
        self.json()["type"].as_str().and_then(|t| t.rsplit(':').next()).unwrap_or_default().to_owned()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub async fn call(&self, method: &str, url: &str, headers: &[(&'static str, &str)], body: &str) -> Answer {
        Answer::read(self.open(method, url, headers, body).await).await
    }

    /// A proved call whose answer streams.
    pub async fn open(
        &self,
        method: &str,
        url: &str,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> Response<Inbound> {
        let call = build(method, url, headers, body);
        self.session.call(&call).await.expect("answered")
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.call("GET", url, &[], "").await
    }

    pub async fn token(&self, url: &str) -> AccessToken {
        let target = self.session.target(url).await.expect("discovers");
        self.session.token(&target).await.expect("mints")
    }

    /// Exactly these headers.
    pub async fn raw(&self, method: &str, url: &str, headers: &[(&'static str, &str)], certificate: bool) -> Answer {
        let call = build(method, url, headers, "");
        Answer::read(self.session.raw(&call, call.headers.clone(), certificate).await.expect("answered")).await
    }
}

fn build<'a>(method: &str, url: &'a str, headers: &[(&'static str, &str)], body: &str) -> Call<'a> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, HeaderValue::from_str(value).expect("a value"));
    }
    if !body.is_empty() && !map.contains_key("content-type") {
        map.insert("content-type", HeaderValue::from_static("application/json"));
    }
    Call::new(method.parse().expect("a method"), url, map, Bytes::from(body.to_owned()))
}

/// A proof made by hand, so that each part of it can be wrong.
pub struct HandMade {
    pub header: Value,
    pub payload: Value,
    pub key: P256Key,
}

impl HandMade {
    /// A good proof by `key`.
    pub fn new(key: P256Key, method: &str, url: &str, token: Option<&AccessToken>) -> Self {
        let jwk = PublicKey::from_spki(key.spki()).expect("P-256").to_jwk();
        let mut payload = json!({"jti": random_id(), "htm": method, "htu": url, "iat": SystemClock.now().unix()});
        if let Some(token) = token {
            payload["ath"] = B64.encode(Sha256::of(token.expose().as_bytes()).0).into();
        }
        Self { header: json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": jwk}), payload, key }
    }

    pub fn sign(&self) -> String {
        let input = format!("{}.{}", B64.encode(self.header.to_string()), B64.encode(self.payload.to_string()));
        format!("{input}.{}", B64.encode(self.key.sign(input.as_bytes())))
    }
}

/// The key of an identity saved to disk, for hand-made proofs.
pub fn key_of(identity: &Identity) -> P256Key {
    let dir = tempfile::tempdir().expect("tempdir");
    identity.save(dir.path()).expect("saves");
    P256Key::read(&dir.path().join("key.pem")).expect("reads")
}

/// A plain HTTP call without TLS.
pub async fn plain_get(url: &str) -> (u16, String) {
    let uri: http::Uri = url.parse().expect("a URL");
    let authority = uri.authority().expect("authority").to_string();
    let stream = tokio::net::TcpStream::connect(&authority).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
    tokio::spawn(connection);
    let request =
        Request::builder().uri(uri.path()).header("host", authority).body(Full::new(Bytes::new())).expect("builds");
    let response = sender.send_request(request).await.expect("answers");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("reads").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
