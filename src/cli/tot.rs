//! `tot serve` and `tot solve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::context::{self, Failure};
use crate::cli::{Global, serve};
use crate::net::listener::{self, Drain};
use crate::net::router::Routed;
use crate::store::clock::SystemClock;
use crate::telemetry;
use crate::tot::admit::Admission;
use crate::tot::evaluate;
use crate::tot::model::{Model, ModelConfig};
use crate::tot::search;
use crate::tot::serve::{Engine, Record, router};
use crate::tot::value::Valuer;

#[derive(Subcommand)]
pub enum TotCommand {
    /// Run the engine's HTTP API
    #[command(
        after_help = "Example: popgate tot serve --trust-domain example.org --txn-jwks popgate-data/txn-jwks.json"
    )]
    Serve(TotServeArgs),
    /// Solve one Game of 24
    #[command(after_help = "Example: popgate tot solve 4 4 10 1 --b 5")]
    Solve {
        /// Four numbers from 1 to 13
        #[arg(num_args = 4, required = true, value_parser = clap::value_parser!(i64).range(1..=13))]
        numbers: Vec<i64>,
        /// Width of the beam
        #[arg(long, default_value_t = 5)]
        b: usize,
        /// exact or heuristic
        #[arg(long, default_value = "heuristic", value_parser = ["exact", "heuristic"])]
        value: String,
    },
}

#[derive(Args)]
pub struct TotServeArgs {
    /// Listener; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8024")]
    listen: SocketAddr,
    /// Admit only requests with a gateway's transaction token for this trust domain
    #[arg(long, requires = "txn_jwks")]
    trust_domain: Option<String>,
    /// The gateway's keys: DATA/txn-jwks.json; may appear later
    #[arg(long, requires = "trust_domain", value_name = "FILE")]
    txn_jwks: Option<PathBuf>,
    /// One JSON line for each request head and each response write
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// An OpenAI-compatible API that runs may take as proposer and valuer: its URL before /chat/completions
    #[arg(long, requires = "model", value_name = "URL")]
    model_url: Option<String>,
    /// The model's name there
    #[arg(long, requires = "model_url", value_name = "NAME")]
    model: Option<String>,
    /// File with the API's key
    #[arg(long, requires = "model_url", value_name = "FILE")]
    model_key_file: Option<PathBuf>,
    /// Certificates that the API's leads to, PEM; default: the system's
    #[arg(long, requires = "model_url", value_name = "FILE")]
    model_ca_file: Option<PathBuf>,
    /// Seconds that one answer may take
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    model_timeout: u64,
    /// Tokens that one run may use
    #[arg(long, default_value_t = 200_000, value_name = "TOKENS")]
    model_budget: u64,
    /// End when standard input closes
    #[arg(long, hide = true)]
    with_parent: bool,
}

impl TotServeArgs {
    fn model(&self) -> Result<Option<Arc<Model>>, Failure> {
        let (Some(base), Some(model)) = (&self.model_url, &self.model) else { return Ok(None) };
        let config = ModelConfig {
            base,
            model,
            key_file: self.model_key_file.as_deref(),
            ca_file: self.model_ca_file.as_deref(),
            timeout: Duration::from_secs(self.model_timeout.max(1)),
            budget: self.model_budget,
        };
        Model::new(&config).map(|model| Some(Arc::new(model))).map_err(Failure::failed)
    }
}

pub async fn run(global: &Global, command: TotCommand) -> Result<(), Failure> {
    match command {
        TotCommand::Serve(args) => serve_engine(global, args).await,
        TotCommand::Solve { numbers, b, value } => solve(global, &numbers, b, &value),
    }
}

fn solve(global: &Global, numbers: &[i64], b: usize, value: &str) -> Result<(), Failure> {
    let valuer = if value == "exact" { Valuer::Exact } else { Valuer::Heuristic };
    let Some(expression) = search::solve(numbers, b, valuer) else {
        return Err(Failure::failed(format!("no solution within a beam of {b}; try a wider one, or --value exact")));
    };
    evaluate::check(&expression, numbers)?;
    if global.json {
        context::print(global, &json!({"input": numbers, "expression": expression, "value": 24}));
    } else {
        context::out(&format!("{expression} = 24\n"));
    }
    Ok(())
}

async fn serve_engine(global: &Global, args: TotServeArgs) -> Result<(), Failure> {
    telemetry::start_logs(
        global.log_level.as_deref().unwrap_or(if global.quiet { "error" } else { "info" }),
        false,
        false,
    );
    let model = args.model()?;
    let admission = if let (Some(trust_domain), Some(keys)) = (args.trust_domain, args.txn_jwks) {
        Some(Admission::new(trust_domain, keys))
    } else {
        tracing::warn!("anybody may call this engine; give --trust-domain and --txn-jwks to admit the gateway alone");
        None
    };
    let record = match &args.record {
        None => Record::default(),
        Some(path) => {
            Record::create(path).map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))?
        }
    };
    let engine = Arc::new(Engine::new(Arc::new(SystemClock), admission, record, model));
    let listener = listener::bind(args.listen, "the engine", "--listen").await?;
    let address = listener.local_addr()?;
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let hosts = address.ip().is_loopback().then(|| Arc::new(names));
    let (switch, drain) = Drain::new();
    let serving = tokio::spawn(listener::serve(listener, None, Routed::new(router(engine), hosts), drain));
    context::out(&if global.json {
        format!("{}\n", json!({"ready": {"engine": format!("http://{address}")}}))
    } else {
        format!("ready engine=http://{address}\n")
    });
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = serve::parent_gone_if(args.with_parent) => {}
    }
    switch.send_replace(true);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), serving).await;
    Ok(())
}
