//! Serves one connection of HTTP/2.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::body::{AnyBody, BoxError};
use crate::net::date;
use crate::net::h2::body::StreamBody;
use crate::net::h2::pulse::{Life, Pulse, Use};
use crate::net::h2::tunnel::Tunnel;
use crate::net::h2::{pipe, strip};
use crate::net::inbound::Inbound;
use crate::net::interim::{Desk, Interim};
use crate::net::listener::{Drain, Peer, Serve};
use crate::net::upgrade::{Promise, Upgrading};

/// Bytes of one stream that a client may send before any is read, and of all of a connection's.
const WINDOW: u32 = 1 << 20;
/// Bytes that a stream may have waiting for the client.
const MOST_WAITING: usize = 400 << 10;
/// Most streams of a connection at a time.
const STREAMS: u32 = 256;
/// Longest header list, as RFC 9113 section 6.5.2 counts it.
const HEADER_LIST: u32 = 64 << 10;
/// Streams that a client may make us reset before it is cut off.
const RESETS: usize = 1024;
/// Clients may be idle for as long as they are there.
const PULSE: Pulse =
    Pulse { every: Duration::from_secs(30), apart: Duration::ZERO, patience: Duration::from_secs(20), idle: true };

/// Serves a connection until its client goes; once the drain begins, no new stream is taken.
pub async fn serve<T, S>(io: T, service: S, peer: Arc<Peer>, mut drain: Drain) -> Result<(), h2::Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: Serve,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_LIST)
        .max_local_error_reset_streams(Some(RESETS))
        .max_send_buffer_size(MOST_WAITING);
    if S::TUNNELS {
        builder.enable_connect_protocol();
    }
    let mut connection = tokio::select! {
        biased;
        begun = builder.handshake(io) => begun?,
        // Who has asked for nothing yet asks elsewhere.
        () = drain.begun() => return Ok(()),
    };
    let life = Life::begin();
    let mut lost = pin!(PULSE.lost(connection.ping_pong(), &life));
    let mut begun = pin!(drain.begun());
    let mut going = false;
    loop {
        // The two that are seldom come first: a client that always sends would keep them from being asked.
        tokio::select! {
            biased;
            () = &mut begun, if !going => {
                going = true;
                connection.graceful_shutdown();
            }
            () = &mut lost => {
                // It may not read either, so there is no point in saying so.
                tracing::debug!("a client did not answer a ping");
                return Ok(());
            }
            accepted = connection.accept() => match accepted {
                None => return Ok(()),
                Some(Err(error)) => return Err(error),
                Some(Ok((request, respond))) => {
                    life.heard();
                    let Some(used) = life.take() else { return Ok(()) };
                    tokio::spawn(answer(service.clone(), peer.clone(), request, respond, used));
                }
            },
        }
    }
}

/// Answers one request; nothing more is done for it once its stream is reset.
async fn answer<S: Serve>(
    service: S,
    peer: Arc<Peer>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    used: Use,
) {
    let bodiless = request.method() == Method::HEAD;
    let desk = Desk::default();
    let interim = desk.open();
    let Some((request, tunnelled)) = prepared(request, &interim, used) else {
        respond.send_reset(Reason::PROTOCOL_ERROR);
        return;
    };
    let Some(response) = awaited(interim.until(service.serve(peer, request)), &desk, &mut respond).await else {
        return;
    };
    if let Err(error) = send(response, bodiless, tunnelled, &mut respond).await {
        tracing::debug!(%error, "a stream ended early");
    }
}

/// What becomes of a stream that its answer makes a tunnel.
type Tunnelled = (Promise, RecvStream, Use);

/// The request as it is served, and what its tunnel is made of. None: CONNECT with a length is malformed.
fn prepared(
    request: Request<RecvStream>,
    interim: &Interim,
    used: Use,
) -> Option<(Request<Inbound>, Option<Tunnelled>)> {
    let (mut head, stream) = request.into_parts();
    head.extensions.insert(interim.clone());
    if head.method == Method::CONNECT {
        if head.headers.get(header::CONTENT_LENGTH).is_some_and(|v| v != "0") {
            return None;
        }
        let (promise, upgrading) = Upgrading::promised();
        head.extensions.insert(upgrading);
        return Some((Request::from_parts(head, Inbound::Empty), Some((promise, stream, used))));
    }
    let waits = head.headers.get(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let mut body = StreamBody::new(stream, &head.headers, used);
    if waits {
        body = body.asked_for_by(interim.clone());
    }
    Some((Request::from_parts(head, Inbound::Http2(body)), None))
}

/// Waits for the final answer and sends the interim ones meanwhile; none if the client resets the stream.
async fn awaited(
    answering: impl Future<Output = Response<AnyBody>>,
    desk: &Desk,
    respond: &mut SendResponse<Bytes>,
) -> Option<Response<AnyBody>> {
    let mut answering = pin!(answering);
    poll_fn(|cx| {
        let answered = answering.as_mut().poll(cx);
        let waiting = desk.take();
        if !waiting.is_empty() && respond.poll_reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        for mut interim in waiting {
            strip(interim.headers_mut());
            if let Err(error) = respond.send_informational(interim) {
                tracing::debug!(%error, "an interim answer was not sent");
            }
        }
        match answered {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        }
    })
    .await
}

async fn send(
    response: Response<AnyBody>,
    bodiless: bool,
    tunnelled: Option<Tunnelled>,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), BoxError> {
    let (head, body) = response.into_parts();
    let mut response = Response::from_parts(head, ());
    let empty = response.status() == StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    strip(headers);
    if empty {
        // RFC 9110 section 8.6: it has none, whatever upstream says.
        headers.remove(header::CONTENT_LENGTH);
    }
    if !headers.contains_key(header::DATE) {
        headers.insert(header::DATE, date::now());
    }
    if let Some((promise, stream, used)) = tunnelled
        && response.status().is_success()
    {
        response.headers_mut().remove(header::CONTENT_LENGTH);
        let to = respond.send_response(response, false)?;
        promise.keep(Tunnel::new(stream, to, used));
        return Ok(());
    }
    if body.is_end_stream() {
        respond.send_response(response, true)?;
        return Ok(());
    }
    told_length(&body, response.status(), response.headers_mut());
    if bodiless || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        respond.send_response(response, true)?;
        return Ok(());
    }
    let to = respond.send_response(response, false)?;
    pipe::send(body, to, None).await
}

/// Says how long a body is that is known whole.
fn told_length(body: &AnyBody, status: StatusCode, headers: &mut HeaderMap) {
    if let (Some(length), false) = (body.size_hint().exact(), status == StatusCode::NO_CONTENT) {
        headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}
