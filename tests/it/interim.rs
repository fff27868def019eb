//! Interim answers (RFC 9110 section 15.2): what upstream says before its answer reaches who speaks HTTP/1.1.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::protocols::{operation, route};
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
        "over HTTP/2 the answer alone passes"
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
