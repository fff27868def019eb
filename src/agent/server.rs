//! The server, as the agent sees it. The wiring brings one over HTTPS, tests bring their own.

use async_trait::async_trait;
use futures_util::stream::BoxStream;

use crate::agent::state::Update;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;

/// The server could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServerError {
    /// It is away, or something else may help later.
    #[error("{0}")]
    Away(String),
    /// It refuses: asking again does not help.
    #[error("{why}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        why: String,
    },
}

/// What is heard of the server.
pub enum Heard {
    /// It lives.
    Alive,
    /// It told a new state.
    Update(Box<Update>),
}

/// A certificate that is wanted.
#[derive(Clone, Debug)]
pub struct Order {
    /// For whom.
    pub spiffe_id: SpiffeId,
    /// The request, DER.
    pub csr: Vec<u8>,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// When to come for the next.
    pub renew_after: Timestamp,
}

/// What the agent asks of the server.
#[async_trait]
pub trait Server: Send + Sync {
    /// The agent's state, now and on each change; ends when the connection does.
    async fn updates(&self) -> Result<BoxStream<'static, Result<Heard, ServerError>>, ServerError>;
    /// Certificates, each order for itself.
    async fn issue(&self, orders: &[Order]) -> Result<Vec<Result<Issued, ServerError>>, ServerError>;
    /// A JWT-SVID and its end.
    async fn jwt(&self, id: &SpiffeId, audiences: &[String]) -> Result<(String, Timestamp), ServerError>;
}
