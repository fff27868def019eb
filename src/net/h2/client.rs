//! Requests over one connection of HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, Request, Response, Version, header, request};
use hyper::body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::net::body::AnyBody;
use crate::net::h2::body::StreamBody;
use crate::net::h2::pulse::{Life, Pulse, Use};
use crate::net::h2::{pipe, strip};
use crate::net::inbound::Inbound;
use crate::net::interim::OnInterim;

/// Bytes of one answer that may wait here.
const WINDOW: u32 = 512 << 10;
/// A connection has no bound of its own: an answer whose client does not read would hold up those of others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What frames of a few bytes may cost besides them.
const SMALL_FRAMES: usize = 4 << 20;
/// Streams until the service says how many it takes (RFC 9113 section 6.5.2 asks it for 100 at least).
const STREAMS: usize = 100;
/// Longest header list of an answer.
const HEADER_LIST: u32 = 64 << 10;
/// Most interim answers to a request.
const MOST_INTERIM: usize = 1000;
/// How long a connection without a request is kept.
pub const KEPT: Duration = Duration::from_mins(1);
/// A request that is given up is reset so long after it was sent at the earliest: servers take many that are reset before they
/// were looked at for an attack (CVE-2023-44487), and end the connection for all who share it.
const LINGER: Duration = Duration::from_millis(250);
/// Who waited so long in vain does not leave the connection to others.
const SILENT: Duration = Duration::from_secs(20);
/// gRPC's servers take more than one ping in five minutes for an attack.
const PULSE: Pulse = Pulse {
    every: Duration::from_secs(20),
    apart: Duration::from_mins(5),
    patience: Duration::from_secs(20),
    idle: false,
};

/// A connection to a service. It closes when nobody has used it for a while.
#[derive(Clone)]
pub struct Connection {
    send: Arc<Mutex<SendRequest<Bytes>>>,
    life: Arc<Life>,
}

/// A place for one request. The next one waits until this one's stream is open, so that what nobody waits for any more is not
/// sent: `h2` would send it later.
pub struct Turn {
    send: OwnedMutexGuard<SendRequest<Bytes>>,
    used: Use,
}

impl Connection {
    /// Begins to speak HTTP/2 on a stream that was dialled.
    ///
    /// # Errors
    ///
    /// The connection ended.
    pub async fn begin<T>(io: T) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(SMALL_FRAMES)
            .initial_max_send_streams(STREAMS)
            .max_header_list_size(HEADER_LIST);
        let (send, mut connection) = builder.handshake(io).await?;
        let life = Life::begin();
        let own = life.clone();
        tokio::spawn(async move {
            let pings = connection.ping_pong();
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to a service ended");
                },
                () = PULSE.lost(pings, &own) => tracing::debug!("a service did not answer a ping"),
                () = own.idle(KEPT) => {}
            }
            own.close();
        });
        Ok(Self { send: Arc::new(Mutex::new(send)), life })
    }

    /// Whether it takes requests.
    pub fn is_open(&self) -> bool {
        let failed = |mut send: tokio::sync::MutexGuard<'_, SendRequest<Bytes>>| {
            matches!(send.poll_ready(&mut Context::from_waker(noop_waker_ref())), Poll::Ready(Err(_)))
        };
        // Whoever has its turn asks itself.
        self.life.is_open() && !self.send.try_lock().is_ok_and(failed)
    }

    /// Waits until all that were before it have their streams. None: the connection takes no more requests.
    pub async fn turn(&self) -> Option<Turn> {
        let used = self.life.take()?;
        let mut send = self.send.clone().lock_owned().await;
        poll_fn(|cx| send.poll_ready(cx)).await.ok()?;
        Some(Turn { send, used })
    }
}

impl Turn {
    /// Sends a request with an absolute URI. The request's body goes on while the answer comes, and ends with an answer that
    /// nobody reads to its end.
    ///
    /// # Errors
    ///
    /// The stream or the connection ended, or HTTP/2 has no way to say what the request says.
    pub async fn send(self, request: Request<AnyBody>) -> Result<Response<Inbound>, h2::Error> {
        let (mut head, body) = request.into_parts();
        let told = head.extensions.remove::<OnInterim>();
        prepare(&mut head, &body);
        let Self { mut send, used } = self;
        let ended = body.is_end_stream();
        let (answer, to) = send.send_request(Request::from_parts(head, ()), ended)?;
        // The stream is one more than the service had room for, maybe. Until it is open nobody else asks `h2` about it: whoever
        // asks last is the only one to be woken.
        poll_fn(|cx| send.poll_ready(cx)).await?;
        drop(send);
        let began = Instant::now();
        let sending = (!ended).then(|| tokio::spawn(pipe::send(body, to, Some(began + LINGER))).abort_handle());
        let mut waiting = Waiting { held: Some(Held { answer, sending, used }), began };
        let mut interim = 0;
        poll_fn(|cx| waiting.poll(told.as_ref(), &mut interim, cx)).await
    }
}

/// What HTTP/2 has otherwise than HTTP/1.1.
fn prepare(head: &mut request::Parts, body: &AnyBody) {
    head.version = Version::HTTP_2;
    let authority = head.uri.authority().map(|a| a.as_str().as_bytes());
    // What contradicts the URI is not ours to mend.
    if head.headers.get(header::HOST).map(HeaderValue::as_bytes) == authority {
        head.headers.remove(header::HOST);
    }
    strip(&mut head.headers);
    // RFC 9110 section 8.6: where a body means something, none is said to be none.
    let bare = matches!(head.method, Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0 || !bare) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
}

/// A request that waits for its answer: its body ends with it.
struct Waiting {
    /// None once it is over.
    held: Option<Held>,
    began: Instant,
}

struct Held {
    answer: ResponseFuture,
    sending: Option<AbortHandle>,
    used: Use,
}

impl Waiting {
    fn poll(
        &mut self,
        told: Option<&OnInterim>,
        interim: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<Inbound>, h2::Error>> {
        let Some(held) = &mut self.held else { return Poll::Pending };
        let answered = ready!(poll_answer(&mut held.answer, told, interim, cx));
        let Some(held) = self.held.take() else { return Poll::Pending };
        Poll::Ready(match answered {
            Err(error) => {
                held.give_up();
                Err(error)
            }
            Ok(answered) => {
                let (head, stream) = answered.into_parts();
                let body = StreamBody::new(stream, &head.headers, held.used).with_sending(held.sending);
                Ok(Response::from_parts(head, Inbound::Http2(body)))
            }
        })
    }
}

impl Held {
    /// Resets the stream, whatever is still sent on it.
    fn give_up(self) {
        if let Some(sending) = self.sending {
            sending.abort();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(held) = self.held.take() else { return };
        if self.began.elapsed() >= SILENT {
            held.used.life().close();
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.began.elapsed() < LINGER => {
                let until = self.began + LINGER;
                runtime.spawn(async move {
                    tokio::time::sleep_until(until).await;
                    held.give_up();
                });
            }
            _ => held.give_up(),
        }
    }
}

/// The final answer; of the interim ones `told` is told.
fn poll_answer(
    answer: &mut ResponseFuture,
    told: Option<&OnInterim>,
    count: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, h2::Error>> {
    while let Some(interim) = ready!(answer.poll_informational(cx)).transpose()? {
        *count += 1;
        if *count > MOST_INTERIM {
            return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into()));
        }
        if let Some(told) = told {
            told.tell(interim.status(), interim.headers());
        }
    }
    Pin::new(answer).poll(cx)
}
