//! The listener that the edges of others ask.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::app::StartError;
use crate::config::{Config, ConfigError};
use crate::gateway::authz::peers::Peers;
use crate::gateway::authz::router;
use crate::gateway::serve::Gateway;
use crate::net::listener::{self, Drain};
use crate::net::router::Routed;
use crate::net::tls::{self, ServerIdentity, Versions};

/// What is served where `authz.listen` is set.
pub(super) struct Edges {
    pub(super) listener: TcpListener,
    peers: Peers,
    /// On this machine alone, credentials need no TLS.
    plain: bool,
}

/// Binds it, if it is configured.
pub(super) async fn bind(config: &Config) -> Result<Option<Edges>, StartError> {
    let Some(address) = config.authz.listen else { return Ok(None) };
    let peers = Peers::parse(&config.authz.peers).map_err(ConfigError::Value)?;
    let listener = listener::bind(address, "the authorization listener", "authz.listen").await?;
    Ok(Some(Edges { listener, peers, plain: address.ip().is_loopback() }))
}

impl Edges {
    /// Its URL.
    pub(super) fn url(&self) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        self.listener.local_addr().map(|a| format!("{scheme}://{a}")).unwrap_or_default()
    }

    /// Serves it. Whom it is asked about is in the requests, so any host name will do; who asks is not.
    pub(super) fn serve(
        self,
        set: &mut JoinSet<()>,
        gateway: Arc<Gateway>,
        identity: Arc<ServerIdentity>,
        drain: Drain,
    ) -> Result<(), StartError> {
        let tls = if self.plain { None } else { Some(tls::server(identity, None, Versions::Tls13)?) };
        set.spawn(listener::serve(self.listener, tls, Routed::new(router(gateway, self.peers), None), drain));
        Ok(())
    }
}
