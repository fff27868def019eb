//! haproxy and nginx beside the gateway, from the system's packages; one that is missing is left out and named.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use bytes::Bytes;
use http::{HeaderValue, Request};
use popgate::client::http::HttpClient;
use popgate::net::files::{pem, pem_block};
use popgate::net::keys::P256Key;
use popgate::net::tls;

use crate::bare;
use crate::load::get;
use crate::world::Client;

/// A proxy of others, with the client that its check wants.
pub struct Other {
    pub name: &'static str,
    child: Child,
    url: String,
    pub http: HttpClient,
    bearer: Option<HeaderValue>,
    _dir: tempfile::TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        let _ = kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

/// Writes a server certificate with its key; gives the root.
fn certificate(dir: &Path) -> Vec<u8> {
    let key = P256Key::generate();
    let (made, root) = bare::certificate(dir, &key);
    let chain: String = made.chain.iter().map(|der| pem(der)).collect();
    let key = pem_block("PRIVATE KEY", key.pkcs8());
    std::fs::write(dir.join("server.pem"), format!("{chain}{key}")).expect("writes");
    std::fs::write(dir.join("server.key"), key).expect("writes");
    root
}

/// Starts it; none, said so, if it is not installed.
fn start(name: &'static str, mut command: Command, port: u16) -> Option<Child> {
    let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
    let Ok(mut child) = started else {
        println!("{name}: not installed, left out");
        return None;
    };
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(child.try_wait().expect("its status").is_none(), "{name} ended");
        std::thread::yield_now();
    }
    Some(child)
}

impl Other {
    /// haproxy, which verifies a bearer token's ES256 signature on each request (`jwt_verify`).
    pub fn haproxy(upstream: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        let (root, port, at) = (certificate(dir.path()), free_port(), dir.path().display());
        let signer = P256Key::generate();
        std::fs::write(dir.path().join("jwt.pem"), pem_block("PUBLIC KEY", signer.spki())).expect("writes");
        let claims = r#"{"iss":"https://idp.example.org","sub":"spiffe://example.org/ci/solver","aud":"https://gw.example.org/v1","exp":4000000000,"scope":"tot.read"}"#;
        let signed = format!("{}.{}", B64.encode(r#"{"alg":"ES256","typ":"JWT"}"#), B64.encode(claims));
        let token = format!("{signed}.{}", B64.encode(signer.sign(signed.as_bytes())));
        let configuration = format!(
            "global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\nfrontend f\n  bind 127.0.0.1:{port} ssl crt {at}/server.pem alpn h2,http/1.1 ssl-min-ver TLSv1.3\n  http-request set-var(txn.bearer) http_auth_bearer\n  http-request deny unless {{ var(txn.bearer),jwt_header_query('$.alg') -m str ES256 }}\n  http-request deny unless {{ var(txn.bearer),jwt_verify(\"ES256\",\"{at}/jwt.pem\") 1 }}\n  default_backend b\nbackend b\n  server s {upstream}\n"
        );
        std::fs::write(dir.path().join("haproxy.cfg"), configuration).expect("writes");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-q", "-f"]).arg(dir.path().join("haproxy.cfg"));
        let child = start("haproxy", command, port)?;
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).expect("a value");
        let http = HttpClient::new(tls::web_client(&[root]).expect("a client"));
        let url = format!("https://127.0.0.1:{port}/p/runs/r1");
        Some(Self { name: "haproxy, jwt_verify of a bearer token", child, url, http, bearer: Some(bearer), _dir: dir })
    }

    /// nginx, which demands a certificate of our authority.
    pub fn nginx(upstream: &str, client: &Client, ca: &Path) -> Option<Self> {
        let dir = tempfile::tempdir().expect("tempdir");
        let (root, port, at) = (certificate(dir.path()), free_port(), dir.path().display());
        let temporary: String =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|n| format!("{n}_temp_path {at}/{n};")).concat();
        let configuration = format!(
            "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/errors; events {{}} http {{ access_log off; keepalive_requests 100000000; {temporary} upstream u {{ server {upstream}; keepalive 64; keepalive_requests 100000000; }} server {{ listen 127.0.0.1:{port} ssl http2; ssl_protocols TLSv1.3; ssl_certificate {at}/server.pem; ssl_certificate_key {at}/server.key; ssl_client_certificate {}; ssl_verify_client on; ssl_verify_depth 3; location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}",
            ca.display()
        );
        std::fs::write(dir.path().join("nginx.conf"), configuration).expect("writes");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        let child = start("nginx", command, port)?;
        let identity = client.session.identity();
        let chain = identity.chain.iter().map(|der| der.clone().into()).collect();
        let mut config = tls::web_client(&[root]).expect("a client");
        let provider = config.crypto_provider().clone();
        let key = rustls::sign::CertifiedKey::from_der(chain, identity.private_key(), &provider).expect("a key");
        config.client_auth_cert_resolver = std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(key));
        let url = format!("https://127.0.0.1:{port}/p/runs/r1");
        let http = HttpClient::new(config);
        Some(Self { name: "nginx, mTLS", child, url, http, bearer: None, _dir: dir })
    }

    /// The process and its workers.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }

    pub fn request(&self) -> Request<Bytes> {
        let mut request = get(&self.url);
        if let Some(bearer) = &self.bearer {
            request.headers_mut().insert("authorization", bearer.clone());
        }
        request
    }
}
