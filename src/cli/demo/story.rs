//! The demo for a person: what is tried, what an attacker hoped for, what happened.

use serde_json::Value;

use crate::cli::Global;
use crate::cli::context::say;

/// What each step tries.
pub fn announce(global: &Global, step: &str) {
    if global.json {
        return;
    }
    let text = match step {
        "ca" => "A certificate authority of our own comes up.",
        "attest" => {
            "A CI job and an AI agent enrol, each with a one-time token and a key it made itself. Somebody hopes that the token works twice."
        }
        "token" => {
            "The CI job gets an access token bound to its key. Somebody hopes to get one without the certificate."
        }
        "call" => "It starts a reasoning run through the gateway, signing the request.",
        "stream" => {
            "Thoughts stream back. The engine leaks an e-mail address, a card number and an API key, a few bytes at a time."
        }
        "solution" => "The run has found an answer; a separate evaluator checks it.",
        "approval" => {
            "Pruning needs a second person. Somebody hopes that an approval fits another request, or works twice."
        }
        "blocked" => "Deleting the run is forbidden, whoever asks.",
        "stolen_token" => {
            "The token is stolen. The thief tries it bare, as a bearer, with another key's proof, and with a proof for another token."
        }
        "replayed_proof" => {
            "The thief has a whole signed request and sends it again, and twenty copies of another at once."
        }
        "no_credential_upstream" => "The engine's own log of every header byte is searched for the credentials.",
        "offboard" => "The contractor who owns the CI job is offboarded while a stream is open.",
        "replay" => "The recorded session is played back.",
        "export" => "The log goes to the security team as OCSF.",
        _ => {
            "The service is stopped and the evidence proved offline. Somebody has changed a byte, removed a record, cut the tail."
        }
    };
    say(global, &format!("\n{text}"));
}

/// What happened, in one or a few lines.
pub fn told(step: &str, ok: bool, ms: u64, detail: &Value) -> String {
    let mark = if ok { "ok  " } else { "FAIL" };
    let mut lines = format!("{mark} {step} ({ms} ms)\n");
    if let Value::Object(members) = detail {
        let error = detail.get("error").and_then(Value::as_object);
        for (name, value) in error.unwrap_or(members) {
            lines.push_str(&format!("     {name}: {}\n", short(value)));
        }
    }
    lines
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(short).collect::<Vec<_>>().join("; "),
        Value::Object(members) => {
            members.iter().map(|(n, v)| format!("{n} {}", short(v))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
