//! approval, blocked, offboard.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::cli::demo::world::{World, json_body};
use crate::cli::demo::{Detail, ensure};
use crate::client::admin::Admin;

const BOB: &str = "https://idp.example.org#bob";

/// Pruning is held; alice approves exactly that request; it happens once.
pub async fn approval(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let view =
        world.solver(json!({"op": "call", "method": "GET", "url": world.gateway(&format!("/v1/runs/{run}"))})).await?;
    let version = json_body(&view)["version"].clone();
    let url = world.gateway(&format!("/v1/runs/{run}/nodes/n1/prune"));
    let before = world.upstream_requests("POST", "/prune")?;
    let prune = |headers: Value, body: Value| json!({"op": "call", "method": "POST", "url": url, "headers": headers, "body": body});
    let held = world.solver(prune(json!({"prefer": "wait=0"}), json!({"if_version": version}))).await?;
    let id = held["location"].as_str().and_then(|l| l.rsplit('/').next()).unwrap_or_default().to_owned();
    ensure(held["status"] == 202 && !id.is_empty(), format!("the request was not held: {}", held["status"]))?;
    let alice = world.enrol("spiffe://example.org/popgate/person/alice").await?;
    let admin = Admin::server(world.addresses["admin"].as_str().unwrap_or_default(), &alice)?;
    let shown = admin.call(Method::GET, &format!("/v1/approvals/{id}"), None).await?;
    let approved = admin
        .call(
            Method::POST,
            &format!("/v1/approvals/{id}"),
            Some(&json!({"approve": true, "reason": "checked with the run's owner"})),
        )
        .await?;
    let named = json!({"popgate-approval": id});
    let altered = world.solver(prune(named.clone(), json!({"if_version": version, "extra": true}))).await?;
    let executed = world.solver(prune(named.clone(), json!({"if_version": version}))).await?;
    let again = world.solver(prune(named, json!({"if_version": version}))).await?;
    let upstream = world.upstream_requests("POST", "/prune")? - before;
    let statuses = (altered["status"].as_u64(), executed["status"].as_u64(), again["status"].as_u64());
    ensure(
        statuses == (Some(403), Some(200), Some(403)),
        format!("altered, executed and again were answered with {statuses:?}"),
    )?;
    ensure(upstream == 1, format!("upstream saw {upstream} prunes where one was approved"))?;
    ensure(approved["decided_by"] != shown["requester"], "the requester approved its own request")?;
    Ok(json!({
        "approval_id": id, "requester": shown["requester"], "approver": approved["decided_by"], "request_sha256": shown["request_sha256"],
        "held_status": held["status"], "altered_status": altered["status"], "executed_status": executed["status"],
        "again_status": again["status"], "upstream_requests": upstream,
    }))
}

/// A forbidden command names rule, version and what to do.
pub async fn blocked(world: &mut World) -> Detail {
    // A checkpoint of now is what somebody could roll the log back to, later.
    world.keep_checkpoint("older.checkpoint").await?;
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let before = world.upstream_requests("DELETE", "")?;
    let answer = world
        .solver(json!({"op": "call", "method": "DELETE", "url": world.gateway(&format!("/v1/runs/{run}"))}))
        .await?;
    let problem = json_body(&answer);
    let upstream = world.upstream_requests("DELETE", "")? - before;
    ensure(
        answer["status"] == 403 && problem["rule"] == "runs-stay" && upstream == 0,
        format!("deleting was answered with {}: {problem}", answer["status"]),
    )?;
    Ok(json!({
        "operation": "tot.delete", "status": answer["status"], "rule": problem["rule"], "policy_version": problem["policy_version"],
        "fix": problem["fix"], "upstream_requests": upstream,
    }))
}

/// The contractor goes: the open stream is cut, the next call and the next token are refused.
pub async fn offboard(world: &mut World) -> Detail {
    let form = json!({"task": "game_of_24", "input": [1, 2, 3, 4], "params": {"start": false}});
    let created =
        world.solver(json!({"op": "call", "method": "POST", "url": world.gateway("/v1/runs"), "body": form})).await?;
    let run = json_body(&created)["id"].as_str().unwrap_or_default().to_owned();
    let events = world.gateway(&format!("/v1/runs/{run}/events"));
    let opened = world.solver(json!({"op": "open", "method": "GET", "url": events})).await?;
    ensure(opened["status"] == 200, "the stream to be cut could not be opened")?;
    let view = world.gateway(&format!("/v1/runs/{run}"));
    let live = world.solver(json!({"op": "call", "method": "GET", "url": view})).await?;
    ensure(live["status"] == 200, "the workload could not call before it was offboarded")?;

    let receipt = world
        .administer(Method::POST, "/v1/offboard", Some(&json!({"person": BOB, "reason": "contract ended"})))
        .await?;
    let began = Instant::now();
    let since = || u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let finish = json!({"op": "finish", "stream": opened["stream"]});
    let cut = tokio::time::timeout(Duration::from_secs(10), world.solver(finish)).await;
    let cut = cut.map_err(|_| "the open stream was not cut".to_owned())??;
    let stream_cut_ms = since();
    ensure(cut["complete"] == false, "the open stream ended as if nothing had happened")?;
    let call = world.solver(json!({"op": "call", "method": "GET", "url": view})).await?;
    let call_ms = since();
    let mint = world.solver(json!({"op": "mint", "url": view})).await?;
    let mint_ms = since();
    ensure(
        call["status"] == 401 && call["error"] == "invalid_token",
        format!("the next call was answered with {} {}", call["status"], call["error"]),
    )?;
    ensure(
        mint["status"] == 401 && mint["error"] == "invalid_client",
        format!("the next token was answered with {} {}", mint["status"], mint["error"]),
    )?;
    let index = receipt["receipt"]["index"].clone();
    ensure(
        index.is_u64() && receipt["workloads"].to_string().contains("ci/solver"),
        "the receipt does not name what was stopped",
    )?;
    Ok(json!({
        "person": receipt["person"], "workloads": receipt["workloads"], "stream_cut_ms": stream_cut_ms, "call_ms": call_ms,
        "call_status": call["status"], "call_error": call["error"], "mint_ms": mint_ms, "mint_status": mint["status"],
        "mint_error": mint["error"], "receipt_index": index,
    }))
}
