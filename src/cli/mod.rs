//! The commands: one file each. Data on standard output, everything else on standard error; 0 done, 1 refused or
//! failed, 2 usage.

mod admin;
mod agent;
mod audit;
mod authority;
mod call;
mod configure;
mod context;
mod demo;
mod enrol;
mod least;
mod proxy;
mod serve;
mod suggest;
mod token;
mod tot;
mod trust;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use context::Failure;

/// A proof-of-possession gate for machine identities.
#[derive(Parser)]
#[command(name = "popgate", version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone)]
pub struct Global {
    /// Configuration file [default: POPGATE_CONFIG, ./config/popgate.toml, /etc/popgate/popgate.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory, instead of the configuration's
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// URL of the server to talk to: identity for enrolment, administration with --identity
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Directory with svid.pem, key.pem, bundle.pem and popgate.json, as `svid fetch` and `login` write them
    #[arg(long, global = true, value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Nothing on standard error but errors
    #[arg(long, global = true)]
    pub quiet: bool,
    /// Least severe level that is logged: error, warn, info, debug, trace
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Colours: auto, always, never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "always", "never"])]
    pub color: String,
}

#[derive(Subcommand)]
enum Command {
    /// The main job end to end, then ready to be tried
    #[command(after_help = "Example: popgate demo --exit --json")]
    Demo(demo::DemoArgs),
    /// Run the service
    #[command(after_help = "Example: popgate serve --config config/popgate.toml")]
    Serve(serve::ServeArgs),
    /// Check or show the configuration
    #[command(subcommand, after_help = "Example: popgate config check --config config/popgate.toml")]
    Config(configure::ConfigCommand),
    /// Exit code of /readyz, for containers
    #[command(after_help = "Example: popgate health && echo ready")]
    Health,
    /// One screen: certificates, stores, queue
    #[command(after_help = "Example: popgate status --data-dir popgate-data")]
    Status,
    /// One-time enrolment tokens
    #[command(
        subcommand,
        alias = "join-tokens",
        after_help = "Example: popgate join-token create --spiffe-id spiffe://example.org/ci/solver > token"
    )]
    JoinToken(admin::JoinTokenCommand),
    /// Registration entries: who may become what
    #[command(subcommand, alias = "entries", after_help = "Example: popgate entry import config/entries.toml")]
    Entry(admin::EntryCommand),
    /// People, who approve and administer
    #[command(
        subcommand,
        alias = "people",
        after_help = "Example: popgate person create https://idp.example.org#alice --name alice --group security --role approver"
    )]
    Person(admin::PersonCommand),
    /// Turn a person's one-time token into a certificate
    #[command(
        after_help = "Example: popgate login --server https://127.0.0.1:8441 --join-token-file alice.token --out alice"
    )]
    Login(enrol::EnrolArgs),
    /// Serve the SPIFFE Workload API to the processes of this host
    #[command(
        after_help = "Example: popgate agent --server https://127.0.0.1:8441 --join-token-file node.token --socket /run/popgate/agent.sock"
    )]
    Agent(agent::AgentArgs),
    /// The hosts whose agents have attested
    #[command(subcommand, alias = "nodes", after_help = "Example: popgate node list")]
    Node(agent::NodeCommand),
    /// Authorities: prepare, activate, taint, revoke
    #[command(subcommand, after_help = "Example: popgate ca prepare issuing && popgate ca activate issuing")]
    Ca(authority::CaCommand),
    /// Bundles of federated trust domains
    #[command(subcommand, alias = "bundles", after_help = "Example: popgate bundle show example.org > bundle.json")]
    Bundle(authority::BundleCommand),
    /// Whom attestation and the token endpoint trust, and how they would read a token
    #[command(subcommand, after_help = "Example: popgate trust test --token-file job-token")]
    Trust(trust::TrustCommand),
    /// Certificates as files
    #[command(
        subcommand,
        alias = "svids",
        after_help = "Example: popgate svid fetch --join-token-file token --out solver"
    )]
    Svid(enrol::SvidCommand),
    /// Call a URL through the gateway: certificate, token, proof, nonce and approval taken care of
    #[command(
        after_help = "Example: popgate call --identity solver -X POST -d '{\"task\":\"game_of_24\",\"input\":[4,4,10,1]}' https://127.0.0.1:8443/v1/runs"
    )]
    Call(call::CallArgs),
    /// An access token, for scripts that make their requests themselves
    #[command(
        after_help = "Example: popgate token --identity solver --resource https://127.0.0.1:8443/v1 --scope tot.read > token"
    )]
    Token(token::TokenArgs),
    /// A DPoP proof for one request: the value of its header
    #[command(after_help = "Example: popgate proof --identity solver --url URL --token-file token
         curl -H \"DPoP: $(popgate proof …)\" -H \"Authorization: DPoP $(cat token)\" URL")]
    Proof(token::HeaderArgs),
    /// Sign requests for clients and SDKs that know nothing of DPoP
    #[command(
        after_help = "Example: popgate proxy --identity solver --listen 127.0.0.1:8080 --to https://127.0.0.1:8443
         OPENAI_BASE_URL=http://127.0.0.1:8080/v1 python agent.py"
    )]
    Proxy(proxy::ProxyArgs),
    /// The queue of requests that wait for people
    #[command(
        subcommand,
        alias = "approvals",
        after_help = "Example: popgate approval approve ID --identity alice --server https://localhost:8444"
    )]
    Approval(admin::ApprovalCommand),
    /// Stop a workload, person, session, key, certificate, token or group
    #[command(after_help = "Example: popgate revoke spiffe-id spiffe://example.org/ci/solver --reason 'key leaked'")]
    Revoke(admin::RevokeArgs),
    /// Stops in force
    #[command(subcommand, alias = "revocations", after_help = "Example: popgate revocation list")]
    Revocation(admin::RevocationCommand),
    /// Stop a person and every workload they own
    #[command(after_help = "Example: popgate offboard https://idp.example.org#bob --reason 'contract ended'")]
    Offboard(admin::OffboardArgs),
    /// Evidence: look, replay, export, prove
    #[command(subcommand, after_help = "Example: popgate audit verify popgate-data --checkpoint kept.checkpoint")]
    Audit(audit::AuditCommand),
    /// The Tree of Thoughts engine
    #[command(subcommand, after_help = "Example: popgate tot solve 4 4 10 1")]
    Tot(tot::TotCommand),
    #[command(hide = true)]
    DemoWorkload(demo::WorkloadArgs),
}

/// Parses, runs, and turns the outcome into an exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.global, cli.command)),
        Err(error) => Err(Failure::failed(format!("the runtime cannot start: {error}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("popgate: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn run(global: Global, command: Command) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => demo::run(&global, args).await,
        Command::DemoWorkload(args) => demo::workload(args).await,
        Command::Serve(args) => serve::run(&global, args).await,
        Command::Config(command) => configure::run(&global, &command),
        Command::Health => admin::health(&global).await,
        Command::Status => admin::status(&global).await,
        Command::JoinToken(command) => admin::join_token(&global, command).await,
        Command::Entry(command) => admin::entry(&global, command).await,
        Command::Person(command) => admin::person(&global, command).await,
        Command::Login(args) => enrol::login(&global, args).await,
        Command::Agent(args) => agent::run(&global, args).await,
        Command::Node(command) => agent::node(&global, command).await,
        Command::Ca(command) => authority::ca(&global, command).await,
        Command::Bundle(command) => authority::bundle(&global, command).await,
        Command::Trust(command) => trust::run(&global, command).await,
        Command::Svid(command) => enrol::svid(&global, command).await,
        Command::Call(args) => call::run(&global, args).await,
        Command::Token(args) => token::token(&global, args).await,
        Command::Proof(args) => token::proof(&global, args).await,
        Command::Proxy(args) => proxy::run(&global, args).await,
        Command::Approval(command) => admin::approval(&global, command).await,
        Command::Revoke(args) => admin::revoke(&global, args).await,
        Command::Revocation(command) => admin::revocation(&global, command).await,
        Command::Offboard(args) => admin::offboard(&global, args).await,
        Command::Audit(command) => audit::run(&global, command).await,
        Command::Tot(command) => tot::run(&global, command).await,
    }
}
