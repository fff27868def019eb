//! The engine with a language model as proposer and valuer, against a stub that speaks the OpenAI-compatible protocol.

use std::path::Path;

use popgate::tot::propose::{State, propose};
use popgate::tot::value::{Judge, SURE, Valuer};
use serde_json::{Value, json};

use crate::proxied::start;
use crate::world::process::Running;
use crate::world::{Seen, Upstream, respond, run, stderr};

const KEY: &str = "sk-model-key-77aa";

/// The numbers that a question is about.
fn numbers(question: &Value) -> Vec<i64> {
    let text = question["messages"][0]["content"].as_str().expect("text");
    let list = text.lines().find_map(|l| l.strip_prefix("Numbers: ")).expect("the numbers");
    // Fractions are for the engine; the stub answers for whole numbers alone.
    list.split(' ').map(|n| n.parse().ok()).collect::<Option<Vec<i64>>>().unwrap_or_default()
}

/// A completion with these texts.
fn completion(texts: &[String], tokens: u64) -> String {
    let choice = |(i, text): (usize, &String)| json!({"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"});
    let choices: Vec<Value> = texts.iter().enumerate().map(choice).collect();
    json!({"id": "c1", "object": "chat.completion", "model": "stub-1", "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": tokens}}).to_string()
}

/// What a good model would say, among what a bad one says as well.
fn clever(seen: &Seen) -> String {
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/v1/chat/completions"));
    assert_eq!(seen.headers["authorization"], format!("Bearer {KEY}").as_str());
    let question: Value = serde_json::from_slice(&seen.body).expect("JSON");
    assert_eq!(
        (&question["model"], &question["seed"], &question["stop"]),
        (&json!("stub-1"), &json!(7), &json!(["\n\n\n"]))
    );
    assert!(question["max_tokens"].as_u64().is_some_and(|n| n > 0), "{question}");
    let state = State::start(&numbers(&question));
    if question["n"] == 1 {
        let mut lines: Vec<String> = propose(&state).into_iter().map(|t| t.text).collect();
        lines.extend(["10 - 4 = 7", "99 + 1 = 100", "I am sorry, I cannot do that.", ""].map(ToOwned::to_owned));
        lines.extend(lines.clone());
        return completion(&[lines.join("\n")], 50);
    }
    assert_eq!(question["n"], 3);
    let sure = Judge::default().value(Valuer::Exact, &state) == SURE;
    completion(&vec![format!("Let me think.\n{}", if sure { "Sure" } else { "impossible" }); 3], 30)
}

struct Engine {
    _process: Running,
    url: String,
    log: std::path::PathBuf,
    dir: tempfile::TempDir,
}

impl Engine {
    fn start(model: &Upstream, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let (log, key) = (dir.path().join("log"), dir.path().join("key"));
        std::fs::write(&key, KEY).expect("writes");
        let url = format!("http://{}/v1", model.address);
        let mut args =
            vec!["tot", "serve", "--json", "--listen", "127.0.0.1:0", "--model-url", &url, "--model", "stub-1"];
        args.extend(["--model-key-file", key.to_str().expect("UTF-8")]);
        args.extend(more);
        let (process, url) = start(&args, "engine", &log);
        Self { _process: process, url, log, dir }
    }

    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let output = tokio::process::Command::new("curl")
            .args(["-s", "-m", "60", "-X", method, "-w", "\n%{http_code}", "-H", "content-type: application/json"])
            .args(["--data-binary", &body, &format!("{}{path}", self.url)])
            .output()
            .await
            .expect("curl runs");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let (body, status) = text.rsplit_once('\n').expect("a status");
        (status.parse().expect("a number"), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    async fn solve(&self, params: Value) -> Value {
        let mut params = params;
        params["start"] = false.into();
        let form = json!({"task": "game_of_24", "input": [4, 4, 10, 1], "params": params});
        let (status, made) = self.call("POST", "/v1/runs", Some(form)).await;
        assert_eq!(status, 201, "{made}");
        let id = made["id"].as_str().expect("an id");
        let (status, run) = self.call("POST", &format!("/v1/runs/{id}/solve"), None).await;
        assert_eq!(status, 200, "{run}");
        run
    }
}

/// curl is there where the other clients are.
fn provided() -> bool {
    crate::world::provided("POPGATE_TEST_NODE_MODULES", "the engine with a model").is_some()
}

fn both() -> Value {
    json!({"b": 2, "proposer": "model", "value": "model", "seed": 7})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_proposes_and_values_and_nothing_false_that_it_says_counts() {
    if !provided() {
        return;
    }
    let model = Upstream::start().await;
    model.on_request(|seen| respond(200, "application/json", clever(seen)));
    let engine = Engine::start(&model, &[]);
    let run = engine.solve(both()).await;
    assert_eq!(run["status"], "done", "{run}");
    let used = run["model"]["tokens"].as_u64().expect("a number");
    assert!(used >= 80 && run["model"]["name"] == "stub-1", "{run}");
    let id = run["id"].as_str().expect("an id");
    let (status, solution) = engine.call("GET", &format!("/v1/runs/{id}/solution"), None).await;
    assert_eq!((status, &solution["value"]), (200, &json!(24)), "{solution}");
    let (_, tree) = engine.call("GET", &format!("/v1/runs/{id}/tree?depth=9"), None).await;
    let texts: Vec<&str> = tree["nodes"].as_array().expect("nodes").iter().filter_map(|n| n["text"].as_str()).collect();
    assert!(
        texts.iter().all(|t| !t.starts_with("10 - 4 = 7") && !t.starts_with("99") && !t.contains("sorry")),
        "{texts:?}"
    );
    let asked = model.count();
    let (status, expanded) = engine.call("POST", &format!("/v1/runs/{id}/nodes/n0/expand"), None).await;
    assert_eq!(status, 200, "{expanded}");
    assert_eq!(model.count(), asked + 1, "one proposal; the values are known");
    // The words that it is asked in can be replaced.
    assert_eq!(engine.call("PUT", "/v1/prompts/propose", Some(json!("Numbers: {input}\nSteps?"))).await.0, 200);
    engine.solve(json!({"b": 1, "steps": 1, "proposer": "model", "seed": 7})).await;
    let question: Value = serde_json::from_slice(&model.seen().last().expect("one").body).expect("JSON");
    assert!(question["messages"][0]["content"].as_str().expect("text").contains("Numbers: 1 4 4 10"), "{question}");
    let log = std::fs::read_to_string(&engine.log).expect("reads");
    assert!(!log.contains(KEY) && !run.to_string().contains(KEY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_is_asked_again_and_then_told_of() {
    if !provided() {
        return;
    }
    let model = Upstream::start().await;
    let engine = Engine::start(&model, &["--model-timeout", "1", "--model-budget", "400"]);
    let params = || json!({"b": 1, "steps": 1, "proposer": "model", "seed": 7});
    // Busy at first: what passes is tried again.
    let busy = std::sync::atomic::AtomicU32::new(0);
    model.on_request(move |seen| match busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => {
            let mut response = respond(429, "application/json", "{}");
            response.headers_mut().insert("retry-after", http::HeaderValue::from_static("0"));
            response
        }
        1 => respond(500, "text/plain", "oops"),
        _ => respond(200, "application/json", clever(seen)),
    });
    let run = engine.solve(params()).await;
    assert_eq!((run["status"].as_str(), model.count()), (Some("done"), 3), "{run}");
    for (what, status, body, says, tries) in [
        ("always busy", 503, "{}".to_owned(), "503", 3),
        ("refused", 401, "{\"error\":{\"message\":\"bad key\"}}".into(), "401", 1),
        ("no JSON", 200, "<html>".into(), "no chat completion", 1),
        ("another document", 200, "{\"object\":\"list\"}".into(), "no chat completion", 1),
        ("too long", 200, "x".repeat(2 << 20), "no chat completion", 1),
        ("no choices", 200, "{\"choices\":[]}".into(), "no choices", 1),
    ] {
        let before = model.count();
        model.on_request(move |_| respond(status, "application/json", body.clone()));
        let run = engine.solve(params()).await;
        assert_eq!(run["status"], "failed", "{what}: {run}");
        assert!(run["detail"].as_str().expect("text").contains(says), "{what}: {run}");
        assert_eq!(model.count() - before, tries, "{what}");
        let id = run["id"].as_str().expect("an id");
        let (status, expanded) = engine.call("POST", &format!("/v1/runs/{id}/nodes/n0/expand"), None).await;
        assert_eq!((status, &expanded["type"]), (502, &json!("urn:popgate:problem:model")), "{what}: {expanded}");
    }
    // It thinks of nothing, or costs too much.
    model.on_request(|_| respond(200, "application/json", completion(&["nothing comes to mind".into()], 10)));
    let run = engine.solve(params()).await;
    assert_eq!((run["status"].as_str(), run["nodes"].as_u64()), (Some("done"), Some(1)), "{run}");
    model.on_request(|seen| {
        respond(200, "application/json", clever(seen).replace("\"total_tokens\":50", "\"total_tokens\":500"))
    });
    let run = engine.solve(both()).await;
    assert!(run["status"] == "failed" && run["detail"].as_str().expect("text").contains("--model-budget"), "{run}");
    // It hangs: each try has its time.
    model.on_request(|_| crate::world::streaming("application/json").0);
    let run = engine.solve(params()).await;
    assert!(run["status"] == "failed", "{run}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_engine_can_do_is_refused_with_the_way_out() {
    if !provided() {
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let log = dir.path().join("log");
    let (process, url) = start(&["tot", "serve", "--json", "--listen", "127.0.0.1:0"], "engine", &log);
    let engine = Engine { _process: process, url, log, dir };
    for (params, says) in [
        (json!({"proposer": "model"}), "--model-url"),
        (json!({"value": "model"}), "--model-url"),
        (json!({"proposer": "oracle"}), "oracle"),
        (json!({"steps": 0}), "params.steps"),
        (json!({"steps": 4}), "params.steps"),
        (json!({"seed": "x"}), "u64"),
    ] {
        let form = json!({"task": "game_of_24", "input": [4, 4, 10, 1], "params": params});
        let (status, refused) = engine.call("POST", "/v1/runs", Some(form)).await;
        assert_eq!(status, 400, "{params}");
        assert!(refused["detail"].as_str().expect("text").contains(says), "{params}: {refused}");
    }
    let run_with = |args: &[&str]| run(&[&["tot", "serve", "--listen", "127.0.0.1:0"], args].concat());
    let key = engine.dir.path().join("key");
    std::fs::write(&key, KEY).expect("writes");
    let key: &Path = &key;
    let key = key.to_str().expect("UTF-8");
    for (args, says) in [
        (vec!["--model-url", "https://x/v1"], "--model"),
        (vec!["--model", "m"], "--model-url"),
        (vec!["--model-url", "nowhere", "--model", "m"], "--model-url"),
        (vec!["--model-url", "http://api.example/v1", "--model", "m", "--model-key-file", key], "https://"),
        (vec!["--model-url", "https://x/v1", "--model", "m", "--model-key-file", "/none"], "--model-key-file"),
    ] {
        let output = run_with(&args);
        assert!(!output.status.success() && stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains(KEY));
    }
}

/// schemathesis makes requests from the document, good and bad ones, and holds each answer against it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_says_of_the_engine_is_so() {
    let Some(python) = crate::world::provided("POPGATE_TEST_PYTHON", "the engine's OpenAPI document") else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let log = dir.path().join("log");
    let (_process, url) = start(&["tot", "serve", "--json", "--listen", "127.0.0.1:0"], "engine", &log);
    let tool = Path::new(&python).with_file_name("schemathesis");
    let output = crate::world::process::bounded(tool.to_str().expect("UTF-8"))
        .args(["run", &format!("{url}/openapi.json"), "--seed", "24", "--max-examples", "10"])
        .args(["--phases", "examples,coverage,fuzzing", "--generation-database", "none"])
        .args([
            "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        ])
        // What streams for ever has its own tests.
        .args(["--exclude-path-regex", "events"])
        .current_dir(dir.path())
        .output()
        .expect("runs");
    let said = crate::world::stdout(&output);
    assert!(output.status.success(), "{said}{}", stderr(&output));
    assert!(said.contains("Tested: 16"), "{said}");
}
