//! How often who may ask: by source before authentication, so that nobody is shut out in another's name, and by client after
//! it (E5).

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::spiffe_id::SpiffeId;

/// How many asked between two looks for keys that are quiet again.
const SWEEP: u32 = 10_000;

/// One bucket for each key.
struct Buckets<K: std::hash::Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    asked: AtomicU32,
}

impl<K: std::hash::Hash + Eq + Clone> Buckets<K> {
    fn new(each_second: u32) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(each_second)?);
        Some(Self { limiter: RateLimiter::keyed(quota), asked: AtomicU32::new(0) })
    }

    fn take(&self, key: &K, what: &str) -> Result<(), Refusal> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(key).map_err(|not_until| {
            metrics::counter!("popgate_token_rate_limited_total", "by" => what.to_owned()).increment(1);
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1);
            Refusal {
                error: Some(OauthError::TemporarilyUnavailable),
                retry_after: Some(seconds),
                ..Refusal::new(429, "rate", format!("too many requests of this {what}; try again in {seconds} s"))
            }
        })
    }
}

/// The limits of the token listener.
pub struct Limits {
    sources: Option<Buckets<IpAddr>>,
    clients: Option<Buckets<SpiffeId>>,
}

impl Limits {
    /// Requests a second, of a source and of a client; 0: any number.
    pub fn new(source: u32, client: u32) -> Self {
        Self { sources: Buckets::new(source), clients: Buckets::new(client) }
    }

    /// Takes one request of a source; what has no address is on this machine.
    pub fn source(&self, source: Option<IpAddr>) -> Result<(), Refusal> {
        // A source with an IPv6 address has its whole /64.
        let network = source.map(|s| match s.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
            v4 @ IpAddr::V4(_) => v4,
        });
        match (&self.sources, network) {
            (Some(buckets), Some(network)) => buckets.take(&network, "source"),
            _ => Ok(()),
        }
    }

    /// Takes one request of an authenticated client.
    pub fn client(&self, client: &SpiffeId) -> Result<(), Refusal> {
        self.clients.as_ref().map_or(Ok(()), |buckets| buckets.take(client, "client"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e5_each_source_and_each_client_has_its_own_bucket() {
        let limits = Limits::new(2, 1);
        let at = |text: &str| Some(text.parse::<IpAddr>().expect("an address"));
        let id = |path: &str| format!("spiffe://example.org/{path}").parse::<SpiffeId>().expect("legal");
        assert!(limits.source(at("192.0.2.1")).is_ok() && limits.source(at("192.0.2.1")).is_ok());
        let refused = limits.source(at("192.0.2.1")).expect_err("the third");
        assert_eq!((refused.status, refused.retry_after), (429, Some(1)));
        assert!(limits.source(at("::ffff:192.0.2.1")).is_err(), "the same source, as an IPv6 socket names it");
        assert!(limits.source(at("192.0.2.2")).is_ok() && limits.source(at("::ffff:192.0.2.3")).is_ok());
        assert!(limits.source(at("2001:db8::1")).is_ok() && limits.source(at("2001:db8::2")).is_ok());
        assert!(limits.source(at("2001:db8::3")).is_err(), "one network, one source");
        assert!(limits.client(&id("a")).is_ok() && limits.client(&id("b")).is_ok());
        assert!(limits.client(&id("a")).is_err());
        let open = Limits::new(0, 0);
        assert!((0..1000).all(|_| open.source(at("192.0.2.1")).is_ok() && open.client(&id("a")).is_ok()));
    }
}
