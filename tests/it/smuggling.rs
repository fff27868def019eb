//! Requests with two readings, byte for byte over raw sockets: each is refused, or upstream sees exactly what the pipeline
//! judged. The table of `docs/smuggling.md` is what these runs say, of three real upstreams.

use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use popgate::domain::digest::Sha256;
use popgate::domain::leaf::Event;
use popgate::domain::secret::AccessToken;
use popgate::evidence::files::EvidenceDir;
use popgate::evidence::reader::LogReader;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::documented::{self, Page};
use crate::interop::{row, script};
use crate::nginx::Nginx;
use crate::world::process::Running;
use crate::world::{Client, Service, Upstream, provided, respond};

/// Method, target and digest of the body.
type Request = (String, String, String);

/// A server behind the gateway, and what it saw.
enum Behind {
    /// hyper, in this process.
    Hyper(Upstream),
    /// Node's own server.
    Node(#[allow(dead_code, reason = "it ends with the value")] Running, String, Arc<Mutex<Vec<Request>>>),
    /// nginx, which passes what it read to a hyper of its own.
    Nginx(Nginx, Upstream, #[allow(dead_code, reason = "it goes with nginx")] tempfile::TempDir),
}

impl Behind {
    fn node() -> Self {
        let mut command = Command::new("node");
        command.arg(script("upstream.mjs")).stderr(Stdio::null());
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let kept = seen.clone();
        let (node, ready) = Running::start(&mut command, move |line| {
            let told: Value = serde_json::from_str(line).expect("JSON");
            if told["port"].is_null() {
                let text = |name: &str| told[name].as_str().unwrap_or_default().to_owned();
                kept.lock().expect("no panic").push((text("method"), text("target"), text("sha256")));
            }
        });
        Self::Node(node, format!("127.0.0.1:{}", ready["port"]), seen)
    }

    async fn nginx(binary: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let recorder = Upstream::start().await;
        recorder.on_request(|_| respond(200, "text/plain", "ok"));
        let nginx = Nginx::start(binary, dir.path(), |port| {
            format!(
                "client_max_body_size 0; merge_slashes off; server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://{}; proxy_http_version 1.1; }} }}",
                recorder.address
            )
        });
        Self::Nginx(nginx.await, recorder, dir)
    }

    fn address(&self) -> &str {
        match self {
            Self::Hyper(upstream) => &upstream.address,
            Self::Node(_, address, _) => address,
            Self::Nginx(nginx, ..) => &nginx.address,
        }
    }

    fn seen(&self) -> Vec<Request> {
        let of = |upstream: &Upstream| {
            let digest = |body: &[u8]| Sha256::of(body).to_string();
            upstream.seen().into_iter().map(|s| (s.method.clone(), s.target.clone(), digest(&s.body))).collect()
        };
        match self {
            Self::Hyper(upstream) | Self::Nginx(_, upstream, _) => of(upstream),
            Self::Node(_, _, seen) => seen.lock().expect("no panic").clone(),
        }
    }
}

/// What a case must come to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wanted {
    /// Nothing of it reaches upstream.
    Refused,
    /// Upstream sees one request with this body.
    One(&'static str),
    /// Either, as long as upstream sees what was judged.
    Either(&'static str),
}

use Wanted::{Either, One, Refused};

/// A case over HTTP/1.1: `@` in the text stands for the host and the credentials, which name `POST /sm/x`.
const CASES: &[(&str, &str, Wanted)] = &[
    (
        "Content-Length and chunked, the chunks shorter",
        "POST /sm/x HTTP/1.1\r\n@Content-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /sm/hidden HTTP/1.1\r\nHost: a\r\n\r\n",
        Either(""),
    ),
    (
        "chunked and Content-Length, the length shorter",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2c\r\nGET /sm/hidden HTTP/1.1\r\nHost: aaaaaaaaa\r\n\r\n\r\n0\r\n\r\n",
        Either("GET /sm/hidden HTTP/1.1\r\nHost: aaaaaaaaa\r\n\r\n"),
    ),
    (
        "chunked twice",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Either("a"),
    ),
    (
        "chunked and identity",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "a coding before chunked",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: gzip, chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "a coding behind chunked",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked, identity\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "a coding that only looks like chunked",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: xchunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "a space before the colon of Transfer-Encoding",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding : chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "a vertical tab before chunked",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: \u{b}chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "an underscore for the hyphen of Content-Length",
        "POST /sm/x HTTP/1.1\r\n@Content_Length: 44\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    (
        "Content-Length twice, alike",
        "POST /sm/x HTTP/1.1\r\n@Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
        Either("a"),
    ),
    (
        "Content-Length twice, unlike",
        "POST /sm/x HTTP/1.1\r\n@Content-Length: 1\r\nContent-Length: 44\r\n\r\naGET /sm/hidden HTTP/1.1\r\nHost: aaaaaaaaaa\r\n\r\n",
        Refused,
    ),
    ("Content-Length as a list", "POST /sm/x HTTP/1.1\r\n@Content-Length: 1, 1\r\n\r\na", Either("a")),
    ("Content-Length with a plus", "POST /sm/x HTTP/1.1\r\n@Content-Length: +1\r\n\r\na", Refused),
    ("Content-Length in hexadecimal", "POST /sm/x HTTP/1.1\r\n@Content-Length: 0x1\r\n\r\na", Refused),
    ("a negative Content-Length", "POST /sm/x HTTP/1.1\r\n@Content-Length: -1\r\n\r\na", Refused),
    (
        "a Content-Length beyond 64 bits",
        "POST /sm/x HTTP/1.1\r\n@Content-Length: 18446744073709551617\r\n\r\na",
        Refused,
    ),
    ("lines that end with a bare LF", "POST /sm/x HTTP/1.1\n@Content-Length: 1\n\na", Either("a")),
    (
        "a bare LF inside a header's value",
        "POST /sm/x HTTP/1.1\r\n@X-A: b\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "a bare CR inside a header's value",
        "POST /sm/x HTTP/1.1\r\n@X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    ("a NUL inside a header's value", "POST /sm/x HTTP/1.1\r\n@X-A: b\0c\r\nContent-Length: 1\r\n\r\na", Refused),
    (
        "a header's value folded over two lines",
        "POST /sm/x HTTP/1.1\r\n@X-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "Transfer-Encoding folded over two lines",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding:\r\n chunked\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "white space before the first header",
        "POST /sm/x HTTP/1.1\r\n Transfer-Encoding: chunked\r\n@Content-Length: 1\r\n\r\na",
        Refused,
    ),
    (
        "a chunk extension",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
        One("a"),
    ),
    (
        "a bare LF in a chunk extension",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n2d\r\n0\r\n\r\nGET /sm/hidden HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "chunk lines that end with a bare LF",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n",
        Refused,
    ),
    (
        "white space around a chunk's size",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
        Either("a"),
    ),
    (
        "a chunk's size with 0x before it",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "a chunk's size beyond 64 bits",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n10000000000000001\r\na\r\n0\r\n\r\n",
        Refused,
    ),
    (
        "no line end behind a chunk",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
        Refused,
    ),
    (
        "a trailer with a Content-Length",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\nTrailer: content-length\r\n\r\n1\r\na\r\n0\r\nContent-Length: 44\r\n\r\n",
        One("a"),
    ),
    (
        "a trailer with credentials of its own",
        "POST /sm/x HTTP/1.1\r\n@Transfer-Encoding: chunked\r\nTrailer: authorization\r\n\r\n1\r\na\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
        One("a"),
    ),
    ("absolute-form of the same host", "POST https://%/sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", One("a")),
    (
        "absolute-form of another host",
        "POST https://evil.example/sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na",
        Refused,
    ),
    ("absolute-form of another scheme", "POST http://%/sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a second Host", "POST /sm/x HTTP/1.1\r\n@Host: evil.example\r\nContent-Length: 1\r\n\r\na", Refused),
    ("a second Host, alike", "POST /sm/x HTTP/1.1\r\n@Host: %\r\nContent-Length: 1\r\n\r\na", Refused),
    ("a Host with a user before it", "POST /sm/x HTTP/1.1\r\n!Host: a@%\r\nContent-Length: 1\r\n\r\na", Refused),
    (
        "a Host with a path behind it",
        "POST /sm/x HTTP/1.1\r\n!Host: %/sm/hidden\r\nContent-Length: 1\r\n\r\na",
        Refused,
    ),
    ("no Host", "POST /sm/x HTTP/1.1\r\n!Content-Length: 1\r\n\r\na", Refused),
    ("HTTP/1.0 with chunks", "POST /sm/x HTTP/1.0\r\n@Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", Refused),
    (
        "HTTP/1.0 that asks to be kept alive, and a second request",
        "POST /sm/x HTTP/1.0\r\n@Connection: keep-alive\r\nContent-Length: 1\r\n\r\naGET /sm/hidden HTTP/1.0\r\n\r\n",
        One("a"),
    ),
    ("HTTP/0.9", "GET /sm/x\r\n", Refused),
    ("HTTP/1.2", "POST /sm/x HTTP/1.2\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a lower-case method", "post /sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a tab in the request line", "POST\t/sm/x\tHTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("two spaces in the request line", "POST  /sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a space in the path", "POST /sm/x y HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a dot segment in the path", "POST /sm/y/../x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("an encoded dot segment", "POST /sm/y/%2e%2e/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("an encoded slash", "POST /sm%2fx HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("an encoded line end in the path", "POST /sm/x%0d%0aX: HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    ("a fragment in the path", "POST /sm/x#y HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Either("a")),
    ("a backslash in the path", "POST /sm\\x HTTP/1.1\r\n@Content-Length: 1\r\n\r\na", Refused),
    (
        "Connection names Content-Length",
        "POST /sm/x HTTP/1.1\r\n@Connection: content-length\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    (
        "Connection names the credentials",
        "POST /sm/x HTTP/1.1\r\n@Connection: authorization, dpop, host\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    (
        "an upgrade to HTTP/2",
        "POST /sm/x HTTP/1.1\r\n@Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    ("CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\n@\r\n", Refused),
    (
        "Expect and a body that does not wait",
        "POST /sm/x HTTP/1.1\r\n@Expect: 100-continue\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    (
        "a method in a header",
        "POST /sm/x HTTP/1.1\r\n@X-HTTP-Method-Override: DELETE\r\nContent-Length: 1\r\n\r\na",
        One("a"),
    ),
    (
        "a second request behind the first",
        "POST /sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\naGET /sm/hidden HTTP/1.1\r\nHost: %\r\n\r\n",
        One("a"),
    ),
    ("a body longer than its length", "POST /sm/x HTTP/1.1\r\n@Content-Length: 1\r\n\r\naaaa", One("a")),
    ("a body that ends early", "POST /sm/x HTTP/1.1\r\n@Content-Length: 9\r\n\r\na", Refused),
];

/// A case over HTTP/2: header fields beside the good ones, which `:path` and so on replace; the frames' data.
const CASES_2: &[(&str, &[(&str, &str)], &str, Wanted)] = &[
    ("HTTP/2: a plain request", &[], "a", One("a")),
    (
        "HTTP/2: a Content-Length shorter than the data",
        &[("content-length", "1")],
        "aGET /sm/hidden HTTP/1.1\r\n\r\n",
        Refused,
    ),
    ("HTTP/2: a Content-Length longer than the data", &[("content-length", "9")], "a", Refused),
    (
        "HTTP/2: Transfer-Encoding",
        &[("transfer-encoding", "chunked")],
        "0\r\n\r\nGET /sm/hidden HTTP/1.1\r\nHost: a\r\n\r\n",
        Refused,
    ),
    ("HTTP/2: Connection", &[("connection", "keep-alive")], "a", Refused),
    ("HTTP/2: a line end in a value", &[("x-a", "b\r\nTransfer-Encoding: chunked")], "0\r\n\r\n", Refused),
    ("HTTP/2: a line end in a name", &[("x-a: b\r\ntransfer-encoding", "chunked")], "0\r\n\r\n", Refused),
    ("HTTP/2: a colon in a name", &[("x-a:b", "c")], "a", Refused),
    ("HTTP/2: an upper-case name", &[("X-A", "b")], "a", Refused),
    ("HTTP/2: a line end in :path", &[(":path", "/sm/x HTTP/1.1\r\nHost: a\r\n\r\nGET /sm/hidden")], "a", Refused),
    ("HTTP/2: a space in :path", &[(":path", "/sm/x HTTP/1.1")], "a", Refused),
    ("HTTP/2: :path in absolute-form", &[(":path", "https://evil.example/sm/x")], "a", Refused),
    ("HTTP/2: a line end in :method", &[(":method", "POST /sm/hidden HTTP/1.1\r\nHost: a\r\n\r\nPOST")], "a", Refused),
    ("HTTP/2: a space in :method", &[(":method", "GET /sm/hidden?")], "a", Refused),
    ("HTTP/2: another :authority", &[(":authority", "evil.example")], "a", Refused),
    ("HTTP/2: another Host", &[("host", "evil.example")], "a", Refused),
    ("HTTP/2: :scheme http", &[(":scheme", "http")], "a", Refused),
    ("HTTP/2: a pseudo-header behind the others", &[("x-a", "b"), (":late", "c")], "a", Refused),
    ("HTTP/2: :path twice", &[(":path2", "/sm/hidden")], "a", Refused),
    ("HTTP/2: TE with more than trailers", &[("te", "gzip")], "a", Refused),
];

struct Bench {
    service: Service,
    solver: Client,
    token: AccessToken,
    url: String,
    behind: Behind,
    host: String,
}

impl Bench {
    async fn new(behind: Behind) -> Self {
        let routes = format!(
            "[[route]]\nname = \"sm\"\nmatch = {{ path = \"/sm/**\" }}\nresource = \"/sm\"\nupstream = {{ url = \"http://{}\" }}\n{}",
            behind.address(),
            ["GET", "POST", "DELETE"]
                .map(|m| format!(
                    "[[route.operation]]\nname = \"x.{m}\"\nmatch = \"{m} /sm/{{x}}\"\nobject = \"/sm/{{x}}\"\n"
                ))
                .concat()
        );
        let service = Service::start_routes(&routes, &["x.GET", "x.POST", "x.DELETE"], &[]).await;
        let solver = service.solver().await;
        let url = service.url("gateway", "/sm/x");
        // The nonce is learned here.
        assert_eq!(solver.call("POST", &url, &[], "a").await.status, 200);
        let token = solver.token(&url).await;
        let host = service.addresses["gateway"].trim_start_matches("https://").to_owned();
        Self { service, solver, token, url, behind, host }
    }

    fn credentials(&self) -> [(String, String); 2] {
        let proof = self.solver.session.prove("POST", &self.url, Some(&self.token));
        [("authorization".into(), format!("DPoP {}", self.token.expose())), ("dpop".into(), proof)]
    }

    /// Writes the bytes and reads to the end, or until nothing more comes; whether upstream's answer came back.
    async fn raw(&self, text: &str) -> bool {
        let credentials: String = self.credentials().map(|(n, v)| format!("{n}: {v}\r\n")).concat();
        let text = text.replace('@', &format!("Host: %\r\n{credentials}")).replace('!', &credentials);
        let text =
            text.replace('%', "\u{1}").replace("\u{1}2", "%2").replace("\u{1}0", "%0").replace('\u{1}', &self.host);
        let mut stream = self.service.raw(&self.solver, b"http/1.1").await;
        stream.write_all(text.as_bytes()).await.expect("writes");
        let _ = stream.flush().await;
        // Who sends less than it said is not answered: closing its side ends the wait. Who is told to go on is answered
        // later, and would end its own request by closing before.
        const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        let mut told = Vec::new();
        let answered =
            async { while told.len() <= GO_ON.len() && stream.read_buf(&mut told).await.is_ok_and(|n| n > 0) {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), answered).await;
        let _ = stream.shutdown().await;
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut told)).await;
        let told = told.strip_prefix(GO_ON).unwrap_or(&told);
        told.starts_with(b"HTTP/1.1 200") || told.starts_with(b"HTTP/1.0 200")
    }

    /// One request in frames of its own making (RFC 9113), its fields as literals (RFC 7541 §6.2.2).
    async fn frames(&self, fields: &[(&str, &str)], data: &str) -> bool {
        let mut block = Vec::new();
        let mut put = |name: &str, value: &str| {
            block.push(0);
            for text in [name, value] {
                integer(text.len(), &mut block);
                block.extend(text.as_bytes());
            }
        };
        let twice = fields.iter().any(|(n, _)| *n == ":path2");
        for (name, value) in [(":method", "POST"), (":scheme", "https"), (":authority", &self.host), (":path", "/sm/x")]
        {
            let replaced = fields.iter().find(|(n, _)| *n == name);
            put(name, replaced.map_or(value, |(_, v)| v));
            if name == ":path" && twice {
                put(":path", "/sm/hidden");
            }
        }
        for (name, value) in self.credentials() {
            put(&name, &value);
        }
        const KNOWN: [&str; 5] = [":method", ":scheme", ":authority", ":path", ":path2"];
        for (name, value) in fields.iter().filter(|(n, _)| !KNOWN.contains(n)) {
            put(name, value);
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        frame(4, 0, 0, &[], &mut bytes);
        frame(1, 4, 1, &block, &mut bytes);
        frame(0, 1, 1, data.as_bytes(), &mut bytes);
        let mut stream = self.service.raw(&self.solver, b"h2").await;
        stream.write_all(&bytes).await.expect("writes");
        // A ping behind it: once it is answered, or the connection is gone, the request was looked at.
        let mut ping = Vec::new();
        frame(6, 0, 0, &[7; 8], &mut ping);
        let _ = stream.write_all(&ping).await;
        let mut told: Vec<u8> = Vec::new();
        let answered = async {
            let mut buffer = [0; 4096];
            // Upstream says "ok", and the ping's answer has its eight bytes.
            while !told.windows(2).any(|w| w == b"ok") {
                match stream.read(&mut buffer).await {
                    Ok(n) if n > 0 => told.extend(&buffer[..n]),
                    _ => return,
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(700), answered).await;
        told.windows(2).any(|w| w == b"ok")
    }

    /// What the pipeline admitted, from the log: method, target, digest of the body that it passed on.
    fn judged(&self) -> Vec<Request> {
        let reader = LogReader::new(EvidenceDir::of_data_dir(&self.service.data));
        let entries = reader.entries(0).expect("reads");
        let mut judged = Vec::new();
        for entry in &entries {
            if let Event::Admission(admission) = &entry.leaf.event {
                let target =
                    entry.opened().find(|(n, _)| *n == "target").map(|(_, v)| v.to_owned()).unwrap_or_default();
                let body = entries.iter().find_map(|e| match &e.leaf.event {
                    Event::Completion(c) if c.request_id == admission.request_id => Some(c.request_sha256.to_string()),
                    _ => None,
                });
                judged.push((admission.method.clone(), target, body.unwrap_or_default()));
            }
        }
        judged
    }

    /// Runs a case and says what it came to.
    async fn outcome(&self, wanted: Wanted, run: impl AsyncFnOnce(&Self) -> bool) -> String {
        let before = (self.behind.seen().len(), self.judged().len());
        let passed = usize::from(run(self).await);
        let (mut seen, mut judged) = (Vec::new(), Vec::new());
        // The log hears of the end a moment after the client, and Node's lines come through a pipe.
        for _ in 0..200 {
            seen = self.behind.seen().split_off(before.0);
            judged = self.judged().split_off(before.1);
            if seen.len() == passed && judged.iter().all(|(.., body)| !body.is_empty()) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let digest = |body: &str| Sha256::of(body.as_bytes()).to_string();
        let hidden = seen.iter().any(|(_, target, _)| target.contains("hidden"));
        let unjudged = seen.iter().any(|request| !judged.contains(request));
        let one = |body: &str| seen == [("POST".to_owned(), "/sm/x".to_owned(), digest(body))];
        let fits = match wanted {
            Refused => seen.is_empty(),
            One(body) => one(body),
            Either(body) => seen.is_empty() || one(body),
        };
        if hidden || unjudged || !fits {
            return format!("WRONG: upstream saw {seen:?}, judged was {judged:?}");
        }
        if seen.is_empty() { "refused".into() } else { "one request, as judged".into() }
    }

    async fn all(&self) -> Vec<(String, String)> {
        let mut told = Vec::new();
        for (name, text, wanted) in CASES {
            let outcome = self.outcome(*wanted, async |bench| bench.raw(text).await).await;
            told.push(((*name).to_owned(), outcome));
        }
        for (name, fields, data, wanted) in CASES_2 {
            let outcome = self.outcome(*wanted, async |bench| bench.frames(fields, data).await).await;
            told.push(((*name).to_owned(), outcome));
        }
        // The gateway is well after all of it.
        assert_eq!(self.solver.call("POST", &self.url, &[], "a").await.status, 200);
        told
    }
}

/// An integer with a seven-bit prefix (RFC 7541 §5.1).
pub fn integer(mut n: usize, out: &mut Vec<u8>) {
    if n < 127 {
        out.push(n as u8);
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128 + 128) as u8);
        n /= 128;
    }
    out.push(n as u8);
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    out.push(kind);
    out.push(flags);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_never_sees_a_request_that_the_pipeline_did_not_judge() {
    let Some(nginx) = provided("POPGATE_TEST_NGINX", "request smuggling past nginx, Node and hyper") else { return };
    let upstream = Upstream::start().await;
    upstream.on_request(|_| respond(200, "text/plain", "ok"));
    let benches = [
        Bench::new(Behind::nginx(&nginx).await).await,
        Bench::new(Behind::node()).await,
        Bench::new(Behind::Hyper(upstream)).await,
    ];
    let [nginx, node, hyper] = &benches;
    let (nginx, node, hyper) = tokio::join!(nginx.all(), node.all(), hyper.all());
    let mut table = vec![row("case", "nginx", "Node", "hyper")];
    for ((case, nginx), ((_, node), (_, hyper))) in nginx.iter().zip(node.iter().zip(&hyper)) {
        table.push(row(case, nginx, node, hyper));
    }
    let wrong: Vec<_> = table.iter().filter(|r| r[1..].iter().any(|c| c.starts_with("WRONG"))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    documented::compare(Page::Smuggling, &table);
}
