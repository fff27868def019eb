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
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::agent::keeper::Keeper;
use crate::agent::serve;
use crate::agent::server::{Heard, Issued, Order, Server, ServerError};
use crate::agent::state::Update;
use crate::agent::workload_api::WorkloadApi;
use crate::app::lock_data_dir;
use crate::client::ClientError;
use crate::client::enrol::{self, Proof};
use crate::client::http::HttpClient;
use crate::client::identity::Identity;
use crate::client::kept;
use crate::client::source::until;
use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::{Clock, Timestamp};
use crate::net::inbound::Inbound;
use crate::net::listener::{self, BindError, Drain};
use crate::net::router::Routed;
use crate::net::uds::SocketError;
use crate::protocol::svid;
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
    #[error("{0}")]
    DataDir(String),
    #[error("the node's identity in {0} cannot be used ({1}): give a proof of identity to attest anew")]
    Damaged(String, String),
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
        let (path, socket) = (config.socket.clone(), serve::bind(&config.socket)?);
        let telemetry = match config.telemetry {
            Some(address) => Some(listener::bind(address, "the agent's telemetry", "--telemetry").await?),
            None => None,
        };
        let telemetry_at = telemetry.as_ref().and_then(|l| l.local_addr().ok());
        let opened = NodeIdentity::open(config).await;
        if opened.is_err() {
            let _ = std::fs::remove_file(path);
        }
        let node = Arc::new(opened?);
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
    /// The server refuses the node: where its proof is at hand, it attests again at once.
    refused: Notify,
    /// Its issuing CA is tainted: it is renewed at once.
    tainted: Notify,
    /// One agent at a time renews what the directory holds.
    _lock: std::fs::File,
}

impl NodeIdentity {
    async fn open(config: AgentConfig) -> Result<Self, AgentError> {
        let lock = lock_data_dir(&config.data_dir).map_err(|e| AgentError::DataDir(e.to_string()))?;
        let dir = config.data_dir.join("node");
        let mut kept = None;
        if dir.join("popgate.json").exists() {
            kept = match Identity::load(&dir) {
                Ok(kept) => Some(kept),
                Err(error) if config.proof.is_some() => {
                    tracing::warn!(%error, "the kept identity cannot be used; attesting anew");
                    None
                }
                Err(error) => return Err(AgentError::Damaged(dir.display().to_string(), error.to_string())),
            };
        }
        let valid = |i: &Identity| i.spiffe_id.node_name().is_some() && SystemClock.now() < i.svid.not_after;
        let identity = match kept {
            Some(mut kept) if valid(&kept) => {
                kept.servers.identity.clone_from(&config.server);
                kept
            }
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
        Ok(Self {
            config,
            identity: ArcSwap::from_pointee(identity),
            refused: Notify::new(),
            tainted: Notify::new(),
            _lock: lock,
        })
    }

    /// Renews the node's certificate; where its proof is at hand, it attests again.
    async fn keep(self: Arc<Self>, mut drain: Drain) {
        tokio::select! {
            () = self.keep_on() => {}
            () = drain.begun() => {}
        }
    }

    async fn keep_on(&self) {
        loop {
            let present = self.identity.load_full();
            let refused = tokio::select! {
                () = until(present.renew_after) => false,
                () = self.tainted.notified() => false,
                () = self.refused.notified() => true,
            };
            match self.fresh(&present, refused).await {
                Ok(fresh) => {
                    if let Err(error) = fresh.save(&self.config.data_dir.join("node")) {
                        tracing::error!(%error, "the node's identity is fresh and could not be kept on disk");
                    }
                    tracing::info!(not_after = %fresh.svid.not_after, "the node's certificate is fresh");
                    self.identity.store(Arc::new(fresh));
                }
                Err(error) => {
                    let not_after = present.svid.not_after;
                    tracing::error!(error, %not_after, "the node's certificate is not renewed yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn fresh(&self, present: &Identity, refused: bool) -> Result<Identity, String> {
        let ended = SystemClock.now() >= present.svid.not_after;
        let renewed = if refused || ended {
            Err(format!("the server refuses {} (or its certificate has ended)", present.spiffe_id))
        } else {
            match kept::renew(&self.config.data_dir.join("node"), present).await {
                // Away: the present one is good for a while.
                Err(error @ ClientError::Unreachable { .. }) => return Err(error.to_string()),
                other => other.map_err(|e| e.to_string()),
            }
        };
        match (renewed, &self.config.proof) {
            (Err(why), Some(proof)) => attest(&self.config, proof).await.map_err(|e| format!("{why}; and: {e}")),
            (renewed, _) => renewed,
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
        let (http, _) = self.client()?;
        let url = format!("{}{path}", self.node.config.server);
        let response = enrol::post(&http, &url, body).await.map_err(failed)?;
        enrol::document(&response, &url).map_err(failed)
    }
}

fn failed(error: ClientError) -> ServerError {
    match error.status() {
        Some(status) if status < 500 => ServerError::Refused { status, why: error.to_string() },
        _ => ServerError::Away(error.to_string()),
    }
}

#[async_trait]
impl Server for Link {
    async fn updates(&self) -> Result<BoxStream<'static, Result<Heard, ServerError>>, ServerError> {
        let (http, identity) = self.client()?;
        let url = format!("{}/v1/agent/updates", self.node.config.server);
        let request = Request::get(&url).body(Bytes::new()).map_err(|e| ServerError::Away(e.to_string()))?;
        let sent = http.send(request).await;
        if let Err(ClientError::Handshake { .. }) = &sent {
            // Its issuing CA is trusted no more, or the server is another: only a proof helps.
            self.node.refused.notify_one();
        }
        let response = sent.map_err(failed)?;
        if !response.status().is_success() {
            let (parts, body) = response.into_parts();
            let body = crate::net::body::read(body, 1 << 20).await.map_err(|e| ServerError::Away(e.to_string()))?;
            let response = http::Response::from_parts(parts, body);
            let refused = match enrol::document(&response, &url) {
                Err(error) => failed(error),
                Ok(_) => ServerError::Away("an answer that is none".into()),
            };
            if let ServerError::Refused { .. } = refused {
                self.node.refused.notify_one();
            }
            return Err(refused);
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
        let (node, issuer) = (self.node.clone(), identity.chain.get(1).and_then(|der| svid::spki_sha256(der)));
        let issuer = issuer.map(|id| id.to_string()).unwrap_or_default();
        let read = move |line: Result<Bytes, ServerError>| {
            let update = Update::parse(&line?, &domain).map_err(|e| ServerError::Away(format!("its line: {e}")))?;
            if update.as_ref().is_some_and(|u| u.tainted.contains(&issuer)) {
                node.tainted.notify_one();
            }
            Ok(update.map_or(Heard::Alive, |u| Heard::Update(Box::new(u))))
        };
        Ok(updates.map(read).boxed())
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
            if let Some((chain, renew_after)) = chain.zip(renew_after) {
                return Ok(Issued { chain, renew_after });
            }
            let refused = &answer["refused"];
            let status = refused["status"].as_u64().and_then(|s| u16::try_from(s).ok()).unwrap_or(403);
            Err(ServerError::Refused { status, why: refused["detail"].as_str().unwrap_or("refused").to_owned() })
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
    body: Inbound,
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
