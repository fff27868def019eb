//! `agent`: the SPIFFE Workload API on a workload's host. `node`: what the server knows of agents.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use http::Method;
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::agent::{Agent, AgentConfig, ProofSource};
use crate::cli::Global;
use crate::cli::admin::{query, show};
use crate::cli::context::{self, Failure};
use crate::client::ClientError;
use crate::client::enrol::Proof;
use crate::domain::digest::Sha256;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::TrustDomain;
use crate::net::fetch;
use crate::net::files;
use crate::telemetry;

/// A proof of identity that is read from files.
#[derive(Args, Clone, Default)]
pub struct ProofArgs {
    /// File with a one-time token, or - for standard input
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File with the OIDC token of a CI job
    #[arg(long, value_name = "FILE", conflicts_with = "join_token_file")]
    pub oidc_token_file: Option<PathBuf>,
    /// File with a projected Kubernetes service account token
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join_token_file", "oidc_token_file"])]
    pub kubernetes_token_file: Option<PathBuf>,
    /// Certificate chain, PEM, that this machine has already
    #[arg(long, value_name = "FILE", requires = "x509_key", conflicts_with_all = ["join_token_file", "oidc_token_file", "kubernetes_token_file"])]
    pub x509_chain: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "trust_domain")]
    pub x509_key: Option<PathBuf>,
    /// The server's trust domain, with --x509-chain
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// SHA-256 of the root's public key, as `popgate status` shows it: with every proof but a join token
    #[arg(long, value_name = "HEX")]
    pub pin: Option<String>,
}

impl ProofArgs {
    /// The pin, read.
    pub fn pin(&self) -> Result<Option<Sha256>, Failure> {
        let read = |text: &String| {
            Sha256::from_hex(text)
                .ok_or_else(|| Failure::usage("--pin is 64 hex digits in lower case, as `popgate status` shows it"))
        };
        self.pin.as_ref().map(read).transpose()
    }

    /// Where the proof is read from, anew each time; none if none is given.
    pub fn source(&self) -> Result<Option<ProofSource>, Failure> {
        let input = |text: String| ClientError::Input(text);
        if let Some(file) = self.join_token_file.clone() {
            return Ok(Some(Arc::new(move || {
                let text = files::read_secret(&file)?;
                let token = JoinToken::parse(&text).map_err(|e| input(format!("{}: {e}", file.display())))?;
                Ok(Proof::JoinToken(token))
            })));
        }
        let token = |file: PathBuf, method: &'static str| -> ProofSource {
            Arc::new(move || Ok(Proof::Token { method, token: files::read_secret(&file)? }))
        };
        if let Some(file) = self.oidc_token_file.clone() {
            return Ok(Some(token(file, "oidc")));
        }
        if let Some(file) = self.kubernetes_token_file.clone() {
            return Ok(Some(token(file, "kubernetes")));
        }
        let (Some(chain), Some(key), Some(domain)) =
            (self.x509_chain.clone(), self.x509_key.clone(), &self.trust_domain)
        else {
            return Ok(None);
        };
        let domain = TrustDomain::parse(domain).map_err(|e| Failure::usage(format!("--trust-domain: {e}")))?;
        Ok(Some(Arc::new(move || x509(&chain, &key, &domain))))
    }
}

fn x509(chain: &Path, key: &Path, trust_domain: &TrustDomain) -> Result<Proof, ClientError> {
    let bad = |file: &Path, why: String| ClientError::Input(format!("{}: {why}", file.display()));
    let certificates = fetch::certificates(chain).map_err(|e| bad(chain, e))?;
    let pem = files::read_secret(key)?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(key, e.to_string()))?;
    Ok(Proof::X509 { chain: certificates, key, trust_domain: trust_domain.clone() })
}

#[derive(Args)]
pub struct AgentArgs {
    #[command(flatten)]
    proof: ProofArgs,
    /// Socket of the Workload API
    #[arg(long, value_name = "PATH", default_value = "/run/popgate/agent.sock")]
    socket: PathBuf,
    /// Listener of metrics and health
    #[arg(long, value_name = "ADDRESS")]
    telemetry: Option<SocketAddr>,
}

pub async fn run(global: &Global, args: AgentArgs) -> Result<(), Failure> {
    telemetry::start_logs(
        if global.quiet { "error" } else { global.log_level.as_deref().unwrap_or("info") },
        global.json,
        false,
    );
    crate::app::keep_files_private();
    crate::app::raise_open_files();
    let stop = |kind| signal(kind).map_err(|e| Failure::failed(format!("signals cannot be caught: {e}")));
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    if let Some(dir) = args.socket.parent().filter(|d| !d.as_os_str().is_empty() && !d.exists()) {
        let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}; give --socket PATH", dir.display()));
        std::fs::create_dir_all(dir).map_err(failed)?;
        // Every local process is to reach the socket in it.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let socket = args.socket.clone();
    let agent = Agent::start(AgentConfig {
        server: context::identity_url(global),
        pin: args.proof.pin()?,
        proof: args.proof.source()?,
        data_dir: global.data_dir.clone().unwrap_or_else(|| PathBuf::from("popgate-agent-data")),
        socket: args.socket,
        telemetry: args.telemetry,
    })
    .await?;
    let telemetry = agent.telemetry.map(|a| format!("http://{a}"));
    if global.json {
        let ready = json!({"node": agent.node, "socket": socket.display().to_string(), "telemetry": telemetry});
        context::out(&format!("{}\n", json!({"ready": ready})));
    } else {
        let endpoint = format!("SPIFFE_ENDPOINT_SOCKET=unix://{}", socket.display());
        context::out(&format!("ready node={} {endpoint}\n", agent.node));
    }
    super::serve::notify("READY=1");
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    super::serve::notify("STOPPING=1");
    agent.drain().await;
    let _ = std::fs::remove_file(socket);
    Ok(())
}

#[derive(Subcommand)]
pub enum NodeCommand {
    /// All attested nodes
    List,
    /// One node and the entries that its agent serves
    Show { spiffe_id: String },
    /// End a node's agent and every certificate that came through it; it may attest again
    #[command(
        after_help = "Example: popgate node evict spiffe://example.org/popgate/node/build-7\n`popgate revoke node ID` keeps it from attesting again, too."
    )]
    Evict { spiffe_id: String },
}

pub async fn node(global: &Global, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::List => show(global, Method::GET, "/v1/nodes", None).await,
        NodeCommand::Show { spiffe_id } => show(global, Method::GET, &query("/v1/nodes", &spiffe_id), None).await,
        NodeCommand::Evict { spiffe_id } => show(global, Method::DELETE, &query("/v1/nodes", &spiffe_id), None).await,
    }
}
