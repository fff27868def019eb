//! Makes each plane from its section, and each listener from its plane.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use opentelemetry::global::BoxedTracer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::bundle_endpoint::Endpoint;
use crate::app::desk::{self, Desk};
use crate::app::nonces;
use crate::app::rotation::ServerCertificate;
use crate::app::{Addresses, Listeners, StartError, load_rules};
use crate::config::Config;
use crate::console::server::{self as console_server, Console};
use crate::domain::spiffe_id::TrustDomain;
use crate::gateway::config::ClientCertificate;
use crate::gateway::serve::{Gateway, GatewayService};
use crate::gateway::tokens::Caches;
use crate::identity::attest;
use crate::identity::authority::Authority;
use crate::identity::enrol::Enrolment;
use crate::identity::federation;
use crate::identity::revocation_lists::RevocationLists;
use crate::identity::server::{self as identity_server, IdentityPlane, Servers};
use crate::net::keys::P256Key;
use crate::net::listener::{self, Drain};
use crate::net::router::Routed;
use crate::net::tls::{self, ClientTrust, LeafCheck, OwnTls, RootFinder, Versions};
use crate::net::uds;
use crate::protocol::dpop::Window;
use crate::protocol::htu::{Htu, Origin};
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::protocol::svid::X509Svid;
use crate::store::Stores;
use crate::store::bundles::ForeignBundle;
use crate::store::cache::{Bounded, Texts};
use crate::store::keys::{KeyUse, PublishedKey};
use crate::telemetry::{self, Health};
use crate::token::endpoint::{Bundles, Offer, TokenPlane};
use crate::token::keys::TokenKeys;
use crate::token::limits::Limits;
use crate::token::server as token_server;
use crate::trust::events::Transmitter;
use crate::trust::providers::Providers;

/// Clients of the token service whose certificates and proof headers are kept parsed.
const KNOWN_CLIENTS: usize = 50_000;

/// What every plane is made from.
pub(super) struct Wiring<'a> {
    pub(super) config: &'a Config,
    pub(super) stores: &'a Stores,
    pub(super) authority: &'a Arc<Authority>,
    pub(super) addresses: &'a Addresses,
}

impl Wiring<'_> {
    fn issuer(&self) -> String {
        self.config.token.issuer.clone().unwrap_or_else(|| self.addresses.token.clone())
    }

    fn window(&self) -> Window {
        Window { past: self.config.token.proof_past.0, future: self.config.token.proof_future.0 }
    }

    /// The certificate of our own listeners, which upstreams may be shown, too.
    pub(super) fn certificate(&self) -> Result<ServerCertificate, StartError> {
        ServerCertificate::new(self.authority.clone(), self.names(), self.stores.clone())
    }

    /// What upstreams are shown, and by which roots workloads among them are judged.
    pub(super) fn own(&self, certificate: &ServerCertificate) -> OwnTls {
        let trust = self.clients(true);
        OwnTls { identity: certificate.identity.clone(), roots: trust.roots, clock: trust.clock }
    }

    pub(super) async fn gateway(&self, own: OwnTls, tracer: Option<BoxedTracer>) -> Result<Arc<Gateway>, StartError> {
        let mut origins = self.config.gateway.origins.clone();
        if origins.is_empty() {
            origins.push(self.addresses.gateway.clone());
        }
        let parse = |o: &String| Origin::parse(o).map_err(|e| StartError::Origin(o.clone(), e));
        let origins: Vec<Origin> = origins.iter().map(parse).collect::<Result<_, _>>()?;
        let rules = load_rules(self.config, &origins, Some(&own), None)?;
        rules.start(None);
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
            own,
            rules: ArcSwap::from_pointee(rules),
            revoked: self.stores.revocations.watch(),
            nonces: nonces::key(self.config, &self.issuer())?,
            window: self.window(),
            caches: Caches::new(usize::try_from(self.config.limits.token_cache).unwrap_or(usize::MAX)),
            txn_key: SigningKey::new(public, move |message| private.sign(message)),
            held_body: usize::try_from(self.config.limits.held_body).unwrap_or(usize::MAX),
            stream_max: self.config.gateway.stream_max.0,
            tracer,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        }))
    }

    /// Bundles of trust domains whose workloads are believed: ours, and those that are federated.
    fn bundles(&self) -> Bundles {
        let (authority, stores) = (self.authority.clone(), self.stores.clone());
        Arc::new(move |domain| {
            if domain == authority.trust_domain() {
                return Some(authority.bundle().as_ref().clone());
            }
            federation::foreign(&stores).remove(domain)
        })
    }

    async fn token(
        &self,
        gateway: &Gateway,
        offer: &Arc<ArcSwap<Offer>>,
        stopper: Arc<Console>,
    ) -> Result<Arc<TokenPlane>, StartError> {
        let (config, trust, base) = (&self.config.token, &self.config.trust, &self.config.base);
        let transmitters = trust.oidc.iter().filter_map(|t| Transmitter::new(t, base).transpose());
        let issuer = self.issuer();
        let token_url = format!("{issuer}/token");
        let token_url = Htu::parse(&token_url).map_err(|e| StartError::Origin(token_url.clone(), e))?;
        Ok(Arc::new(TokenPlane {
            trust_domain: self.authority.trust_domain().clone(),
            stores: self.stores.clone(),
            issuer,
            token_url,
            offer: offer.clone(),
            keys: Arc::new(TokenKeys::new(self.stores, config.key_life.0, config.ttl.0).await?),
            nonces: gateway.nonces.clone(),
            ttl: config.ttl.0,
            window: self.window(),
            nonce_required: config.nonce_required,
            jwt_svid_clients: config.jwt_svid_clients,
            bundles: self.bundles(),
            providers: Providers::new(trust, base)?,
            transmitters: transmitters.collect::<Result<_, _>>()?,
            scim: trust.scim.clone(),
            stopper,
            limits: Limits::new(config.source_rate, config.client_rate),
            cors: config.cors_origins.clone(),
            headers: Texts::new(KNOWN_CLIENTS),
            certificates: Bounded::new(KNOWN_CLIENTS),
            half_done: Mutex::default(),
        }))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(Into::into).to_vec();
        names.extend(self.config.identity.names.iter().cloned());
        names
    }

    fn console(&self, tasks: TaskTracker) -> Arc<Console> {
        let (authority, addresses, stores) = (self.authority.clone(), self.addresses.clone(), self.stores.clone());
        let (pin_of, bundle_of) = (self.authority.clone(), self.authority.clone());
        Arc::new(Console {
            stores: self.stores.clone(),
            trust_domain: self.authority.trust_domain().clone(),
            pin: Arc::new(move || pin_of.pin()),
            bundle: Arc::new(move || bundle_of.bundle().to_jwks()),
            desk: Arc::new(Desk { authority: self.authority.clone(), stores: self.stores.clone() }),
            svid_bounds: self.config.identity.svid_bounds(),
            federated: self
                .config
                .federations
                .iter()
                .filter_map(|f| TrustDomain::parse(&f.trust_domain).ok())
                .collect(),
            default_ttl: self.config.identity.svid_ttl.0,
            server_names: self.names(),
            deciding: tokio::sync::Mutex::default(),
            tasks,
            status: Arc::new(move || {
                let revoked = stores.revocations.watch().borrow().head;
                json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "ca": {
                        "trust_domain": authority.trust_domain().as_str(),
                        "pin": authority.pin(),
                        "bundle_sequence": authority.bundle().sequence,
                        "active": authority.active(),
                    },
                    "addresses": addresses,
                    "replay_store": stores.replay.name(),
                    "entries": stores.entries.count(),
                    "people": stores.people.list().len(),
                    "nodes": stores.nodes.list().len(),
                    "revocation_head": revoked,
                    "now": stores.clock.now().rfc3339(),
                })
            }),
        })
    }

    /// A client certificate comes from our own trust domain, or, where `federated`, from one whose bundle is known: each
    /// is judged by the bundle of its own trust domain alone (X509-SVID section 5).
    fn clients(&self, federated: bool) -> ClientTrust {
        let (authority, stores) = (self.authority.clone(), self.stores.clone());
        let roots: RootFinder = Arc::new(move |presented| {
            let leaf = presented.first().and_then(|der| X509Svid::parse(der).ok());
            match leaf.map(|l| l.spiffe_id.trust_domain()) {
                Some(domain) if domain == *authority.trust_domain() => authority.bundle().roots.clone(),
                Some(domain) if federated => {
                    federation::foreign(&stores).remove(&domain).map(|b| b.roots).unwrap_or_default()
                }
                _ => Vec::new(),
            }
        });
        let authority = self.authority.clone();
        let check: LeafCheck = Arc::new(move |der, cas| {
            let svid = X509Svid::parse(der).map_err(|e| e.to_string())?;
            if svid.spiffe_id.is_member_of(authority.trust_domain()) {
                return authority.check_path(&svid.spiffe_id, cas).map_err(ToOwned::to_owned);
            }
            // The roots were those of its own trust domain, or none.
            if federated { Ok(()) } else { Err("a foreign trust domain's certificate".to_owned()) }
        });
        ClientTrust { roots, check, clock: self.stores.clock.clone() }
    }

    fn enrolment(&self) -> Result<Arc<Enrolment>, StartError> {
        let identity = &self.config.identity;
        Ok(Arc::new(Enrolment {
            authority: self.authority.clone(),
            stores: self.stores.clone(),
            attestors: attest::attestors(&self.config.trust, &self.config.base, self.authority.trust_domain())?,
            bounds: identity.svid_bounds(),
            reattest_after: identity.reattest_after.0,
            told: Mutex::default(),
        }))
    }

    /// The bundle endpoint of its own, and the bundles of others.
    async fn federate(
        &self,
        set: &mut JoinSet<()>,
        endpoint: Option<Endpoint>,
        plane: Arc<IdentityPlane>,
        drain: &Drain,
    ) -> Result<(), StartError> {
        if let Some((listener, identity, files)) = endpoint {
            let routed = Routed::new(identity_server::bundle_router(plane), None);
            set.spawn(listener::serve(
                listener,
                Some(tls::server(identity.clone(), None, Versions::Tls13)?),
                routed,
                drain.clone(),
            ));
            set.spawn(files.keep(identity, drain.clone()));
        }
        let kept = |b: &ForeignBundle| {
            b.by_hand() || self.config.federations.iter().any(|f| f.trust_domain == b.trust_domain.as_str())
        };
        for gone in self.stores.bundles.list().iter().filter(|b| !kept(b)) {
            tracing::warn!(trust_domain = %gone.trust_domain, "federation is configured no more: its bundle is forgotten");
            self.stores.bundles.delete(&gone.trust_domain).await?;
        }
        for relation in self.config.relations()? {
            set.spawn(relation.keep(self.stores.clone(), drain.clone()));
        }
        Ok(())
    }

    fn identity_plane(&self, gateway: &Gateway, drain: &Drain) -> Result<Arc<IdentityPlane>, StartError> {
        Ok(Arc::new(IdentityPlane {
            enrolment: self.enrolment()?,
            lists: Arc::new(RevocationLists::new(self.authority.clone(), self.stores.clone())),
            servers: Servers {
                identity: self.addresses.identity.clone(),
                token: self.addresses.token.clone(),
                gateway: gateway.origins[0].as_str().to_owned(),
                admin: self.addresses.admin.clone(),
            },
            drain: drain.clone(),
            tasks: gateway.tasks.clone(),
        }))
    }

    pub(super) async fn listen(
        &self,
        bound: Listeners,
        endpoint: Option<Endpoint>,
        server: ServerCertificate,
        gateway: Arc<Gateway>,
        offer: &Arc<ArcSwap<Offer>>,
        drain: Drain,
    ) -> Result<JoinSet<()>, StartError> {
        let names = self.names();
        let ca_file = self.config.data_dir.join("ca.pem");
        let hosts = |address: SocketAddr| address.ip().is_loopback().then(|| Arc::new(names.clone()));
        let old_too = self.config.gateway.danger_tls_1_2;
        let gateway_versions = if old_too { Versions::AlsoTls12 } else { Versions::Tls13 };
        let request_clients = self.config.gateway.client_certificate == ClientCertificate::Request;
        let plane = self.identity_plane(&gateway, &drain)?;
        let identity = identity_server::router(plane.clone());
        let console = self.console(gateway.tasks.clone());
        let tokens = self.token(&gateway, offer, console.clone()).await?;
        let token = token_server::router(tokens.clone());
        let console = console_server::router(console);
        let telemetry =
            telemetry::router(Health { metrics: telemetry::start_metrics(), readiness: readiness(self.stores) });
        let tls = |clients: Option<bool>, versions| {
            tls::server(server.identity.clone(), clients.map(|federated| self.clients(federated)), versions)
        };
        let mut set = JoinSet::new();
        set.spawn(tokens.keys.clone().keep(drain.clone()));
        for (i, _) in tokens.transmitters.iter().enumerate().filter(|(_, t)| t.poll.is_some()) {
            set.spawn(tokens.clone().poll(i, drain.clone()));
        }
        self.federate(&mut set, endpoint, plane, &drain).await?;
        let local = |l: &TcpListener| l.local_addr().ok().and_then(&hosts);
        set.spawn(listener::serve(
            bound.identity,
            Some(tls(Some(false), Versions::Tls13)?),
            Routed::new(identity, hosts(self.config.identity.listen)),
            drain.clone(),
        ));
        set.spawn(listener::serve(
            bound.token,
            Some(tls(Some(true), Versions::Tls13)?),
            Routed::new(token, hosts(self.config.token.listen)),
            drain.clone(),
        ));
        let console_hosts = local(&bound.console);
        set.spawn(listener::serve(
            bound.console,
            Some(tls(Some(false), Versions::Tls13)?),
            Routed::new(console.clone(), console_hosts),
            drain.clone(),
        ));
        set.spawn(listener::serve(
            bound.gateway,
            Some(tls(request_clients.then_some(true), gateway_versions)?),
            GatewayService(gateway),
            drain.clone(),
        ));
        let telemetry_hosts = local(&bound.telemetry);
        set.spawn(listener::serve(bound.telemetry, None, Routed::new(telemetry, telemetry_hosts), drain.clone()));
        let socket = uds::bind(&self.config.data_dir.join("admin.sock"))?;
        set.spawn(uds::serve(socket, Routed::new(console, None), drain.clone()));
        let identity = &self.config.identity;
        set.spawn(server.keep(desk::pace(identity.issuing_life.0, identity.jwt_key_life.0), ca_file, drain));
        Ok(set)
    }
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
