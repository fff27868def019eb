//! What commands share: failures, the environment, identities, the administration client, output.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::cli::Global;
use crate::cli::agent::ProofArgs;
use crate::client::ClientError;
use crate::client::admin::Admin;
use crate::client::enrol::{self, Enrolment, Proof};
use crate::client::identity::Identity;
use crate::client::kept;
use crate::client::workload::{VARIABLE, WorkloadApi};
use crate::config::Config;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::SpiffeId;

/// Where enrolment happens if nothing says otherwise.
const DEFAULT_IDENTITY_URL: &str = "https://127.0.0.1:8441";

/// Why a command did not do its work, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// What happened, why, what to do next.
    pub text: String,
    /// 1 refused or failed, 2 usage.
    pub code: u8,
}

impl Failure {
    /// The work was refused or failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 1 }
    }

    /// The command line is off.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), code: 2 }
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::failed(error.to_string())
    }
}

/// The environment, read once.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars().collect()
}

/// The configuration with the command line's data directory over it.
pub fn config(global: &Global) -> Result<Config, Failure> {
    let (mut config, _) = Config::find(global.config.as_deref(), &environment())?;
    if let Some(dir) = &global.data_dir {
        config.data_dir.clone_from(dir);
    }
    Ok(config)
}

/// The data directory: given, or the configuration's.
pub fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    match &global.data_dir {
        Some(dir) => Ok(dir.clone()),
        None => Ok(config(global)?.data_dir),
    }
}

/// The administration client: a person's certificate with --server, else the socket.
pub fn admin(global: &Global) -> Result<Admin, Failure> {
    match (&global.identity, &global.server) {
        (Some(dir), server) => {
            let identity = Arc::new(Identity::load(dir)?);
            let url = server.clone().unwrap_or_else(|| identity.servers.admin.clone());
            Ok(Admin::server(&url, &identity)?)
        }
        (None, Some(_)) => Err(Failure::usage(
            "--server needs a person's certificate: add --identity DIR, which `popgate login` writes",
        )),
        (None, None) => Ok(Admin::socket(&data_dir(global)?)),
    }
}

/// Where enrolment happens.
pub fn identity_url(global: &Global) -> String {
    let url = global.server.clone().or_else(|| environment().remove("POPGATE_SERVER"));
    url.unwrap_or_else(|| DEFAULT_IDENTITY_URL.into()).trim_end_matches('/').to_owned()
}

/// The agent at `SPIFFE_ENDPOINT_SOCKET`, if that is set.
pub fn workload_api() -> Result<Option<WorkloadApi>, Failure> {
    match environment().remove(VARIABLE) {
        Some(address) if !address.is_empty() => Ok(Some(WorkloadApi::new(&address)?)),
        _ => Ok(None),
    }
}

/// A workload's identity from the first source that is given: a directory, an agent, a proof of identity.
pub async fn identity(global: &Global, proof: &ProofArgs, wanted: Option<SpiffeId>) -> Result<Identity, Failure> {
    if let Some(dir) = &global.identity {
        return load_fresh(dir).await;
    }
    let source = proof.source()?;
    if source.is_none()
        && let Some(agent) = workload_api()?
    {
        return Ok(agent.identity(wanted).await?);
    }
    let proved = match (source, environment().remove("POPGATE_JOIN_TOKEN")) {
        (Some(source), _) => source()?,
        (None, Some(text)) => {
            let token = JoinToken::parse(&text).map_err(|e| Failure::failed(format!("POPGATE_JOIN_TOKEN: {e}")))?;
            Proof::JoinToken(token)
        }
        (None, None) => {
            return Err(Failure::usage(
                "no identity: give --identity DIR, or set SPIFFE_ENDPOINT_SOCKET to an agent's socket, or give --join-token-file F|- \
                 (or POPGATE_JOIN_TOKEN), or --oidc-token-file F with --pin (--kubernetes-token-file and --x509-chain do as well)",
            ));
        }
    };
    let server = identity_url(global);
    let enrolment =
        Enrolment { server: &server, pin: proof.pin()?, proof: &proved, spiffe_id: wanted.as_ref(), node: false };
    Ok(enrol::attest(&enrolment).await?)
}

/// Reads an identity and renews it where half its life has passed; the old one still serves if that fails.
async fn load_fresh(dir: &std::path::Path) -> Result<Identity, Failure> {
    use crate::domain::time::Clock as _;
    let identity = Identity::load(dir)?;
    let now = crate::store::clock::SystemClock.now();
    let svid = &identity.svid;
    let half = svid.not_before.plus(svid.not_after.since(svid.not_before) / 2);
    if now < half {
        return Ok(identity);
    }
    match kept::renew(dir, &identity).await {
        Ok(renewed) => Ok(renewed),
        Err(ClientError::Refused { detail, .. }) if now >= svid.not_after => Err(Failure::failed(format!(
            "the certificate in {} has expired and is not renewed: {detail}; enrol again",
            dir.display()
        ))),
        Err(error) if now >= svid.not_after => Err(Failure::failed(format!(
            "the certificate in {} has expired ({}) and cannot be renewed: {error}; enrol again with a new join token",
            dir.display(),
            svid.not_after
        ))),
        Err(_) => Ok(identity),
    }
}

/// Writes a document: JSON as it is with --json, else for people.
pub fn print(global: &Global, document: &Value) {
    let text = if global.json { document.to_string() } else { human(document, 0) };
    out(text.trim_end());
    out("\n");
}

/// Writes to standard output; a closed pipe ends quietly.
pub fn out(text: &str) {
    out_bytes(text.as_bytes());
}

/// See [`out`].
pub fn out_bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Writes to standard error unless --quiet.
pub fn say(global: &Global, text: &str) {
    if !global.quiet {
        eprintln!("{text}");
    }
}

/// Text that a terminal shows on one line and does not obey: controls are escaped, and so is what turns the writing
/// direction or cannot be seen.
pub fn harmless(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    text.chars().flat_map(|c| if hidden(c) { c.escape_default().collect() } else { vec![c] }).collect()
}

fn human(value: &Value, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    match value {
        Value::Array(items) if items.is_empty() => format!("{indent}none\n"),
        Value::Array(items) => items.iter().map(|i| format!("{}\n", human(i, depth))).collect(),
        Value::Object(members) => members
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(name, v)| match v {
                Value::Object(_) => format!("{indent}{name}:\n{}", human(v, depth + 1)),
                Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
                    format!("{indent}{name}:\n{}", human(v, depth + 1))
                }
                Value::Array(items) => {
                    format!("{indent}{name}: {}\n", items.iter().map(plain).collect::<Vec<_>>().join(", "))
                }
                other => format!("{indent}{name}: {}\n", plain(other)),
            })
            .collect(),
        other => format!("{indent}{}\n", plain(other)),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => harmless(text),
        other => other.to_string(),
    }
}
