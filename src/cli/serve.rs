//! `serve`: starts, says `ready`, reloads on SIGHUP, drains on SIGTERM.

use std::io::Read as _;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{self, App};
use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::telemetry;

#[derive(Args)]
pub struct ServeArgs {
    /// End when standard input closes: for a parent that must not leave it behind
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

pub async fn run(global: &Global, args: ServeArgs) -> Result<(), Failure> {
    let config = context::config(global)?;
    let level = global.log_level.clone().unwrap_or_else(|| config.telemetry.log_level.clone());
    let access = config.telemetry.access_log && !global.quiet;
    telemetry::start_logs(if global.quiet { "error" } else { &level }, config.telemetry.log_json, access);
    app::keep_files_private();
    let files = app::raise_open_files();
    tracing::info!(open_files = files, data_dir = %config.data_dir.display(), "starting");
    for warning in config.trust.missing(&config.base) {
        tracing::warn!("{warning}");
    }
    let (mut term, mut int, mut hup) =
        (on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::hangup())?);
    let service = App::start(&config).await?;
    announce(global, &service);
    notify("READY=1");
    let mut orphaned = Box::pin(parent_gone_if(args.with_parent));
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            () = &mut orphaned => break,
            _ = hup.recv() => reload(global, &service),
        }
    }
    tracing::info!("draining");
    notify("STOPPING=1");
    service.drain().await;
    tracing::info!("stopped");
    Ok(())
}

fn on(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("signals cannot be caught: {e}")))
}

fn announce(global: &Global, service: &App) {
    let a = &service.addresses;
    if global.json {
        context::out(&format!("{}\n", json!({"ready": a})));
    } else {
        let edges = a.authz.as_ref().map(|url| format!(" authz={url}")).unwrap_or_default();
        context::out(&format!(
            "ready identity={} token={} gateway={} admin={} telemetry={}{edges}\n",
            a.identity, a.token, a.gateway, a.admin, a.telemetry
        ));
    }
}

fn reload(global: &Global, service: &App) {
    let reloaded = context::config(global).and_then(|config| Ok(service.reload(&config)?));
    match reloaded {
        Ok(policy_version) => tracing::info!(policy_version, "reloaded"),
        Err(failure) => tracing::error!(why = failure.text, "not reloaded; nothing was changed"),
    }
}

/// Returns once standard input is closed. A thread of its own reads it, since a runtime waits for its readers to end.
pub async fn parent_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while std::io::stdin().read(&mut buffer).is_ok_and(|n| n > 0) {}
        let _ = gone.send(());
    });
    let _ = told.await;
}

/// See [`parent_gone`]; never returns where it is not asked for.
pub async fn parent_gone_if(asked: bool) {
    if asked { parent_gone().await } else { std::future::pending().await }
}

/// Tells systemd (sd_notify(3)), where it listens.
pub fn notify(state: &str) {
    let Some(path) = context::environment().remove("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| match path.strip_prefix('@') {
        None => socket.send_to(state.as_bytes(), &path).map(drop),
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address).map(drop)
        }
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told");
    }
}
