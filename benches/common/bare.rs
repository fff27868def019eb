//! The baseline: TLS in front, a pool behind, and nothing between; or one ES256 verification; or the least that what
//! popgate promises takes, which is that, a signature for upstream and an entry made durable.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use popgate::client::http::HttpClient;
use popgate::domain::spiffe_id::TrustDomain;
use popgate::domain::time::Clock as _;
use popgate::identity::authority::keys::FileKeys;
use popgate::identity::authority::{Authority, Made};
use popgate::identity::config::IdentityConfig;
use popgate::net::body::{AnyBody, BoxError};
use popgate::net::keys::P256Key;
use popgate::net::tls::{self, ServerIdentity};
use popgate::protocol::jwk::PublicKey;
use popgate::store::clock::SystemClock;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// The first argument that makes a bench this proxy.
pub const NAME: &str = "bare-proxy";
/// About what a proof signs: header and claims in base64url.
const MESSAGE: &[u8] = &[b'x'; 420];
/// About what an entry and its opening take.
const ENTRY: &[u8] = &[b'e'; 2500];
/// The file that entries are written over, laid out before.
const LAID_OUT: usize = 16 << 20;

/// What is done for each request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    Nothing,
    Verify,
    /// Verify, sign, and have an entry durable.
    Least,
}

impl Work {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Nothing, "nothing"), (Self::Verify, "verify"), (Self::Least, "least")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(work, _)| *work == self).expect("named").1
    }

    fn named(name: &str) -> Self {
        Self::ALL.iter().find(|(_, n)| *n == name).expect("a name").0
    }
}

/// Makes entries durable, as many at a time as wait.
struct Log(std::sync::mpsc::Sender<oneshot::Sender<()>>);

impl Log {
    fn begin(dir: &Path) -> Self {
        let mut file = std::fs::File::create(dir.join("log")).expect("creates");
        file.write_all(&vec![0; LAID_OUT]).and_then(|()| file.sync_all()).expect("lays out");
        let (send, wanted) = std::sync::mpsc::channel::<oneshot::Sender<()>>();
        std::thread::spawn(move || {
            let mut at = 0;
            while let Ok(first) = wanted.recv() {
                let waiting: Vec<_> = std::iter::once(first).chain(wanted.try_iter()).collect();
                let batch = ENTRY.repeat(waiting.len());
                if at + batch.len() > LAID_OUT {
                    at = 0;
                }
                file.write_all_at(&batch, at as u64).and_then(|()| file.sync_data()).expect("syncs");
                at += batch.len();
                for one in waiting {
                    let _ = one.send(());
                }
            }
        });
        Self(send)
    }

    async fn durable(&self) {
        let (done, wait) = oneshot::channel();
        self.0.send(done).expect("runs");
        wait.await.expect("runs");
    }
}

/// What is done for each request, and with what.
struct Checks {
    work: Work,
    key: P256Key,
    public: PublicKey,
    signature: Vec<u8>,
    log: Option<Log>,
}

impl Checks {
    fn new(work: Work, key: P256Key, dir: &Path) -> Self {
        let public = PublicKey::from_spki(key.spki()).expect("P-256");
        let signature = key.sign(MESSAGE);
        Self { work, key, public, signature, log: (work == Work::Least).then(|| Log::begin(dir)) }
    }

    async fn run(&self) {
        if self.work != Work::Nothing {
            assert!(self.public.verifies(MESSAGE, &self.signature), "one ES256 verification");
        }
        if let Some(log) = &self.log {
            std::hint::black_box(self.key.sign(MESSAGE));
            log.durable().await;
        }
    }
}

/// A server certificate for 127.0.0.1 of a CA made in a directory, and that CA's root.
pub fn certificate(dir: &Path, key: &P256Key) -> (Made, Vec<u8>) {
    let now = SystemClock.now();
    let domain = TrustDomain::parse("example.org").expect("a trust domain");
    let ca = dir.join("ca");
    std::fs::create_dir(&ca).expect("creates");
    let keys = FileKeys::new(&ca, None).expect("a key store");
    let policy = IdentityConfig::default().policy();
    let authority = Authority::open(&ca, &domain, Box::new(keys), policy, now).expect("a CA");
    let made = authority.issue_server(key, &["127.0.0.1".into()], now).expect("a certificate");
    (made, authority.bundle().roots[0].clone())
}

/// Runs the proxy: upstream's address, a directory of its own, and the name of its work.
pub fn run(arguments: &[String]) {
    let (upstream, dir, work) = (&arguments[0], Path::new(&arguments[1]), Work::named(&arguments[2]));
    Runtime::new().expect("a runtime").block_on(async {
        let key = P256Key::generate();
        let (made, root) = certificate(dir, &key);
        std::fs::write(dir.join("root.der"), root).expect("writes");
        let identity = ServerIdentity::new(made.chain, key.tls()).expect("an identity");
        let acceptor = TlsAcceptor::from(tls::server(identity, None, tls::Versions::Tls13).expect("a configuration"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        println!("{}", listener.local_addr().expect("bound"));
        std::thread::spawn(|| {
            let _ = std::io::stdin().read(&mut [0]);
            std::process::exit(0);
        });
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(http);
        let checks = Arc::new(Checks::new(work, key, dir));
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            stream.set_nodelay(true).expect("sets");
            let (acceptor, client, upstream, checks) =
                (acceptor.clone(), client.clone(), upstream.clone(), checks.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service =
                    service_fn(move |request| pass(checks.clone(), client.clone(), upstream.clone(), request));
                let connection = auto::Builder::new(TokioExecutor::new());
                let _ = connection.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

async fn pass(
    checks: Arc<Checks>,
    client: Client<HttpConnector, Incoming>,
    upstream: String,
    mut request: Request<Incoming>,
) -> Result<Response<AnyBody>, BoxError> {
    checks.run().await;
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    *request.uri_mut() = format!("http://{upstream}{path}").parse::<Uri>()?;
    *request.version_mut() = http::Version::HTTP_11;
    let mut response = client.request(request).await?;
    *response.version_mut() = http::Version::HTTP_11;
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// The proxy as a process; it ends with its standard input.
pub struct Bare {
    child: Child,
    pub origin: String,
    pub http: HttpClient,
    _dir: tempfile::TempDir,
}

impl Bare {
    pub fn start(upstream: &str, work: Work) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut command = Command::new(std::env::current_exe().expect("a path"));
        command.arg(NAME).arg(upstream).arg(dir.path()).arg(work.name());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut address).expect("an address");
        let root = std::fs::read(dir.path().join("root.der")).expect("reads");
        let http = HttpClient::new(tls::web_client(&[root]).expect("a client"));
        Self { child, origin: format!("https://{}", address.trim()), http, _dir: dir }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
