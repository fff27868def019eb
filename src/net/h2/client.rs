//! Requests over one connection of HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Request, Response, Version, header};
use hyper::body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::net::body::AnyBody;
use crate::net::h2::body::StreamBody;
use crate::net::h2::pulse::Pulse;
use crate::net::h2::{pipe, strip};
use crate::net::inbound::Inbound;
use crate::net::interim::OnInterim;

/// Bytes of one answer that may wait here.
const WINDOW: u32 = 1 << 20;
/// A connection has no bound of its own: an answer whose client does not read would hold up those of others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Longest header list of an answer.
const HEADER_LIST: u32 = 64 << 10;
/// gRPC's servers take more than one ping in five minutes for an attack.
const PULSE: Pulse =
    Pulse { every: Duration::from_secs(20), apart: Duration::from_mins(5), patience: Duration::from_secs(20) };

/// A connection to a service, on which requests can be sent. It closes when nobody has it any more and all are answered.
#[derive(Clone)]
pub struct Connection {
    send: SendRequest<Bytes>,
    /// Held by whoever uses it.
    uses: Arc<()>,
}

/// A request came to no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The connection takes no requests any more, and nothing of this one was sent.
    #[error("the connection had gone")]
    Unsent(#[source] h2::Error),
    /// The stream or the connection ended.
    #[error("the stream ended early")]
    Broke(#[source] h2::Error),
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
            .max_header_list_size(HEADER_LIST);
        let (send, mut connection) = builder.handshake(io).await?;
        let uses = Arc::new(());
        let seen = uses.clone();
        tokio::spawn(async move {
            // One is the pool's and one is here.
            let lost = PULSE.lost(connection.ping_pong(), move || Arc::strong_count(&seen) > 2);
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to a service ended");
                },
                () = lost => tracing::debug!("a service did not answer a ping"),
            }
        });
        Ok(Self { send, uses })
    }

    /// Whether anybody else waits for an answer or reads one.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.uses) > 2
    }

    /// Whether it takes requests.
    pub async fn is_open(&mut self) -> bool {
        poll_fn(|cx| self.send.poll_ready(cx)).await.is_ok()
    }

    /// Sends a request with an absolute URI. The request's body goes on while the answer comes, and ends with an answer that
    /// nobody reads to its end.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn send(mut self, request: Request<AnyBody>) -> Result<Response<Inbound>, Failure> {
        let (mut head, body) = request.into_parts();
        head.version = Version::HTTP_2;
        // What contradicts the URI is not ours to mend.
        if head.headers.get(header::HOST).map(http::HeaderValue::as_bytes)
            == head.uri.authority().map(|a| a.as_str().as_bytes())
        {
            head.headers.remove(header::HOST);
        }
        strip(&mut head.headers);
        let told = head.extensions.remove::<OnInterim>();
        if let (Some(length), false) = (body.size_hint().exact(), body.is_end_stream()) {
            head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let ended = body.is_end_stream();
        let (mut answer, to) = self.send.send_request(Request::from_parts(head, ()), ended).map_err(Failure::Unsent)?;
        let sending = Sending((!ended).then(|| tokio::spawn(pipe::send(body, to)).abort_handle()));
        let response = poll_fn(|cx| poll_answer(&mut answer, told.as_ref(), cx)).await.map_err(Failure::Broke)?;
        let (head, stream) = response.into_parts();
        let body = StreamBody::new(stream, &head.headers).with_sending(sending.go_on(), self.uses);
        Ok(Response::from_parts(head, Inbound::Http2(body)))
    }
}

/// A request's body under way: it ends with who waits for the answer.
struct Sending(Option<tokio::task::AbortHandle>);

impl Sending {
    fn go_on(mut self) -> Option<tokio::task::AbortHandle> {
        self.0.take()
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(sending) = self.0.take() {
            sending.abort();
        }
    }
}

/// The final answer; of the interim ones `told` is told.
fn poll_answer(
    answer: &mut ResponseFuture,
    told: Option<&OnInterim>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, h2::Error>> {
    while let Some(interim) = ready!(answer.poll_informational(cx)).transpose()? {
        if let Some(told) = told {
            told.tell(interim.status(), interim.headers());
        }
    }
    Pin::new(answer).poll(cx)
}
