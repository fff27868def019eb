//! `proxy`: signs requests for clients and SDKs that cannot.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Global;
use crate::cli::agent::ProofArgs;
use crate::cli::context::{self, Failure};
use crate::client::proxy::ProxyService;
use crate::client::source::{Sessions, SvidSource};
use crate::net::listener::{self, Drain};
use crate::net::uds;
use crate::telemetry;

/// How long an answer may take to begin: a model may think for minutes, and the gateway bounds it anyway.
const PATIENCE: Duration = Duration::from_mins(30);

#[derive(Args)]
pub struct ProxyArgs {
    /// Where to listen: unix:PATH, or an address of this host such as 127.0.0.1:8080
    #[arg(long, value_name = "WHERE", default_value = "unix:popgate-proxy.sock")]
    listen: String,
    /// The gateway, with a path that stands before each request's
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    proof: ProofArgs,
    /// Which identity, where several are to be had
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
}

enum Where {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl ProxyArgs {
    fn place(&self) -> Result<Where, Failure> {
        if let Some(path) = self.listen.strip_prefix("unix:") {
            return Ok(Where::Unix(path.into()));
        }
        let address: SocketAddr = self.listen.parse().map_err(|_| {
            Failure::usage(format!("--listen {:?}: write unix:PATH, or an address such as 127.0.0.1:8080", self.listen))
        })?;
        if address.ip().is_loopback() {
            return Ok(Where::Tcp(address));
        }
        Err(Failure::usage(format!(
            "--listen {address}: whoever reaches the proxy acts as this workload, so it listens on this host alone: 127.0.0.1, [::1] or a Unix socket"
        )))
    }
}

pub async fn run(global: &Global, args: ProxyArgs) -> Result<(), Failure> {
    let place = args.place()?;
    let level = if global.quiet { "error" } else { global.log_level.as_deref().unwrap_or("info") };
    telemetry::start_logs(level, global.json, false);
    crate::app::keep_files_private();
    let stop = |kind| signal(kind).map_err(|e| Failure::failed(format!("signals cannot be caught: {e}")));
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    // The place is taken before a one-time token is spent.
    let bound = match place {
        Where::Unix(path) => Bound::Unix(uds::bind(&path)?, path),
        Where::Tcp(address) => Bound::Tcp(listener::bind(address, "the proxy", "--listen").await?),
    };
    let sessions = Sessions::new(source(global, &args).await?, PATIENCE)?;
    let (switch, drain) = Drain::new();
    let (told, serving) = match bound {
        Bound::Unix(listener, path) => {
            let service = ProxyService::new(sessions, &args.to, None)?;
            let told = format!("unix:{}", path.display());
            (told, tokio::spawn(uds::serve(listener, service, drain)))
        }
        Bound::Tcp(listener) => {
            let address = listener.local_addr()?;
            let hosts = vec![address.to_string(), format!("localhost:{}", address.port())];
            let service = ProxyService::new(sessions, &args.to, Some(hosts))?;
            (format!("http://{address}"), tokio::spawn(listener::serve(listener, None, service, drain)))
        }
    };
    context::print(global, &json!({"ready": {"proxy": told, "to": args.to}}));
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    switch.send_replace(true);
    let _ = serving.await;
    Ok(())
}

enum Bound {
    Unix(tokio::net::UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// An agent's identity is followed, another one renewed while the proxy runs.
async fn source(global: &Global, args: &ProxyArgs) -> Result<SvidSource, Failure> {
    let wanted = super::enrol::wanted(args.spiffe_id.as_deref())?;
    let explicit = args.proof.source()?.is_some() || global.identity.is_some();
    if !explicit && let Some(agent) = context::workload_api()? {
        return Ok(SvidSource::following(agent, wanted).await?);
    }
    let identity = context::identity(global, &args.proof, wanted).await?;
    let kept = global.identity.clone().filter(|_| args.proof.source().is_ok_and(|s| s.is_none()));
    Ok(SvidSource::renewing(identity, kept))
}
