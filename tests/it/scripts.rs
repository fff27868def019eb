//! Commands for scripts: a token, a proof to go with it, and the narrowest operations that a workload needs.

use http::Method;
use serde_json::{Value, json};

use crate::asking::{claims, details};
use crate::grants::Sts;
use crate::world::{SOLVER, run, stderr, stdout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_gets_a_token_for_exact_operations_and_a_proof_for_each_request() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let dir = sts.service.base().join("solver");
    solver.session.identity().save(&dir).expect("saves");
    let identity = dir.to_str().expect("UTF-8");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("writes");
        dir.join(name).to_str().expect("UTF-8").to_owned()
    };
    let url = sts.service.url("gateway", "/v1/runs/r1");
    let wanted = file("details.json", &details(&["tot.read"], Some("/runs/r1"), Some(5)));
    let minted = run(&["token", "--identity", identity, "--resource", &url, "--details", &wanted]);
    assert!(minted.status.success(), "{}", stderr(&minted));
    let token = stdout(&minted).trim().to_owned();
    assert_eq!(claims(&token)["authorization_details"][0]["uses"], 5);
    let token_file = file("token", &format!("{token}\n"));
    let mut nonce = String::new();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let mut args = vec!["proof", "--identity", identity, "--url", &url, "--token-file", &token_file];
        if !nonce.is_empty() {
            args.extend(["--nonce", &nonce]);
        }
        let proof = run(&args);
        assert!(proof.status.success(), "{}", stderr(&proof));
        let headers = [("authorization", format!("DPoP {token}")), ("dpop", stdout(&proof).trim().to_owned())];
        let headers = headers.each_ref().map(|(n, v)| (*n, v.as_str()));
        let answer = solver.raw("GET", &url, &headers, false).await;
        nonce = answer.header("dpop-nonce").to_owned();
        statuses.push(answer.status);
        if answer.status == 200 {
            break;
        }
    }
    assert_eq!(statuses.last(), Some(&200), "{statuses:?}");
    // On a person's word, with all that the service says.
    let statement = file("statement", &sts.people.token(&sts.person("jane")));
    let told = run(&["token", "--json", "--identity", identity, "--resource", &url, "--assertion-file", &statement]);
    let told: Value = serde_json::from_str(&stdout(&told)).unwrap_or_else(|_| panic!("{}", stderr(&told)));
    let token = told["access_token"].as_str().expect("a token");
    assert_eq!((told["token_type"].as_str(), &claims(token)["groups"]), (Some("DPoP"), &json!(["corp:dev"])));
    let saml = file("assertion", &sts.saml.assertion(&sts.issuer(), "jane", |x| x));
    let told = run(&["token", "--identity", identity, "--resource", &url, "--saml", "--assertion-file", &saml]);
    assert_eq!(claims(stdout(&told).trim())["groups"], json!(["engineers"]), "{}", stderr(&told));
    // What is refused says what and why, and no statement is echoed.
    let bad = file("bad", "eyJub3RoaW5n.of.this");
    let refused = run(&["token", "--identity", identity, "--resource", &url, "--assertion-file", &bad]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()));
    assert!(stderr(&refused).contains("invalid_grant") && !stderr(&refused).contains("eyJ"), "{}", stderr(&refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_privilege_is_proposed_from_what_was_recorded() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let data = sts.service.data.to_str().expect("UTF-8").to_owned();
    let suggest =
        |extra: &[&str]| run(&[&["entry", "suggest", "--recorded", SOLVER, "--data-dir", &data], extra].concat());
    let nothing = suggest(&[]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(stderr(&nothing).contains("call first"), "{}", stderr(&nothing));
    for path in ["/v1/runs/r1/tree", "/v1/runs/r1", "/v1/runs/r1"] {
        assert_eq!(solver.get(&sts.service.url("gateway", path)).await.status, 200);
    }
    assert_eq!(solver.get(&sts.service.url("gateway", "/raw/x")).await.status, 200);
    // What was denied is nothing that it needs.
    let denied = solver.call("DELETE", &sts.service.url("gateway", "/v1/runs/r1"), &[], "").await;
    assert_eq!(denied.status, 403);
    let told = suggest(&["--json"]);
    let told: Value = serde_json::from_str(&stdout(&told)).unwrap_or_else(|_| panic!("{}", stderr(&told)));
    assert_eq!(told["operations"], json!(["raw.get", "tot.read"]));
    assert_eq!((&told["recorded"][1]["count"], &told["recorded"][1]["objects"]), (&json!(3), &json!(["/runs/r1"])));
    assert_eq!(
        told["authorization_details"]["tot"][0],
        json!({"type": "popgate_operation", "actions": ["tot.read"], "identifier": "/runs/r1"})
    );
    assert_eq!(told["authorization_details"]["raw"][0]["actions"], json!(["raw.get"]));
    // The proposal can be taken: the entry with it lets the same through, and no more.
    let operations = stdout(&suggest(&[]));
    let entry: toml::Table = operations.lines().next().expect("a line").parse().expect("TOML");
    let entry = json!({"entry": [{"spiffe_id": SOLVER, "owner": crate::world::BOB, "groups": ["solvers"], "operations": entry["operations"]}]});
    sts.service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    assert_eq!(solver.get(&sts.service.url("gateway", "/v1/runs/r1")).await.status, 200);
    // At once, for the token that was minted before, too.
    let beyond = solver.call("POST", &sts.service.url("gateway", "/v1/runs"), &[], "{}").await;
    assert_eq!((beyond.status, beyond.problem().as_str()), (403, "insufficient-scope"), "{}", beyond.text());
}
