//! Bodies with one reading: what policy judged is what upstream gets, and no token hides in one.

use http::Method;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::{Service, respond};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_policy_reads_is_json_in_utf8_and_has_one_reading() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1/nodes/n1/prune");
    let kind = |value: &'static str| [("content-type", value)];
    for (what, headers, body, status) in [
        ("a form", kind("application/x-www-form-urlencoded").to_vec(), "if_version=3", 415),
        ("text", kind("text/plain").to_vec(), r#"{"if_version":3}"#, 415),
        ("UTF-16", kind("application/json; charset=utf-16").to_vec(), r#"{"if_version":3}"#, 415),
        ("gzip", vec![("content-type", "application/json"), ("content-encoding", "gzip")], r#"{"if_version":3}"#, 415),
        ("two types", [kind("application/json"), kind("text/plain")].concat(), r#"{"if_version":3}"#, 400),
        ("an array", kind("application/json").to_vec(), r#"[{"if_version":3}]"#, 400),
        ("another case", kind("application/json").to_vec(), r#"{"if_version":3,"IF_VERSION":0}"#, 400),
        ("twice", kind("application/json").to_vec(), r#"{"if_version":3,"if_version":0}"#, 400),
        ("trailing data", kind("application/json").to_vec(), r#"{"if_version":3}{"if_version":0}"#, 400),
    ] {
        let answer = solver.call("POST", &url, &headers, body).await;
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
    }
    let named = solver.call("POST", &url, &kind("application/json; charset=UTF-8"), r#"{"if_version":3}"#).await;
    assert_eq!(named.problem(), "approval-required", "what is sound goes on");
    assert_eq!(service.upstream.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_a_token_in_a_form_is_refused_and_other_forms_pass_unchanged() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/raw/form");
    let kind = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
    for body in ["access_token=abc", "a=1&access_token=abc", "a=1&%61ccess_token=abc", "ACCESS_TOKEN=x"] {
        let answer = solver.call("POST", &url, &kind, body).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (400, Some("invalid_request")), "{body}");
    }
    assert_eq!(service.upstream.count(), 0);
    let body = "a=access_token&b=%zz&access=1";
    assert_eq!(solver.call("POST", &url, &kind, body).await.status, 200);
    assert_eq!(service.upstream.seen()[0].body, body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_injected_credential_is_found_in_json_however_it_is_spelt() {
    let service = Service::start().await;
    let solver = service.solver().await;
    service.upstream.on_request(|seen| {
        let key = seen.headers["x-api-key"].to_str().expect("text").trim_start_matches("Key ").to_owned();
        let spelt: String = key.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
        respond(200, "application/json", format!(r#"{{"echo":"{spelt}"}}"#))
    });
    let answer = solver.get(&service.url("gateway", "/raw/x")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.json()["echo"].as_str().expect("text").contains(crate::world::ENGINE_KEY), "{}", answer.text());
}

/// What upstream reads of a request whose client sends half a body over HTTP/2 and resets the stream.
async fn half_a_body(service: &Service, reason: h2::Reason, upstream: tokio::net::TcpListener) -> String {
    let solver = service.solver().await;
    let url = service.url("gateway", "/half/a");
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    let token = solver.token(&url).await;
    let stream = service.raw(&solver, b"h2").await;
    let (mut send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let proof = solver.session.prove("POST", &url, Some(&token));
    let request = http::Request::post(&url).header("dpop", proof);
    let request = request.header("authorization", format!("DPoP {}", token.expose()));
    let (_answer, mut body) = send.send_request(request.body(()).expect("a request"), false).expect("sends");
    body.send_data("half".into(), false).expect("sends");
    let mut stream = upstream.accept().await.expect("accepts").0;
    let mut read = Vec::new();
    while !read.ends_with(b"half\r\n") {
        assert!(stream.read_buf(&mut read).await.expect("reads") > 0, "{}", String::from_utf8_lossy(&read));
    }
    body.send_reset(reason);
    // The connection ends with what is broken.
    let _ = stream.read_to_end(&mut read).await;
    String::from_utf8(read).expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_resets_never_looks_whole_to_upstream() {
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR] {
        let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = upstream.local_addr().expect("bound");
        let routes = crate::protocols::route("half", "/half", &format!("url = \"http://{address}\""), "")
            + &crate::protocols::operation("x.half", "POST /half/**", "");
        let service = Service::start_routes(&routes, &["x.half"], &[]).await;
        let read = half_a_body(&service, reason, upstream).await;
        assert!(read.contains("transfer-encoding: chunked") && read.ends_with("half\r\n"), "{reason}: {read}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn administration_answers_no_page_of_another_site() {
    let service = Service::start().await;
    let send = async |headers: &[(&str, &str)]| {
        let stream = tokio::net::UnixStream::connect(service.data.join("admin.sock")).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(Method::POST).uri("/v1/evidence/publish");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(bytes::Bytes::new())).expect("builds");
        let response = sender.send_request(request).await.expect("answers");
        let status = response.status().as_u16();
        response.into_body().collect().await.expect("reads");
        status
    };
    assert_eq!(send(&[("host", "localhost")]).await, 200);
    assert_eq!(send(&[("host", "localhost"), ("origin", "https://localhost")]).await, 200);
    for headers in [
        [("host", "localhost"), ("origin", "https://evil.example")],
        [("host", "localhost"), ("origin", "null")],
        [("host", "localhost"), ("sec-fetch-site", "cross-site")],
        [("host", "localhost"), ("sec-fetch-site", "same-site")],
    ] {
        assert_eq!(send(&headers).await, 403, "{headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_arrives_though_the_client_still_sends() {
    // curl is there where the other clients are.
    if crate::world::provided("POPGATE_TEST_NODE_MODULES", "refusals as curl reads them").is_none() {
        return;
    }
    let service = Service::start().await;
    let body = service.base().join("body");
    std::fs::write(&body, vec![b'x'; 200_000]).expect("writes");
    let url = service.url("gateway", "/raw/x");
    for protocol in ["--http2", "--http1.1"] {
        for n in 0..6 {
            let mut curl = tokio::process::Command::new("curl");
            curl.args([
                "-sk",
                protocol,
                "-H",
                "content-type: application/octet-stream",
                "-H",
                "expect:",
                "-o",
                "/dev/null",
            ]);
            curl.args(["-w", "%{http_code} %{errormsg}", "--data-binary"])
                .arg(format!("@{}", body.display()))
                .arg(&url);
            let output = curl.output().await.expect("curl runs");
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "401", "{protocol}, call {n}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_before_sending_too_much_is_refused_at_once() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let path = "/v1/runs/r1/nodes/n1/prune";
    let url = service.url("gateway", path);
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    let token = solver.token(&url).await;
    let mut stream = service.raw(&solver, b"http/1.1").await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {}\r\nauthorization: DPoP {}\r\ndpop: {}\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 3000000\r\n\r\n",
        service.addresses["gateway"].trim_start_matches("https://"),
        token.expose(),
        solver.session.prove("POST", &url, Some(&token))
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.expect("reads");
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 413");
}
