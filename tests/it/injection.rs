//! An upstream that wants an OAuth token of its own gets one of the gateway's: the workload never sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::protocols::{operation, route};
use crate::web::Web;
use crate::world::{Service, respond, run, stderr, stdout};

const SECRET: &str = "client-secret-81c/+ %";
const SCOPE: &str = "engine.read engine.run";

/// Tokens that are numbered, and how often one was asked for.
struct Issuer {
    web: Web,
    asked: Arc<AtomicU32>,
}

impl Issuer {
    async fn start(answer: impl Fn(u32) -> (u16, String) + Send + Sync + 'static) -> Self {
        let (web, asked) = (Web::start(&[]).await, Arc::new(AtomicU32::new(0)));
        let counted = asked.clone();
        web.on_request(move |method, path, headers, body| {
            let credential = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
            // The pair as curl would send it, form-encoded first (RFC 6749 section 2.3.1).
            let want = "Basic cG9wZ2F0ZSUzQWd3OmNsaWVudC1zZWNyZXQtODFjJTJGJTJCJTIwJTI1";
            let form = std::str::from_utf8(body).unwrap_or_default();
            let fits = method == "POST"
                && path == "/token"
                && credential == want
                && form == "grant_type=client_credentials&scope=engine.read%20engine.run"
                && headers.get("content-type").is_some_and(|v| v == "application/x-www-form-urlencoded");
            if !fits {
                return (
                    401,
                    format!("{{\"error\":\"invalid_client\",\"error_description\":\"{credential} {form}\"}}"),
                );
            }
            answer(counted.fetch_add(1, Ordering::SeqCst))
        });
        Self { web, asked }
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }
}

fn token(n: u32, life: u32) -> (u16, String) {
    (200, format!("{{\"access_token\":\"upstream-token-{n}-4f1d\",\"token_type\":\"bearer\",\"expires_in\":{life}}}"))
}

async fn world(issuer: &Issuer) -> (Service, crate::world::Client) {
    let upstream = crate::world::Upstream::start().await;
    let inject = format!(
        "[route.inject]\nheader = \"authorization\"\nprefix = \"Bearer \"\n[route.inject.token]\nurl = \"{}/token\"\nclient_id = \"popgate:gw\"\nclient_secret_file = \"client-secret\"\nscope = \"{SCOPE}\"\nca_file = \"issuer.pem\"\n",
        issuer.web.url
    );
    let routes = route("engine", "/engine", &format!("url = \"http://{}\"", upstream.address), &inject)
        + &operation("x.get", "GET /engine/**", "");
    let files = [("client-secret", SECRET), ("issuer.pem", issuer.web.ca.as_str())];
    let mut service = Service::start_routes(&routes, &["x.get"], &files).await;
    service.upstream = upstream;
    let solver = service.solver().await;
    (service, solver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_by_client_credentials_goes_upstream_once_for_all_and_comes_back_to_nobody() {
    let issuer = Issuer::start(|n| token(n, 3600)).await;
    let (service, solver) = world(&issuer).await;
    service.upstream.on_request(|seen| {
        let credential = seen.headers["authorization"].to_str().expect("text").to_owned();
        let status = if seen.target.ends_with("refused") { 401 } else { 200 };
        respond(status, "application/json", format!("{{\"you_sent\":\"{credential}\"}}"))
    });
    let url = |path: &str| service.url("gateway", path);
    // None is there yet: they share the one that the first of them asks for.
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    let many = (0..8).map(|n| {
        let (solver, url) = (solver.clone(), url(&format!("/engine/{n}")));
        tokio::spawn(async move { solver.get(&url).await.status })
    });
    for one in many.collect::<Vec<_>>() {
        assert_eq!(one.await.expect("runs"), 200);
    }
    assert_eq!(issuer.asked(), 1, "one token serves all");
    let answer = solver.get(&url("/engine/a")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("upstream-token"), "{}", answer.text());
    let sent = || service.upstream.seen().pop().expect("one").headers["authorization"].clone();
    assert_eq!(sent(), "Bearer upstream-token-0-4f1d");
    assert_eq!(solver.get(&url("/engine/refused")).await.status, 401);
    assert_eq!(solver.get(&url("/engine/b")).await.status, 200);
    assert_eq!(
        (issuer.asked(), sent()),
        (2, "Bearer upstream-token-1-4f1d".parse().expect("a value")),
        "upstream would not have the first"
    );
    assert!(service.verify().await.status.success());
    let found = std::process::Command::new("grep")
        .args(["-rlE", "upstream-token-|client-secret-81c"])
        .arg(service.base())
        .output();
    let found = stdout(&found.expect("greps"));
    assert!(found.lines().all(|f| f.ends_with("/client-secret")), "{found}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_nothing_goes_upstream_and_the_refusal_says_which_part() {
    for (what, status, answer) in [
        ("refused", 400, r#"{"error":"invalid_scope"}"#),
        ("no JSON", 200, "<html>"),
        ("no token", 200, r#"{"token_type":"Bearer"}"#),
        ("an empty token", 200, r#"{"access_token":"","token_type":"Bearer"}"#),
        ("another type", 200, r#"{"access_token":"abc","token_type":"DPoP"}"#),
        ("what no header carries", 200, "{\"access_token\":\"a\\nb\",\"token_type\":\"Bearer\"}"),
    ] {
        let issuer = Issuer::start(move |_| (status, answer.to_owned())).await;
        let (service, solver) = world(&issuer).await;
        let refused = solver.get(&service.url("gateway", "/engine/a")).await;
        assert_eq!((refused.status, refused.problem().as_str()), (503, "unavailable"), "{what}: {}", refused.text());
        assert_eq!(service.upstream.count(), 0, "{what}");
        let again = (0..8).map(|_| {
            let (solver, url) = (solver.clone(), service.url("gateway", "/engine/a"));
            tokio::spawn(async move { solver.get(&url).await.status })
        });
        for one in again.collect::<Vec<_>>() {
            assert_eq!(one.await.expect("runs"), 503, "{what}");
        }
        assert!(issuer.asked() < 5, "{what}: a failure is asked for anew by one, not by each");
        let log = std::fs::read_to_string(service.base().join("serve.log")).expect("reads");
        let pair = "cG9wZ2F0ZSUzQWd3";
        assert!(!log.contains(SECRET) && !log.contains(pair) && !refused.text().contains(&issuer.web.url), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_asked_for_anew_before_its_end() {
    // A token that has no life left is kept for nobody.
    let issuer = Issuer::start(|n| token(n, if n == 0 { 0 } else { 3600 })).await;
    let (service, solver) = world(&issuer).await;
    for path in ["/engine/a", "/engine/b", "/engine/c"] {
        assert_eq!(solver.get(&service.url("gateway", path)).await.status, 200);
    }
    assert_eq!(issuer.asked(), 2, "the first ended at once, the second lasts");
}

#[test]
fn what_cannot_work_is_refused_at_the_start_and_names_its_key() {
    let dir = tempfile::tempdir().expect("tempdir");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    write("key", "k");
    write("empty", "");
    let token = |more: &str| format!("token = {{ client_id = \"a\", {more} }}");
    for (inject, says) in [
        ("prefix = \"x\"".to_owned(), "`file` or by `token`"),
        (
            format!("file = \"key\"\n{}", token("url = \"https://x\", client_secret_file = \"key\"")),
            "`file` or by `token`",
        ),
        ("file = \"empty\"".to_owned(), "inject.file"),
        (token("url = \"http://x/token\", client_secret_file = \"key\""), "inject.token.url"),
        (token("url = \"https://x/token\", client_secret_file = \"none\""), "inject.token.client_secret_file"),
        (token("url = \"https://x/token\", client_secret_file = \"key\", ca_file = \"key\""), "inject.token.ca_file"),
    ] {
        let text = format!(
            "[[route]]\nname = \"a\"\nmatch = {{ path = \"/a\" }}\nresource = \"/a\"\nupstream = {{ url = \"http://127.0.0.1:1\" }}\n[route.inject]\nheader = \"authorization\"\n{inject}\n"
        );
        write("popgate.toml", &text);
        let output = run(&["config", "check", "--config", dir.path().join("popgate.toml").to_str().expect("UTF-8")]);
        assert!(!output.status.success() && stderr(&output).contains(says), "{inject}: {}", stderr(&output));
    }
}
