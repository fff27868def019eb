//! stolen_token, replayed_proof, no_credential_upstream.

use serde_json::{Value, json};

use crate::cli::demo::world::World;
use crate::cli::demo::{Detail, StepError, ensure};
use crate::store::entropy;

const MARKER: &str = "x-demo-marker";

fn headers(scheme: &str, token: &str, proof: Option<&str>) -> Value {
    let mut headers = json!({"authorization": format!("{scheme} {token}")});
    if let Some(proof) = proof {
        headers["dpop"] = proof.into();
    }
    headers
}

async fn proof(world: &mut World, by_solver: bool, url: &str, token: &str) -> Result<String, StepError> {
    let order = json!({"op": "prove", "method": "GET", "url": url, "token": token});
    let answer = if by_solver { world.solver(order).await? } else { world.planner(order).await? };
    Ok(answer["proof"].as_str().unwrap_or_default().to_owned())
}

/// The thief has the token, from another process, with another key.
pub async fn stolen_token(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let url = world.gateway(&format!("/v1/runs/{run}"));
    let token =
        world.solver(json!({"op": "token", "url": url})).await?["token"].as_str().unwrap_or_default().to_owned();
    // The thief's own good call teaches it the gateway's nonce, and is the control: the counter moves.
    let part = format!("/v1/runs/{run}");
    let moved = world.upstream_requests("GET", &part)?;
    let own = world.planner(json!({"op": "call", "method": "GET", "url": url})).await?;
    ensure(
        own["status"] == 200 && world.upstream_requests("GET", &part)? == moved + 1,
        "the control call did not reach upstream",
    )?;
    let before = world.upstream_requests("GET", &part)?;
    let other_key = proof(world, false, &url, &token).await?;
    let other_token =
        world.planner(json!({"op": "token", "url": url})).await?["token"].as_str().unwrap_or_default().to_owned();
    let other_ath = proof(world, true, &url, &other_token).await?;
    let attempts = [
        ("no_proof", headers("DPoP", &token, None)),
        ("bearer", headers("Bearer", &token, None)),
        ("other_key", headers("DPoP", &token, Some(&other_key))),
        ("other_ath", headers("DPoP", &token, Some(&other_ath))),
    ];
    let mut told = Vec::new();
    for (kind, headers) in attempts {
        let answer = world.planner(json!({"op": "send", "method": "GET", "url": url, "headers": headers})).await?;
        ensure(answer["status"] == 401, format!("{kind} was answered with {}", answer["status"]))?;
        ensure(
            answer["error"] != "use_dpop_nonce",
            format!("{kind} was refused for its nonce alone, which proves nothing"),
        )?;
        told.push(json!({"kind": kind, "status": answer["status"], "error": answer["error"]}));
    }
    let upstream = world.upstream_requests("GET", &part)? - before;
    ensure(upstream == 0, format!("{upstream} of the thief's requests reached upstream"))?;
    Ok(json!({"attempts": told, "upstream_requests": upstream}))
}

/// One signed request is good once, however often and however fast it is sent.
pub async fn replayed_proof(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let url = world.gateway(&format!("/v1/runs/{run}"));
    let part = format!("/v1/runs/{run}");
    let store = world.administer(http::Method::GET, "/v1/status", None).await?["replay_store"].clone();
    let token =
        world.solver(json!({"op": "token", "url": url})).await?["token"].as_str().unwrap_or_default().to_owned();
    let before = world.upstream_requests("GET", &part)?;
    let spent = proof(world, true, &url, &token).await?;
    let send = json!({"op": "send", "method": "GET", "url": url, "headers": headers("DPoP", &token, Some(&spent))});
    let first = world.solver(send.clone()).await?;
    let second = world.solver(send).await?;
    let upstream = world.upstream_requests("GET", &part)? - before;
    ensure(
        first["status"] == 200 && second["status"] == 401 && second["error"] == "invalid_dpop_proof",
        format!("the proof was answered with {} and then {} {}", first["status"], second["status"], second["error"]),
    )?;
    ensure(upstream == 1, format!("upstream saw {upstream} of the two"))?;
    let raced = proof(world, true, &url, &token).await?;
    let race = world.solver(json!({"op": "race", "copies": 20, "method": "GET", "url": url, "headers": headers("DPoP", &token, Some(&raced))})).await?;
    let statuses = race["statuses"].as_array().cloned().unwrap_or_default();
    let accepted = statuses.iter().filter(|s| **s == 200).count();
    ensure(statuses.len() == 20 && accepted == 1, format!("of {} copies at once {accepted} passed", statuses.len()))?;
    Ok(json!({
        "store": store, "first_status": first["status"], "second_status": second["status"], "error": second["error"],
        "upstream_requests": upstream, "parallel": {"sent": statuses.len(), "accepted": accepted},
    }))
}

/// Nothing that the workloads used as a credential is in any header that upstream got.
pub async fn no_credential_upstream(world: &mut World) -> Detail {
    let run = world.memory["run"].as_str().unwrap_or_default().to_owned();
    let url = world.gateway(&format!("/v1/runs/{run}"));
    let marker = entropy::random_id();
    let planted = world.solver(json!({"op": "call", "method": "GET", "url": url, "headers": {MARKER: marker}})).await?;
    ensure(planted["status"] == 200, "the call with the planted marker did not pass")?;
    let mut credentials: Vec<String> = Vec::new();
    for answer in
        [world.solver(json!({"op": "credentials"})).await?, world.planner(json!({"op": "credentials"})).await?]
    {
        credentials.extend(answer.as_array().into_iter().flatten().filter_map(|c| c.as_str().map(ToOwned::to_owned)));
    }
    let (mut requests, mut bytes, mut found, mut control) = (0_u64, 0_usize, 0_u64, false);
    for line in world.record()? {
        let Some(list) = line["request"]["headers"].as_array() else { continue };
        requests += 1;
        for header in list {
            let text =
                format!("{}: {}", header[0].as_str().unwrap_or_default(), header[1].as_str().unwrap_or_default());
            bytes += text.len();
            found += credentials.iter().filter(|c| text.contains(c.as_str())).count() as u64;
            control |= text.contains(&marker);
        }
    }
    let bypass = bypass(&world.engine_url, &run).await?;
    ensure(requests >= 4 && !credentials.is_empty() && control, "the search would not have found anything")?;
    ensure(found == 0, format!("{found} credentials reached upstream"))?;
    ensure(bypass == 401, format!("a call past the gateway was answered with {bypass}"))?;
    Ok(json!({
        "requests": requests, "header_bytes": bytes, "credentials_searched": credentials.len(), "credentials_found": found,
        "control_found": control, "bypass_status": bypass,
    }))
}

/// A call straight to the engine.
async fn bypass(engine: &str, run: &str) -> Result<u16, StepError> {
    let uri: http::Uri = engine.parse()?;
    let authority = uri.authority().map_or("", |a| a.as_str()).to_owned();
    let stream = tokio::net::TcpStream::connect(&authority).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = http::Request::builder()
        .uri(format!("/v1/runs/{run}"))
        .header("host", authority)
        .body(crate::net::body::full(""))?;
    Ok(sender.send_request(request).await?.status().as_u16())
}
