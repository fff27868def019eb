//! Our server and our client over one pipe, and each against the framing crate's own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody as Pieces};
use hyper::body::Frame;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::Connection;
use super::pulse::{Life, Pulse};
use super::{server, strip};
use crate::net::body::{AnyBody, BoxError, full, read, streaming};
use crate::net::inbound::Inbound;
use crate::net::interim::{Interim, OnInterim};
use crate::net::listener::{Drain, Peer, Serve};

fn stripped(fields: &[(&'static str, &'static str)]) -> Vec<String> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    strip(&mut headers);
    headers.keys().map(ToString::to_string).collect()
}

#[test]
fn what_is_of_a_connection_stays_with_it() {
    let said = [("connection", "close, X-Hop"), ("x-hop", "1"), ("keep-alive", "5"), ("upgrade", "h2c"), ("x", "1")];
    assert_eq!(stripped(&said), ["x"]);
    assert_eq!(stripped(&[("transfer-encoding", "chunked"), ("proxy-connection", "close")]), [""; 0]);
    assert_eq!(stripped(&[("te", "trailers"), ("connection", "te")]), ["te"]);
    assert_eq!(stripped(&[("te", "Trailers")]), ["te"]);
    assert_eq!(stripped(&[("te", "trailers"), ("te", "gzip")]), [""; 0]);
}

type Piece = Result<Frame<Bytes>, BoxError>;

/// A body and what it is fed by; it ends when that is dropped.
fn fed() -> (mpsc::UnboundedSender<Piece>, AnyBody) {
    let (feed, mut pieces) = mpsc::unbounded_channel();
    (feed, streaming(Pieces::new(futures_util::stream::poll_fn(move |cx| pieces.poll_recv(cx)))))
}

fn data(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

/// Answers by path, and keeps the requests that it got.
#[derive(Clone)]
struct Service {
    asked: mpsc::UnboundedSender<Request<Inbound>>,
    answers: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Response<AnyBody>>>>,
}

impl Serve for Service {
    const TUNNELS: bool = true;

    async fn serve(&self, _: Arc<Peer>, request: Request<Inbound>) -> Response<AnyBody> {
        if request.uri().path() == "/echo" {
            return Response::new(streaming(request.into_body()));
        }
        if request.uri().path() == "/long" {
            return Response::new(full(vec![b'x'; 4 << 20]));
        }
        if request.uri().path() == "/none" {
            return Response::builder().status(204).header("content-length", "5").body(full("")).expect("an answer");
        }
        if request.uri().path() == "/short" {
            return Response::new(full("short"));
        }
        let mut answers = self.answers.lock().await;
        self.asked.send(request).expect("kept");
        answers.recv().await.expect("an answer")
    }
}

/// A server, and who plays its service.
struct Side {
    asked: mpsc::UnboundedReceiver<Request<Inbound>>,
    answer: mpsc::UnboundedSender<Response<AnyBody>>,
    drain: tokio::sync::watch::Sender<bool>,
    serving: JoinHandle<Result<(), h2::Error>>,
}

fn served() -> (DuplexStream, Side) {
    let (client, server) = tokio::io::duplex(1 << 16);
    let (ask, asked) = mpsc::unbounded_channel();
    let (answer, answers) = mpsc::unbounded_channel();
    let service = Service { asked: ask, answers: Arc::new(tokio::sync::Mutex::new(answers)) };
    let (drain, begun) = Drain::new();
    let peer = Arc::new(Peer::new(None, None, None));
    let serving = tokio::spawn(server::serve(server, service, peer, begun));
    (client, Side { asked, answer, drain, serving })
}

async fn both() -> (Connection, Side) {
    let (client, side) = served();
    (Connection::begin(client).await.expect("begins"), side)
}

fn request(path: &str, body: AnyBody) -> Request<AnyBody> {
    Request::builder().method("POST").uri(format!("http://localhost{path}")).body(body).expect("a request")
}

async fn send(connection: Connection, request: Request<AnyBody>) -> Result<Response<Inbound>, h2::Error> {
    connection.turn().await.expect("is open").send(request).await
}

#[tokio::test]
async fn bodies_pass_both_ways_with_their_trailers() {
    let (connection, _side) = both().await;
    let (feed, body) = fed();
    let trailers = HeaderMap::from_iter([("x-sum".parse().expect("a name"), HeaderValue::from_static("5"))]);
    for piece in [data("one"), data(""), data("two"), Frame::trailers(trailers.clone())] {
        feed.send(Ok(piece)).expect("reads");
    }
    let answer = send(connection.clone(), request("/echo", body)).await.expect("answers");
    assert!(answer.headers().contains_key("date") && !answer.headers().contains_key("content-length"));
    let whole = answer.into_body().collect().await.expect("whole");
    assert_eq!(whole.trailers(), Some(&trailers));
    assert_eq!(whole.to_bytes(), "onetwo");
    let long = vec![b'y'; 3 << 20];
    let answer = send(connection.clone(), request("/echo", full(long.clone()))).await.expect("answers");
    assert_eq!(read(answer.into_body(), 4 << 20).await.expect("whole"), long, "longer than every window");
    let answer = send(connection.clone(), request("/short", full(""))).await.expect("answers");
    assert_eq!(answer.headers()["content-length"], "5");
    let answer = send(connection, request("/none", full(""))).await.expect("answers");
    assert!(!answer.headers().contains_key("content-length"), "RFC 9110 section 8.6");
}

#[tokio::test]
async fn interim_answers_come_before_the_final_one() {
    let (connection, mut side) = both().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut noted) = (told.clone(), mpsc::unbounded_channel());
    let mut asking = request("/", full(""));
    OnInterim::new(move |status, headers| {
        seen.lock().expect("whole").push((status.as_u16(), headers.clone()));
        let _ = noted.0.send(());
    })
    .attach(&mut asking);
    let asking = tokio::spawn(send(connection, asking));
    let asked = side.asked.recv().await.expect("asked");
    let interim = asked.extensions().get::<Interim>().expect("HTTP/2 has them").clone();
    let hints = HeaderMap::from_iter([(http::header::LINK, HeaderValue::from_static("</a.css>; rel=preload"))]);
    interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || true);
    noted.1.recv().await.expect("told at once");
    interim.send(StatusCode::from_u16(103).expect("a status"), &hints, || true);
    side.answer.send(Response::new(full("done"))).expect("waits");
    let answer = asking.await.expect("runs").expect("answers");
    assert_eq!(*told.lock().expect("whole"), [(102, HeaderMap::new()), (103, hints)]);
    assert_eq!(read(answer.into_body(), 9).await.expect("whole"), "done");
    interim.send(StatusCode::PROCESSING, &HeaderMap::new(), || panic!("it is late"));
}

#[tokio::test]
async fn who_expects_100_is_told_to_go_on_once_somebody_reads() {
    let (client, mut side) = served();
    let (mut send, connection) = h2::client::handshake(client).await.expect("begins");
    tokio::spawn(connection);
    let ask = Request::builder().method("POST").uri("http://localhost/").header("expect", "100-continue");
    let (mut answer, mut body) = send.send_request(ask.body(()).expect("a request"), false).expect("sends");
    let mut asked = side.asked.recv().await.expect("asked");
    assert!(futures_util::poll!(std::future::poll_fn(|cx| answer.poll_informational(cx))).is_pending());
    let reading = tokio::spawn(async move { asked.body_mut().frame().await.expect("a frame").expect("sound") });
    let go_on = std::future::poll_fn(|cx| answer.poll_informational(cx)).await.expect("comes").expect("sound");
    assert_eq!(go_on.status(), 100);
    body.send_data(Bytes::from_static(b"body"), true).expect("sends");
    assert_eq!(reading.await.expect("runs").into_data().expect("data"), "body");
    side.answer.send(Response::new(full(""))).expect("waits");
    assert_eq!(answer.await.expect("answers").status(), 200);
}

#[tokio::test]
async fn a_request_that_is_reset_did_not_end() {
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR] {
        let (client, mut side) = served();
        let (mut send, connection) = h2::client::handshake(client).await.expect("begins");
        tokio::spawn(connection);
        let ask = Request::builder().method("POST").uri("http://localhost/").body(()).expect("a request");
        let (_answer, mut body) = send.send_request(ask, false).expect("sends");
        body.send_data(Bytes::from_static(b"half"), false).expect("sends");
        let mut asked = side.asked.recv().await.expect("asked").into_body();
        assert_eq!(asked.frame().await.expect("a frame").expect("sound").into_data().expect("data"), "half");
        body.send_reset(reason);
        assert!(asked.frame().await.expect("not its end").is_err(), "{reason}");
    }
}

#[tokio::test]
async fn an_answer_that_is_reset_did_not_end() {
    for reason in [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR] {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (now, reset) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(server).await.expect("begins");
            let (_, mut respond) = connection.accept().await.expect("asked").expect("sound");
            let mut body = respond.send_response(Response::new(()), false).expect("sends");
            body.send_data(Bytes::from_static(b"half"), false).expect("sends");
            let (told, mut tell) = (reset, connection);
            let running = async { while tell.accept().await.is_some() {} };
            tokio::join!(running, async {
                told.await.expect("told");
                body.send_reset(reason);
            });
        });
        let connection = Connection::begin(client).await.expect("begins");
        let answer = send(connection, request("/", full(""))).await.expect("answers");
        let mut body = answer.into_body();
        assert_eq!(body.frame().await.expect("a frame").expect("sound").into_data().expect("data"), "half");
        now.send(()).expect("waits");
        assert!(body.frame().await.expect("not its end").is_err(), "{reason}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_resets_its_stream_and_no_other() {
    let (connection, mut side) = both().await;
    let (feed, body) = fed();
    feed.send(Ok(data("half"))).expect("reads");
    let asking = tokio::spawn(send(connection.clone(), request("/", body)));
    let mut asked = side.asked.recv().await.expect("asked").into_body();
    assert_eq!(asked.frame().await.expect("a frame").expect("sound").into_data().expect("data"), "half");
    feed.send(Err("broken".into())).expect("reads");
    assert!(asked.frame().await.expect("not its end").is_err());
    let failure = asking.await.expect("runs").err().expect("there is no answer");
    assert!(crate::net::fetch::innermost(&failure).contains("stream"), "{failure:?}");

    let (feed, body) = fed();
    let asking = tokio::spawn(send(connection.clone(), request("/", full(""))));
    side.asked.recv().await.expect("asked");
    side.answer.send(Response::new(body)).expect("waits");
    let mut answer = asking.await.expect("runs").expect("answers").into_body();
    feed.send(Ok(data("half"))).expect("reads");
    assert_eq!(answer.frame().await.expect("a frame").expect("sound").into_data().expect("data"), "half");
    feed.send(Err("broken".into())).expect("reads");
    assert!(answer.frame().await.expect("not its end").is_err());
    let answer = send(connection, request("/short", full(""))).await.expect("answers");
    assert_eq!(read(answer.into_body(), 9).await.expect("whole"), "short");
}

#[test]
fn what_resets_a_stream_is_never_what_some_take_for_its_end() {
    let reason = |reason: h2::Reason| super::pipe::reason(&h2::Error::from(reason));
    assert_eq!(reason(h2::Reason::CANCEL), h2::Reason::CANCEL);
    assert_eq!(reason(h2::Reason::NO_ERROR), h2::Reason::INTERNAL_ERROR);
    assert_eq!(super::pipe::reason(&std::io::Error::other("broken")), h2::Reason::INTERNAL_ERROR);
}

#[tokio::test]
async fn who_goes_takes_both_bodies_along() {
    let (connection, mut side) = both().await;
    let (feed, body) = fed();
    let asking = tokio::spawn(send(connection.clone(), request("/", body)));
    let mut asked = side.asked.recv().await.expect("asked").into_body();
    asking.abort();
    assert!(asked.frame().await.expect("not its end").is_err(), "nobody waits for the answer");
    feed.closed().await;

    let ((feed, body), (answering, answer)) = (fed(), fed());
    let asking = tokio::spawn(send(connection.clone(), request("/", body)));
    side.asked.recv().await.expect("asked");
    side.answer.send(Response::new(answer)).expect("waits");
    drop(asking.await.expect("runs").expect("answers"));
    feed.closed().await;
    answering.closed().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_other() {
    let (connection, _side) = both().await;
    let mut unread = Vec::new();
    for _ in 0..12 {
        unread.push(send(connection.clone(), request("/long", full(""))).await.expect("answers"));
    }
    let answer = send(connection, request("/short", full(""))).await.expect("answers");
    assert_eq!(read(answer.into_body(), 9).await.expect("whole"), "short");
}

#[tokio::test]
async fn a_drain_lets_what_runs_end_and_takes_nothing_new() {
    let (connection, mut side) = both().await;
    let asking = tokio::spawn(send(connection.clone(), request("/", full(""))));
    side.asked.recv().await.expect("asked");
    side.drain.send(true).expect("listens");
    while connection.is_open() {
        tokio::task::yield_now().await;
    }
    assert!(connection.turn().await.is_none());
    assert!(!side.serving.is_finished());
    side.answer.send(Response::new(full("done"))).expect("waits");
    let answer = asking.await.expect("runs").expect("answers");
    assert_eq!(read(answer.into_body(), 9).await.expect("whole"), "done");
    side.serving.await.expect("runs").expect("ends well");
}

fn quick() -> Pulse {
    let moment = Duration::from_millis(1);
    Pulse { every: moment, apart: Duration::ZERO, patience: moment, idle: false }
}

#[tokio::test]
async fn who_says_nothing_any_more_is_lost() {
    let (client, mut server) = tokio::io::duplex(1 << 16);
    let (_send, mut connection) = h2::client::handshake(client).await.expect("begins");
    let pings = connection.ping_pong();
    tokio::spawn(connection);
    // It reads and says nothing.
    let reading = tokio::spawn(async move { tokio::io::copy(&mut server, &mut tokio::io::sink()).await });
    let life = Life::begin();
    let mut lost = std::pin::pin!(quick().lost(pings, &life));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut lost).await.is_err(), "nobody cares");
    let _used = life.take().expect("is open");
    let hearing = async {
        for _ in 0..20 {
            life.heard();
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
    };
    tokio::join!(lost, hearing);
    reading.abort();
}

#[tokio::test]
async fn who_answers_pings_is_not_lost() {
    let (client, server) = tokio::io::duplex(1 << 16);
    let (_send, mut connection) = h2::client::handshake(client).await.expect("begins");
    let pings = connection.ping_pong();
    tokio::spawn(connection);
    let mut other = h2::server::handshake(server).await.expect("begins");
    let serving = tokio::spawn(async move { other.accept().await.is_none() });
    let life = Life::begin();
    let patient = Pulse { patience: Duration::from_mins(1), idle: true, ..quick() };
    assert!(tokio::time::timeout(Duration::from_millis(50), patient.lost(pings, &life)).await.is_err());
    serving.abort();
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_used_no_more() {
    let life = Life::begin();
    let used = life.take().expect("is open");
    let mut idle = std::pin::pin!(life.idle(Duration::from_millis(1)));
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut idle).await.is_err(), "it is used");
    drop(used);
    idle.await;
    assert!(!life.is_open() && life.take().is_none());
}

#[tokio::test]
async fn what_waits_for_its_turn_and_is_given_up_is_never_sent() {
    let (client, server) = tokio::io::duplex(1 << 16);
    let (tell, mut paths) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut builder = h2::server::Builder::new();
        let mut connection = builder.max_concurrent_streams(1).handshake::<_, Bytes>(server).await.expect("begins");
        while let Some(Ok((request, respond))) = connection.accept().await {
            let _ = tell.send((request.uri().path().to_owned(), respond));
        }
    });
    let connection = Connection::begin(client).await.expect("begins");
    // One after the other until the limit is known.
    let first = tokio::spawn(send(connection.clone(), request("/first", full(""))));
    let (_, mut respond) = paths.recv().await.expect("asked");
    let [second, third, fourth] =
        ["/second", "/third", "/fourth"].map(|path| tokio::spawn(send(connection.clone(), request(path, full("")))));
    tokio::task::yield_now().await;
    for abandoned in [third, fourth] {
        abandoned.abort();
        assert!(abandoned.await.is_err_and(|e| e.is_cancelled()));
    }
    respond.send_response(Response::new(()), true).expect("sends");
    first.await.expect("runs").expect("answers");
    let (path, mut respond) = paths.recv().await.expect("asked");
    assert_eq!(path, "/second");
    respond.send_response(Response::new(()), true).expect("sends");
    second.await.expect("runs").expect("answers");
    let last = tokio::spawn(send(connection, request("/last", full(""))));
    assert_eq!(paths.recv().await.expect("asked").0, "/last", "what nobody waits for is not asked");
    last.abort();
}

#[tokio::test]
async fn a_tunnel_that_is_dropped_ends_after_what_was_written() {
    let (client, mut side) = served();
    let (mut send, connection) = h2::client::handshake(client).await.expect("begins");
    tokio::spawn(connection);
    let mut ask = Request::builder().method("CONNECT").uri("http://localhost/").body(()).expect("a request");
    ask.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    std::future::poll_fn(|cx| send.poll_ready(cx)).await.expect("is open");
    let (answer, _to) = send.send_request(ask, false).expect("sends");
    let mut asked = side.asked.recv().await.expect("asked");
    let upgrading = crate::net::upgrade::Upgrading::take(&mut asked).expect("it can be");
    side.answer.send(Response::new(full(""))).expect("waits");
    let mut body = answer.await.expect("answers").into_body();
    let mut tunnel = upgrading.ready().await.expect("is there");
    tunnel.write_all(b"a last word").await.expect("writes");
    drop(tunnel);
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        read.extend(data.expect("an orderly end"));
    }
    assert_eq!(read, b"a last word");
}

#[tokio::test]
async fn more_requests_than_streams_are_all_answered() {
    let (connection, _side) = both().await;
    let asking: Vec<_> =
        (0..600).map(|_| tokio::spawn(send(connection.clone(), request("/echo", full(vec![b'z'; 10_000]))))).collect();
    for one in asking {
        let answer = one.await.expect("runs").expect("answers");
        assert_eq!(read(answer.into_body(), 20_000).await.expect("whole").len(), 10_000);
    }
}

#[tokio::test]
async fn who_gives_up_at_once_does_not_end_the_connection_for_others() {
    let (connection, _side) = both().await;
    for _ in 0..50 {
        let mut asking = Box::pin(send(connection.clone(), request("/long", full(""))));
        assert!(futures_util::poll!(&mut asking).is_pending(), "it is sent, and given up before anything is read");
    }
    for _ in 0..5 {
        let answer = send(connection.clone(), request("/short", full(""))).await.expect("answers");
        assert_eq!(read(answer.into_body(), 9).await.expect("whole"), "short");
    }
}
