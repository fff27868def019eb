//! Which addresses a host's name comes to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

type Lookup = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Whoever is asked for names.
pub(super) struct Names(Arc<Lookup>);

/// The system's resolver.
impl Default for Names {
    fn default() -> Self {
        Self::new(|host, port| async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

impl Names {
    /// Asks by a function.
    pub(super) fn new<F>(lookup: impl Fn(String, u16) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        Self(Arc::new(move |host, port| Box::pin(lookup(host, port))))
    }

    /// The addresses of a host, each once, in a fixed order; an address is its own.
    pub(super) async fn resolve(&self, host: &str, port: u16, within: Duration) -> Result<Vec<SocketAddr>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let asked = tokio::time::timeout(within, (self.0)(host.to_owned(), port)).await;
        let mut found = asked.map_err(|_| "no answer in time".to_owned())?.map_err(|e| e.to_string())?;
        found.sort_unstable();
        found.dedup();
        if found.is_empty() { Err("it has no address".into()) } else { Ok(found) }
    }
}
