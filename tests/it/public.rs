//! Routes that anybody may call: what they list and no more, without credentials on their way, and in the log as what they are.

use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue};
use popgate::client::session::Call;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::protocols::{echo, operation, route};
use crate::world::{Answer, Client, Service, Upstream, respond, run, stderr, stdout};

const ANYBODY: &str = "access = \"danger_public\"\nmask = \"pii\"";

async fn world() -> (Upstream, Service) {
    let upstream = Upstream::start().await;
    upstream.on_request(|_| respond(200, "application/json", r#"{"to":"ada@example.org"}"#));
    let to = format!("url = \"http://{}\"", upstream.address);
    let routes = route("open", "/open", &to, ANYBODY)
        + &operation("open.read", "GET /open/**", "")
        + &operation("open.say", "POST /open/say", "body = { n = { pointer = \"/n\", type = \"long\" } }")
        + &operation("open.form", "POST /open/form", "")
        + &format!(
            "[[route]]\nname = \"get\"\nmatch = {{ path = \"/both/**\", methods = [\"GET\"] }}\nresource = \"/both\"\nupstream = {{ {to} }}\naccess = \"danger_public\"\n"
        )
        + &operation("both.get", "GET /both/**", "")
        + &route("both", "/both", &to, "")
        + &operation("x.both", "POST /both/**", "")
        + &route("shut", "/shut", &to, "")
        + &operation("x.shut", "GET /shut/**", "");
    let service = Service::start_routes(&routes, &["x.shut", "x.both"], &[]).await;
    (upstream, service)
}

/// Exactly these headers, without certificate, token or proof.
async fn plain(anybody: &Client, method: &str, url: &str, headers: &[(&'static str, &str)], body: &str) -> Answer {
    let named = headers.iter().map(|(n, v)| (n.parse().expect("a name"), HeaderValue::from_str(v).expect("a value")));
    let headers: HeaderMap = named.collect();
    let call = Call::new(method.parse().expect("a method"), url, headers.clone(), body.to_owned().into());
    Answer::read(anybody.session.raw(&call, headers, false).await.expect("answered")).await
}

async fn report(service: &Service) -> Value {
    let output = service.verify().await;
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(output.status.success(), "{report}");
    report["report"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_may_call_what_a_public_route_lists_and_no_more() {
    let (upstream, service) = world().await;
    let anybody = service.solver().await;
    let url = |path: &str| service.url("gateway", path);
    let sent = [
        ("authorization", "Bearer of-the-clients"),
        ("dpop", "not a proof"),
        ("txn-token", "forged"),
        ("x-forwarded-user", "root"),
        ("x-own", "passes"),
    ];
    let answer = anybody.raw("GET", &url("/open/x?y=1"), &sent, false).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"{"to":"[redacted:email]"}"#));
    let seen = upstream.seen().pop().expect("one");
    assert_eq!((seen.target.as_str(), seen.headers["x-own"].to_str().expect("text")), ("/open/x?y=1", "passes"));
    assert_eq!(seen.headers["popgate-request-id"], answer.header("popgate-request-id"));
    for name in ["authorization", "dpop", "txn-token", "x-forwarded-user"] {
        assert!(!seen.headers.contains_key(name), "{name} went upstream");
    }
    let json = [("content-type", "application/json")];
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let whole = |body: &'static str, headers: &[(&'static str, &'static str)], path: &str, method: &str| {
        (method.to_owned(), url(path), headers.to_vec(), body)
    };
    for ((method, url, headers, body), status, kind) in [
        (whole("", &[], "/open/x", "DELETE"), 403, "unlisted"),
        (whole("{}", &json, "/open/other", "POST"), 403, "unlisted"),
        (whole("{}", &json, "/open/say", "POST"), 400, "body"),
        (whole("{\"n\":1}", &form, "/open/say", "POST"), 415, "body"),
        (whole("access_token=x", &form, "/open/form", "POST"), 400, "credential"),
        (whole("", &[], "/open/x?access_token=x", "GET"), 400, "credential"),
        (whole("", &[], "/shut/x", "GET"), 401, "unauthorized"),
        (whole("", &[], "/open/../shut/x", "GET"), 400, "path"),
    ] {
        let answer = plain(&anybody, &method, &url, &headers, body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, kind), "{method} {url}: {}", answer.text());
    }
    assert_eq!(plain(&anybody, "POST", &url("/open/say"), &json, "{\"n\":1}").await.status, 200);
    assert_eq!(anybody.get(&url("/shut/x")).await.status, 200, "its neighbour takes proofs");
    assert_eq!(upstream.count(), 3, "no other reached upstream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_that_nobody_was_proved_and_holds_the_bytes() {
    let (_upstream, mut service) = world().await;
    let anybody = service.solver().await;
    let answer = anybody.raw("GET", &service.url("gateway", "/open/x"), &[], false).await;
    let id = answer.header("popgate-request-id").to_owned();
    assert_eq!(anybody.raw("DELETE", &service.url("gateway", "/open/x"), &[], false).await.status, 403);
    let told = report(&service).await;
    assert_eq!(
        (&told["public"], &told["links"]["token"], &told["incomplete"]),
        (&json!({"open": 1}), &json!(0), &json!(0)),
        "{told}"
    );
    let data = service.data.to_str().expect("UTF-8").to_owned();
    let shown = stdout(&run(&["audit", "show", &id, "--data-dir", &data, "--json"]));
    let events: Vec<Value> = shown.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(shown.contains(r#""event":"public_admission""#) && shown.contains(r#""event":"completion""#), "{shown}");
    assert!(!shown.contains("spiffe_id") && !events.is_empty(), "nobody is named: {shown}");
    assert_eq!(run(&["audit", "replay", &id, "--data-dir", &data, "--quiet"]).stdout, answer.body);
    let exported = stdout(&run(&["audit", "export", "--data-dir", &data, "--quiet"]));
    let of_it: Vec<&str> = exported.lines().filter(|l| l.contains(&id)).collect();
    assert!(of_it.len() == 2 && of_it.iter().all(|l| l.contains(r#""uid":"anybody""#)), "{of_it:?}");
    service.crash_and_restart();
    assert_eq!(report(&service).await["public"], json!({"open": 1}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_for_a_public_resource_and_nothing_describes_it_as_one() {
    let (_upstream, service) = world().await;
    let anybody = service.solver().await;
    let metadata = |path: &str| service.url("gateway", &format!("/.well-known/oauth-protected-resource{path}"));
    assert_eq!(anybody.raw("GET", &metadata("/shut"), &[], false).await.status, 200);
    assert_eq!(anybody.raw("GET", &metadata("/open"), &[], false).await.status, 404);
    // Nor does a challenge: what has no route is told like the broadest that demands something.
    for path in ["/open/x", "/nowhere"] {
        let refused = anybody.raw("DELETE", &service.url("gateway", path), &[], false).await;
        let challenge = refused.header("www-authenticate").to_owned();
        assert!(!challenge.contains("oauth-protected-resource/open"), "{path}: {challenge}");
    }
    let both = anybody.raw("POST", &service.url("gateway", "/both/x"), &[], false).await;
    assert!(both.header("www-authenticate").contains("oauth-protected-resource/both"), "{:?}", both.headers);
    let mut target = anybody.session.target(&service.url("gateway", "/shut/x")).await.expect("discovers");
    assert!(anybody.session.mint(&target, None).await.is_ok());
    target.resource = service.url("gateway", "/open");
    let refused = anybody.session.mint(&target, None).await.err().expect("refused");
    assert!(refused.to_string().contains("invalid_target"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_anybody_may_get_is_posted_to_with_a_proof() {
    let (upstream, service) = world().await;
    let solver = service.solver().await;
    let posted = solver.call("POST", &service.url("gateway", "/both/a/b/c/d/e/f/g/h/i/x"), &[], "").await;
    assert_eq!(posted.status, 200, "{}", posted.text());
    let seen = upstream.seen();
    assert!(seen.iter().any(|s| s.method == "POST" && s.headers.contains_key("txn-token")), "{seen:?}");
    let refused = solver.session.target(&service.url("gateway", "/open/x")).await.expect_err("nothing demands a proof");
    assert!(refused.to_string().contains("is called without popgate"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_caller_is_refused_at_load_and_a_public_route_is_warned_of() {
    let check = |route_keys: &str, more: &str, policy: &str| {
        let dir = tempfile::tempdir().expect("tempdir");
        let routes = route("open", "/open", "url = \"http://127.0.0.1:1\"", route_keys)
            + &operation("open.read", "GET /open/**", more);
        let head = "trust_domain = \"example.org\"\n[policy]\nfiles = [\"*.cedar\"]\n";
        std::fs::write(dir.path().join("a.cedar"), policy).expect("writes");
        let file = dir.path().join("popgate.toml");
        std::fs::write(&file, format!("{head}{routes}")).expect("writes");
        run(&["config", "check", "--config", file.to_str().expect("UTF-8")])
    };
    let public = "access = \"danger_public\"\n";
    let sound = check(public, "", "");
    assert!(sound.status.success(), "{}", stderr(&sound));
    assert!(stderr(&sound).contains("anybody may call open.read"), "{}", stderr(&sound));
    for (keys, more, policy, says) in [
        ("nonce_required = true", "", "", "nonce_required"),
        ("content_digest = true", "", "", "content_digest"),
        ("ends_with_token = true", "", "", "ends_with_token"),
        ("introspect = [\"spiffe://example.org/a\"]", "", "", "introspect"),
        ("", "websocket = \"judge\"", "", "websocket"),
        ("", "[[route.operation]]\nname = \"open.call\"\nmatch = \"CALL /open/**\"\nobject = \"/o\"", "", "CALL"),
        ("", "", "@id(\"x\") permit (principal, action == Action::\"open.read\", resource);", "do not fit"),
    ] {
        let refused = check(&format!("{public}{keys}"), more, policy);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{keys}{more}: {}", stderr(&refused));
    }
    assert!(check("access = \"public\"", "", "").status.code().is_some_and(|c| c != 0), "only by its dangerous name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_public_route_opens_the_sockets_that_it_lists() {
    let to = format!("url = \"http://{}\"", echo().await);
    let routes = route("open", "/open", &to, "access = \"danger_public\"")
        + &operation("open.talk", "GET /open/talk", "websocket = \"pass\"")
        + &operation("open.read", "GET /open/**", "")
        + &route("shut", "/shut", &to, "")
        + &operation("x.shut", "GET /shut/**", "");
    let service = Service::start_routes(&routes, &["x.shut"], &[]).await;
    let anybody = service.solver().await;
    let url = |path: &str| service.url("gateway", path).replace("https://", "wss://");
    let connection = service.raw(&anybody, b"http/1.1").await;
    let (mut socket, _) = tokio_tungstenite::client_async(url("/open/talk"), connection).await.expect("opens");
    socket.send(Message::text("hello")).await.expect("sends");
    assert_eq!(socket.next().await.expect("an answer").expect("a message"), Message::text("hello"));
    socket.close(None).await.expect("closes");
    while socket.next().await.is_some_and(|m| m.is_ok()) {}
    let connection = service.raw(&anybody, b"http/1.1").await;
    let refused = tokio_tungstenite::client_async(url("/open/other"), connection).await.expect_err("refused");
    assert!(matches!(&refused, WsError::Http(answer) if answer.status() == 403), "{refused}");
    let told = report(&service).await;
    assert_eq!((&told["public"], &told["links"]["bytes"]), (&json!({"open": 1}), &json!(1)), "{told}");
}
