//! `svid watch`: certificates as files, replaced before they end, and somebody told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::client::identity::Identity;
use crate::telemetry;

#[derive(Args)]
pub struct WatchArgs {
    #[command(flatten)]
    from: super::enrol::EnrolArgs,
    /// Command to run after each replacement, by `sh -c`
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Signal to send after each replacement, as in HUP
    #[arg(long, value_name = "SIG", requires = "pid_file")]
    signal: Option<String>,
    /// File with the process that gets it
    #[arg(long, value_name = "FILE", requires = "signal")]
    pid_file: Option<PathBuf>,
}

/// How long `--exec` may take.
const EXEC: Duration = Duration::from_mins(1);
/// How soon files that could not be written are written again.
const RETRY: Duration = Duration::from_secs(5);

struct Told {
    exec: Option<String>,
    signal: Option<(Signal, PathBuf)>,
}

pub async fn run(global: &Global, args: WatchArgs) -> Result<(), Failure> {
    telemetry::start_logs(
        if global.quiet { "error" } else { global.log_level.as_deref().unwrap_or("warn") },
        false,
        false,
    );
    let signal_of = |name: &String| {
        let full = if name.starts_with("SIG") { name.clone() } else { format!("SIG{name}") };
        full.parse::<Signal>().map_err(|_| Failure::usage(format!("--signal {name} is no signal: write HUP or SIGHUP")))
    };
    let told = Told { exec: args.exec, signal: args.signal.as_ref().map(signal_of).transpose()?.zip(args.pid_file) };
    let stop = |kind| signal(kind).map_err(|e| Failure::failed(format!("signals cannot be caught: {e}")));
    let (mut term, mut int) = (stop(SignalKind::terminate())?, stop(SignalKind::interrupt())?);
    let out = args.from.out(global)?;
    let source = super::enrol::source(global, &args.from).await?;
    let mut identities = source.watch();
    loop {
        let identity = identities.borrow_and_update().clone();
        while let Err(failure) = replace(global, &identity, &out) {
            eprintln!("popgate: {}; trying again", failure.text);
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = term.recv() => return Err(failure),
                _ = int.recv() => return Err(failure),
            }
        }
        tokio::select! {
            () = tell(&told, &out) => {}
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        }
        tokio::select! {
            changed = identities.changed() => if changed.is_err() {
                return Err(Failure::failed("the source of certificates ended"));
            },
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
        }
    }
}

fn replace(global: &Global, identity: &Identity, out: &Path) -> Result<(), Failure> {
    identity.save(out)?;
    let svid = &identity.svid;
    context::print(
        global,
        &json!({"spiffe_id": identity.spiffe_id, "serial": svid.serial, "not_after": svid.not_after.rfc3339()}),
    );
    Ok(())
}

/// Tells whoever uses the files. What fails is said and does not end the watch: the files are fresh.
async fn tell(told: &Told, out: &Path) {
    if let Some(command) = &told.exec {
        let mut shell = tokio::process::Command::new("sh");
        shell.arg("-c").arg(command).env("POPGATE_SVID_DIR", out).kill_on_drop(true);
        match tokio::time::timeout(EXEC, shell.status()).await {
            Err(_) => eprintln!("popgate: --exec did not end in a minute and was ended; the certificate is in place"),
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => eprintln!("popgate: --exec ended with {status}; the certificate is in place"),
            Ok(Err(error)) => eprintln!("popgate: --exec could not run: {error}; the certificate is in place"),
        }
    }
    if let Some((signal, file)) = &told.signal {
        let pid = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
        // 1 and what is below mean init, a group, or everybody.
        let pid = pid.filter(|pid| *pid > 1);
        let sent = pid.map(|pid| kill(Pid::from_raw(pid), *signal));
        if !matches!(sent, Some(Ok(()))) {
            eprintln!(
                "popgate: {signal} could not be sent to the process in {}; the certificate is in place",
                file.display()
            );
        }
    }
}
