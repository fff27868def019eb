//! `demo`: the main job end to end, over real sockets and processes, told step by step.

mod evidence_steps;
mod gate_steps;
mod people_steps;
mod start_steps;
mod story;
mod workload;
mod world;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::context::{self, Failure};

pub use workload::{WorkloadArgs, run as workload};
use world::World;

#[derive(Args, Clone)]
pub struct DemoArgs {
    /// End after the last step
    #[arg(long)]
    exit: bool,
    /// Take free ports everywhere
    #[arg(long)]
    free_ports: bool,
    /// Keep spent proofs in the Redis of this URL
    #[arg(long, value_name = "FILE")]
    redis_url_file: Option<PathBuf>,
    /// Keep the ledger in PostgreSQL: not offered yet
    #[arg(long, value_name = "FILE")]
    postgres_url_file: Option<PathBuf>,
}

/// Why a step failed, for the reader.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Explained {
    what: String,
    why: String,
    next: String,
}

/// A step may fail through anything that it touches.
type StepError = Box<dyn std::error::Error + Send + Sync>;

fn explained(error: &StepError) -> (String, String, String) {
    match error.downcast_ref::<Explained>() {
        Some(e) => (e.what.clone(), e.why.clone(), e.next.clone()),
        None => (
            error.to_string(),
            "this promise does not hold in this build or on this machine".into(),
            "run again with --data-dir DIR --log-level debug and read DIR/serve.log".into(),
        ),
    }
}

/// What a step gives: the fields of its `detail`.
type Detail = Result<Value, StepError>;

/// A step fails where a promise does not hold; nothing follows it.
fn ensure(holds: bool, what: impl Into<String>) -> Result<(), StepError> {
    if holds { Ok(()) } else { Err(what.into().into()) }
}

const STEPS: [&str; 15] = [
    "ca",
    "attest",
    "token",
    "call",
    "stream",
    "solution",
    "approval",
    "blocked",
    "stolen_token",
    "replayed_proof",
    "no_credential_upstream",
    "offboard",
    "replay",
    "export",
    "verify",
];

pub async fn run(global: &Global, args: DemoArgs) -> Result<(), Failure> {
    if args.postgres_url_file.is_some() {
        return Err(Failure::usage(
            "--postgres-url-file: the ledger in PostgreSQL is not offered yet; leave the option out and the ledger is SQLite",
        ));
    }
    let mut world = match World::start(global, &args).await {
        Ok(world) => world,
        Err(error) => {
            report(global, STEPS[0], false, 0, &error_detail(&error));
            return Err(Failure { text: String::new(), code: 1 });
        }
    };
    for step in STEPS {
        story::announce(global, step);
        let began = Instant::now();
        let outcome = perform(&mut world, step).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match outcome {
            Ok(detail) => report(global, step, true, ms, &detail),
            Err(error) => {
                report(global, step, false, ms, &error_detail(&error));
                world.stop().await;
                return Err(Failure { text: String::new(), code: 1 });
            }
        }
    }
    if args.exit {
        world.stop().await;
        return Ok(());
    }
    world.stay(global).await.map_err(|e| Failure::failed(e.to_string()))
}

fn error_detail(error: &StepError) -> Value {
    let (what, why, next) = explained(error);
    json!({"error": {"what": what, "why": why, "next": next}})
}

async fn perform(world: &mut World, step: &str) -> Detail {
    match step {
        "ca" => start_steps::ca(world).await,
        "attest" => start_steps::attest(world).await,
        "token" => start_steps::token(world).await,
        "call" => start_steps::call(world).await,
        "stream" => start_steps::stream(world).await,
        "solution" => start_steps::solution(world).await,
        "approval" => people_steps::approval(world).await,
        "blocked" => people_steps::blocked(world).await,
        "stolen_token" => gate_steps::stolen_token(world).await,
        "replayed_proof" => gate_steps::replayed_proof(world).await,
        "no_credential_upstream" => gate_steps::no_credential_upstream(world).await,
        "offboard" => people_steps::offboard(world).await,
        "replay" => evidence_steps::replay(world).await,
        "export" => evidence_steps::export(world).await,
        _ => evidence_steps::verify(world).await,
    }
}

fn report(global: &Global, step: &str, ok: bool, ms: u64, detail: &Value) {
    if global.json {
        context::out(&format!("{}\n", json!({"step": step, "ok": ok, "ms": ms, "detail": detail})));
    } else {
        context::out(&story::told(step, ok, ms, detail));
    }
}
