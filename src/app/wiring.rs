//! Makes each plane from its section, and each listener from its plane.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{Addresses, Listeners, StartError, load_rules};
use crate::config::{Config, ConfigError};
use crate::console::server::{self as console_server, Console};
use crate::domain::leaf::{Event, Staged};
use crate::domain::time::Timestamp;
use crate::gateway::config::{Access, ClientCertificate};
use crate::gateway::routes::{Route, Rules};
use crate::gateway::serve::{Gateway, GatewayService};
use crate::gateway::tokens::Caches;
use crate::identity::authority::Authority;
use crate::identity::enrol::Enrolment;
use crate::identity::server::{self as identity_server, IdentityPlane, Servers};
use crate::net::files;
use crate::net::keys::P256Key;
use crate::net::listener::{self, Drain};
use crate::net::router::Routed;
use crate::net::tls::{self, ClientTrust, LeafCheck, ServerIdentity};
use crate::net::uds;
use crate::protocol::dpop::Window;
use crate::protocol::htu::{Htu, Origin};
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::protocol::nonce::NonceKey;
use crate::protocol::svid::X509Svid;
use crate::store::keys::{KeyUse, PublishedKey};
use crate::store::{Stores, entropy};
use crate::telemetry::{self, Health};
use crate::token::endpoint::TokenPlane;
use crate::token::keys::TokenKey;
use crate::token::mint::Resource;
use crate::token::server as token_server;

/// What every plane is made from.
pub(super) struct Wiring<'a> {
    pub(super) config: &'a Config,
    pub(super) stores: &'a Stores,
    pub(super) authority: &'a Arc<Authority>,
    pub(super) addresses: &'a Addresses,
    /// What tokens can be for; a reload replaces it.
    pub(super) resources: &'a Arc<ArcSwap<Vec<Resource>>>,
}

impl Wiring<'_> {
    fn issuer(&self) -> String {
        self.config.token.issuer.clone().unwrap_or_else(|| self.addresses.token.clone())
    }

    fn window(&self) -> Window {
        Window { past: self.config.token.proof_past.0, future: self.config.token.proof_future.0 }
    }

    fn nonces(&self) -> Result<Arc<NonceKey>, StartError> {
        let file = self.config.data_dir.join("keys/nonce.key");
        if !file.exists() {
            files::write_private(&file, hex::encode(entropy::random::<32>()).as_bytes())?;
        }
        let text = files::read_secret(&file)?;
        let mut bytes = zeroize::Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.as_str(), bytes.as_mut_slice()).map_err(|_| {
            ConfigError::Value(format!(
                "{} does not hold 32 bytes in hex; remove it and a new one is made",
                file.display()
            ))
        })?;
        Ok(Arc::new(NonceKey::new(&bytes)))
    }

    pub(super) async fn gateway(&self) -> Result<Arc<Gateway>, StartError> {
        let mut origins = self.config.gateway.origins.clone();
        if origins.is_empty() {
            origins.push(self.addresses.gateway.clone());
        }
        let parse = |o: &String| Origin::parse(o).map_err(|e| StartError::Origin(o.clone(), e));
        let origins: Vec<Origin> = origins.iter().map(parse).collect::<Result<_, _>>()?;
        let rules = load_rules(self.config, &origins[0])?;
        let now = self.stores.clock.now();
        let private = P256Key::generate();
        let public = PublicKey::from_spki(private.spki()).expect("our own key is P-256");
        let published = PublishedKey {
            kid: public.jkt().to_string(),
            key_use: KeyUse::TxnToken,
            jwk: public.to_jwk(),
            until: now.plus(Duration::from_hours(720)),
        };
        self.stores.keys.publish(&published).await?;
        Ok(Arc::new(Gateway {
            stores: self.stores.clone(),
            trust_domain: self.config.trust_domain.clone(),
            issuer: self.issuer(),
            origins,
            rules: ArcSwap::from_pointee(rules),
            revoked: self.stores.revocations.watch(),
            nonces: self.nonces()?,
            window: self.window(),
            caches: Caches::new(usize::try_from(self.config.limits.token_cache).unwrap_or(usize::MAX)),
            txn_key: SigningKey::new(public, move |message| private.sign(message)),
            held_body: usize::try_from(self.config.limits.held_body).unwrap_or(usize::MAX),
            stream_max: self.config.gateway.stream_max.0,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        }))
    }

    async fn token(&self, gateway: &Gateway) -> Result<Arc<TokenPlane>, StartError> {
        let issuer = self.issuer();
        let token_url = format!("{issuer}/token");
        let token_url = Htu::parse(&token_url).map_err(|e| StartError::Origin(token_url.clone(), e))?;
        Ok(Arc::new(TokenPlane {
            stores: self.stores.clone(),
            issuer,
            token_url,
            resources: self.resources.clone(),
            key: TokenKey::make(&*self.stores.keys, self.stores.clock.now()).await?,
            nonces: gateway.nonces.clone(),
            ttl: self.config.token.ttl.0,
            window: self.window(),
            nonce_required: self.config.token.nonce_required,
        }))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(Into::into).to_vec();
        names.extend(self.config.identity.names.iter().cloned());
        names
    }

    fn console(&self, tasks: TaskTracker) -> Arc<Console> {
        let (authority, addresses, stores) = (self.authority.clone(), self.addresses.clone(), self.stores.clone());
        Arc::new(Console {
            stores: self.stores.clone(),
            trust_domain: self.authority.bundle().trust_domain,
            pin: self.authority.pin(),
            default_ttl: self.config.identity.svid_ttl.0,
            server_names: self.names(),
            deciding: tokio::sync::Mutex::default(),
            tasks,
            status: Arc::new(move || {
                let revoked = stores.revocations.watch().borrow().head;
                json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "ca": authority.status(),
                    "addresses": addresses,
                    "replay_store": stores.replay.name(),
                    "entries": stores.entries.list().len(),
                    "people": stores.people.list().len(),
                    "revocation_head": revoked,
                    "now": stores.clock.now().rfc3339(),
                })
            }),
        })
    }

    /// A client certificate may come from our own trust domain alone.
    fn clients(&self) -> ClientTrust {
        let bundle = self.authority.bundle();
        let domain = bundle.trust_domain;
        let check: LeafCheck = Arc::new(move |der| {
            let svid = X509Svid::parse(der).map_err(|e| e.to_string())?;
            svid.spiffe_id
                .is_member_of(&domain)
                .then_some(())
                .ok_or_else(|| "a foreign trust domain's certificate".to_owned())
        });
        ClientTrust { roots: tls::fixed_roots(bundle.roots), check, clock: self.stores.clock.clone() }
    }

    pub(super) async fn listen(
        &self,
        bound: Listeners,
        gateway: Arc<Gateway>,
        drain: Drain,
    ) -> Result<JoinSet<()>, StartError> {
        let names = self.names();
        let server = self.server_identity(&names)?;
        let hosts = |address: SocketAddr| address.ip().is_loopback().then(|| Arc::new(names.clone()));
        let request_clients = self.config.gateway.client_certificate == ClientCertificate::Request;
        let identity = identity_server::router(Arc::new(IdentityPlane {
            enrolment: Enrolment { authority: self.authority.clone(), stores: self.stores.clone() },
            servers: Servers {
                identity: self.addresses.identity.clone(),
                token: self.addresses.token.clone(),
                gateway: gateway.origins[0].as_str().to_owned(),
                admin: self.addresses.admin.clone(),
            },
        }));
        let token = token_server::router(self.token(&gateway).await?);
        let console = console_server::router(self.console(gateway.tasks.clone()));
        let telemetry =
            telemetry::router(Health { metrics: telemetry::start_metrics(), readiness: readiness(self.stores) });
        let tls = |clients: bool, http2| tls::server(server.clone(), clients.then(|| self.clients()), http2);
        let mut set = JoinSet::new();
        let local = |l: &TcpListener| l.local_addr().ok().and_then(&hosts);
        set.spawn(listener::serve(
            bound.identity,
            Some(tls(true, true)?),
            Routed::new(identity, hosts(self.config.identity.listen)),
            drain.clone(),
        ));
        set.spawn(listener::serve(
            bound.token,
            Some(tls(true, true)?),
            Routed::new(token, hosts(self.config.token.listen)),
            drain.clone(),
        ));
        let console_hosts = local(&bound.console);
        set.spawn(listener::serve(
            bound.console,
            Some(tls(true, true)?),
            Routed::new(console.clone(), console_hosts),
            drain.clone(),
        ));
        set.spawn(listener::serve(
            bound.gateway,
            Some(tls(request_clients, true)?),
            GatewayService(gateway),
            drain.clone(),
        ));
        let telemetry_hosts = local(&bound.telemetry);
        set.spawn(listener::serve(bound.telemetry, None, Routed::new(telemetry, telemetry_hosts), drain.clone()));
        let socket = uds::bind(&self.config.data_dir.join("admin.sock"))?;
        set.spawn(uds::serve(socket, Routed::new(console, None), drain.clone()));
        set.spawn(rotate(self.authority.clone(), server, names.clone(), self.stores.clone(), drain));
        Ok(set)
    }

    fn server_identity(&self, names: &[String]) -> Result<Arc<ServerIdentity>, StartError> {
        let key = P256Key::generate();
        let made = self.authority.issue_server(&key, names, self.stores.clock.now())?;
        Ok(ServerIdentity::new(made.chain, key.tls())?)
    }
}

/// What tokens can be for, the broadest first: it is the default.
pub(super) fn resources(rules: &Rules) -> Vec<Resource> {
    let resource = |r: &Route| Resource {
        url: r.resource.clone(),
        certificate: r.access == Access::ProofAndCertificate,
        operations: r.operations.iter().map(|o| o.name.clone()).collect(),
    };
    let mut resources: Vec<Resource> = Vec::new();
    for route in rules.routes() {
        let more = resource(route);
        match resources.iter_mut().find(|r| r.url == more.url) {
            Some(known) => {
                known.certificate |= more.certificate;
                known.operations.extend(more.operations);
            }
            None => resources.push(more),
        }
    }
    resources.sort_by_key(|r| r.url.len());
    resources
}

fn readiness(stores: &Stores) -> telemetry::Readiness {
    let stores = stores.clone();
    Arc::new(move || {
        let stores = stores.clone();
        Box::pin(async move {
            let ledger = async || stores.revocations.list().await.map(drop);
            let asked = [stores.replay.ping().await, ledger().await, stores.evidence.ping()];
            let missing: Vec<&str> = asked.into_iter().filter_map(|r| r.err().map(|e| e.part)).collect();
            if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
        })
    })
}

/// Replaces the issuing CA at half its life, and the server certificate under the live listeners.
async fn rotate(
    authority: Arc<Authority>,
    server: Arc<ServerIdentity>,
    names: Vec<String>,
    stores: Stores,
    mut drain: Drain,
) {
    let half = crate::identity::profile::server_life() / 2;
    let mut server_due: Timestamp = stores.clock.now().plus(half);
    loop {
        tokio::select! {
            () = drain.begun() => return,
            () = tokio::time::sleep(Duration::from_mins(1)) => {}
        }
        let now = stores.clock.now();
        match authority.rotate_if_due(now) {
            Ok(false) => {}
            Ok(true) => {
                let (key_id, sha256, not_after) = authority.issuing_key();
                tracing::info!(key_id, "issuing CA replaced");
                stores.evidence.note(Staged::plain(
                    now,
                    Event::Authority {
                        role: "issuing".into(),
                        key_id,
                        certificate_sha256: Some(sha256),
                        not_after: Some(not_after),
                    },
                ));
            }
            Err(error) => tracing::error!(%error, "the issuing CA could not be replaced"),
        }
        if now >= server_due {
            let key = P256Key::generate();
            let replaced = authority
                .issue_server(&key, &names, now)
                .map_err(|e| e.to_string())
                .and_then(|m| server.replace(m.chain, key.tls()).map_err(|e| e.to_string()));
            match replaced {
                Ok(()) => server_due = now.plus(half),
                Err(error) => tracing::error!(error, "the server certificate could not be replaced"),
            }
        }
    }
}
