//! What the callers of the agent's socket are: attested anew, and once for the streams of one connection.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tonic::Status;

use crate::agent::attest::UnixAttestor;
use crate::agent::keeper::Keeper;
use crate::domain::selector::Selector;
use crate::net::listener::Peer;

/// How long what was found on a connection holds for its other streams.
const RECENT: Duration = Duration::from_millis(200);
/// Callers that are attested at once.
const ATTESTED_AT_ONCE: usize = 4;

/// Attests callers on threads of their own, a few at a time: reading files of other people's choosing takes as long as it
/// takes.
pub struct Attestation {
    attestor: Arc<UnixAttestor>,
    room: Semaphore,
    keeper: Arc<Keeper>,
}

/// What attestation found last on a connection, when, and whether it looked at the executable's bytes.
#[derive(Default)]
struct Recent(Mutex<Option<(Instant, bool, BTreeSet<Selector>)>>);

impl Attestation {
    /// Attestation under the generation that a keeper holds.
    pub fn new(keeper: Arc<Keeper>) -> Self {
        Self { attestor: Arc::default(), room: Semaphore::new(ATTESTED_AT_ONCE), keeper }
    }

    /// What the peer of a connection is, now.
    pub async fn of(&self, peer: &Peer) -> Result<BTreeSet<Selector>, Status> {
        let process = peer.process.clone().ok_or_else(|| Status::internal("the caller's process is not known"))?;
        let digest = self.keeper.watch().borrow().wants_digest();
        // The streams of one connection are told of a change together.
        let recent = peer.read.get_or_init(|| Arc::new(Recent::default())).clone().downcast::<Recent>();
        let recent = recent.map_err(|_| Status::internal("the connection is another plane's"))?;
        let held = || recent.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |(at, looked, _): &&(Instant, bool, BTreeSet<Selector>)| at.elapsed() < RECENT && *looked == digest;
        if let Some((_, _, found)) = held().as_ref().filter(fits) {
            return Ok(found.clone());
        }
        let _place = self.room.acquire().await.map_err(|_| Status::unavailable("the agent ends"))?;
        let (attestor, asked) = (self.attestor.clone(), process.clone());
        let attested = tokio::task::spawn_blocking(move || attestor.attest(&asked, digest)).await;
        let attested = attested.map_err(|_| Status::internal("attestation broke off"))?;
        let found = attested.map_err(|error| {
            tracing::info!(pid = process.pid, %error, "a caller is not attested");
            Status::permission_denied(error.to_string())
        })?;
        *held() = Some((Instant::now(), digest, found.clone()));
        Ok(found)
    }
}
