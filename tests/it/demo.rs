//! The demo is the contract's fifteen lines, and exits by them.

use serde_json::Value;

use crate::world::{run, stderr, stdout};

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

fn demo(extra: &[&str]) -> Vec<Value> {
    let mut args = vec!["demo", "--exit", "--json", "--free-ports"];
    args.extend(extra);
    let output = run(&args);
    let lines: Vec<Value> = stdout(&output).lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(output.status.success(), "{:?} {}", lines.last(), stderr(&output));
    lines
}

fn check(lines: &[Value], store: &str) {
    let steps: Vec<&str> = lines.iter().filter_map(|l| l["step"].as_str()).collect();
    assert_eq!(steps, STEPS);
    for line in lines {
        assert_eq!(line["ok"], true, "{line}");
        assert!(line["ms"].is_u64(), "{line}");
        assert_eq!(line.as_object().expect("object").len(), 4, "{line}");
    }
    let detail = |step: &str| &lines[STEPS.iter().position(|s| *s == step).expect("known")]["detail"];
    assert_eq!(detail("attest")["reused_join_token_status"], 401);
    assert_ne!(detail("attest")["workloads"][0]["jkt"], detail("attest")["workloads"][1]["jkt"]);
    assert_eq!(detail("token")["cnf_jkt"], detail("token")["svid_jkt"]);
    assert_eq!(detail("call")["txn_token_verified"], true);
    assert_eq!(detail("stream")["emitted"], detail("stream")["masked"]);
    assert_eq!(detail("stream")["leaked"], 0);
    assert_eq!(detail("blocked")["rule"], "runs-stay");
    let kinds: Vec<&str> = detail("stolen_token")["attempts"]
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|a| a["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["no_proof", "bearer", "other_key", "other_ath"]);
    assert_eq!(detail("replayed_proof")["store"], store);
    assert_eq!(detail("replayed_proof")["parallel"], serde_json::json!({"sent": 20, "accepted": 1}));
    assert_eq!(detail("offboard")["mint_error"], "invalid_client");
    assert_eq!(detail("replay")["client_sha256"], detail("replay")["replay_sha256"]);
    assert_eq!(detail("export")["lines"], detail("export")["with_spiffe_id"]);
    assert_eq!(detail("verify")["server_running"], false);
    let tampered: Vec<&str> =
        detail("verify")["tampered"].as_array().expect("list").iter().filter_map(|t| t["kind"].as_str()).collect();
    assert_eq!(tampered, ["byte_changed", "record_removed", "tail_cut"]);
}

#[test]
fn fifteen_steps_on_embedded_defaults() {
    check(&demo(&[]), "memory");
}

#[test]
fn fifteen_steps_with_redis() {
    let Some(url) = crate::world::provided("POPGATE_TEST_REDIS_URL", "the demo with Redis") else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("redis-url");
    std::fs::write(&file, url).expect("writes");
    check(&demo(&["--redis-url-file", file.to_str().expect("UTF-8")]), "redis");
}
