//! ca, attest, token, call, stream, solution.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::{Value, json};

use crate::cli::demo::world::{World, body, json_body};
use crate::cli::demo::{Detail, StepError, ensure};
use crate::client::http::HttpClient;
use crate::client::identity::server_check;
use crate::domain::digest::Sha256;
use crate::domain::leaf::Event;
use crate::net::tls::{self, ClientTrust};
use crate::store::clock::SystemClock;
use crate::tot::evaluate;

const EMAIL: &str = "countess-1815@example.net";
const CARD: &str = "4111 1111 1111 1111";
const SECRET: &str = "sk-demo1234567890abcdefghij";

/// Root and issuing CA are up, and `/ca.pem` is that root.
pub async fn ca(world: &mut World) -> Detail {
    let status = world.administer(Method::GET, "/v1/status", None).await?;
    let ca = &status["ca"];
    let pem = std::fs::read(world.data.join("ca.pem"))?;
    let root = CertificateDer::from_pem_slice(&pem).map_err(|e| e.to_string())?.to_vec();
    let trust = ClientTrust {
        roots: tls::fixed_roots(vec![root]),
        check: server_check(Some("example.org".into())),
        clock: Arc::new(SystemClock),
    };
    let http = HttpClient::new(tls::client(trust, None)?);
    let url = format!("{}/ca.pem", world.addresses["identity"].as_str().unwrap_or_default());
    let served = http.fetch(Request::builder().uri(&url).body(Bytes::new())?).await?;
    let served = CertificateDer::from_pem_slice(served.body()).map_err(|e| e.to_string())?;
    let active = |kind: &str| {
        let all = ca["active"].as_array().into_iter().flatten();
        all.clone().find(|a| a["kind"] == kind).cloned().unwrap_or_default()
    };
    let root = active("root");
    ensure(
        root["certificate_sha256"] == json!(Sha256::of(&served)),
        "the root that /ca.pem serves is not the authority's",
    )?;
    Ok(json!({
        "trust_domain": ca["trust_domain"],
        "root_sha256": root["certificate_sha256"],
        "issuing": active("issuing")["id"],
        "issuing_not_after": ca["issuing_not_after"],
        "bundle_sequence": ca["bundle_sequence"],
    }))
}

/// Two workloads enrol with one-time tokens; a token works once.
pub async fn attest(world: &mut World) -> Detail {
    let entries: toml::Table = std::fs::read_to_string(world.data.join("config/entries.toml"))?.parse()?;
    world.administer(Method::POST, "/v1/import", Some(&serde_json::to_value(entries)?)).await?;
    let server = world.addresses["identity"].clone();
    let token = world.join_token("spiffe://example.org/ci/solver").await?;
    let solver = world.solver(json!({"op": "enrol", "server": server, "join_token": token})).await?;
    let reused = world.planner(json!({"op": "enrol", "server": server, "join_token": token})).await?;
    let token = world.join_token("spiffe://example.org/ai/planner").await?;
    let planner = world.planner(json!({"op": "enrol", "server": server, "join_token": token})).await?;
    ensure(
        solver["status"] == 201 && planner["status"] == 201,
        format!("a workload could not enrol: {solver} {planner}"),
    )?;
    ensure(
        solver["jkt"] != planner["jkt"] && solver["pid"] != planner["pid"],
        "the workloads share a key or a process",
    )?;
    ensure(reused["status"] == 401, format!("a spent join token was answered with {}", reused["status"]))?;
    world.memory["solver_jkt"] = solver["jkt"].clone();
    let without_status = |mut v: Value| {
        v.as_object_mut().map(|m| m.remove("status"));
        v
    };
    Ok(
        json!({"workloads": [without_status(solver), without_status(planner)], "reused_join_token_status": reused["status"]}),
    )
}

/// A token bound to the key; none without the certificate; a resource that demands the certificate.
pub async fn token(world: &mut World) -> Detail {
    let (runs, prompt) = (world.gateway("/v1/runs"), world.gateway("/v1/prompts/greeting"));
    let minted = world.solver(json!({"op": "mint", "url": runs})).await?;
    ensure(minted["status"] == 200, format!("no token: {}", minted["refused"]))?;
    let bare = world.solver(json!({"op": "mint_bare", "url": runs})).await?;
    ensure(bare["status"] == 401, "a token was minted without a certificate")?;
    let certified = world.solver(json!({"op": "mint", "url": prompt})).await?;
    let put = |certificate: bool| json!({"op": "call", "method": "PUT", "url": prompt, "body": {"text": "think step by step"}, "certificate": certificate});
    let without = world.solver(put(false)).await?;
    let with = world.solver(put(true)).await?;
    let x5t = certified["claims"]["cnf"]["x5t#S256"].clone();
    ensure(
        without["status"] == 401 && with["status"] == 200,
        format!(
            "the certificate-bound resource answered {} without and {} with the certificate",
            without["status"], with["status"]
        ),
    )?;
    let claims = &minted["claims"];
    let expires_in = claims["exp"].as_u64().unwrap_or(0).saturating_sub(claims["iat"].as_u64().unwrap_or(0));
    let bound = claims["cnf"]["jkt"] == world.memory["solver_jkt"] && claims["cnf"].get("x5t#S256").is_none();
    ensure(bound && expires_in <= 300 && x5t.is_string(), "the token is not bound as it should be")?;
    Ok(json!({
        "spiffe_id": claims["sub"],
        "token_type": "DPoP",
        "cnf_jkt": claims["cnf"]["jkt"],
        "svid_jkt": world.memory["solver_jkt"],
        "expires_in": expires_in,
        "jti_sha256": minted["jti_sha256"],
        "without_certificate_status": bare["status"],
        "certificate_resource": {"cnf_x5t_s256": x5t, "without_status": without["status"], "with_status": with["status"]},
    }))
}

/// A signed request starts a run.
pub async fn call(world: &mut World) -> Detail {
    let url = world.gateway("/v1/runs");
    let form = json!({
        "task": "game_of_24", "input": [4, 4, 10, 1], "params": {"b": 5},
        "context": {"customer": {"name": "Ada Lovelace", "email": EMAIL, "card": CARD, "api_key": SECRET}},
    });
    let answer = world.solver(json!({"op": "call", "method": "POST", "url": url, "body": form})).await?;
    ensure(
        answer["status"] == 201,
        format!("the run was answered with {}: {}", answer["status"], String::from_utf8_lossy(&body(&answer))),
    )?;
    let request_id = answer["request_id"].as_str().unwrap_or_default().to_owned();
    let run_id = json_body(&answer)["id"].clone();
    let entry = world.entry(&request_id, "admission").await?;
    let Event::Admission(admission) = entry.leaf.event else {
        return Err("the log's entry is no admission".to_owned().into());
    };
    let verified = answer["txn_token"] == "verified";
    ensure(admission.operation == "tot.run" && verified && run_id.is_string(), "the call was not what it should be")?;
    world.memory["run"] = run_id.clone();
    Ok(json!({
        "url": url, "status": answer["status"], "request_id": request_id, "run_id": run_id, "operation": admission.operation,
        "rule": admission.rules.first(), "policy_version": admission.policy_version, "txn_token_verified": verified,
    }))
}

/// Thoughts stream back masked, although every value straddles the engine's writes.
pub async fn stream(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let before = world.record()?.len();
    let url = world.gateway(&format!("/v1/runs/{run}/events?flush_bytes=7"));
    let opened = world.solver(json!({"op": "open", "method": "GET", "url": url})).await?;
    ensure(opened["status"] == 200, format!("the stream was answered with {}", opened["status"]))?;
    let ended = world.solver(json!({"op": "finish", "stream": opened["stream"]})).await?;
    ensure(ended["complete"] == true, "the stream broke off")?;
    let request_id = ended["request_id"].as_str().unwrap_or_default().to_owned();
    let client = body(&ended);
    let seen = String::from_utf8_lossy(&client).into_owned();
    let pieces: Vec<Vec<u8>> =
        world.record()?[before..].iter().filter_map(|l| BASE64_STANDARD.decode(l["write"].as_str()?).ok()).collect();
    let entry = world.entry(&request_id, "completion").await?;
    let Event::Completion(completion) = entry.leaf.event else {
        return Err("the log's entry is no completion".to_owned().into());
    };
    let mut detail = json!({"emitted": {}, "masked": {}, "straddled": {}});
    let mut leaked = 0;
    for (kind, value) in [("email", EMAIL), ("card", CARD), ("secret", SECRET)] {
        let (emitted, straddled) = occurrences(&pieces, value.as_bytes());
        let masked = seen.matches(&format!("[redacted:{kind}]")).count() as u64;
        leaked += (0..value.len() - 6).filter(|at| seen.contains(&value[*at..at + 6])).count();
        ensure(
            emitted >= 1 && emitted == masked && straddled >= 1,
            format!("{kind}: {emitted} emitted, {masked} masked, {straddled} straddled"),
        )?;
        ensure(
            completion.masked.get(kind) == Some(&masked),
            format!("{kind}: the log counts another number than the client saw"),
        )?;
        detail["emitted"][kind] = emitted.into();
        detail["masked"][kind] = masked.into();
        detail["straddled"][kind] = straddled.into();
    }
    ensure(leaked == 0, format!("{leaked} pieces of sensitive values reached the client"))?;
    world.memory["stream_request"] = request_id.clone().into();
    world.memory["stream_sha256"] = json!(Sha256::of(&client));
    detail["request_id"] = request_id.into();
    detail["events"] = seen.matches("\nevent: ").count().into();
    detail["leaked"] = leaked.into();
    detail["upstream_bytes"] = completion.upstream_bytes.into();
    detail["client_bytes"] = client.len().into();
    Ok(detail)
}

/// How often a value occurs in the joined pieces, and how often it crosses a cut between two.
fn occurrences(pieces: &[Vec<u8>], value: &[u8]) -> (u64, u64) {
    let joined: Vec<u8> = pieces.concat();
    let mut cuts = std::collections::BTreeSet::new();
    let mut at = 0;
    for piece in pieces {
        at += piece.len();
        cuts.insert(at);
    }
    let found: Vec<usize> = memchr::memmem::find_iter(&joined, value).collect();
    let crossing = found.iter().filter(|start| cuts.range(*start + 1..*start + value.len()).next().is_some()).count();
    (found.len() as u64, crossing as u64)
}

/// The answer is one, by an evaluator that shares nothing with the search.
pub async fn solution(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let url = world.gateway(&format!("/v1/runs/{run}/solution"));
    let answer = world.solver(json!({"op": "call", "method": "GET", "url": url})).await?;
    let document = json_body(&answer);
    let expression = document["expression"].as_str().unwrap_or_default().to_owned();
    let input = [4, 4, 10, 1];
    evaluate::check(&expression, &input).map_err(|e| StepError::from(format!("{expression:?} {e}")))?;
    Ok(
        json!({"input": input, "expression": expression, "value": 24, "uses_each_once": true, "checked_by": "tot::evaluate, from the expression's text alone"}),
    )
}
