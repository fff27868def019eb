//! What passes besides plain HTTP/1.1: HTTP/2 and gRPC with trailers, WebSocket over both versions, `Expect`, `Range`,
//! `HEAD`, long and endless bodies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as Legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use popgate::client::session::{Call, Session};
use popgate::net::body::{AnyBody, full};
use popgate::net::inbound::Inbound;
use popgate::net::listener::{self, Drain};
use popgate::net::router::Routed;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_request::MessageRequest};

use crate::world::{Client, SOLVER, Service, respond};

pub fn route(name: &str, path: &str, upstream: &str, more: &str) -> String {
    format!(
        "[[route]]\nname = \"{name}\"\nmatch = {{ path = \"{path}/**\" }}\nresource = \"{path}\"\nupstream = {{ {upstream} }}\n{more}\n"
    )
}

pub fn operation(name: &str, matcher: &str, more: &str) -> String {
    format!("[[route.operation]]\nname = \"{name}\"\nmatch = \"{matcher}\"\nobject = \"/it\"\n{more}\n")
}

/// A gRPC server of tonic: unary and streaming calls, in the clear with prior knowledge.
pub async fn grpc_server() -> (String, tokio::sync::watch::Sender<bool>) {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("tot", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("descriptors");
    let router = tonic::service::Routes::new(health).add_service(reflection).into_axum_router();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let (switch, drain) = Drain::new();
    tokio::spawn(listener::serve(listener, None, Routed::new(router, None), drain));
    (address, switch)
}

/// What tonic's clients call through: it proves each request.
#[derive(Clone)]
pub struct Proving {
    session: Arc<Session>,
    origin: String,
    http: Legacy<hyper_rustls::HttpsConnector<HttpConnector>, tonic::body::Body>,
}

impl Proving {
    pub async fn new(solver: &Client, service: &Service) -> Self {
        let tls = solver.session.identity().tls(false).expect("TLS");
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2().build();
        let http = Legacy::builder(TokioExecutor::new()).http2_only(true).build(connector);
        Self { session: solver.session.clone(), origin: service.addresses["gateway"].clone(), http }
    }
}

impl tower::Service<Request<tonic::body::Body>> for Proving {
    type Response = Response<Incoming>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let url = format!("{}{}", this.origin, request.uri().path());
            let target = this.session.target(&url).await?;
            let token = this.session.token(&target).await?;
            let proof = this.session.prove("POST", &url, Some(&token));
            *request.uri_mut() = url.parse()?;
            let headers = request.headers_mut();
            headers.insert("authorization", HeaderValue::from_str(&format!("DPoP {}", token.expose()))?);
            headers.insert("dpop", HeaderValue::from_str(&proof)?);
            Ok(this.http.request(request).await?)
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_passes_with_trailers_unary_and_streaming_both_ways() {
    let (upstream, _switch) = grpc_server().await;
    let routes = [
        route("health", "/grpc.health.v1.Health", &format!("url = \"http://{upstream}\", protocol = \"http2\""), ""),
        "[[route.operation]]\nname = \"x.rpc\"\nmatch = \"POST /grpc.health.v1.Health/{m}\"\nreads = \"grpc\"\nobject = \"/{service}/{method}\"\n".into(),
        route("reflection", "/grpc.reflection.v1.ServerReflection", &format!("url = \"http://{upstream}\", protocol = \"http2\""), ""),
        "[[route.operation]]\nname = \"x.reflect\"\nmatch = \"POST /grpc.reflection.v1.ServerReflection/{m}\"\nreads = \"grpc\"\nobject = \"/{service}/{method}\"\n".into(),
    ];
    let service = Service::start_routes(&routes.concat(), &["x.rpc", "x.reflect"], &[]).await;
    let solver = service.solver().await;
    // The nonce is learned before: a stream cannot be sent twice.
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200);
    let proving = Proving::new(&solver, &service).await;
    let origin: http::Uri = service.addresses["gateway"].parse().expect("a URI");
    let mut health = HealthClient::with_origin(proving.clone(), origin.clone());
    let check = |service: &str| HealthCheckRequest { service: service.into() };
    let told = health.check(check("tot")).await.expect("unary").into_inner();
    assert_eq!(told.status, 1);
    let unknown = health.check(check("nobody")).await.expect_err("an error comes in the trailers");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut watched = health.watch(check("tot")).await.expect("server streaming").into_inner();
    assert_eq!(watched.message().await.expect("a message").expect("there").status, 1);
    drop(watched);
    let mut reflection = ServerReflectionClient::with_origin(proving, origin);
    let (asking, asked) = tokio::sync::mpsc::channel(1);
    let requests = futures_util::stream::unfold(asked, |mut r| async { r.recv().await.map(|m| (m, r)) });
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    asking.send(ask(MessageRequest::ListServices(String::new()))).await.expect("sends");
    let mut answers = reflection.server_reflection_info(requests).await.expect("both ways").into_inner();
    for _ in 0..3 {
        // One answer after the other: neither side waits for the other's end.
        let told = answers.message().await.expect("a message").expect("there");
        assert!(format!("{told:?}").contains("grpc.health.v1.Health"));
        asking.send(ask(MessageRequest::ListServices(String::new()))).await.expect("sends");
    }
    drop(asking);
    while answers.message().await.expect("ends well").is_some() {}
    drop(answers);
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", crate::world::stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_of_grpc_is_for_grpc_alone() {
    let (upstream, _switch) = grpc_server().await;
    let route =
        route("health", "/grpc.health.v1.Health", &format!("url = \"http://{upstream}\", protocol = \"http2\""), "");
    let rpc = operation("x.rpc", "POST /grpc.health.v1.Health/{m}", "reads = \"grpc\"");
    let service = Service::start_routes(&(route + &rpc), &["x.rpc"], &[]).await;
    let url = service.url("gateway", "/grpc.health.v1.Health/Check");
    let refused = service.solver().await.call("POST", &url, &[("content-type", "application/json")], "{}").await;
    assert_eq!((refused.status, refused.problem().as_str()), (403, "unlisted"));
}

/// A WebSocket server that sends each message back; `card` is answered with one.
pub async fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    let answer = match &message {
                        Message::Text(text) if text.as_str() == "\"card\"" => {
                            Message::text("{\"card\":\"4111 1111 1111 1111\"}")
                        }
                        Message::Text(text) if text.as_str() == "\"binary\"" => Message::binary(vec![1, 2, 3]),
                        Message::Text(_) | Message::Binary(_) => message,
                        _ => continue,
                    };
                    if socket.send(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn socket_routes(upstream: &str) -> String {
    let mut text = route("ws", "/ws", &format!("url = \"http://{upstream}\", idle_timeout = \"20s\""), "");
    text += &operation("x.pass", "GET /ws/pass", "websocket = \"pass\"");
    text += &operation("x.plain", "GET /ws/plain", "");
    text += &operation("x.judged", "GET /ws/judged", "websocket = \"judge\"");
    text += &operation("x.say", "MESSAGE /ws/judged", "select = { \"/kind\" = \"say\" }");
    text += &operation("x.wipe", "MESSAGE /ws/judged", "select = { \"/kind\" = \"wipe\" }");
    text += &route("masked", "/masked", &format!("url = \"http://{upstream}\""), "mask = \"pii\"");
    text + &operation("x.masked", "GET /masked/ws", "websocket = \"pass\"")
}

const SOCKETS: [&str; 5] = ["x.pass", "x.plain", "x.judged", "x.say", "x.masked"];

fn upgrade_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-extensions", "permessage-deflate"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

async fn opened(solver: &Client, url: &str, headers: HeaderMap) -> Response<Inbound> {
    let call = Call::new(Method::GET, url, headers, Bytes::new());
    solver.session.stream(&call, full(""), true).await.expect("answered")
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn socket(solver: &Client, url: &str) -> Socket {
    let response = opened(solver, url, upgrade_headers()).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "RFC 6455 section 1.3");
    assert!(!response.headers().contains_key("sec-websocket-extensions"));
    let upgraded = hyper::upgrade::on(response).await.expect("switches");
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

async fn said(socket: &mut Socket, text: &str) -> Message {
    socket.send(Message::text(text)).await.expect("sends");
    socket.next().await.expect("an answer").expect("a message")
}

fn closed_with(message: &Message) -> (u16, String) {
    match message {
        Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
        other => panic!("not closed: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_messages_both_ways_and_its_evidence_holds_them() {
    let upstream = echo().await;
    let service = Service::start_routes(&socket_routes(&upstream), &SOCKETS, &[]).await;
    let solver = service.solver().await;
    let mut open = socket(&solver, &service.url("gateway", "/ws/pass")).await;
    assert_eq!(said(&mut open, "hello").await, Message::text("hello"));
    open.send(Message::binary(vec![0, 255])).await.expect("sends");
    assert_eq!(open.next().await.expect("an answer").expect("a message"), Message::binary(vec![0, 255]));
    open.send(Message::Ping(Bytes::from_static(b"p"))).await.expect("sends");
    assert_eq!(open.next().await.expect("an answer").expect("a pong"), Message::Pong(Bytes::from_static(b"p")));
    open.close(None).await.expect("closes");
    while open.next().await.is_some_and(|m| m.is_ok()) {}
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", crate::world::stderr(&verified));
    let told: serde_json::Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert!(told.to_string().contains("\"bytes\":1"), "the messages' bytes are proved: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_opens_over_http_2_with_extended_connect() {
    let upstream = echo().await;
    let service = Service::start_routes(&socket_routes(&upstream), &SOCKETS, &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/ws/pass");
    let token = solver.token(&url).await;
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    let stream = service.raw(&solver, b"h2").await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let judged = service.url("gateway", "/ws/judged");
    let request_to = |url: &str, method: &str, protocol: Option<&'static str>| {
        let proof = solver.session.prove(method, url, Some(&token));
        let mut request = Request::builder()
            .method("CONNECT")
            .version(Version::HTTP_2)
            .uri(url)
            .header("authorization", format!("DPoP {}", token.expose()))
            .header("dpop", proof)
            .header("sec-websocket-version", "13")
            .body(Full::new(Bytes::new()))
            .expect("builds");
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
        }
        request
    };
    let request = |method: &str, protocol| request_to(&url, method, protocol);
    sender.ready().await.expect("ready");
    let refused = sender.send_request(request("GET", Some("websocket"))).await.expect("answers");
    assert_eq!(refused.status(), 401, "the proof is for CONNECT, as the request is");
    let other = sender.send_request(request("CONNECT", Some("other"))).await.expect("answers");
    assert_eq!(other.status(), 501);
    let response = sender.send_request(request("CONNECT", Some("websocket"))).await.expect("answers");
    assert_eq!(response.status(), 200);
    let upgraded = hyper::upgrade::on(response).await.expect("switches");
    let mut open = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    open.send(Message::text("over h2")).await.expect("sends");
    assert_eq!(open.next().await.expect("an answer").expect("a message"), Message::text("over h2"));
    open.close(None).await.expect("closes");
    assert!(matches!(open.next().await, Some(Ok(Message::Close(_)))), "the other end says goodbye");

    let response = sender.send_request(request_to(&judged, "CONNECT", Some("websocket"))).await.expect("answers");
    let upgraded = hyper::upgrade::on(response).await.expect("switches");
    let mut open = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    assert_eq!(closed_with(&said(&mut open, "hello").await).0, 1008, "why it ends is read, however it is carried");
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", crate::world::stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_message_is_judged_where_the_operation_says_so() {
    let upstream = echo().await;
    let service = Service::start_routes(&socket_routes(&upstream), &SOCKETS, &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/ws/judged");
    for (bad, why) in [
        (r#"{"kind":"wipe"}"#, "policy denies"),
        (r#"{"kind":"other"}"#, "no operation"),
        (r#"{"kind":"say","kind":"wipe"}"#, "not strict JSON"),
        (r#"{"kind":"say","KIND":"wipe"}"#, "differ in case"),
        ("hello", "not strict JSON"),
        ("[]", "not a JSON object"),
    ] {
        let mut open = socket(&solver, &url).await;
        assert_eq!(said(&mut open, r#"{"kind":"say","n":1}"#).await, Message::text(r#"{"kind":"say","n":1}"#));
        let (code, reason) = closed_with(&said(&mut open, bad).await);
        assert_eq!(code, 1008, "{bad}");
        assert!(reason.contains(why), "{bad}: {reason}");
    }
    let mut open = socket(&solver, &url).await;
    open.send(Message::binary(vec![1])).await.expect("sends");
    assert_eq!(closed_with(&open.next().await.expect("an answer").expect("a message")).0, 1008);
    let verified = service.verify().await;
    assert!(verified.status.success(), "{}", crate::world::stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_39_messages_to_the_client_are_masked_whole_without_compression_and_what_cannot_be_is_not_sent() {
    let upstream = echo().await;
    let service = Service::start_routes(&socket_routes(&upstream), &SOCKETS, &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/masked/ws");
    let mut open = socket(&solver, &url).await;
    assert_eq!(said(&mut open, "\"card\"").await, Message::text("{\"card\":\"[redacted:card]\"}"));
    assert_eq!(said(&mut open, "to ada@example.org").await, Message::text("to [redacted:email]"));
    // In fragments, with a ping between them.
    use tokio_tungstenite::tungstenite::protocol::frame::Frame as Piece;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let piece = |text: &'static str, code, last| Message::Frame(Piece::message(text, OpCode::Data(code), last));
    open.send(piece("to ada@exam", Data::Text, false)).await.expect("sends");
    open.send(Message::Ping(Bytes::new())).await.expect("sends");
    open.send(piece("ple.org", Data::Continue, true)).await.expect("sends");
    loop {
        match open.next().await.expect("an answer").expect("a message") {
            Message::Pong(_) => {}
            message => break assert_eq!(message, Message::text("to [redacted:email]")),
        }
    }
    let (code, reason) = closed_with(&said(&mut open, "\"binary\"").await);
    assert_eq!((code, reason.as_str()), (1008, "masked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_closes_open_sockets_and_bad_handshakes_are_told() {
    let upstream = echo().await;
    let service = Service::start_routes(&socket_routes(&upstream), &SOCKETS, &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/ws/pass");
    for (name, value, status) in [("sec-websocket-version", "8", 426), ("sec-websocket-key", "short", 400)] {
        let mut headers = upgrade_headers();
        headers.insert(name, HeaderValue::from_static(value));
        assert_eq!(opened(&solver, &url, headers).await.status(), status, "{name}");
    }
    let plain = opened(&solver, &service.url("gateway", "/ws/plain"), upgrade_headers()).await;
    assert_eq!(plain.status(), 403, "its operation opens none");
    let mut open = socket(&solver, &url).await;
    assert_eq!(said(&mut open, "x").await, Message::text("x"));
    let stop = json!({"kind": "spiffe-id", "value": SOLVER, "reason": "test"});
    service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    let (code, reason) = closed_with(&open.next().await.expect("told").expect("a message"));
    assert_eq!((code, reason.as_str()), (1008, "revoked"));
}

/// A connection to the gateway on which a test writes what it likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_100_is_told_to_go_on_only_once_its_proof_holds() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs");
    assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
    let token = solver.token(&url).await;
    let host = service.addresses["gateway"].trim_start_matches("https://").to_owned();
    let head = |proof: &str| {
        format!(
            "POST /v1/runs HTTP/1.1\r\nhost: {host}\r\nauthorization: DPoP {}\r\ndpop: {proof}\r\ncontent-type: application/json\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n",
            token.expose()
        )
    };
    let mut buffer = [0; 4096];
    let mut good = service.raw(&solver, b"http/1.1").await;
    good.write_all(head(&solver.session.prove("POST", &url, Some(&token))).as_bytes()).await.expect("writes");
    let n = good.read(&mut buffer).await.expect("reads");
    assert!(buffer[..n].starts_with(b"HTTP/1.1 100 Continue\r\n"), "{}", String::from_utf8_lossy(&buffer[..n]));
    good.write_all(b"{}").await.expect("writes");
    let n = good.read(&mut buffer).await.expect("reads");
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&buffer[..n]));
    let mut bad = service.raw(&solver, b"http/1.1").await;
    bad.write_all(head("not.a.proof").as_bytes()).await.expect("writes");
    let n = bad.read(&mut buffer).await.expect("reads");
    assert!(buffer[..n].starts_with(b"HTTP/1.1 401 "), "{}", String::from_utf8_lossy(&buffer[..n]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn range_and_head_pass_where_nothing_is_masked() {
    let service = Service::start().await;
    service.upstream.on_request(|seen| {
        let mut response = match seen.headers.get("range").map(|r| r.to_str().unwrap_or_default()) {
            Some("bytes=2-4") => respond(206, "text/plain", "234"),
            _ => respond(200, "text/plain", "0123456789"),
        };
        if response.status() == 206 {
            response.headers_mut().insert("content-range", HeaderValue::from_static("bytes 2-4/10"));
        }
        response.headers_mut().insert("etag", HeaderValue::from_static("\"e\""));
        response
    });
    let solver = service.solver().await;
    let url = service.url("gateway", "/off/x");
    let masked = solver.call("GET", &url, &[("range", "bytes=2-4")], "").await;
    assert_eq!((masked.status, masked.text().as_str()), (200, "0123456789"), "a mask reads whole texts");
    let unmasked = Service::start_routes(
        &(route("plain", "/plain", &format!("url = \"http://{}\"", service.upstream.address), "")
            + &operation("x.get", "GET /plain/**", "")
            + &operation("x.head", "HEAD /plain/**", "")),
        &["x.get", "x.head"],
        &[],
    )
    .await;
    let solver = unmasked.solver().await;
    let url = unmasked.url("gateway", "/plain/x");
    let part = solver.call("GET", &url, &[("range", "bytes=2-4")], "").await;
    assert_eq!((part.status, part.text().as_str(), part.header("content-range")), (206, "234", "bytes 2-4/10"));
    let head = solver.call("HEAD", &url, &[], "").await;
    assert_eq!((head.status, head.text().as_str(), head.header("content-length")), (200, "", "10"));
    assert_eq!(head.header("etag"), "\"e\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_35_trailers_pass_both_ways_masked_and_without_what_they_may_not_carry() {
    // An upstream that tells the trailers it got in its own.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(|request: Request<Incoming>| async move {
                let whole = request.into_body().collect().await.expect("reads");
                let got = whole.trailers().map(|t| format!("{t:?}")).unwrap_or_default();
                let mut trailers = HeaderMap::new();
                trailers.insert("x-got", HeaderValue::from_str(&got).expect("a value"));
                trailers.insert("x-mail", HeaderValue::from_static("ada@example.org"));
                trailers.insert("set-cookie", HeaderValue::from_static("a=b"));
                let frames = [
                    Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("body"))),
                    Ok(Frame::trailers(trailers)),
                ];
                let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)));
                response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
                Ok::<_, std::convert::Infallible>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), answer));
        }
    });
    let upstream = format!("url = \"http://{address}\", protocol = \"http2\"");
    let routes = route("a", "/a", &upstream, "") + &operation("x.a", "POST /a/**", "");
    let routes = routes + &route("b", "/b", &upstream, "mask = \"pii\"") + &operation("x.b", "POST /b/**", "");
    // What a route sets, removes or injects in headers comes in no trailer either.
    let rules = "request_headers = { set = { x-team = \"ours\" }, remove = [\"x-debug\"] }\nresponse_headers = { remove = [\"x-mail\"] }\ninject = { header = \"x-key\", file = \"key\" }";
    let routes = routes + &route("c", "/c", &upstream, rules) + &operation("x.c", "POST /c/**", "");
    let service = Service::start_routes(&routes, &["x.a", "x.b", "x.c"], &[("key", "k-7f31")]).await;
    let solver = service.solver().await;
    for (path, mail) in [("/a/x", Some("ada@example.org")), ("/b/x", Some("[redacted:email]")), ("/c/x", None)] {
        let url = service.url("gateway", path);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        if mail.is_none() {
            for name in ["x-team", "x-debug", "x-key"] {
                trailers.insert(name, HeaderValue::from_static("evil"));
            }
        }
        trailers.insert("authorization", HeaderValue::from_static("Bearer x"));
        trailers.insert("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        let frames =
            [Ok::<_, popgate::net::body::BoxError>(Frame::data(Bytes::from("sent"))), Ok(Frame::trailers(trailers))];
        let body: AnyBody = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
        let mut headers = HeaderMap::new();
        headers.insert("te", HeaderValue::from_static("trailers"));
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        let call = Call::new(Method::POST, &url, headers, Bytes::new());
        let response = solver.session.stream(&call, body, false).await.expect("answered");
        assert_eq!(response.status(), 200);
        let whole = response.into_body().collect().await.expect("reads");
        let trailers = whole.trailers().cloned().unwrap_or_default();
        assert_eq!(trailers["x-got"], r#"{"x-sum": "7"}"#, "{path}");
        assert_eq!(trailers.get("x-mail").map(|v| v.to_str().expect("text")), mail);
        assert!(!trailers.contains_key("set-cookie"));
        assert_eq!(whole.to_bytes(), "body");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_upstream_back_and_the_gateway_stays_small() {
    // Upstream sends as fast as it can, and tells how far it came.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = sent.clone();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let _ = stream.read(&mut [0; 8192]).await;
        let _ = stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .await;
        let chunk = [format!("{:x}\r\n", 65536).as_bytes(), &[7; 65536], b"\r\n"].concat();
        while stream.write_all(&chunk).await.is_ok() {
            counter.fetch_add(65536, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let routes = route("endless", "/endless", &format!("url = \"http://{address}\""), "record = \"off\"")
        + &operation("x.get", "GET /endless/**", "");
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let solver = service.solver().await;
    let response = solver.open("GET", &service.url("gateway", "/endless/x"), &[], "").await;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut stood = 0;
    let mut last = 0;
    // It stands still once every buffer on the way is full.
    while stood < 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        stood = if now == last { stood + 1 } else { 0 };
        last = now;
    }
    assert!(last < 64 << 20, "{last} bytes went on without a reader");
    let mut read = 0;
    while read < 256 << 20 {
        let frame = body.frame().await.expect("goes on").expect("a frame");
        read += frame.into_data().map_or(0, |d| d.len());
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("lives");
    let peak: u64 = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").trim().parse().ok())
        .expect("a peak");
    assert!(peak < 400 * 1024, "{peak} KiB at its peak, after a quarter of a gigabyte");
}
