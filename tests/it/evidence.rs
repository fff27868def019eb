//! The log and the recordings: durable, provable, and without a credential anywhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use popgate::domain::recording::FrameKind;
use popgate::evidence::files::EvidenceDir;
use popgate::evidence::replay;
use popgate::protocol::transcript::{Mark, RecordingId, encode};
use serde_json::Value;

use crate::world::{ENGINE_KEY, Service, respond, run, stderr, stdout};

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn holds(dir: &Path, needle: &str) -> Vec<PathBuf> {
    files(dir)
        .into_iter()
        .filter(|f| memchr::memmem::find(&std::fs::read(f).unwrap_or_default(), needle.as_bytes()).is_some())
        .collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for entry in std::fs::read_dir(from).expect("readable") {
        let path = entry.expect("readable").path();
        let target = to.join(path.file_name().expect("named"));
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, target).map(drop).expect("copies") }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_byte_under_the_data_directory_is_a_credential() {
    let service = Service::start().await;
    let token = service.join_token(crate::world::SOLVER).await;
    let solver = service.solver().await;
    service.upstream.on_request(|seen| {
        respond(200, "application/json", format!("{{\"sent\":{:?}}}", String::from_utf8_lossy(&seen.body)))
    });
    for path in ["/v1/runs", "/raw/x"] {
        let answer = solver
            .call(
                "POST",
                &service.url("gateway", path),
                &[("x-note", "planted-control-marker"), ("cookie", "session=cookie-secret")],
                r#"{"a":"body"}"#,
            )
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    service.admin(Method::POST, "/v1/evidence/publish", None).await.expect("publishes");
    assert!(!holds(&service.data, "planted-control-marker").is_empty(), "the scan finds what is there");
    for url in ["/v1/runs", "/raw/x"] {
        let access = solver.token(&service.url("gateway", url)).await;
        assert_eq!(holds(service.base(), access.expose()), Vec::<PathBuf>::new(), "an access token");
    }
    let (secret, _) = token.expose()[5..].split_once('.').map(|(s, p)| (s.to_owned(), p.to_owned())).expect("a token");
    for (what, needle) in
        [("a join token", secret.as_str()), ("a cookie", "cookie-secret"), ("the injected key", ENGINE_KEY)]
    {
        let found = holds(&service.data, needle);
        assert_eq!(found, Vec::<PathBuf>::new(), "{what}");
    }
    let log = std::fs::read_to_string(service.base().join("serve.log")).expect("log");
    for needle in [ENGINE_KEY, secret.as_str(), "eyJ"] {
        assert!(!log.contains(needle), "the log holds {needle}");
    }
    // Private keys lie in key files alone, readable by their owner alone.
    for file in holds(&service.data, "PRIVATE KEY") {
        use std::os::unix::fs::PermissionsExt as _;
        assert!(file.extension().is_some_and(|e| e == "key"), "{}", file.display());
        assert_eq!(std::fs::metadata(&file).expect("there").permissions().mode() & 0o077, 0, "{}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_the_log_recovers_whole_and_verifies() {
    let mut service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    for round in 0..4 {
        let load: Vec<_> = (0..6)
            .map(|_| {
                let (solver, url) = (solver.clone(), url.clone());
                tokio::spawn(async move {
                    let mut acknowledged = Vec::new();
                    for _ in 0..30 {
                        let call = popgate::client::session::Call::new(
                            Method::GET,
                            &url,
                            http::HeaderMap::new(),
                            bytes::Bytes::new(),
                        );
                        let Ok(response) = solver.session.call(&call).await else { break };
                        if response.status() == 200 {
                            acknowledged
                                .push(response.headers()["popgate-request-id"].to_str().expect("text").to_owned());
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        let before = service.upstream.count();
        while service.upstream.count() < before + 20 * (round + 1) {
            tokio::task::yield_now().await;
        }
        service.crash_and_restart();
        let mut acknowledged = Vec::new();
        for task in load {
            acknowledged.extend(task.await.expect("runs"));
        }
        let verified = service.verify().await;
        assert!(verified.status.success(), "round {round}: {}", stderr(&verified));
        let exported = run(&["audit", "export", "--data-dir", service.data.to_str().expect("UTF-8"), "--quiet"]);
        let text = stdout(&exported);
        let missing: Vec<&String> = acknowledged.iter().filter(|id| !text.contains(id.as_str())).collect();
        assert!(
            !acknowledged.is_empty() && missing.is_empty(),
            "round {round}: an answered request has no entry: {missing:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_tampering_is_found_by_name() {
    let service = Service::start().await;
    let solver = service.solver().await;
    for n in 0..3 {
        assert_eq!(solver.get(&service.url("gateway", &format!("/v1/runs/r{n}"))).await.status, 200);
    }
    assert!(service.verify().await.status.success());
    let evidence = service.data.join("evidence");
    let kept = service.base().join("kept");
    std::fs::copy(evidence.join("checkpoint"), &kept).expect("copies");
    type Tamper = Box<dyn Fn(&Path)>;
    let flip = |part: &'static str| -> Tamper {
        Box::new(move |dir| {
            // All of them: the partial tile of the checkpoint before may lie there still, and proves nothing.
            for file in files(dir).into_iter().filter(|f| f.to_string_lossy().contains(part)) {
                let mut bytes = std::fs::read(&file).expect("reads");
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                std::fs::write(file, bytes).expect("writes");
            }
        })
    };
    let cases: Vec<(&str, Tamper, &str)> = vec![
        ("an entry", flip("tile/entries"), "was changed"),
        ("a tile", flip("tile/0"), "was changed"),
        (
            "the checkpoint's root",
            Box::new(|dir| {
                edit(&dir.join("checkpoint"), |t| {
                    let mut l: Vec<String> = t.lines().map(ToOwned::to_owned).collect();
                    let other = if &l[2][3..4] == "A" { "B" } else { "A" };
                    l[2] = format!("{}{other}{}", &l[2][..3], &l[2][4..]);
                    l.join("\n") + "\n"
                })
            }),
            "checkpoint",
        ),
        (
            "the checkpoint's signature",
            Box::new(|dir| {
                edit(&dir.join("checkpoint"), |t| {
                    let t = t.trim_end();
                    format!("{}AAA=\n", &t[..t.len() - 4])
                })
            }),
            "checkpoint",
        ),
        (
            "another log's key",
            Box::new(|dir| edit(&dir.join("log.vkey"), |t| t.replace("example.org", "example.com"))),
            "checkpoint",
        ),
        (
            "an opening's value",
            Box::new(|dir| edit(&find(dir, "openings/"), |t| t.replacen("/v1/runs/r1", "/v1/runs/r9", 1))),
            "opening",
        ),
        ("a recording", flip("recordings/"), "recording"),
        (
            "a recording removed",
            Box::new(|dir| std::fs::remove_file(find(dir, "recordings/")).expect("removes")),
            "missing",
        ),
        (
            "the entries removed",
            Box::new(|dir| std::fs::remove_dir_all(dir.join("tile/entries")).expect("removes")),
            "cannot read",
        ),
    ];
    for (name, tamper, says) in cases {
        let dir = tempfile::tempdir().expect("tempdir");
        copy(&evidence, dir.path());
        tamper(dir.path());
        let output = run(&[
            "audit",
            "verify",
            dir.path().to_str().expect("UTF-8"),
            "--checkpoint",
            kept.to_str().expect("UTF-8"),
        ]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(stderr(&output).contains(says), "{name}: {}", stderr(&output));
    }
}

fn find(dir: &Path, part: &str) -> PathBuf {
    files(dir).into_iter().find(|f| f.to_string_lossy().contains(part)).expect(part)
}

fn edit(file: &Path, change: impl Fn(String) -> String) {
    let text = std::fs::read_to_string(file).expect("reads");
    let changed = change(text.clone());
    assert_ne!(changed, text, "the edit does something");
    std::fs::write(file, changed).expect("writes");
}

/// The published log is what other people's verifiers take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_libraries_verify_the_checkpoint_and_the_tree() {
    use signed_note::{Note, StandardVerifier, VerifierList};
    let service = Service::start().await;
    let solver = service.solver().await;
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200);
    service.admin(Method::POST, "/v1/evidence/publish", None).await.expect("publishes");
    let evidence = service.data.join("evidence");
    let note = std::fs::read(evidence.join("checkpoint")).expect("reads");
    let vkey = std::fs::read_to_string(evidence.join("log.vkey")).expect("reads");
    let verifier = StandardVerifier::new(vkey.trim()).expect("a note verifier");
    let note = Note::from_bytes(&note).expect("a note");
    let (verified, _) = note.verify(&VerifierList::new(vec![Box::new(verifier)])).expect("verifies");
    assert_eq!(verified.len(), 1);
    let text = String::from_utf8(note.text().to_vec()).expect("UTF-8");
    let lines: Vec<&str> = text.lines().collect();
    let size: u64 = lines[1].parse().expect("a size");
    let bundle = std::fs::read(evidence.join(format!("tile/entries/000.p/{size}"))).expect("reads");
    let mut hashes = Vec::new();
    let mut rest = &bundle[..];
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let (entry, tail) = tail.split_at(usize::from(u16::from_be_bytes(*length)));
        hashes.push(tlog_tiles::record_hash(entry));
        rest = tail;
    }
    assert_eq!(hashes.len() as u64, size);
    let root = fold(&hashes);
    use base64::Engine as _;
    assert_eq!(base64::prelude::BASE64_STANDARD.encode(root.0), lines[2]);
}

/// RFC 6962 §2.1 with another library's node hash.
fn fold(hashes: &[tlog_tiles::Hash]) -> tlog_tiles::Hash {
    match hashes {
        [one] => *one,
        many => {
            let split = 1 << (usize::BITS - 1 - (many.len() - 1).leading_zeros());
            tlog_tiles::node_hash(fold(&many[..split]), fold(&many[split..]))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn export_names_each_actor_and_show_and_replay_find_a_request() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let answer = solver.get(&service.url("gateway", "/v1/runs/r1")).await;
    let refused = solver.raw("GET", &service.url("gateway", "/v1/runs/r1"), &[], false).await;
    assert_eq!((answer.status, refused.status), (200, 401));
    let id = answer.header("popgate-request-id").to_owned();
    let stop = serde_json::json!({"kind": "jti", "value": "none", "reason": "test"});
    service.person("root").await.call(Method::POST, "/v1/revocations", Some(&stop)).await.expect("revokes");
    service.admin(Method::POST, "/v1/evidence/publish", None).await.expect("publishes");
    let data = service.data.to_str().expect("UTF-8");
    let exported = stdout(&run(&["audit", "export", "--data-dir", data, "--quiet"]));
    let mut classes = BTreeSet::new();
    for line in exported.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(
            line["actor"]["user"]["uid"].as_str().is_some_and(|u| u.starts_with("spiffe://example.org/")),
            "{line}"
        );
        let (class, activity) =
            (line["class_uid"].as_u64().expect("class"), line["activity_id"].as_u64().expect("activity"));
        assert_eq!(line["type_uid"], class * 100 + activity);
        assert!(line["unmapped"]["popgate"]["index"].is_u64());
        classes.insert(class);
    }
    assert_eq!(classes, BTreeSet::from([3002, 4002, 6003]));
    let by_service = exported
        .lines()
        .any(|l| l.contains("refused before proof") && l.contains("spiffe://example.org/popgate/gateway"));
    assert!(by_service, "an unproved request is the gateway's act");
    let by = |what: &str, who: &str| exported.lines().any(|l| l.contains(what) && l.contains(who));
    assert!(
        by("create join token", &format!("/popgate/local/{}", nix::unistd::Uid::effective())),
        "a local user's act"
    );
    assert!(
        by("\"activity_name\":\"revoke\"", "\"uid\":\"spiffe://example.org/popgate/person/root\""),
        "a person's act"
    );
    let shown = stdout(&run(&["audit", "show", &id, "--data-dir", data, "--json"]));
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["exchange"]["response_body"], answer.text());
    assert_eq!(run(&["audit", "replay", &id, "--data-dir", data, "--quiet"]).stdout, answer.body);
    let unknown = run(&["audit", "replay", &"0".repeat(32), "--data-dir", data]);
    assert_eq!(unknown.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_that_a_crash_cut_is_closed_at_the_next_start_with_what_was_recorded() {
    let mut service = Service::start().await;
    let solver = service.solver().await;
    let (sender, receiver) = std::sync::mpsc::channel();
    service.upstream.on_request(move |_| {
        let (response, pieces) = crate::world::streaming("text/event-stream");
        sender.send(pieces).expect("sends");
        response
    });
    let answer = solver.open("GET", &service.url("gateway", "/v1/runs/r1/events"), &[], "").await;
    let id = answer.headers()["popgate-request-id"].to_str().expect("an id").to_owned();
    let pieces = receiver.recv().expect("opened");
    pieces.send(Bytes::from_static(b"data: first\n\n")).expect("sends");
    let mut body = answer.into_body();
    let first = body.frame().await.expect("a frame").expect("whole").into_data().expect("data");
    assert_eq!(first, "data: first\n\n");
    service.crash_and_restart();
    let report = service.verify().await;
    assert!(report.status.success(), "{}", stdout(&report));
    let report: Value = serde_json::from_str(&stdout(&report)).expect("JSON");
    let report = &report["report"];
    assert_eq!((report["incomplete"].as_u64(), report["links"]["bytes"].as_u64()), (Some(1), Some(1)), "{report}");
    let shown = stdout(&run(&["audit", "show", &id, "--data-dir", service.data.to_str().expect("UTF-8"), "--json"]));
    assert!(shown.contains(r#""ended":"crash""#), "{shown}");
    // Once more: an end is written once.
    service.crash_and_restart();
    assert!(service.verify().await.status.success());
    let frames = replay::read(&EvidenceDir::of_data_dir(&service.data), &id).expect("reads").frames;
    let place = u32::try_from(frames.len()).expect("few");
    let own = RecordingId::parse(&id).expect("an id");
    let path = find(&service.data, "recordings/");
    let mut segment = std::fs::OpenOptions::new().append(true).open(&path).expect("opens");
    let there = std::fs::read(&path).expect("reads");
    let mark = Mark(there[21..33].try_into().expect("twelve bytes"));
    let more = encode(mark, own, place, FrameKind::ResponseBody, 1, b"data: never sent\n\n");
    std::io::Write::write_all(&mut segment, &more).expect("writes");
    let found = service.verify().await;
    assert!(!found.status.success(), "what is added to a closed recording is found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_does_not_record_leaves_that_in_the_log() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let answer = solver.get(&service.url("gateway", "/off/x")).await;
    let recorded = solver.get(&service.url("gateway", "/v1/runs/r1")).await;
    assert_eq!((answer.status, recorded.status), (200, 200));
    let report = service.verify().await;
    assert!(report.status.success(), "{}", stdout(&report));
    let data = service.data.to_str().expect("UTF-8");
    let entries = |id: &str| stdout(&run(&["audit", "show", id, "--data-dir", data, "--json"]));
    let id = answer.header("popgate-request-id");
    assert!(entries(id).contains(r#""recorded":false"#), "{}", entries(id));
    assert!(replay::read(&EvidenceDir::of_data_dir(&service.data), id).is_err(), "nothing of it is recorded");
    assert!(entries(recorded.header("popgate-request-id")).contains(r#""recorded":true"#));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_key_and_checkpoint_anchor_the_log() {
    let (one, two) = (Service::start().await, Service::start().await);
    for service in [&one, &two] {
        assert!(service.verify().await.status.success());
    }
    let file =
        |service: &Service, name: &str| service.data.join("evidence").join(name).to_str().expect("UTF-8").to_owned();
    let data = one.data.to_str().expect("UTF-8");
    let plain = stdout(&run(&["audit", "verify", data]));
    assert!(plain.contains("log key: unanchored") && plain.contains("tail: unproven"), "{plain}");
    let kept = one.base().join("kept");
    std::fs::copy(file(&one, "checkpoint"), &kept).expect("copies");
    let kept = kept.to_str().expect("UTF-8");
    let anchored = run(&["audit", "verify", data, "--key", &file(&one, "log.vkey"), "--checkpoint", kept]);
    let text = stdout(&anchored);
    assert!(anchored.status.success() && !text.contains("unanchored") && !text.contains("unproven"), "{text}");
    let anothers = run(&["audit", "verify", data, "--key", &file(&two, "log.vkey")]);
    assert_eq!(anothers.status.code(), Some(1), "another log's key");
    let of_another = run(&["audit", "verify", data, "--checkpoint", &file(&two, "checkpoint")]);
    assert_eq!(of_another.status.code(), Some(1), "another log's checkpoint");
}
