//! Wires the agent: its node's identity, the server over HTTPS, the keeper and the socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::agent::keeper::Keeper;
use crate::agent::serve;
use crate::agent::server::{Issued, Order, Server, ServerError};
use crate::agent::state::Update;
use crate::agent::workload_api::WorkloadApi;
use crate::client::ClientError;
use crate::client::enrol::{self, Proof};
use crate::client::http::HttpClient;
use crate::client::identity::Identity;
use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::{Clock, Timestamp};
use crate::net::listener::{self, BindError, Drain};
use crate::net::router::Routed;
use crate::net::uds::SocketError;
use crate::store::clock::SystemClock;
use crate::telemetry::{self, Health};

/// A line of the server's stream is at most this long.
const MAX_LINE: usize = 64 << 20;
/// The node's certificate that could not be renewed is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("the node's identity in {0} has ended: give a proof of identity to attest anew")]
    Ended(String),
    #[error(
        "this host has no identity as a node yet: give --join-token-file, --kubernetes-token-file, --oidc-token-file or --x509-chain and --x509-key"
    )]
    NoProof,
    #[error("that was for {0}, which is no node: `popgate join-token create --node NAME` makes a token for an agent")]
    NotANode(SpiffeId),
}

/// Reads a proof of identity anew each time: tokens of a platform are replaced in their files.
pub type ProofSource = Arc<dyn Fn() -> Result<Proof, ClientError> + Send + Sync>;

/// How an agent is run.
pub struct AgentConfig {
    /// Identity listener.
    pub server: String,
    /// SHA-256 of the root's public key, for proofs that do not name it.
    pub pin: Option<Sha256>,
    /// What proves this host.
    pub proof: Option<ProofSource>,
    /// Where the node's identity is kept over restarts.
    pub data_dir: PathBuf,
    /// The Workload API's socket.
    pub socket: PathBuf,
    /// Metrics and health.
    pub telemetry: Option<std::net::SocketAddr>,
}

/// A running agent.
pub struct Agent {
    /// Its node.
    pub node: SpiffeId,
    /// Where metrics and health are.
    pub telemetry: Option<std::net::SocketAddr>,
    switch: tokio::sync::watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Attests the node, or takes up its kept identity, and serves.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        // The socket first: a proof may be good once, and is not spent for an agent that cannot serve.
        let socket = serve::bind(&config.socket)?;
        let telemetry = match config.telemetry {
            Some(address) => Some(listener::bind(address, "the agent's telemetry", "--telemetry").await?),
            None => None,
        };
        let telemetry_at = telemetry.as_ref().and_then(|l| l.local_addr().ok());
        let node = Arc::new(NodeIdentity::open(config).await?);
        let id = node.identity.load().spiffe_id.clone();
        let (switch, drain) = Drain::new();
        let link = Arc::new(Link { node: node.clone() });
        let keeper = Keeper::new(link, Arc::new(SystemClock));
        let router = serve::routes(WorkloadApi::new(keeper.clone(), drain.clone())).await;
        let mut tasks = JoinSet::new();
        if let Some(listener) = telemetry {
            tasks.spawn(serve_telemetry(listener, keeper.clone(), drain.clone()));
        }
        tasks.spawn(node.keep(drain.clone()));
        tasks.spawn(keeper.keep(drain.clone()));
        tasks.spawn(serve::serve(socket, router, drain));
        Ok(Self { node: id, telemetry: telemetry_at, switch, tasks })
    }

    /// Ends its streams and stops.
    pub async fn drain(mut self) {
        self.switch.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn serve_telemetry(listener: TcpListener, keeper: Arc<Keeper>, drain: Drain) {
    let readiness: telemetry::Readiness = Arc::new(move || {
        let keeper = keeper.clone();
        Box::pin(async move {
            if keeper.watch().borrow().update.is_none() {
                return Err("the server (never heard yet)".to_owned());
            }
            // Without the server it serves from memory: that is ready, and the metric tells.
            Ok(())
        })
    });
    let router = telemetry::router(Health { metrics: telemetry::start_metrics(), readiness });
    listener::serve(listener, None, Routed::new(router, None), drain).await;
}

/// The node's own identity, kept fresh and on disk.
struct NodeIdentity {
    config: AgentConfig,
    identity: ArcSwap<Identity>,
}

impl NodeIdentity {
    async fn open(config: AgentConfig) -> Result<Self, AgentError> {
        let dir = config.data_dir.join("node");
        let kept = Identity::load(&dir).ok();
        let valid = |i: &Identity| i.spiffe_id.node_name().is_some() && SystemClock.now() < i.svid.not_after;
        let identity = match kept {
            Some(kept) if valid(&kept) => kept,
            kept => match &config.proof {
                Some(proof) => attest(&config, proof).await?,
                None if kept.is_some() => return Err(AgentError::Ended(dir.display().to_string())),
                None => return Err(AgentError::NoProof),
            },
        };
        if identity.spiffe_id.node_name().is_none() {
            return Err(AgentError::NotANode(identity.spiffe_id));
        }
        identity.save(&dir)?;
        Ok(Self { config, identity: ArcSwap::from_pointee(identity) })
    }

    /// Renews the node's certificate; where its proof is at hand, it attests again.
    async fn keep(self: Arc<Self>, mut drain: Drain) {
        loop {
            let present = self.identity.load_full();
            tokio::select! {
                () = tokio::time::sleep(present.renew_after.since(SystemClock.now())) => {}
                () = drain.begun() => return,
            }
            let fresh = match enrol::renew(&present).await {
                Err(ClientError::Refused { status: 403 | 409, detail, .. }) => match &self.config.proof {
                    Some(proof) => attest(&self.config, proof).await.map_err(|e| format!("{detail}; and: {e}")),
                    None => Err(detail),
                },
                Err(error) => Err(error.to_string()),
                Ok(fresh) => Ok(fresh),
            };
            match fresh {
                Ok(fresh) => {
                    if let Err(error) = fresh.save(&self.config.data_dir.join("node")) {
                        tracing::error!(%error, "the node's identity is fresh and could not be kept on disk");
                    }
                    self.identity.store(Arc::new(fresh));
                }
                Err(error) => {
                    tracing::error!(error, not_after = %present.svid.not_after, "the node's certificate is not renewed yet");
                    tokio::select! {
                        () = tokio::time::sleep(RETRY) => {}
                        () = drain.begun() => return,
                    }
                }
            }
        }
    }
}

async fn attest(config: &AgentConfig, proof: &ProofSource) -> Result<Identity, ClientError> {
    let proof = proof()?;
    let enrolment =
        enrol::Enrolment { server: &config.server, pin: config.pin, proof: &proof, spiffe_id: None, node: true };
    enrol::attest(&enrolment).await
}

/// The server over HTTPS, with the node's present certificate.
struct Link {
    node: Arc<NodeIdentity>,
}

impl Link {
    fn client(&self) -> Result<(HttpClient, Arc<Identity>), ServerError> {
        let identity = self.node.identity.load_full();
        let tls = identity.tls(true).map_err(failed)?;
        Ok((HttpClient::new(tls), identity))
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value, ServerError> {
        let (http, identity) = self.client()?;
        let url = format!("{}{path}", identity.servers.identity);
        let response = enrol::post(&http, &url, body).await.map_err(failed)?;
        enrol::document(&response, &url).map_err(failed)
    }
}

fn failed(error: ClientError) -> ServerError {
    match error.status() {
        Some(status) if status < 500 => ServerError::Refused(error.to_string()),
        _ => ServerError::Away(error.to_string()),
    }
}

#[async_trait]
impl Server for Link {
    async fn updates(&self) -> Result<BoxStream<'static, Result<Update, ServerError>>, ServerError> {
        let (http, identity) = self.client()?;
        let url = format!("{}/v1/agent/updates", identity.servers.identity);
        let request = Request::get(&url).body(Bytes::new()).map_err(|e| ServerError::Away(e.to_string()))?;
        let response = http.send(request).await.map_err(failed)?;
        if !response.status().is_success() {
            let (parts, body) = response.into_parts();
            let body = crate::net::body::read(body, 1 << 20).await.map_err(|e| ServerError::Away(e.to_string()))?;
            let response = http::Response::from_parts(parts, body);
            return match enrol::document(&response, &url) {
                Err(error) => Err(failed(error)),
                Ok(_) => Err(ServerError::Away("an answer that is none".into())),
            };
        }
        let lines = Lines { body: response.into_body(), held: BytesMut::new(), _http: http };
        let domain = identity.spiffe_id.trust_domain();
        let updates = futures_util::stream::unfold(Some(lines), |lines| async move {
            let mut lines = lines?;
            match lines.next().await {
                Ok(Some(line)) => Some((Ok(line), Some(lines))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        let read = move |line: Result<Bytes, ServerError>| {
            let read =
                line.and_then(|l| Update::parse(&l, &domain).map_err(|e| ServerError::Away(format!("its line: {e}"))));
            // A line that only says that the server lives is not an update, and not silence either.
            read.transpose()
        };
        Ok(updates.filter_map(move |line| std::future::ready(read(line))).boxed())
    }

    async fn issue(&self, orders: &[Order]) -> Result<Vec<Result<Issued, ServerError>>, ServerError> {
        let order = |o: &Order| json!({"spiffe_id": o.spiffe_id, "csr": BASE64_STANDARD.encode(&o.csr)});
        let body = json!({"orders": orders.iter().map(order).collect::<Vec<_>>()});
        let document = self.post("/v1/agent/svids", &body).await?;
        let answers = document["svids"].as_array().filter(|a| a.len() == orders.len());
        let answers = answers.ok_or_else(|| ServerError::Away("the answer does not fit the request".into()))?;
        let read = |answer: &Value| {
            let chain = enrol::chain(&answer["svid"]);
            let renew_after = answer["renew_after"].as_str().and_then(Timestamp::parse_rfc3339);
            match chain.zip(renew_after) {
                Some((chain, renew_after)) => Ok(Issued { chain, renew_after }),
                None => Err(ServerError::Refused(answer["refused"]["detail"].as_str().unwrap_or("refused").to_owned())),
            }
        };
        Ok(answers.iter().map(read).collect())
    }

    async fn jwt(&self, id: &SpiffeId, audiences: &[String]) -> Result<(String, Timestamp), ServerError> {
        let document = self.post("/v1/agent/jwt-svid", &json!({"spiffe_id": id, "audience": audiences})).await?;
        let token = document["svid"].as_str().map(ToOwned::to_owned);
        let until = document["expires_at"].as_str().and_then(Timestamp::parse_rfc3339);
        token.zip(until).ok_or_else(|| ServerError::Away("the answer has no token".into()))
    }
}

/// Lines of a streamed body.
struct Lines {
    body: Incoming,
    held: BytesMut,
    /// Keeps the connection's pool.
    _http: HttpClient,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<Bytes>, ServerError> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.held) {
                return Ok(Some(self.held.split_to(end + 1).freeze()));
            }
            if self.held.len() > MAX_LINE {
                return Err(ServerError::Away("its line has no end".into()));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ServerError::Away(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.held.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
