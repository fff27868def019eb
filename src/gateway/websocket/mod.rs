//! WebSocket: messages both ways, judged, masked, recorded.
//!
//! Messages are whole before they pass; extensions are not negotiated, so what is judged is what is sent. Pings are answered
//! on each side by its own end.

pub mod handshake;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink, stream::SplitStream};
use http::HeaderMap;
use http::Response;
use tokio::time::{Instant, Interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};

use crate::domain::refusal::Refusal;
use crate::gateway::authenticate::Caller;
use crate::gateway::bounds::{Bounds, Cut};
use crate::gateway::read::Incoming;
use crate::gateway::record::Exchange;
use crate::gateway::serve::Gateway;
use crate::gateway::upstream::endpoint::Place;
use crate::gateway::websocket::handshake::Handshake;
use crate::net::body::AnyBody;
use crate::net::upgrade::{Duplex, Upgrading};
use crate::protocol::masking::{self, MaskRules};
use crate::protocol::operation::WebSocket;

/// How long both ends have for the bytes that follow the handshake's answer, and a close for its echo.
const PATIENCE: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// One socket between its two ends: what a message is judged, masked and recorded by.
pub struct Relay {
    /// The plane, for its stores and the rules in force.
    pub gateway: Arc<Gateway>,
    /// Whose socket it is; none: anybody's, of a public route.
    pub caller: Option<Arc<Caller>>,
    /// The request that opened it.
    pub request: Arc<Incoming>,
    /// Its route, by name: each message is judged by the rules of its time.
    pub route: String,
    /// Whether messages are judged.
    pub websocket: WebSocket,
    /// Masks what comes back; the injected credential is among its exact values.
    pub mask: Option<Arc<MaskRules>>,
    /// Whether the route has a mask, which must be able to read what passes; else only the credential is looked for.
    pub reads: bool,
    /// Its evidence.
    pub exchange: Exchange,
    /// What ends it.
    pub bounds: Bounds,
    /// How long an end may be silent: no message, no answer to a ping.
    pub idle: Duration,
    /// Its place at the endpoint.
    pub place: Place,
}

/// Answers the client's handshake with upstream's, and begins to relay.
pub fn open(
    relay: Relay,
    handshake: &Handshake,
    headers: &HeaderMap,
    shown: HeaderMap,
    upstream: Upgrading,
) -> Result<Response<AnyBody>, Refusal> {
    let bad = |why: &str| {
        Refusal::new(502, "upstream", format!("the protected service answered the handshake wrongly: {why}"))
    };
    handshake.check(headers).map_err(bad)?;
    let client =
        handshake.take().ok_or_else(|| Refusal::new(400, "websocket", "this connection cannot be upgraded"))?;
    let tasks = relay.gateway.tasks.clone();
    tasks.spawn(relay.run(client, upstream));
    Ok(handshake.answer(shown))
}

impl Relay {
    async fn run(self, client: Upgrading, upstream: Upgrading) {
        let opened = timeout(PATIENCE, async { tokio::join!(client.ready(), upstream.ready()) }).await;
        let Ok((Some(client), Some(upstream))) = opened else {
            self.exchange.seal("client_gone");
            return;
        };
        let limit = self.gateway.held_body;
        let config =
            WebSocketConfig::default().max_message_size(Some(limit)).max_frame_size(Some(limit)).write_buffer_size(0);
        let client = WebSocketStream::from_raw_socket(client, Role::Server, Some(config)).await;
        let upstream = WebSocketStream::from_raw_socket(upstream, Role::Client, Some(config)).await;
        let (mut to_client, mut from_client) = client.split();
        let (mut to_upstream, mut from_upstream) = upstream.split();
        let ended = {
            let inbound = self.inbound(&mut from_client, &mut to_upstream);
            let outbound = self.outbound(&mut from_upstream, &mut to_client);
            tokio::select! {
                biased;
                cut = self.bounds.over(&self.gateway.stores) => End::Cut(cut),
                end = inbound => end,
                end = outbound => end,
            }
        };
        let name = ended.name();
        if name != "complete" {
            tracing::info!(why = name, request_id = self.request.id, "a WebSocket was cut");
            metrics::counter!("popgate_streams_cut_total", "why" => name).increment(1);
        }
        let (client_frame, upstream_frame) = ended.frames();
        // Sealed before the ends are told: from here on nothing of it passes.
        self.exchange.seal(name);
        let _ = timeout(PATIENCE, async {
            tokio::join!(closed(to_client, client_frame), closed(to_upstream, upstream_frame))
        })
        .await;
        drop(self.place);
    }

    /// Client → upstream.
    async fn inbound(&self, from: &mut SplitStream<Socket>, to: &mut SplitSink<Socket, Message>) -> End {
        let mut due = self.pings();
        loop {
            let message = match self.next(from, to, &mut due, (Cut::ClientGone, Cut::Upstream)).await {
                Ok(message) => message,
                Err(end) => return end,
            };
            let payload: &[u8] = match &message {
                Message::Text(text) => text.as_bytes(),
                Message::Binary(bytes) => bytes,
                Message::Close(frame) => return End::Client(frame.clone()),
                _ => continue,
            };
            if self.websocket == WebSocket::Judge
                && let Err(refusal) = self.judge(&message, payload)
            {
                if let Some(caller) = &self.caller {
                    self.gateway.note_denial(&self.request, caller, None, &refusal);
                }
                return End::Denied(refusal.detail);
            }
            if self.exchange.request_message(payload).is_err() {
                return End::Cut(Cut::Unrecorded);
            }
            let message = match self.towards_upstream(message) {
                Ok(message) => message,
                Err(cut) => return End::Cut(cut),
            };
            if to.send(message).await.is_err() {
                return End::Cut(Cut::Upstream);
            }
        }
    }

    /// Upstream → client.
    async fn outbound(&self, from: &mut SplitStream<Socket>, to: &mut SplitSink<Socket, Message>) -> End {
        let mut due = self.pings();
        loop {
            let message = match self.next(from, to, &mut due, (Cut::Upstream, Cut::ClientGone)).await {
                Ok(message) => message,
                Err(end) => return end,
            };
            let message = match self.masked(message) {
                Ok(Message::Close(frame)) => return End::Upstream(frame),
                Ok(message) => message,
                Err(cut) => return End::Cut(cut),
            };
            if matches!(message, Message::Text(_) | Message::Binary(_)) {
                if self.exchange.response_chunk(&message.clone().into_data()).is_err() {
                    return End::Cut(Cut::Unrecorded);
                }
                if to.send(message).await.is_err() {
                    return End::Cut(Cut::ClientGone);
                }
            }
        }
    }

    /// When an end is asked whether it is there.
    fn pings(&self) -> Interval {
        let mut due = tokio::time::interval_at(Instant::now() + self.idle / 3, self.idle / 3);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        due
    }

    /// The next message of one end. The other is asked meanwhile whether it is there; its answers come in where it is read.
    async fn next(
        &self,
        from: &mut SplitStream<Socket>,
        other: &mut SplitSink<Socket, Message>,
        due: &mut Interval,
        gone: (Cut, Cut),
    ) -> Result<Message, End> {
        let deadline = Instant::now() + self.idle;
        let received = loop {
            tokio::select! {
                received = from.next() => break received,
                () = tokio::time::sleep_until(deadline) => return Err(End::Cut(Cut::Silent)),
                _ = due.tick() => {
                    other.send(Message::Ping(Bytes::new())).await.map_err(|_| End::Cut(gone.1))?;
                }
            }
        };
        match received {
            None | Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Io(_))) => {
                Err(End::Cut(gone.0))
            }
            Some(Err(WsError::Capacity(_))) => Err(End::Broken(CloseCode::Size)),
            Some(Err(WsError::Utf8(_))) => Err(End::Broken(CloseCode::Invalid)),
            Some(Err(_)) => Err(End::Broken(CloseCode::Protocol)),
            Some(Ok(message)) => Ok(message),
        }
    }

    fn judge(&self, message: &Message, payload: &[u8]) -> Result<(), Refusal> {
        if matches!(message, Message::Binary(_)) {
            return Err(Refusal::new(403, "unlisted", "messages here are judged, and a binary one cannot be read"));
        }
        // A public route judges no messages: its configuration is refused.
        let caller = self.caller.as_ref().ok_or_else(|| Refusal::new(403, "unlisted", "nobody is proved here"))?;
        self.gateway.judge_message(caller, &self.request, &self.route, payload)
    }

    /// What upstream gets of a message, where the mask is for requests, too.
    fn towards_upstream(&self, message: Message) -> Result<Message, Cut> {
        match (&self.mask, &message) {
            (Some(rules), Message::Text(text)) if rules.requests => {
                let masked = masking::mask_whole(rules, masking::sniffed(text.as_bytes()), text.as_bytes());
                let masked = masked.ok().and_then(|m| String::from_utf8(m).ok()).ok_or(Cut::Masked)?;
                Ok(Message::text(masked))
            }
            (Some(rules), Message::Binary(_)) if rules.requests => Err(Cut::Masked),
            _ => Ok(message),
        }
    }

    /// What may go to the client of a message from upstream.
    fn masked(&self, message: Message) -> Result<Message, Cut> {
        let Some(rules) = &self.mask else {
            self.count(&message);
            return Ok(message);
        };
        self.count(&message);
        let text = |bytes: &[u8]| {
            let (masked, counts) =
                masking::mask_counting(rules, masking::sniffed(bytes), bytes).map_err(|_| Cut::Masked)?;
            self.exchange.masked_more(counts);
            String::from_utf8(masked).map_err(|_| Cut::Masked)
        };
        Ok(match message {
            Message::Text(plain) => Message::text(text(plain.as_bytes())?),
            Message::Binary(_) if self.reads => return Err(Cut::Masked),
            Message::Binary(bytes) => {
                let (masked, counts) = masking::mask_text(rules, &bytes).map_err(|_| Cut::Masked)?;
                self.exchange.masked_more(counts);
                Message::binary(masked)
            }
            Message::Close(Some(frame)) => {
                let reason = Utf8Bytes::from(shortened(text(frame.reason.as_bytes())?));
                Message::Close(Some(CloseFrame { code: frame.code, reason }))
            }
            other => other,
        })
    }

    fn count(&self, message: &Message) {
        if matches!(message, Message::Text(_) | Message::Binary(_)) {
            self.exchange.upstream_chunk(message.len());
        }
    }
}

/// Tells an end that it is over. One that closed by itself gets the echo of its own frame, which reading it has queued.
async fn closed(mut to: SplitSink<Socket, Message>, frame: Option<CloseFrame>) {
    let _ = to.send(Message::Close(frame)).await;
    let _ = to.flush().await;
    let _ = to.close().await;
}

/// A close frame has room for 123 bytes of reason.
fn shortened(mut reason: String) -> String {
    while reason.len() > 123 {
        reason.pop();
    }
    reason
}

/// Why a socket ended.
enum End {
    /// The client closed it.
    Client(Option<CloseFrame>),
    /// Upstream closed it.
    Upstream(Option<CloseFrame>),
    /// A message was not allowed; what the client reads.
    Denied(String),
    /// An end broke the protocol.
    Broken(CloseCode),
    /// The gateway ended it.
    Cut(Cut),
}

impl End {
    fn name(&self) -> &'static str {
        match self {
            Self::Client(_) | Self::Upstream(_) => "complete",
            Self::Denied(_) => "denied",
            Self::Broken(_) => "broken",
            Self::Cut(cut) => (*cut).into(),
        }
    }

    /// What each end is told: the client, then upstream.
    fn frames(self) -> (Option<CloseFrame>, Option<CloseFrame>) {
        let frame = |code, reason: String| Some(CloseFrame { code, reason: shortened(reason).into() });
        match self {
            // Its reason was judged by nobody: the code is enough.
            Self::Client(sent) => {
                let code = sent.as_ref().map(|f| f.code);
                (sent, code.and_then(|code| frame(code, String::new())))
            }
            Self::Upstream(sent) => (sent.clone(), sent),
            Self::Denied(why) => (frame(CloseCode::Policy, why), frame(CloseCode::Away, String::new())),
            Self::Broken(code) => (frame(code, String::new()), frame(CloseCode::Away, String::new())),
            Self::Cut(cut) => {
                let code = match cut {
                    Cut::Drained => CloseCode::Restart,
                    Cut::Revoked | Cut::Expired | Cut::Masked => CloseCode::Policy,
                    _ => CloseCode::Error,
                };
                (frame(code, <&str>::from(cut).to_owned()), frame(CloseCode::Away, String::new()))
            }
        }
    }
}
