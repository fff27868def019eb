//! Interim answers (RFC 9110 section 15.2): what upstream says before its answer reaches the client, whichever versions of
//! HTTP they speak.

use std::future::poll_fn;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::protocols::{operation, route};
use crate::proxied::signing_proxy;
use crate::world::{Client, Service, run, stdout};

/// An upstream that hints and then answers when it is told to.
async fn hinting() -> (String, mpsc::UnboundedSender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let (go, mut told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read_buf(&mut request).await.expect("reads") > 0 {}
            let hints = "HTTP/1.1 100 Continue\r\n\r\n\
                 HTTP/1.1 102 Processing\r\n\r\n\
                 HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nx-by: ann@example.org\r\n\
                 popgate-request-id: forged\r\nconnection: x-hop\r\nx-hop: 1\r\nserver: engine/1\r\nx-key: s3cret-of-upstream\r\n\
                 set-cookie: s=1\r\n\r\n";
            stream.write_all(hints.as_bytes()).await.expect("writes");
            told.recv().await;
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.expect("writes");
        }
    });
    (address, go)
}

/// The same over one connection of HTTP/2, in the clear with prior knowledge.
async fn hinting_over_http2() -> (String, mpsc::UnboundedSender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let (go, mut told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        let mut waiting = None::<h2::server::SendResponse<Bytes>>;
        loop {
            tokio::select! {
                asked = connection.accept() => {
                    let Some(Ok((_, mut respond))) = asked else { return };
                    let processing = Response::builder().status(102).body(()).expect("a head");
                    respond.send_informational(processing).expect("sends");
                    let hints = Response::builder().status(103).header("link", "</style.css>; rel=preload");
                    let hints = hints.header("x-by", "ann@example.org").header("popgate-request-id", "forged");
                    respond.send_informational(hints.body(()).expect("a head")).expect("sends");
                    waiting = Some(respond);
                }
                Some(()) = told.recv(), if waiting.is_some() => {
                    let mut respond = waiting.take().expect("waits");
                    let answer = Response::builder().header("content-type", "text/plain").body(()).expect("a head");
                    let mut body = respond.send_response(answer, false).expect("sends");
                    body.send_data(Bytes::from_static(b"ok"), true).expect("sends");
                }
            }
        }
    });
    (address, go)
}

/// What a client of HTTP/2 reads on a connection of its own: two interim answers before upstream was told to answer, and
/// then the answer.
async fn over_http2(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<()>,
    go: &mpsc::UnboundedSender<()>,
) -> (Vec<Response<()>>, String) {
    let (mut send, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let (mut answer, _) = send.send_request(request, true).expect("sends");
    let mut interim = Vec::new();
    while interim.len() < 2 {
        let came = poll_fn(|cx| answer.poll_informational(cx)).await;
        interim.push(came.expect("comes before upstream has answered").expect("sound"));
    }
    go.send(()).expect("waits");
    let answer = answer.await.expect("answers");
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body();
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        whole.extend(data.expect("sound"));
    }
    (interim, String::from_utf8(whole).expect("UTF-8"))
}

/// The same through the gateway.
async fn proved_over_http2(
    service: &Service,
    client: &Client,
    path: &str,
    go: &mpsc::UnboundedSender<()>,
) -> (Vec<Response<()>>, String) {
    let url = service.url("gateway", path);
    let token = client.token(&url).await;
    let proof = client.session.prove("GET", &url, Some(&token));
    let request = Request::get(&url).header("authorization", format!("DPoP {}", token.expose())).header("dpop", proof);
    over_http2(service.raw(client, b"h2").await, request.body(()).expect("a request"), go).await
}

/// One request on a connection of its own: what comes before upstream was told to answer, and what then.
async fn asked(
    service: &Service,
    client: &Client,
    path: &str,
    version: &str,
    go: &mpsc::UnboundedSender<()>,
) -> [String; 2] {
    let url = service.url("gateway", path);
    let token = client.token(&url).await;
    let host = service.addresses["gateway"].trim_start_matches("https://").to_owned();
    let proof = client.session.prove("GET", &url, Some(&token));
    let head = format!(
        "GET {path} {version}\r\nhost: {host}\r\nauthorization: DPoP {}\r\ndpop: {proof}\r\nconnection: close\r\n\r\n",
        token.expose()
    );
    let mut stream = service.raw(client, b"http/1.1").await;
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut before = Vec::new();
    if version == "HTTP/1.1" {
        // Its last line tells that the hint is whole: upstream has not answered yet.
        while before.windows(4).filter(|w| w == b"\r\n\r\n").count() < 2 {
            assert!(stream.read_buf(&mut before).await.expect("reads") > 0, "{}", String::from_utf8_lossy(&before));
        }
    }
    go.send(()).expect("waits");
    let mut after = Vec::new();
    stream.read_to_end(&mut after).await.expect("reads");
    [before, after].map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_upstream_says_before_its_answer_passes_as_answers_do() {
    let (upstream, go) = hinting().await;
    let url = format!("url = \"http://{upstream}\"");
    let routes =
        route("plain", "/plain", &url, "response_headers = { remove = [\"server\"], set = { x-set = \"1\" } }")
            + &operation("x.plain", "GET /plain/**", "")
            + &route(
                "masked",
                "/masked",
                &url,
                "mask = \"names\"\ninject = { header = \"x-upstream-key\", file = \"key\" }",
            )
            + &operation("x.masked", "GET /masked/**", "")
            + "[mask.names]\ndetectors = [\"email\"]\nheaders = [\"x-by\"]\n";
    let service = Service::start_routes(&routes, &["x.plain", "x.masked"], &[("key", "s3cret-of-upstream\n")]).await;
    let solver = service.solver().await;
    go.send(()).expect("waits");
    assert_eq!(
        solver.get(&service.url("gateway", "/plain/a")).await.text(),
        "ok",
        "who has no use for hints gets the answer"
    );

    let [before, after] = asked(&service, &solver, "/plain/a", "HTTP/1.1", &go).await;
    let hint = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nx-by: ann@example.org\r\nset-cookie: s=1\r\nx-key: s3cret-of-upstream\r\n\r\n";
    assert_eq!(before, hint);
    assert!(
        after.starts_with("HTTP/1.1 200 OK\r\n") && after.contains("x-set: 1") && after.ends_with("\r\n\r\nok"),
        "{after}"
    );

    let id = after.lines().find_map(|l| l.strip_prefix("popgate-request-id: ")).expect("stamped").to_owned();
    let data = service.data.to_str().expect("UTF-8");
    let shown = stdout(&run(&["audit", "show", &id, "--data-dir", data, "--json"]));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    let interim = &shown["exchange"]["interim"];
    assert_eq!((&interim[0]["line"], &interim[1]["line"]), (&"102".into(), &"103".into()), "{shown}");
    assert!(interim[1]["headers"].to_string().contains("style.css"), "{interim}");
    assert!(!interim.to_string().contains("s=1"), "a cookie is recorded nowhere: {interim}");
    assert_eq!(shown["exchange"]["response"]["line"], "200");

    let [before, after] = asked(&service, &solver, "/masked/a", "HTTP/1.1", &go).await;
    assert!(
        before.contains("link: </style.css>") && !before.contains("ann@") && !before.contains("s3cret"),
        "{before}"
    );
    assert!(after.starts_with("HTTP/1.1 200 OK\r\n") && after.contains("\r\nok\r\n"), "{after}");

    let [_, after] = asked(&service, &solver, "/plain/a", "HTTP/1.0", &go).await;
    assert!(after.starts_with("HTTP/1.0 200 OK\r\n"), "no client of HTTP/1.0 knows them: {after}");
    assert_eq!(service.verify().await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_pass_whichever_versions_of_http_the_two_ends_speak() {
    let ((first, go_first), (second, go_second)) = (hinting().await, hinting_over_http2().await);
    let (third, go_third) = hinting_over_http2().await;
    let [second, third] = [second, third].map(|at| format!("url = \"http://{at}\", protocol = \"http2\""));
    let routes = route("first", "/first", &format!("url = \"http://{first}\""), "")
        + &operation("x.first", "GET /first/**", "")
        + &route("second", "/second", &second, "")
        + &operation("x.second", "GET /second/**", "")
        + &route("masked", "/masked", &third, "mask = \"names\"")
        + &operation("x.masked", "GET /masked/**", "")
        + "[mask.names]\ndetectors = [\"email\"]\nheaders = [\"x-by\"]\n";
    let service = Service::start_routes(&routes, &["x.first", "x.second", "x.masked"], &[]).await;
    let solver = service.solver().await;
    go_first.send(()).expect("waits");
    assert_eq!(solver.get(&service.url("gateway", "/first/a")).await.text(), "ok", "learns the nonce");

    for (path, go) in [("/first/a", &go_first), ("/second/a", &go_second)] {
        let (interim, body) = proved_over_http2(&service, &solver, path, go).await;
        assert_eq!(body, "ok");
        assert_eq!([interim[0].status(), interim[1].status()].map(|s| s.as_u16()), [102, 103], "{path}");
        let hints = interim[1].headers();
        assert_eq!(hints["link"], "</style.css>; rel=preload", "{path}");
        assert!(!hints.contains_key("popgate-request-id"), "{path}: that name is the gateway's");
    }
    let [before, after] = asked(&service, &solver, "/second/a", "HTTP/1.1", &go_second).await;
    assert_eq!(
        before,
        "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\nx-by: ann@example.org\r\n\r\n"
    );
    assert!(after.starts_with("HTTP/1.1 200 OK\r\n"), "{after}");
    let (interim, _) = proved_over_http2(&service, &solver, "/masked/a", &go_third).await;
    assert!(!format!("{:?}", interim[1].headers()).contains("ann@"), "{interim:?}");
    assert_eq!(service.verify().await.status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signing_proxy_passes_interim_answers_on() {
    let (upstream, go) = hinting().await;
    let routes = route("hints", "/hints", &format!("url = \"http://{upstream}\""), "")
        + &operation("x.hints", "GET /hints/**", "");
    let service = Service::start_routes(&routes, &["x.hints"], &[]).await;
    let dir = tempfile::tempdir().expect("tempdir");
    let (_proxy, proxy) = signing_proxy(&service, dir.path()).await;
    let address = proxy.trim_start_matches("http://").to_owned();

    let request = Request::get(format!("{proxy}/hints/a")).body(()).expect("a request");
    let stream = TcpStream::connect(&address).await.expect("connects");
    let (interim, body) = over_http2(stream, request, &go).await;
    assert_eq!((interim[1].status(), body.as_str()), (StatusCode::from_u16(103).expect("a status"), "ok"));
    assert_eq!(interim[1].headers()["link"], "</style.css>; rel=preload");

    let stream = TcpStream::connect(&address).await.expect("connects");
    let (mut send, connection) = h2::client::handshake::<_>(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let nowhere = Request::get(format!("{proxy}/nowhere")).body(()).expect("a request");
    let (answer, _) = send.send_request(nowhere, true).expect("sends");
    assert_eq!(answer.await.expect("answers").status(), 404);
    assert!(!send.is_extended_connect_protocol_enabled(), "what it refuses it does not offer (RFC 8441 section 3)");

    let mut stream = TcpStream::connect(&address).await.expect("connects");
    let head = format!("GET /hints/a HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.expect("writes");
    let mut before = Vec::new();
    while before.windows(4).filter(|w| w == b"\r\n\r\n").count() < 2 {
        assert!(stream.read_buf(&mut before).await.expect("reads") > 0, "{}", String::from_utf8_lossy(&before));
    }
    go.send(()).expect("waits");
    let before = String::from_utf8(before).expect("UTF-8");
    assert!(before.contains("HTTP/1.1 103 Early Hints\r\n") && before.contains("link: </style.css>"), "{before}");
    let mut after = String::new();
    stream.read_to_string(&mut after).await.expect("reads");
    assert!(after.starts_with("HTTP/1.1 200 OK\r\n") && after.ends_with("ok"), "{after}");
}
