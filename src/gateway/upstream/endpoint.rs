//! One address of a protected service: its connections, how busy it is, and whether it is fit to be asked.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::gateway::upstream::config::{EjectConfig, HealthConfig};
use crate::net::connections::{self, Connections, Dialling};

/// Most times in a row that lengthen an ejection.
const MOST_TIMES: u32 = 10;

/// One address of a service.
pub struct Endpoint {
    /// Which of the upstream's URLs it belongs to.
    pub site: usize,
    /// Where it is.
    pub address: SocketAddr,
    /// The connections to it.
    pub connections: Connections,
    in_flight: AtomicUsize,
    standing: Mutex<Standing>,
}

#[derive(Default)]
struct Standing {
    /// Failures of requests in a row.
    failures: u32,
    /// Ejections in a row.
    times: u32,
    ejected_until: Option<Instant>,
    unwell: bool,
    /// Health checks in a row that say the contrary of `unwell`.
    contrary: u32,
    checked: bool,
}

impl Endpoint {
    /// An endpoint that is taken for well.
    pub fn new(site: usize, address: SocketAddr, dialling: &Dialling) -> Self {
        let connections = Connections::new(dialling, connections::Place::Address(address));
        Self { site, address, connections, in_flight: AtomicUsize::new(0), standing: Mutex::default() }
    }

    fn standing(&self) -> std::sync::MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether it is well and not left out.
    pub fn is_fit(&self, now: Instant) -> bool {
        let standing = self.standing();
        !standing.unwell && standing.ejected_until.is_none_or(|until| until <= now)
    }

    /// Whether it is left out now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.standing().ejected_until.is_some_and(|until| until > now)
    }

    /// A request came to an answer that speaks for the endpoint.
    pub fn succeeded(&self) {
        let mut standing = self.standing();
        standing.failures = 0;
        standing.times = 0;
    }

    /// A request failed by the endpoint's fault; true if it is left out from now on. `allowed` says whether another one may
    /// be.
    pub fn failed(&self, eject: &EjectConfig, now: Instant, allowed: bool) -> bool {
        let mut standing = self.standing();
        standing.failures = standing.failures.saturating_add(1);
        if eject.failures == 0 || standing.failures < eject.failures || !allowed {
            return false;
        }
        standing.failures = 0;
        standing.times = (standing.times + 1).min(MOST_TIMES);
        standing.ejected_until = Some(now + eject.time.0 * standing.times);
        true
    }

    /// A health check's result; tells the new state if it changed. The first check decides alone.
    pub fn checked(&self, well: bool, health: &HealthConfig) -> Option<bool> {
        let mut standing = self.standing();
        let first = !std::mem::replace(&mut standing.checked, true);
        if well != standing.unwell {
            standing.contrary = 0;
            return None;
        }
        standing.contrary += 1;
        let needed = if well { health.rise } else { health.fall };
        if !first && standing.contrary < needed {
            return None;
        }
        standing.contrary = 0;
        standing.unwell = !well;
        Some(well)
    }
}

/// A request's place at an endpoint, from its dispatch to its last byte.
pub struct Place {
    endpoint: Arc<Endpoint>,
    total: Arc<AtomicUsize>,
}

impl Place {
    /// Takes a place, unless `most` requests are under way at the upstream.
    pub fn take(endpoint: Arc<Endpoint>, total: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let taken = total.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |n| (n < most).then_some(n + 1));
        taken.ok()?;
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(Self { endpoint, total: total.clone() })
    }

    /// Where it is.
    pub const fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.total.fetch_sub(1, Ordering::AcqRel);
    }
}
