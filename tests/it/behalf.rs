//! What is asked for on a person's word: who may approve it, what an approval binds, and that a mint outlives a crash.

use http::Method;
use serde_json::json;

use crate::asking::Asking;
use crate::grants::{JWT_BEARER, Sts};
use crate::world::{SOLVER, run, stdout};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_approves_what_is_asked_on_their_own_word_and_an_approval_is_for_that_word_alone() {
    let sts = Sts::start().await;
    let jane = format!("{}#jane", sts.people_url);
    let person = json!({"person": [{"id": jane, "name": "jane", "groups": ["security"], "roles": ["approver"]}]});
    sts.service.admin(Method::POST, "/v1/import", Some(person)).await.expect("imports");
    let solver = sts.service.solver().await;
    let statement = sts.people.token(&sts.person("jane"));
    let hers = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &statement)]).send(&sts.service, &solver).await;
    let own = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await;
    let prune = async |token: &str, approval: Option<&str>| {
        let url = sts.service.url("gateway", "/v1/runs/r1/nodes/n1/prune");
        let token = popgate::domain::secret::AccessToken::new(token.to_owned());
        let authorization = format!("DPoP {}", token.expose());
        for _ in 0..2 {
            let proof = solver.session.prove("POST", &url, Some(&token));
            let mut headers = http::HeaderMap::new();
            let mut put = |name: &'static str, value: &str| drop(headers.insert(name, value.parse().expect("a value")));
            put("authorization", &authorization);
            put("dpop", &proof);
            put("prefer", "wait=0");
            put("content-type", "application/json");
            if let Some(id) = approval {
                put("popgate-approval", id);
            }
            let body = bytes::Bytes::from_static(b"{\"if_version\":3}");
            let call = popgate::client::session::Call::new(Method::POST, &url, headers.clone(), body);
            let response = solver.session.raw(&call, headers, false).await.expect("answered");
            let answer = crate::world::Answer::read(response).await;
            if answer.header("dpop-nonce").is_empty() {
                return answer;
            }
        }
        panic!("the gateway asks for nonces without end");
    };
    let held = prune(hers.token(), None).await;
    assert_eq!(held.status, 202, "{}", held.text());
    let id = held.header("location").rsplit('/').next().expect("an id").to_owned();
    let path = format!("/v1/approvals/{id}");
    let approve = json!({"approve": true, "reason": "checked"});
    let shown = sts.service.person("alice").await.call(Method::GET, &path, None).await.expect("shown");
    assert_eq!((&shown["on_behalf"], &shown["groups"]), (&json!([jane]), &json!(["corp:dev"])));
    let refused = sts.service.person("jane").await.call(Method::POST, &path, Some(&approve)).await;
    assert_eq!(refused.err().and_then(|e| e.status()), Some(403), "it is asked on her own word");
    sts.service.person("alice").await.call(Method::POST, &path, Some(&approve)).await.expect("approves");
    let other = prune(own.token(), Some(&id)).await;
    assert_eq!((other.status, other.problem().as_str()), (403, "approval-mismatch"), "{}", other.text());
    assert_eq!(prune(hers.token(), Some(&id)).await.status, 200);
    // A person who is stopped takes what is asked on their word along.
    let again = sts.people.token(&sts.person("jane"));
    let hers = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &again)]).send(&sts.service, &solver).await;
    let held = prune(hers.token(), None).await;
    let id = held.header("location").rsplit('/').next().expect("an id").to_owned();
    let stop = json!({"kind": "person", "value": jane, "reason": "left"});
    let receipt = sts.service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    assert_eq!(receipt["withdrawn_approvals"], json!([id]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_a_mint_is_in_the_log_before_its_answer_and_outlives_a_crash() {
    let mut sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let minted = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await;
    sts.service.crash();
    let data = sts.service.data.to_str().expect("UTF-8").to_owned();
    let told = stdout(&run(&["audit", "tail", "-n", "100", "--json", "--data-dir", &data]));
    let digest = popgate::domain::digest::Sha256::of(minted.token().as_bytes()).to_string();
    assert!(told.lines().any(|l| l.contains("\"mint\"") && l.contains(&digest)), "{told}");
}
