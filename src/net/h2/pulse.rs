//! Whether the other end of a connection is still there.

use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

/// When a connection's other end is asked.
pub struct Pulse {
    /// How often it is looked whether to ask.
    pub every: Duration,
    /// How long nothing is asked after a ping.
    pub apart: Duration,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Pulse {
    /// Returns when a ping was not answered in time; while nobody `cares`, none is sent.
    pub async fn lost(self, pings: Option<PingPong>, cares: impl Fn() -> bool) {
        let Some(mut pings) = pings else { return std::future::pending().await };
        let mut asked: Option<Instant> = None;
        loop {
            tokio::time::sleep(self.every).await;
            if !cares() || asked.is_some_and(|at| at.elapsed() < self.apart) {
                continue;
            }
            asked = Some(Instant::now());
            match tokio::time::timeout(self.patience, pings.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                // The connection is over, and says so itself.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return,
            }
        }
    }
}
