//! Keeps what the agent knows fresh: listens to the server, and has each certificate replaced before it ends.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use crate::agent::server::{Heard, Issued, Order, Server, ServerError};
use crate::agent::state::{AgentEntry, HeldSvid, Snapshot, Update};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::{Clock, Timestamp};
use crate::net::keys::P256Key;
use crate::net::listener::Drain;
use crate::protocol::svid::{X509Svid, spki_sha256};

/// Certificates that are asked for at once.
const BATCH: usize = 256;
/// A server that is away is asked again after this long, then after twice as long, up to the limit.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A stream that says nothing for this long is dead: the server speaks every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait at most before looking at the clock again.
const LOOK: Duration = Duration::from_secs(30);
/// What is due sooner than this is replaced along with what is due now.
const GATHER: Duration = Duration::from_millis(500);

/// The agent's memory, and what renews it.
pub struct Keeper {
    server: Arc<dyn Server>,
    clock: Arc<dyn Clock>,
    present: watch::Sender<Arc<Snapshot>>,
    /// Whether the server was last heard, for readiness.
    connected: RwLock<bool>,
}

impl Keeper {
    /// A keeper that knows nothing yet.
    pub fn new(server: Arc<dyn Server>, clock: Arc<dyn Clock>) -> Arc<Self> {
        let present = watch::channel(Arc::default()).0;
        Arc::new(Self { server, clock, present, connected: RwLock::new(false) })
    }

    /// What is known, now and after each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.present.subscribe()
    }

    /// The server, for what is not kept.
    pub fn server(&self) -> &dyn Server {
        &*self.server
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether the server is there. The agent serves from memory while it is not.
    pub fn is_connected(&self) -> bool {
        *self.connected.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_connected(&self, connected: bool) {
        *self.connected.write().unwrap_or_else(PoisonError::into_inner) = connected;
        metrics::gauge!("popgate_agent_server_connected").set(f64::from(u8::from(connected)));
    }

    /// Listens and renews until the drain begins.
    pub async fn keep(self: Arc<Self>, mut drain: Drain) {
        let listening = self.listen();
        let renewing = self.renew();
        tokio::select! {
            () = listening => {}
            () = renewing => {}
            () = drain.begun() => {}
        }
    }

    async fn listen(&self) {
        let mut pause = PAUSES.0;
        loop {
            let heard = self.hear().await;
            let was_connected = self.is_connected();
            self.set_connected(false);
            if was_connected {
                pause = PAUSES.0;
                tracing::warn!(why = heard, "the server is away; serving from memory what is valid");
            } else {
                tracing::info!(why = heard, "the server does not answer");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Takes each update of one stream; gives why it ended.
    async fn hear(&self) -> String {
        let mut updates = match self.server.updates().await {
            Ok(updates) => updates,
            Err(error) => {
                if let ServerError::Refused { .. } = error {
                    // It is not away: it says that this node may have nothing.
                    self.publish(Snapshot::refused);
                }
                return error.to_string();
            }
        };
        loop {
            match tokio::time::timeout(SILENCE, updates.next()).await {
                Err(_) => return "it has been silent for 30 s".into(),
                Ok(None) => return "it ended the stream".into(),
                Ok(Some(Err(error))) => return error.to_string(),
                Ok(Some(Ok(heard))) => {
                    if !self.is_connected() {
                        tracing::info!("the server is here");
                        self.set_connected(true);
                    }
                    if let Heard::Update(update) = heard {
                        self.take(*update);
                    }
                }
            }
        }
    }

    /// What is taken away goes at once; for what is new, the other task gets a certificate.
    fn take(&self, update: Update) {
        tracing::info!(entries = update.entries.len(), bundle = update.bundle.sequence, "updated by the server");
        self.publish(|old| Snapshot::new(Arc::new(update), old.svids.clone()));
    }

    fn publish(&self, next: impl FnOnce(&Snapshot) -> Snapshot) {
        self.present.send_modify(|present| *present = Arc::new(next(present)));
        metrics::gauge!("popgate_agent_svids").set(count(self.present.borrow().svids.len()));
    }

    /// Has each certificate replaced when it is due, and what failed tried again.
    async fn renew(&self) {
        let (mut present, mut pause) = (self.watch(), PAUSES.0);
        loop {
            let snapshot = present.borrow_and_update().clone();
            let now = self.now();
            let due = snapshot.due(now.plus(GATHER));
            if !due.is_empty() {
                if self.replace_all(&due).await {
                    pause = PAUSES.0;
                    continue;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
                continue;
            }
            // No longer than this at a time: clocks step, and machines sleep.
            let wait = snapshot.next_due().map_or(LOOK, |at| at.since(now)).min(LOOK);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                changed = present.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn replace_all(&self, due: &[AgentEntry]) -> bool {
        let mut all = true;
        for batch in due.chunks(BATCH) {
            all &= self.replace(batch).await;
        }
        all
    }

    async fn replace(&self, entries: &[AgentEntry]) -> bool {
        let keys: Vec<Arc<P256Key>> = entries.iter().map(|_| Arc::new(P256Key::generate())).collect();
        let order = |(entry, key): (&AgentEntry, &Arc<P256Key>)| {
            let csr = key.csr().ok()?;
            Some(Order { spiffe_id: entry.spiffe_id.clone(), csr })
        };
        let Some(orders) = entries.iter().zip(&keys).map(order).collect::<Option<Vec<_>>>() else { return false };
        let issued = match self.server.issue(&orders).await {
            Ok(issued) => issued,
            Err(error) => {
                tracing::warn!(%error, wanted = entries.len(), "certificates could not be had; they are asked for again");
                return false;
            }
        };
        let (mut fresh, mut all) = (Vec::new(), true);
        for ((entry, key), result) in entries.iter().zip(keys).zip(issued) {
            match result.and_then(|issued| held(entry, key, issued, self.now())) {
                Ok(held) => fresh.push((entry.spiffe_id.clone(), Arc::new(held))),
                Err(error) => {
                    all = false;
                    tracing::warn!(spiffe_id = %entry.spiffe_id, %error, "no certificate");
                }
            }
        }
        if !fresh.is_empty() {
            self.publish(|old| {
                let Some(update) = &old.update else { return Snapshot::default() };
                let mut svids = old.svids.clone();
                // The entry may have changed meanwhile: then this is not what it wants.
                let wanted = |id: &SpiffeId, held: &HeldSvid| {
                    update.entries.iter().any(|e| e.spiffe_id == *id && e.version == held.version)
                };
                svids.extend(fresh.into_iter().filter(|(id, held)| wanted(id, held)));
                Snapshot::new(update.clone(), svids)
            });
        }
        all
    }
}

fn held(entry: &AgentEntry, key: Arc<P256Key>, issued: Issued, now: Timestamp) -> Result<HeldSvid, ServerError> {
    let bad = |what: &str| ServerError::Away(format!("the server's answer {what}"));
    let leaf = issued.chain.first().ok_or_else(|| bad("has no certificate"))?;
    let svid = X509Svid::parse(leaf).map_err(|e| bad(&format!("is no SVID: {e}")))?;
    if svid.spiffe_id != entry.spiffe_id || spki_sha256(leaf) != Some(crate::domain::digest::Sha256::of(key.spki())) {
        return Err(bad("is for another identity or key"));
    }
    let issuer = issued.chain.get(1).and_then(|der| spki_sha256(der)).map(|d| d.to_string()).unwrap_or_default();
    // Whatever the two clocks say: not at once again.
    let renew_after = issued.renew_after.max(now.plus(svid.not_after.since(now) / 10));
    Ok(HeldSvid {
        svid,
        chain: Bytes::from(issued.chain.concat()),
        key,
        issuer,
        renew_after,
        version: entry.version.clone(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn count(n: usize) -> f64 {
    n as f64
}
