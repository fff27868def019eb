//! A bad day of an operator: each mistake has its own message, its exit code, and what to do next.

use http::Method;

use crate::world::{SOLVER, Service, run, stderr, stdout};

#[test]
fn wrong_flags_and_commands_exit_2_and_name_the_nearest_right_one() {
    for (args, says) in [
        (vec!["serv"], "serve"),
        (vec!["serve", "--confg", "x"], "--config"),
        (vec!["join-token", "create", "--spifee-id", "x"], "--spiffe-id"),
        (vec!["tot", "solve", "1", "2", "3"], "NUMBERS"),
        (vec!["tot", "solve", "1", "2", "3", "99"], "99"),
        (vec!["demo", "--postgres-url-file", "x"], "not offered yet"),
        (vec!["call", "https://127.0.0.1:1/x"], "--join-token-file"),
        (vec!["call", "-H", "Authorization: x", "--identity", "none", "https://127.0.0.1:1/x"], "leave it out"),
        (vec!["approval", "list", "--server", "https://127.0.0.1:1"], "--identity"),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "demo",
        "serve",
        "config",
        "health",
        "status",
        "join-token",
        "entry",
        "person",
        "login",
        "svid",
        "call",
        "token",
        "proof",
        "approval",
        "revoke",
        "revocation",
        "offboard",
        "audit",
        "tot",
    ] {
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("Example: popgate"), "{command}");
    }
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_missing_service_configuration_or_file_is_told_with_the_next_step() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("bad.toml"), "[gateway]\nlisen = \"x\"\n").expect("writes");
    std::fs::write(path("token"), "not a token\n").expect("writes");
    for (args, says) in [
        (vec!["status".to_owned(), "--data-dir".into(), path("none")], "is `popgate serve` running"),
        (vec!["serve".into(), "--config".into(), path("none.toml")], "cannot read"),
        (vec!["config".into(), "check".into(), "--config".into(), path("bad.toml")], "did you mean `listen`?"),
        (
            vec!["svid".into(), "fetch".into(), "--join-token-file".into(), path("token"), "--out".into(), path("out")],
            "pgj1.<secret>.<pin>",
        ),
        (
            vec![
                "svid".into(),
                "fetch".into(),
                "--join-token-file".into(),
                path("absent"),
                "--out".into(),
                path("out"),
            ],
            "cannot read",
        ),
        (vec!["audit".into(), "verify".into(), path("none")], "cannot read"),
        (
            vec!["audit".into(), "tail".into(), "--data-dir".into(), path("none")],
            "is --data-dir the service's data directory?",
        ),
    ] {
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_ports_and_data_directories_name_who_has_them() {
    let service = Service::start().await;
    let config = service.base().join("popgate.toml");
    let second = run(&["serve", "--config", config.to_str().expect("UTF-8")]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(&format!("pid {}", service.pid())), "{}", stderr(&second));
    let port = service.addresses["gateway"].rsplit(':').next().expect("a port").to_owned();
    let elsewhere = service.base().join("other.toml");
    let text = std::fs::read_to_string(&config)
        .expect("reads")
        .replace("data_dir = \"data\"", "data_dir = \"data2\"")
        .replace("[gateway]\nlisten = \"127.0.0.1:0\"", &format!("[gateway]\nlisten = \"127.0.0.1:{port}\""));
    std::fs::write(&elsewhere, text).expect("writes");
    let busy = run(&["serve", "--config", elsewhere.to_str().expect("UTF-8")]);
    assert_eq!(busy.status.code(), Some(1));
    let told = stderr(&busy);
    assert!(told.contains(&format!("127.0.0.1:{port}")) && told.contains("gateway.listen"), "{told}");
    let long = service.base().join("long.toml");
    let text = std::fs::read_to_string(&config)
        .expect("reads")
        .replace("data_dir = \"data\"", &format!("data_dir = \"{}\"", "d".repeat(120)));
    std::fs::write(&long, text).expect("writes");
    let told = stderr(&run(&["serve", "--config", long.to_str().expect("UTF-8")]));
    assert!(told.contains("107") && told.contains("data_dir"), "{told}");
    std::fs::write(service.base().join("file"), "").expect("writes");
    let text =
        std::fs::read_to_string(&config).expect("reads").replace("data_dir = \"data\"", "data_dir = \"file/data\"");
    std::fs::write(&long, text).expect("writes");
    let told = stderr(&run(&["serve", "--config", long.to_str().expect("UTF-8")]));
    assert!(told.contains("must be writable"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_three_terminals_of_the_readme_work() {
    let service = Service::start().await;
    let data = service.data.to_str().expect("UTF-8");
    let path = |name: &str| service.base().join(name).display().to_string();
    let token = run(&["join-token", "create", "--spiffe-id", SOLVER, "--data-dir", data]);
    assert!(token.status.success() && stdout(&token).starts_with("pgj1."), "{}", stderr(&token));
    std::fs::write(path("token"), &token.stdout).expect("writes");
    let server = &service.addresses["identity"];
    let fetched =
        run(&["svid", "fetch", "--join-token-file", &path("token"), "--out", &path("solver"), "--server", server]);
    assert!(fetched.status.success(), "{}", stderr(&fetched));
    let again =
        run(&["svid", "fetch", "--join-token-file", &path("token"), "--out", &path("solver2"), "--server", server]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("unknown, spent or expired"), "{}", stderr(&again));
    let url = service.url("gateway", "/v1/runs/r1");
    let called = run(&["call", "--identity", &path("solver"), "-i", &url]);
    assert!(
        called.status.success()
            && stdout(&called).contains("popgate-request-id")
            && stdout(&called).ends_with(r#"{"ok":true}"#),
        "{} {}",
        stdout(&called),
        stderr(&called)
    );
    let failing = run(&["call", "--identity", &path("solver"), "--fail", "-X", "DELETE", &url]);
    assert_eq!(failing.status.code(), Some(1));
    assert!(stdout(&failing).contains("runs-stay"));
    let person = run(&[
        "person",
        "create",
        "https://idp.example.org#dora",
        "--name",
        "dora",
        "--group",
        "security",
        "--role",
        "approver",
        "--data-dir",
        data,
    ]);
    std::fs::write(path("dora.token"), &person.stdout).expect("writes");
    let login = run(&["login", "--join-token-file", &path("dora.token"), "--out", &path("dora"), "--server", server]);
    assert!(login.status.success(), "{}", stderr(&login));
    let list = run(&["approval", "list", "--identity", &path("dora"), "--json"]);
    assert!(list.status.success(), "{}", stderr(&list));
    assert_eq!(stdout(&list).trim(), "[]");
    let revoked = run(&["revoke", "spiffe-id", SOLVER, "--reason", "test", "--data-dir", data, "--json"]);
    assert!(stdout(&revoked).contains("\"receipt\""), "{}", stderr(&revoked));
    let cut_off = run(&["call", "--identity", &path("solver"), &url]);
    assert_eq!(cut_off.status.code(), Some(1));
    assert!(stderr(&cut_off).contains("revoked"), "{}", stderr(&cut_off));
    let status = run(&["status", "--data-dir", data]);
    assert!(stdout(&status).contains("bundle_sequence"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_for_the_owner_alone_and_persons_have_only_their_roles() {
    use std::os::unix::fs::PermissionsExt as _;
    let service = Service::start().await;
    let mode = |name: &str| std::fs::metadata(service.data.join(name)).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("admin.sock")), (0o700, 0o600));
    assert_eq!((mode("ledger.db"), mode("evidence/stage-1.log"), mode("ca.pem")), (0o600, 0o600, 0o644));
    let (alice, root) = (service.person("alice").await, service.person("root").await);
    let stop = serde_json::json!({"kind": "spiffe-id", "value": SOLVER, "reason": "x"});
    let refused =
        alice.call(Method::POST, "/v1/revocations", Some(&stop)).await.expect_err("an approver does not administer");
    assert_eq!(refused.status(), Some(403));
    root.call(Method::POST, "/v1/revocations", Some(&stop)).await.expect("an admin does");
    service.admin(Method::DELETE, "/v1/people?id=https%3A%2F%2Fidp.example.org%23root", None).await.expect("deletes");
    let gone = root.call(Method::GET, "/v1/status", None).await.expect_err("a person who is gone");
    assert_eq!(gone.status(), Some(401));
}

/// Debian's faketime runs the client an hour ahead; where it is not installed `./test` installs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_an_hour_off_is_named_with_the_way_out() {
    let Some(_) = crate::world::provided("POPGATE_TEST_FAKETIME", "clients whose clock is off") else { return };
    let service = Service::start().await;
    let identity = service.enrol(SOLVER).await;
    let dir = service.base().join("solver");
    identity.save(&dir).expect("saves");
    let url = service.url("gateway", "/v1/runs/r1");
    let run_at = |offset: &str| {
        let binary = env!("CARGO_BIN_EXE_popgate");
        std::process::Command::new("faketime")
            .args(["-f", offset, binary, "call", "--identity"])
            .arg(&dir)
            .arg(&url)
            .output()
            .expect("faketime runs")
    };
    let (ahead, behind) = (run_at("+20m"), run_at("-1h"));
    assert_eq!(ahead.status.code(), Some(1), "{}", stdout(&ahead));
    assert!(stderr(&ahead).contains("clock is") && stderr(&ahead).contains("ahead of"), "{}", stderr(&ahead));
    assert_eq!(behind.status.code(), Some(1));
    assert!(stderr(&behind).contains("clock"), "{}", stderr(&behind));
}

#[test]
fn the_shipped_schema_is_the_one_that_the_shipped_routes_make() {
    let made = run(&["config", "schema", "--config", "config/popgate.toml"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let shipped = std::fs::read_to_string("config/schema.cedarschema").expect("reads");
    assert_eq!(stdout(&made), shipped, "`popgate config schema > config/schema.cedarschema` makes it anew");
    let checked = run(&["config", "check", "--config", "config/popgate.toml"]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
}

#[test]
fn what_would_let_nothing_pass_is_no_configuration() {
    let check = |route: &str, operation: &str| {
        let dir = tempfile::tempdir().expect("tempdir");
        let head = "trust_domain = \"example.org\"\n[policy]\nfiles = [\"*.cedar\"]\n";
        let routes = crate::protocols::route("a", "/a", route, "") + operation;
        std::fs::write(dir.path().join("a.cedar"), "").expect("writes");
        let file = dir.path().join("popgate.toml");
        std::fs::write(&file, format!("{head}{routes}")).expect("writes");
        run(&["config", "check", "--config", file.to_str().expect("UTF-8")])
    };
    let operation = |matcher: &str| crate::protocols::operation("x.a", matcher, "");
    let to = "url = \"http://127.0.0.1:1\"";
    let sound = check(to, &operation("GET /a/**"));
    assert!(sound.status.success(), "{}", stderr(&sound));
    for (upstream, operations, says) in [
        ("", String::new(), "no [[route.operation]]"),
        ("", operation("* /a/**"), "is no method"),
        ("", operation("get /a/**"), "is no method"),
        (", max_requests = 0", operation("GET /a/**"), "max_requests is at least 1"),
        (", idle_timeout = \"0s\"", operation("GET /a/**"), "no timeout is 0"),
        (", eject = { at_most = 200 }", operation("GET /a/**"), "at most 100"),
    ] {
        let refused = check(&format!("{to}{upstream}"), &operations);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{upstream}: {}", stderr(&refused));
    }
}
