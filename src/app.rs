//! The only wiring: stores, planes, listeners, reload, drain.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, ConfigError, ReplayStore};
use crate::console::server::{self as console_server, Console};
use crate::domain::leaf::{Event, Staged};
use crate::domain::time::{Clock, Timestamp};
use crate::evidence::sequence::Sequencer;
use crate::gateway::config::ClientCertificate;
use crate::gateway::routes::{RuleSources, Rules};
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
use crate::store::clock::SystemClock;
use crate::store::keys::{KeyUse, PublishedKey};
use crate::store::redis::RedisReplayGuard;
use crate::store::replay::{MemoryReplayGuard, ReplayGuard};
use crate::store::sql::SqliteLedger;
use crate::store::{Stores, entropy};
use crate::telemetry::{self, Health};
use crate::token::endpoint::TokenPlane;
use crate::token::keys::TokenKey;
use crate::token::mint::Resource;
use crate::token::server as token_server;

/// Why the service does not start. Each text says what happened and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{} is in use by the service with pid {pid}; stop that one, or give this one another data_dir", dir.display())]
    DataDirBusy { dir: PathBuf, pid: String },
    #[error("cannot use data_dir {}: {cause}; it must be writable by this user", dir.display())]
    DataDir { dir: PathBuf, cause: std::io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Rules(#[from] crate::gateway::routes::RuleError),
    #[error(transparent)]
    Authority(#[from] crate::identity::authority::AuthorityError),
    #[error(transparent)]
    Evidence(#[from] crate::evidence::EvidenceError),
    #[error(transparent)]
    Store(#[from] crate::store::Unavailable),
    #[error(transparent)]
    Redis(#[from] crate::store::redis::RedisError),
    #[error(transparent)]
    Bind(#[from] listener::BindError),
    #[error(transparent)]
    Socket(#[from] uds::SocketError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error("gateway.origins {0:?}: {1}")]
    Origin(String, crate::protocol::htu::UriError),
}

/// The bound addresses, printed once ready.
#[derive(Clone, Debug, Serialize)]
pub struct Addresses {
    /// Identity listener.
    pub identity: String,
    /// Token service.
    pub token: String,
    /// Gateway.
    pub gateway: String,
    /// Administration.
    pub admin: String,
    /// Metrics and health.
    pub telemetry: String,
}

/// The running service.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    switch: watch::Sender<bool>,
    listeners: JoinSet<()>,
    gateway: Arc<Gateway>,
    evidence: Arc<Sequencer>,
    ledger: Arc<SqliteLedger>,
    grace: Duration,
    _lock: std::fs::File,
}

/// Raises the soft limit of open files to the hard one and gives what it got.
pub fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

fn lock_data_dir(dir: &Path) -> Result<std::fs::File, StartError> {
    use std::io::{Read as _, Seek as _, Write as _};
    let unusable = |cause| StartError::DataDir { dir: dir.to_owned(), cause };
    files::private_dir(dir).map_err(|e| unusable(std::io::Error::other(e.to_string())))?;
    let path = dir.join("lock");
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(unusable)?;
    if file.try_lock().is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        return Err(StartError::DataDirBusy { dir: dir.to_owned(), pid: pid.trim().to_owned() });
    }
    let write = |file: &mut std::fs::File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(unusable)?;
    Ok(file)
}

struct Listeners {
    identity: TcpListener,
    token: TcpListener,
    gateway: TcpListener,
    console: TcpListener,
    telemetry: TcpListener,
}

impl Listeners {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        Ok(Self {
            identity: listener::bind(config.identity.listen, "the identity listener", "identity.listen").await?,
            token: listener::bind(config.token.listen, "the token service", "token.listen").await?,
            gateway: listener::bind(config.gateway.listen, "the gateway", "gateway.listen").await?,
            console: listener::bind(config.console.listen, "administration", "console.listen").await?,
            telemetry: listener::bind(config.telemetry.listen, "telemetry", "telemetry.listen").await?,
        })
    }

    fn addresses(&self) -> Addresses {
        let of = |scheme: &str, listener: &TcpListener| {
            listener.local_addr().map(|a| format!("{scheme}://{a}")).unwrap_or_default()
        };
        let admin = self.console.local_addr().map(|a| format!("https://localhost:{}", a.port())).unwrap_or_default();
        Addresses {
            identity: of("https", &self.identity),
            token: of("https", &self.token),
            gateway: of("https", &self.gateway),
            admin,
            telemetry: of("http", &self.telemetry),
        }
    }
}

impl App {
    /// Starts everything; when this returns, every listener accepts.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let lock = lock_data_dir(&config.data_dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let trust_domain = config.trust_domain()?;
        files::private_dir(&config.data_dir.join("keys"))?;
        let bound = Listeners::bind(config).await?;
        let addresses = bound.addresses();
        let ledger = Arc::new(SqliteLedger::open(&config.data_dir.join("ledger.db")).await?);
        let evidence = Arc::new(Sequencer::open(&config.data_dir, trust_domain.as_str(), clock.clone())?);
        let stores = Stores {
            replay: replay(config, clock.clone()).await?,
            clock: clock.clone(),
            join_tokens: ledger.clone(),
            entries: ledger.clone(),
            people: ledger.clone(),
            issued: ledger.clone(),
            approvals: ledger.clone(),
            revocations: ledger.clone(),
            keys: ledger.clone(),
            evidence: evidence.clone(),
        };
        let authority = Arc::new(Authority::open(&config.data_dir.join("ca"), &trust_domain, clock.now())?);
        files::write_public(&config.data_dir.join("ca.pem"), identity_server::pem(authority.root_der()).as_bytes())?;
        log_start(&stores, &authority, &ledger).await?;
        let wiring = Wiring { config, stores: &stores, authority: &authority, addresses: &addresses };
        let gateway = wiring.gateway().await?;
        files::write_public(&config.data_dir.join("txn-jwks.json"), gateway.txn_jwks().to_string().as_bytes())?;
        let (switch, drain) = Drain::new();
        let listeners = wiring.listen(bound, gateway.clone(), drain).await?;
        Ok(Self {
            addresses,
            switch,
            listeners,
            gateway,
            evidence,
            ledger,
            grace: config.shutdown_grace.0,
            _lock: lock,
        })
    }

    /// Replaces routes, masks and policy; a bad file changes nothing and says why.
    pub fn reload(&self, config: &Config) -> Result<String, StartError> {
        let origin = self.gateway.origins[0].clone();
        let rules = load_rules(config, &origin)?;
        let version = rules.policy.version().to_owned();
        self.gateway.rules.store(Arc::new(rules));
        Ok(version)
    }

    /// Stops accepting, finishes what is in flight within the grace, flushes evidence.
    pub async fn drain(mut self) {
        self.switch.send_replace(true);
        let finish = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, finish).await.is_err() {
            tracing::warn!("some exchanges outlived the grace and were ended");
        }
        self.listeners.shutdown().await;
        let evidence = self.evidence.clone();
        let _ = tokio::task::spawn_blocking(move || evidence.close()).await;
        self.ledger.close().await;
    }
}

async fn replay(config: &Config, clock: Arc<dyn Clock>) -> Result<Arc<dyn ReplayGuard>, StartError> {
    let capacity = usize::try_from(config.limits.replay_claims).unwrap_or(usize::MAX);
    Ok(match (config.replay.store, &config.replay.redis_url_file) {
        (ReplayStore::Redis, Some(file)) => {
            let url = files::read_secret(&config.base.join(file))?;
            Arc::new(RedisReplayGuard::connect(&url, &config.trust_domain()?).await?)
        }
        _ => Arc::new(MemoryReplayGuard::new(clock, capacity)),
    })
}

async fn log_start(stores: &Stores, authority: &Authority, ledger: &SqliteLedger) -> Result<(), StartError> {
    let now = stores.clock.now();
    let append = async |event| stores.evidence.append(Staged::plain(now, event)).await;
    append(Event::Started { version: env!("CARGO_PKG_VERSION").into() }).await?;
    let status = authority.status();
    append(Event::Authority {
        role: "root".into(),
        key_id: status.pin.to_string(),
        certificate_sha256: Some(status.root_sha256),
        not_after: Some(status.root_not_after),
    })
    .await?;
    let (key_id, sha256, not_after) = authority.issuing_key();
    append(Event::Authority {
        role: "issuing".into(),
        key_id,
        certificate_sha256: Some(sha256),
        not_after: Some(not_after),
    })
    .await?;
    for settled in ledger.settle_interrupted(now).await? {
        let person = settled.decided_by.clone().map(entropy::seal);
        tracing::warn!(
            approval = settled.id,
            "a request was interrupted while it was carried out: nobody can say whether it happened"
        );
        stores.evidence.append(Staged::approval(now, &settled, person)).await?;
    }
    Ok(())
}

fn load_rules(config: &Config, origin: &Origin) -> Result<Rules, StartError> {
    let policies = config.policies()?;
    Ok(Rules::load(&RuleSources {
        routes: &config.routes,
        masks: &config.masks,
        policies: &policies,
        base: &config.base,
        origin,
    })?)
}

/// Checks everything that can be checked without starting; gives the warnings.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let origin =
        config.gateway.origins.first().cloned().unwrap_or_else(|| format!("https://{}", config.gateway.listen));
    let origin = Origin::parse(&origin).map_err(|e| StartError::Origin(origin.clone(), e))?;
    load_rules(config, &origin)?;
    Ok(crate::protocol::policy::warnings(&config.policies()?))
}

struct Wiring<'a> {
    config: &'a Config,
    stores: &'a Stores,
    authority: &'a Arc<Authority>,
    addresses: &'a Addresses,
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

    async fn gateway(&self) -> Result<Arc<Gateway>, StartError> {
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
            until: now.plus(Duration::from_secs(30 * 86_400)),
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
        }))
    }

    async fn token(&self, gateway: &Gateway) -> Result<Arc<TokenPlane>, StartError> {
        let issuer = self.issuer();
        let token_url = format!("{issuer}/token");
        let token_url = Htu::parse(&token_url).map_err(|e| StartError::Origin(token_url.clone(), e))?;
        let mut resources: Vec<Resource> = gateway
            .rules
            .load()
            .routes()
            .iter()
            .map(|r| Resource {
                url: r.resource.clone(),
                certificate: r.access == crate::gateway::config::Access::ProofAndCertificate,
            })
            .collect();
        // The broadest resource is the default.
        resources.sort_by_key(|r| r.url.len());
        Ok(Arc::new(TokenPlane {
            stores: self.stores.clone(),
            issuer,
            token_url,
            resources,
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

    fn console(&self) -> Arc<Console> {
        let (authority, addresses, stores) = (self.authority.clone(), self.addresses.clone(), self.stores.clone());
        Arc::new(Console {
            stores: self.stores.clone(),
            trust_domain: self.authority.bundle().trust_domain,
            pin: self.authority.pin(),
            default_ttl: self.config.identity.svid_ttl.0,
            server_names: self.names(),
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

    async fn listen(&self, bound: Listeners, gateway: Arc<Gateway>, drain: Drain) -> Result<JoinSet<()>, StartError> {
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
        let console = console_server::router(self.console());
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

fn readiness(stores: &Stores) -> telemetry::Readiness {
    let replay = stores.replay.clone();
    Arc::new(move || {
        let replay = replay.clone();
        Box::pin(async move { replay.ping().await.map_err(|e| e.part.to_owned()) })
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
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
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
