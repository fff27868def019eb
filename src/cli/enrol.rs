//! `login` and `svid fetch`: certificates as files.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::client::enrol;
use crate::client::identity::Identity;

#[derive(Args)]
pub struct EnrolArgs {
    /// File with the one-time token, or - for standard input
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Directory that gets svid.pem, key.pem, bundle.pem and popgate.json
    #[arg(long, value_name = "DIR", default_value = "identity")]
    out: PathBuf,
}

#[derive(Subcommand)]
pub enum SvidCommand {
    /// Enrol with a join token, or renew with --identity, and write the files
    #[command(after_help = "Example: popgate svid fetch --join-token-file token --out solver")]
    Fetch(EnrolArgs),
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
    let SvidCommand::Fetch(args) = command;
    let identity = fetch(global, &args).await?;
    save(global, &identity, &args)
}

async fn fetch(global: &Global, args: &EnrolArgs) -> Result<Identity, Failure> {
    // The directory must be writable before the token is spent.
    crate::net::files::private_dir(&args.out)?;
    crate::net::files::write_private(&args.out.join(".writable"), b"")?;
    let _ = std::fs::remove_file(args.out.join(".writable"));
    match (&args.join_token_file, &global.identity) {
        (None, Some(dir)) => Ok(enrol::renew(&Identity::load(dir)?).await?),
        (file, _) => context::identity(&Global { identity: None, ..global.clone() }, file.as_deref()).await,
    }
}

/// The directory, unless it holds somebody else's identity: that is not overwritten.
fn beside_another(out: &Path, identity: &Identity) -> PathBuf {
    let anothers = Identity::load(out).is_ok_and(|there| there.spiffe_id != identity.spiffe_id);
    let name = identity.spiffe_id.path().rsplit('/').next().unwrap_or_default();
    if anothers {
        out.with_file_name(format!("{}-{name}", out.file_name().unwrap_or_default().display()))
    } else {
        out.to_owned()
    }
}

fn save(global: &Global, identity: &Identity, args: &EnrolArgs) -> Result<(), Failure> {
    let out = beside_another(&args.out, identity);
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
