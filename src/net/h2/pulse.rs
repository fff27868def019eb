//! Whether a connection is used, and whether its other end is still there.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// What is known of a connection.
pub struct Life {
    uses: Mutex<Uses>,
    heard: AtomicBool,
}

struct Uses {
    now: usize,
    /// When that changed last.
    since: Instant,
    /// Whether it takes no more.
    closed: bool,
}

/// Somebody uses a connection, for as long as this is held.
pub struct Use(Arc<Life>);

impl Life {
    /// A connection that has just begun.
    pub fn begin() -> Arc<Self> {
        let uses = Mutex::new(Uses { now: 0, since: Instant::now(), closed: false });
        Arc::new(Self { uses, heard: AtomicBool::new(false) })
    }

    fn uses(&self) -> MutexGuard<'_, Uses> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the connection, unless it takes no more.
    pub fn take(self: &Arc<Self>) -> Option<Use> {
        let mut uses = self.uses();
        if uses.closed {
            return None;
        }
        uses.now += 1;
        uses.since = Instant::now();
        drop(uses);
        Some(Use(self.clone()))
    }

    /// Whether it can be used.
    pub fn is_open(&self) -> bool {
        !self.uses().closed
    }

    /// Nobody else uses it from now on.
    pub fn close(&self) {
        self.uses().closed = true;
    }

    /// Something came from the other end.
    pub fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether something came since this was asked last.
    fn was_heard(&self) -> bool {
        self.heard.swap(false, Ordering::Relaxed)
    }

    /// Returns once nobody has used it for that long, and nobody will.
    pub async fn idle(&self, kept: Duration) {
        loop {
            let left = {
                let mut uses = self.uses();
                let left = if uses.now > 0 { kept } else { kept.saturating_sub(uses.since.elapsed()) };
                uses.closed |= left.is_zero();
                left
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

impl Use {
    /// Whose use it is.
    pub fn life(&self) -> &Life {
        &self.0
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut uses = self.0.uses();
        uses.now -= 1;
        uses.since = Instant::now();
    }
}

/// When a connection's other end is asked.
pub struct Pulse {
    /// How often it is looked whether to ask.
    pub every: Duration,
    /// How long nothing is asked after a ping.
    pub apart: Duration,
    /// How long an answer may take while nothing else comes.
    pub patience: Duration,
    /// Whether it is asked while nobody uses it.
    pub idle: bool,
}

impl Pulse {
    /// Returns when nothing came any more: no answer to a ping, and nothing else.
    pub async fn lost(self, pings: Option<PingPong>, life: &Life) {
        let Some(mut pings) = pings else { return std::future::pending().await };
        let mut asked: Option<Instant> = None;
        loop {
            tokio::time::sleep(self.every).await;
            let cares = self.idle || life.uses().now > 0;
            if life.was_heard() || !cares || asked.is_some_and(|at| at.elapsed() < self.apart) {
                continue;
            }
            asked = Some(Instant::now());
            let mut answer = std::pin::pin!(pings.ping(Ping::opaque()));
            loop {
                match tokio::time::timeout(self.patience, &mut answer).await {
                    Ok(Ok(_)) => break,
                    // The connection is over, and says so itself.
                    Ok(Err(_)) => return std::future::pending().await,
                    // What it sent before may be long under way.
                    Err(_) if life.was_heard() => {}
                    Err(_) => return,
                }
            }
        }
    }
}
