//! `login` and `svid fetch`: certificates as files.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::Global;
use crate::cli::agent::ProofArgs;
use crate::cli::context::{self, Failure};
use crate::cli::watch::{self, WatchArgs};
use crate::client::enrol;
use crate::client::http::HttpClient;
use crate::client::identity::Identity;
use crate::client::kept;
use crate::client::source::SvidSource;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Clock as _;
use crate::store::clock::SystemClock;

#[derive(Args)]
pub struct EnrolArgs {
    #[command(flatten)]
    pub proof: ProofArgs,
    /// Which identity, where several are to be had
    #[arg(long, value_name = "ID")]
    pub spiffe_id: Option<String>,
    /// Directory that gets svid.pem, key.pem, bundle.pem and popgate.json [default: that of --identity, else `identity`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl EnrolArgs {
    /// Where the files go. An identity is renewed where it is kept: a copy elsewhere would leave the old one behind, and its
    /// next renewal would look like a thief's.
    pub fn out(&self, global: &Global) -> Result<PathBuf, Failure> {
        match (&global.identity, &self.out) {
            (Some(dir), Some(out)) if dir != out => Err(Failure::usage(format!(
                "--identity {} is renewed in place: leave --out away, or enrol another",
                dir.display()
            ))),
            (Some(dir), _) => Ok(dir.clone()),
            (None, out) => Ok(out.clone().unwrap_or_else(|| PathBuf::from("identity"))),
        }
    }
}

#[derive(Subcommand)]
pub enum SvidCommand {
    /// Enrol by a proof of identity, ask the agent at SPIFFE_ENDPOINT_SOCKET, or renew with --identity, and write the files
    #[command(after_help = "Example: popgate svid fetch --join-token-file token --out solver")]
    Fetch(EnrolArgs),
    /// The same, and replace the files before each certificate ends
    #[command(
        after_help = "Example: SPIFFE_ENDPOINT_SOCKET=unix:///run/popgate/agent.sock popgate svid watch --out /etc/nginx/svid --exec 'nginx -s reload'"
    )]
    Watch(WatchArgs),
    /// A JWT-SVID from the agent, or with --identity from the server, on standard output
    #[command(after_help = "Example: popgate svid jwt --audience https://api.example.org --identity solver")]
    Jwt {
        /// Who is to accept it
        #[arg(long = "audience", value_name = "AUDIENCE", required = true)]
        audiences: Vec<String>,
        /// Which identity, where several are to be had
        #[arg(long, value_name = "ID")]
        spiffe_id: Option<String>,
    },
}

pub async fn login(global: &Global, args: EnrolArgs) -> Result<(), Failure> {
    let identity = fetch(global, &args).await?;
    // The token is spent, so what it bought is kept.
    save(global, &identity, &args)?;
    if identity.spiffe_id.person_name().is_none() {
        return Err(Failure::failed(format!(
            "that token was for the workload {}, not for a person; its certificate is saved where `out` says and serves `--identity`",
            identity.spiffe_id
        )));
    }
    Ok(())
}

pub async fn svid(global: &Global, command: SvidCommand) -> Result<(), Failure> {
    match command {
        SvidCommand::Fetch(args) => {
            let identity = fetch(global, &args).await?;
            save(global, &identity, &args)
        }
        SvidCommand::Watch(args) => watch::run(global, args).await,
        SvidCommand::Jwt { audiences, spiffe_id } => jwt(global, audiences, spiffe_id.as_deref()).await,
    }
}

async fn jwt(global: &Global, audiences: Vec<String>, spiffe_id: Option<&str>) -> Result<(), Failure> {
    let wanted = wanted(spiffe_id)?;
    let token = match (&global.identity, context::workload_api()?) {
        (Some(dir), _) => {
            let identity = Identity::load(dir)?;
            let http = HttpClient::new(identity.tls(true)?);
            let url = format!("{}/v1/jwt-svid", identity.servers.identity);
            let response = enrol::post(&http, &url, &json!({"audience": audiences})).await?;
            enrol::document(&response, &url)?["svid"].as_str().unwrap_or_default().to_owned()
        }
        (None, Some(agent)) => agent.jwt(audiences, wanted.as_ref()).await?,
        (None, None) => {
            return Err(Failure::usage(
                "no identity: give --identity DIR, or set SPIFFE_ENDPOINT_SOCKET to an agent's socket",
            ));
        }
    };
    context::out(&format!("{token}\n"));
    Ok(())
}

pub(super) fn wanted(text: Option<&str>) -> Result<Option<SpiffeId>, Failure> {
    text.map(|t| t.parse().map_err(|e| Failure::usage(format!("--spiffe-id {t:?}: {e}")))).transpose()
}

/// An identity that stays fresh: of --identity, of the agent, of the directory where a former run kept it, or by a proof.
pub(super) async fn source(global: &Global, args: &EnrolArgs) -> Result<SvidSource, Failure> {
    let out = args.out(global)?;
    writable(&out)?;
    let explicit = args.proof.source()?.is_some() || global.identity.is_some();
    if !explicit && let Some(agent) = context::workload_api()? {
        let source = SvidSource::following(agent, wanted(args.spiffe_id.as_deref())?).await?;
        own(&out, &source.identity())?;
        return Ok(source);
    }
    let kept =
        Identity::load(&out).ok().filter(|i| SystemClock.now() < i.svid.not_after && !i.servers.identity.is_empty());
    let identity = match kept {
        Some(kept) => kept,
        None => fetch(global, args).await?,
    };
    // What the proof bought is kept before anything else is done with it.
    let out = beside_another(&out, &identity);
    identity.save(&out)?;
    Ok(SvidSource::renewing(identity, Some(out)))
}

/// Files of another identity are not overwritten.
fn own(out: &Path, identity: &Identity) -> Result<(), Failure> {
    match Identity::load(out) {
        Ok(there) if there.spiffe_id != identity.spiffe_id => Err(Failure::failed(format!(
            "{} holds {}, and this is {}: give another --out",
            out.display(),
            there.spiffe_id,
            identity.spiffe_id
        ))),
        _ => Ok(()),
    }
}

/// The directory must be writable before a proof is spent.
fn writable(dir: &Path) -> Result<(), Failure> {
    crate::net::files::private_dir(dir)?;
    // As much as an identity takes: a full disk is told before a proof is spent.
    crate::net::files::write_private(&dir.join(".writable"), &[b'.'; 16 * 1024])?;
    let _ = std::fs::remove_file(dir.join(".writable"));
    Ok(())
}

async fn fetch(global: &Global, args: &EnrolArgs) -> Result<Identity, Failure> {
    writable(&args.out(global)?)?;
    if let (None, Some(dir)) = (&args.proof.source()?, &global.identity) {
        return Ok(kept::renew(dir, &Identity::load(dir)?).await?);
    }
    let wanted = wanted(args.spiffe_id.as_deref())?;
    context::identity(&Global { identity: None, ..global.clone() }, &args.proof, wanted).await
}

/// The directory, unless it holds somebody else's identity: that is not overwritten.
fn beside_another(out: &Path, identity: &Identity) -> PathBuf {
    let name = identity.spiffe_id.path().trim_start_matches('/').replace('/', "-");
    let first = out.file_name().unwrap_or_default().display();
    let others = (1..).map(|n| if n == 1 { format!("{first}-{name}") } else { format!("{first}-{name}-{n}") });
    let mut places = std::iter::once(out.to_owned()).chain(others.map(|name| out.with_file_name(name)));
    places.find(|place| own(place, identity).is_ok()).unwrap_or_else(|| out.to_owned())
}

fn save(global: &Global, identity: &Identity, args: &EnrolArgs) -> Result<(), Failure> {
    let out = beside_another(&args.out(global)?, identity);
    identity.save(&out)?;
    let document = json!({
        "spiffe_id": identity.spiffe_id,
        "serial": identity.svid.serial,
        "jkt": identity.jkt(),
        "not_after": identity.svid.not_after.rfc3339(),
        "out": out.display().to_string(),
    });
    context::print(global, &document);
    Ok(())
}
