//! The cases of masking that need a gateway: codings, lengths, ranges, headers, gRPC, and what towards upstream is masked.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use popgate::client::session::Call;
use serde_json::json;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::protocols::{Proving, grpc_server, operation, route};
use crate::world::{Answer, Client, Service, respond, stderr};

const BODY: &str = r#"{"to":"ada@example.org","card":4111111111111111}"#;
const MASKED: &str = r#"{"to":"[redacted:email]","card":"[redacted:card]"}"#;

/// A service whose `/v1/runs/r1` answers with this body under these headers.
struct Answering {
    service: Service,
    solver: Client,
}

impl Answering {
    async fn new() -> Self {
        let service = Service::start().await;
        let solver = service.solver().await;
        Self { service, solver }
    }

    async fn ask(&self, status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Answer {
        self.answers(status, headers, body);
        self.solver.get(&self.service.url("gateway", "/v1/runs/r1")).await
    }

    fn answers(&self, status: u16, headers: &[(&'static str, &str)], body: &[u8]) {
        let (headers, body) = (headers.iter().map(|(n, v)| (*n, (*v).to_owned())).collect::<Vec<_>>(), body.to_vec());
        self.service.upstream.on_request(move |_| {
            let mut response = respond(status, "application/json", body.clone());
            for (name, value) in &headers {
                response
                    .headers_mut()
                    .insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
            }
            response
        });
    }
}

fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
    let level = Compression::default();
    match coding {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            encoder.write_all(text).and_then(|()| encoder.finish()).expect("encodes")
        }
        "deflate" => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(text).and_then(|()| encoder.finish()).expect("encodes")
        }
        "bare deflate" => {
            let mut encoder = DeflateEncoder::new(Vec::new(), level);
            encoder.write_all(text).and_then(|()| encoder.finish()).expect("encodes")
        }
        "zstd" => zstd::stream::encode_all(text, 3).expect("encodes"),
        // RFC 7932: a window, then one uncompressed meta-block, then an empty last one.
        "br" => {
            let length = u32::try_from(text.len() - 1).expect("short");
            let header = (length << 4) | (1 << 20);
            [&(header.to_le_bytes()[..3]), text, &[3]].concat()
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_25_codings_are_undone_and_the_headers_say_what_is_there() {
    let world = Answering::new().await;
    for (coding, name) in
        [("gzip", "gzip"), ("deflate", "deflate"), ("bare deflate", "deflate"), ("zstd", "zstd"), ("br", "br")]
    {
        let answer =
            world.ask(200, &[("content-encoding", name), ("etag", "\"x\"")], &coded(coding, BODY.as_bytes())).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, MASKED), "{coding}");
        for gone in ["content-encoding", "content-length", "etag"] {
            assert_eq!(answer.header(gone), "", "{coding} {gone}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_26_27_28_29_what_is_coded_otherwise_or_bursts_is_refused() {
    let world = Answering::new().await;
    let gzip = coded("gzip", BODY.as_bytes());
    for (headers, body) in [
        (&[("content-encoding", "gzip, gzip")][..], coded("gzip", &gzip)),
        (&[("content-encoding", "compress")], gzip.clone()),
        (&[("content-encoding", "gzip")], b"no gzip at all".to_vec()),
    ] {
        let answer = world.ask(200, headers, &body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (502, "unmaskable"), "{headers:?}");
        assert!(!answer.text().contains("ada@"));
    }
    // What only its first bytes, or its length, tell is cut, with nothing of it passed.
    let bomb = coded("gzip", &vec![b' '; 64 << 20]);
    for (headers, body) in [(&[][..], gzip.clone()), (&[("content-encoding", "gzip")], bomb)] {
        world.answers(200, headers, &body);
        let url = world.service.url("gateway", "/v1/runs/r1");
        let call = Call::new(Method::GET, &url, HeaderMap::new(), bytes::Bytes::new());
        // The reset may come before the head has left.
        if let Ok(response) = world.solver.session.call(&call).await {
            let answer = Answer::read(response).await;
            assert!(answer.status == 502 || answer.body.is_empty(), "{}", answer.text());
            assert!(!answer.text().contains("ada@"));
        }
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", world.service.pid())).expect("lives");
    assert!(status.contains("VmHWM"));
    // A transfer coding, over a raw socket: a library would not send one.
    let raw = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = raw.local_addr().expect("bound");
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        while let Ok((mut stream, _)) = raw.accept().await {
            let _ = stream.read(&mut [0; 8192]).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: gzip, chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(format!("{:x}\r\n", gzip.len()).as_bytes()).await;
            let _ = stream.write_all(&[&gzip[..], b"\r\n0\r\n\r\n"].concat()).await;
        }
    });
    let routes = route("te", "/te", &format!("url = \"http://{address}\""), "mask = \"pii\"")
        + &operation("x.get", "GET /te/**", "");
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let answer = service.solver().await.get(&service.url("gateway", "/te/x")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (502, "unmaskable"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_32_33_34_lengths_ranges_and_answers_without_a_body() {
    let world = Answering::new().await;
    let about =
        [("digest", "x"), ("content-digest", "x"), ("content-md5", "x"), ("etag", "\"x\""), ("accept-ranges", "bytes")];
    let whole = world.ask(200, &about, BODY.as_bytes()).await;
    assert_eq!((whole.status, whole.text().as_str()), (200, MASKED));
    for (name, _) in about.iter().chain(&[("content-length", "")]) {
        assert_eq!(whole.header(name), "", "{name} would be false");
    }
    let part = world.ask(206, &[("content-range", "bytes 2-17/48")], &BODY.as_bytes()[2..18]).await;
    assert_eq!((part.status, part.problem().as_str()), (502, "unmaskable"));
    let ranges = world.ask(206, &[("content-type", "multipart/byteranges; boundary=x")], b"--x--").await;
    assert_eq!(ranges.status, 502);
    for (status, body) in [(204, ""), (304, "")] {
        let empty = world.ask(status, &[("content-type", "image/png")], body.as_bytes()).await;
        assert_eq!((empty.status, empty.body.len(), empty.header("content-length")), (status, 0, ""), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_36_response_headers_are_masked_where_the_mask_names_them() {
    let upstream = crate::world::Upstream::start().await;
    upstream.on_request(|_| {
        let mut response = respond(200, "text/plain", "x");
        for (name, value) in
            [("location", "/u?m=ada@example.org"), ("set-cookie", "m=ada@example.org"), ("x-other", "ada@example.org")]
        {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        response
    });
    let routes = route("h", "/h", &format!("url = \"http://{}\"", upstream.address), "mask = \"named\"")
        + &operation("x.get", "GET /h/**", "")
        + "[mask.named]\ndetectors = [\"email\"]\nheaders = [\"Location\", \"set-cookie\"]\n";
    let service = Service::start_routes(&routes, &["x.get"], &[]).await;
    let answer = service.solver().await.get(&service.url("gateway", "/h/x")).await;
    assert_eq!(answer.header("location"), "/[redacted:email]");
    assert_eq!(answer.header("set-cookie"), "[redacted:email]");
    assert_eq!(answer.header("x-other"), "ada@example.org");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_38_grpc_is_masked_by_its_descriptors_and_blocked_without() {
    let (upstream, _switch) = grpc_server().await;
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("reflection.pb");
    std::fs::write(&file, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).expect("writes");
    let upstream = format!("url = \"http://{upstream}\", protocol = \"http2\"");
    let rpc = operation("x.rpc", "POST /grpc.reflection.v1.ServerReflection/{m}", "reads = \"grpc\"");
    let mask = "[mask.named]\n[[mask.named.field]]\npath = \"$.list_services_response.service[*].name\"\nstrategy = \"redact\"\n";
    for (more, names) in [
        (format!("mask = \"named\"\ndescriptors = \"{}\"", file.display()), Some("[redacted:field]")),
        ("mask = \"named\"".to_owned(), None),
    ] {
        let routes = route("r", "/grpc.reflection.v1.ServerReflection", &upstream, &more) + &rpc + mask;
        let service = Service::start_routes(&routes, &["x.rpc"], &[]).await;
        let solver = service.solver().await;
        assert_eq!(solver.get(&service.url("gateway", "/v1/runs/r1")).await.status, 200, "learns the nonce");
        let origin: http::Uri = service.addresses["gateway"].parse().expect("a URI");
        let mut client = ServerReflectionClient::with_origin(Proving::new(&solver, &service).await, origin);
        let ask = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let answers = client.server_reflection_info(futures_util::stream::iter([ask])).await;
        match (names, answers) {
            (None, answers) => {
                let first = match answers {
                    Ok(answers) => answers.into_inner().message().await,
                    Err(refused) => Err(refused),
                };
                let refused = first.expect_err("a mask that cannot read it blocks it");
                assert_eq!(refused.code(), tonic::Code::Unavailable, "502 in the words of gRPC: {refused}");
            }
            (Some(name), answers) => {
                let told = answers.expect("passes").into_inner().message().await.expect("a message").expect("there");
                let Some(MessageResponse::ListServicesResponse(list)) = told.message_response else {
                    panic!("{told:?}")
                };
                assert!(list.service.len() > 1 && list.service.iter().all(|s| s.name == name), "{list:?}");
            }
        }
        let verified = service.verify().await;
        assert!(verified.status.success(), "{}", stderr(&verified));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_masked_towards_upstream_where_the_mask_says_so() {
    let upstream = crate::world::Upstream::start().await;
    let routes = route("q", "/q", &format!("url = \"http://{}\"", upstream.address), "mask = \"both\"")
        + &operation("x.post", "POST /q/**", "")
        + &operation("x.get", "GET /q/**", "")
        + "[mask.both]\ndetectors = [\"email\", \"card\"]\nmask_request = true\n";
    let service = Service::start_routes(&routes, &["x.post", "x.get"], &[]).await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/q/x");
    assert_eq!(solver.call("POST", &url, &[], BODY).await.status, 200);
    assert_eq!(upstream.seen().last().expect("one").body, MASKED);
    assert_eq!(solver.get(&url).await.status, 200, "nothing to mask");
    let refused = solver.call("POST", &url, &[("content-type", "application/pdf")], BODY).await;
    assert_eq!((refused.status, refused.problem().as_str()), (415, "unmaskable"));
    let coded = solver.call("POST", &url, &[("content-encoding", "gzip")], BODY).await;
    assert_eq!(coded.status, 415);
    assert_eq!(upstream.count(), 2, "neither reached upstream");
    // Of server-sent events and their deltas, as an SDK reads them.
    upstream.on_request(|_| {
        let event =
            |text: &str| format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]}));
        respond(200, "text/event-stream", event("card 4111 1111") + &event(" 1111 1111.") + "data: [DONE]\n\n")
    });
    let events = solver.get(&url).await.text();
    assert!(events.contains("[redacted:card].") && !events.contains("1111"), "{events}");
}
