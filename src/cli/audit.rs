//! `audit`: look, replay, export, prove. Works on the files, with or without the service.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::cli::context::{self, Failure};
use crate::domain::recording::FrameKind;
use crate::evidence::EvidenceError;
use crate::evidence::files::EvidenceDir;
use crate::evidence::reader::{LogReader, ReadEntry};
use crate::evidence::verify::{Anchors, Report, VerifyError, verify};
use crate::evidence::{export, replay};
use crate::net::files;
use crate::protocol::checkpoint::Vkey;
use crate::protocol::transcript::Transcript;

#[derive(Subcommand)]
pub enum AuditCommand {
    /// The newest entries
    #[command(after_help = "Example: popgate audit tail -n 20 --follow")]
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: usize,
        /// Go on as entries come
        #[arg(short = 'f', long)]
        follow: bool,
    },
    /// Everything about one request: its entries and its exchange
    Show { request_id: String },
    /// Play a recorded response back, byte for byte as the client saw it
    #[command(after_help = "Example: popgate audit replay REQUEST-ID --speed 1")]
    Replay {
        request_id: String,
        /// 1 is real time; without it, at once
        #[arg(long)]
        speed: Option<f64>,
    },
    /// The log for other tools
    #[command(after_help = "Example: popgate audit export --format ocsf --out log.ocsf.jsonl")]
    Export {
        /// ocsf
        #[arg(long, default_value = "ocsf", value_parser = ["ocsf"])]
        format: String,
        /// First entry
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// File [default: standard output]
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Prove the log offline; exit 1 if it does not hold
    #[command(after_help = "Example: popgate audit verify popgate-data --checkpoint kept.checkpoint --key log.vkey")]
    Verify {
        /// Data or evidence directory [default: the data directory]
        path: Option<PathBuf>,
        /// A checkpoint that you kept: finds a cut tail and a split view
        #[arg(long)]
        checkpoint: Option<PathBuf>,
        /// The log's verification key, kept from elsewhere
        #[arg(long)]
        key: Option<PathBuf>,
    },
}

pub async fn run(global: &Global, command: AuditCommand) -> Result<(), Failure> {
    match command {
        AuditCommand::Tail { lines, follow } => tail(global, lines, follow).await,
        AuditCommand::Show { request_id } => show(global, &request_id),
        AuditCommand::Replay { request_id, speed } => play(global, &request_id, speed).await,
        AuditCommand::Export { from, out, .. } => write_export(global, from, out),
        AuditCommand::Verify { path, checkpoint, key } => prove(global, path, checkpoint, key),
    }
}

fn reader(global: &Global) -> Result<LogReader, Failure> {
    let dir = EvidenceDir::of_data_dir(&context::data_dir(global)?);
    if !dir.vkey().exists() {
        return Err(Failure::failed(format!(
            "there is no evidence in {}; is --data-dir the service's data directory?",
            dir.root().display()
        )));
    }
    Ok(LogReader::new(dir))
}

fn view(entry: &ReadEntry) -> Value {
    let opened: serde_json::Map<String, Value> =
        entry.opened().filter(|(name, _)| *name != "proof").map(|(n, v)| (n.to_owned(), v.into())).collect();
    json!({"index": entry.index, "entry": entry.leaf, "opened": opened})
}

async fn tail(global: &Global, lines: usize, follow: bool) -> Result<(), Failure> {
    let reader = reader(global)?;
    let size = reader.checkpoint().map_or(0, |c| c.size);
    let mut next = size.saturating_sub(lines as u64);
    let mut first = true;
    loop {
        let entries = reader.entries(next)?;
        let skip = if first { entries.len().saturating_sub(lines) } else { 0 };
        for entry in entries.iter().skip(skip) {
            context::out(&format!("{}\n", if global.json { view(entry).to_string() } else { line(entry) }));
        }
        next += entries.len() as u64;
        first = false;
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// One entry on one line.
fn line(entry: &ReadEntry) -> String {
    let value = serde_json::to_value(&entry.leaf).unwrap_or(Value::Null);
    let text = |name: &str| value.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned));
    let facts = [
        "request_id",
        "spiffe_id",
        "operation",
        "status",
        "rules",
        "reason",
        "check",
        "state",
        "requester",
        "audience",
        "serial",
        "ended",
        "what",
        "action",
    ];
    // What has an opening is shown by it, not by its commitment.
    let facts = facts.iter().filter(|n| !entry.openings.contains_key(**n));
    let facts: Vec<String> = facts.filter_map(|n| Some(format!("{n}={}", text(n)?))).collect();
    let opened = entry.opened().filter(|(n, _)| *n != "proof").map(|(n, v)| format!("{n}={v}"));
    let all: Vec<String> = facts.into_iter().chain(opened).collect();
    context::harmless(&format!(
        "{:>6} {} {:<16} {}",
        entry.index,
        entry.leaf.time,
        text("event").unwrap_or_default(),
        all.join(" ")
    ))
}

fn show(global: &Global, request_id: &str) -> Result<(), Failure> {
    let reader = reader(global)?;
    let entries = reader.entries(0)?;
    let of_request = |e: &&ReadEntry| serde_json::to_value(&e.leaf).is_ok_and(|v| v["request_id"] == request_id);
    let found: Vec<Value> = entries.iter().filter(of_request).map(view).collect();
    if found.is_empty() {
        return Err(Failure::failed(format!(
            "no entry is about request {request_id}; the id is in the answer's Popgate-Request-Id header"
        )));
    }
    let exchange = replay::read(reader.dir(), request_id).ok().map(|t| exchange(&t));
    context::print(global, &json!({"entries": found, "exchange": exchange}));
    Ok(())
}

fn exchange(transcript: &Transcript) -> Value {
    let head = |kind| serde_json::from_slice::<Value>(&transcript.joined(kind)).unwrap_or(Value::Null);
    let text = |kind| String::from_utf8_lossy(&transcript.joined(kind)).into_owned();
    let interim = transcript.joined(FrameKind::InterimHead);
    let interim: Vec<Value> =
        serde_json::Deserializer::from_slice(&interim).into_iter().map_while(Result::ok).collect();
    json!({
        "request": head(FrameKind::RequestHead),
        "request_body": text(FrameKind::RequestBody),
        "interim": interim,
        "response": head(FrameKind::ResponseHead),
        "response_body": text(FrameKind::ResponseBody),
        "ended": text(FrameKind::End),
        "torn": !transcript.has_ended(),
    })
}

async fn play(global: &Global, request_id: &str, speed: Option<f64>) -> Result<(), Failure> {
    let reader = reader(global)?;
    let transcript = replay::read(reader.dir(), request_id)?;
    let mut at = 0;
    for frame in transcript.frames.iter().filter(|f| f.kind == FrameKind::ResponseBody) {
        if let Some(speed) = speed.filter(|s| *s > 0.0) {
            let wait = f64::from(frame.at_ms.saturating_sub(at)) / speed;
            tokio::time::sleep(Duration::from_secs_f64((wait / 1000.0).min(3600.0))).await;
            at = frame.at_ms;
        }
        context::out_bytes(&frame.payload);
    }
    let ended = transcript.joined(FrameKind::End);
    if ended != b"complete" {
        context::say(
            global,
            &format!(
                "\nthe exchange did not end whole: {}",
                if ended.is_empty() { "torn".into() } else { String::from_utf8_lossy(&ended) }
            ),
        );
    }
    Ok(())
}

fn write_export(global: &Global, from: u64, out: Option<PathBuf>) -> Result<(), Failure> {
    let reader = reader(global)?;
    let lines = export::ocsf(&reader, from)?;
    let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
    match out {
        None => context::out(&text),
        Some(path) => {
            let mut file = std::fs::File::create(&path)
                .map_err(|e| Failure::failed(format!("cannot write {}: {e}", path.display())))?;
            file.write_all(text.as_bytes())?;
            context::say(global, &format!("{} lines in {}", lines.len(), path.display()));
        }
    }
    if let Ok(checkpoint) = reader.checkpoint() {
        context::say(
            global,
            &format!(
                "checkpoint: {} entries, root {}; keep a copy of {} to find a cut tail later",
                checkpoint.size,
                checkpoint.root,
                reader.dir().checkpoint().display()
            ),
        );
    }
    Ok(())
}

fn prove(
    global: &Global,
    path: Option<PathBuf>,
    checkpoint: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<(), Failure> {
    let path = path.map_or_else(|| context::data_dir(global), Ok)?;
    let reader = LogReader::new(EvidenceDir::locate(&path));
    let vkey = key.map(|file| -> Result<Vkey, Failure> { Ok(Vkey::parse(&files::read(&file)?)?) }).transpose()?;
    let kept = checkpoint.map(|file| files::read(&file)).transpose()?;
    let report = verify(&reader, &Anchors { vkey: vkey.as_ref(), kept: kept.as_deref() });
    match report {
        Ok(report) => {
            if global.json {
                context::out(&format!("{}\n", json!({"ok": true, "report": report})));
            } else {
                context::out(&told(&report));
            }
            Ok(())
        }
        Err(error) => {
            if global.json {
                context::out(&format!("{}\n", json!({"ok": false, "reason": error.to_string()})));
            }
            Err(match &error {
                // Nothing to look at is no finding about evidence.
                VerifyError::Evidence(EvidenceError::Io { .. }) if !reader.dir().checkpoint().exists() => {
                    Failure::failed(format!("there is no log to verify: {error}; give a data or evidence directory"))
                }
                _ => Failure::failed(format!("the evidence does not hold: {error}")),
            })
        }
    }
}

/// What each link proved, for a person.
fn told(report: &Report) -> String {
    let links = &report.links;
    let anchored = if report.anchored {
        "log key: as you gave it"
    } else {
        "log key: unanchored (give --key to be sure whose log it is)"
    };
    let tail = report.kept_size.map_or_else(
        || "tail: unproven (give --checkpoint FILE that you kept)".to_owned(),
        |size| format!("tail: nothing before entry {size} is missing or changed since your checkpoint"),
    );
    format!(
        "the evidence holds: {} entries of {}, root {}\n{anchored}\n{tail}\n\
         issuance: {} tokens went to keys that a certificate was issued for\n\
         token:    {} requests were admitted with a token minted before them\n\
         proof:    {} proofs carry the client's own signature over method, target and token\n\
         decision: {} admissions name the deciding rule and policy version\n\
         approval: {} approvals were given by a person before, for exactly that request, and used once\n\
         bytes:    {} recordings hold exactly the bytes that were logged\n\
         bodies:   {} of requests went to upstream as the client's own proof signs for them; {} in part, masked or not at all\n\
         public:   {}\n\
         not yet under the checkpoint: {}   without a whole end: {}\n",
        report.leaves,
        report.origin,
        report.root,
        links.issuance,
        links.token,
        links.proof,
        links.decision,
        links.approval,
        links.bytes,
        report.signed_bodies,
        report.signed_otherwise,
        public(&report.public),
        report.staged,
        report.incomplete,
    )
}

/// Which routes let strangers in, for whoever knows which ones should.
fn public(routes: &BTreeMap<String, u64>) -> String {
    if routes.is_empty() {
        return "no exchange of a public route".into();
    }
    let each: Vec<String> = routes.iter().map(|(route, n)| format!("{n} of {route}")).collect();
    format!("{} exchanges, whose callers nobody proved", each.join(", "))
}
