//! `entry suggest`: which selectors a process of this host has, which processes an entry would match, and which operations
//! a workload needs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::agent::attest::UnixAttestor;
use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::domain::selector::Selector;
use crate::net::process::PeerProcess;

#[derive(Args)]
pub struct SuggestArgs {
    /// The process that is to have an identity
    #[arg(long, value_name = "PID", required_unless_present_any = ["selectors", "recorded"])]
    pid: Option<i32>,
    /// The narrowest operations of a workload, by what the evidence in the data directory has of it
    #[arg(long, value_name = "ID", conflicts_with_all = ["pid", "selectors"])]
    recorded: Option<String>,
    /// Show which processes of this host an entry with these selectors would match
    #[arg(long = "selector", value_name = "SELECTOR", conflicts_with = "pid")]
    selectors: Vec<String>,
    /// The ID that the suggestion is for
    #[arg(long, value_name = "ID", default_value = "spiffe://example.org/NAME")]
    spiffe_id: String,
    /// The node whose agent serves it
    #[arg(long, value_name = "ID", default_value = "spiffe://example.org/popgate/node/NODE")]
    parent: String,
}

pub fn run(global: &Global, args: &SuggestArgs) -> Result<(), Failure> {
    if let Some(id) = &args.recorded {
        return crate::cli::least::suggest(global, id);
    }
    if let Some(pid) = args.pid {
        return suggest(global, args, pid);
    }
    context::print(global, &json!({"would_match": matching(&args.selectors)?}));
    Ok(())
}

fn attested(attestor: &UnixAttestor, pid: i32) -> Result<BTreeSet<Selector>, Failure> {
    let process = PeerProcess::running(pid).map_err(|e| Failure::failed(format!("process {pid}: {e}")))?;
    attestor.attest(&process, true).map_err(|e| Failure::failed(format!("process {pid}: {e}")))
}

/// A scope's name is made anew each time.
#[expect(clippy::case_sensitive_file_extension_comparisons, reason = "a unit's name, not a file's")]
fn is_scope(selector: &str) -> bool {
    selector.ends_with(".scope")
}

/// All facts, and an entry with those that a workload keeps over restarts: its user and its executable's path, or its unit.
fn suggest(global: &Global, args: &SuggestArgs, pid: i32) -> Result<(), Failure> {
    let found = attested(&UnixAttestor::default(), pid)?;
    let lasting = |s: &&Selector| {
        let text = s.as_str();
        ["unix:uid:", "unix:path:", "systemd:id:"].iter().any(|p| text.starts_with(p)) && !is_scope(text)
    };
    let chosen: Vec<&Selector> = found.iter().filter(lasting).collect();
    if global.json {
        context::print(global, &json!({"found": found, "suggested": chosen}));
        return Ok(());
    }
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let list: Vec<String> = chosen.iter().map(|s| quoted(s.as_str())).collect();
    context::say(global, "what attestation finds of this process:");
    found.iter().for_each(|s| context::say(global, &format!("  {}", context::harmless(s.as_str()))));
    context::say(global, "an entry for `popgate entry import`, with what stays when it restarts:");
    context::out(&format!(
        "[[entry]]\nspiffe_id = {}\nowner     = \"ISSUER#SUBJECT\"\nparent    = {}\nselectors = [{}]\n",
        quoted(&args.spiffe_id),
        quoted(&args.parent),
        list.join(", "),
    ));
    Ok(())
}

/// The processes of this host that have all of the selectors.
pub fn matching(selectors: &[String]) -> Result<Vec<Value>, Failure> {
    let wanted = selectors.iter().map(|s| s.parse().map_err(|e| Failure::usage(format!("{s:?}: {e}"))));
    let wanted: Vec<Selector> = wanted.collect::<Result<_, _>>()?;
    let attestor = UnixAttestor::default();
    let processes = std::fs::read_dir("/proc").map_err(|e| Failure::failed(format!("/proc: {e}")))?;
    let pid = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<i32>().ok();
    let fits = |pid: i32| {
        let found = attested(&attestor, pid).ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok().map(PathBuf::into_os_string);
        let path = exe.map(|p| p.to_string_lossy().into_owned());
        wanted.iter().all(|s| found.contains(s)).then(|| json!({"pid": pid, "path": path}))
    };
    Ok(processes.filter_map(pid).filter_map(fits).collect())
}
