//! The only wiring: stores, planes, listeners, reload, drain.

pub mod agent;
mod authz;
mod bundle_endpoint;
mod desk;
mod nonces;
mod offer;
mod rotation;
mod wiring;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::wiring::Wiring;
use crate::config::{Config, ConfigError, ReplayStore};
use crate::domain::leaf::{Event, Staged};
use crate::domain::time::{Clock, Timestamp};
use crate::evidence::sequence::Sequencer;
use crate::gateway::routes::{RuleSources, Rules};
use crate::gateway::serve::Gateway;
use crate::identity::authority::keys::FileKeys;
use crate::identity::authority::{Authority, AuthorityError};
use crate::net::files;
use crate::net::listener::{self, Drain};
use crate::net::tls::{self, OwnTls};
use crate::net::uds;
use crate::protocol::htu::Origin;
use crate::store::Stores;
use crate::store::clock::SystemClock;
use crate::store::redis::RedisReplayGuard;
use crate::store::replay::{MemoryReplayGuard, ReplayGuard};
use crate::store::sql::SqliteLedger;
use crate::telemetry;
use crate::token::endpoint::Offer;

/// Why the service does not start. Each text says what happened and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{} is in use by the service or agent with pid {pid}; stop that one, or give this one another data_dir", dir.display())]
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
    #[error("attestation: {0}")]
    Attestation(#[from] crate::net::fetch::FetchError),
    #[error(transparent)]
    Traces(#[from] telemetry::TracesError),
    #[error("token.issuer {0:?}: {1}")]
    Issuer(String, crate::protocol::htu::UriError),
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
    /// What the edges of others ask, where it is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authz: Option<String>,
    /// The bundle endpoint, where it has a listener of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
}

/// How long an exchange that is ended has to write its last leaf.
const TO_SEAL: Duration = Duration::from_secs(2);

/// The running service.
pub struct App {
    /// Where it listens.
    pub addresses: Addresses,
    switch: watch::Sender<bool>,
    listeners: JoinSet<()>,
    gateway: Arc<Gateway>,
    offer: Arc<ArcSwap<Offer>>,
    evidence: Arc<Sequencer>,
    ledger: Arc<SqliteLedger>,
    /// What exports traces.
    traces: Option<SdkTracerProvider>,
    grace: Duration,
    _lock: std::fs::File,
}

/// Raises the soft limit of open files to the hard one and gives what it got.
pub fn raise_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Makes every file of this process private to its user, unless a mode says otherwise.
pub fn keep_files_private() {
    use nix::sys::stat::{Mode, umask};
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
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
            authz: None,
            bundle: None,
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
        let endpoint = bundle_endpoint::bind(config).await?;
        let edges = authz::bind(config).await?;
        let mut addresses = bound.addresses();
        addresses.authz = edges.as_ref().map(authz::Edges::url);
        addresses.bundle = endpoint.as_ref().and_then(|e| e.0.local_addr().ok()).map(|a| format!("https://{a}"));
        // What may be refused comes before the log is opened.
        let authority = Arc::new(open_authority(config, clock.now())?);
        let ledger = Arc::new(SqliteLedger::open(&config.data_dir.join("ledger.db")).await?);
        let evidence = Arc::new(Sequencer::open(&config.data_dir, trust_domain.as_str(), clock.clone())?);
        let stores = Stores {
            replay: replay(config, clock.clone()).await?,
            clock: clock.clone(),
            join_tokens: ledger.clone(),
            entries: ledger.clone(),
            templates: ledger.clone(),
            nodes: ledger.clone(),
            bundles: ledger.clone(),
            people: ledger.clone(),
            issued: ledger.clone(),
            approvals: ledger.clone(),
            revocations: ledger.clone(),
            statements: ledger.clone(),
            uses: ledger.clone(),
            scim_users: ledger.clone(),
            keys: ledger.clone(),
            evidence: evidence.clone(),
        };
        log_start(&stores, &authority, &ledger).await?;
        let wiring = Wiring { config, stores: &stores, authority: &authority, addresses: &addresses };
        let certificate = wiring.certificate()?;
        let telemetry = &config.telemetry;
        let start = |url: &String| telemetry::start_traces(url, telemetry.otlp_sample, trust_domain.as_str());
        let (tracer, traces) = telemetry.otlp_endpoint.as_ref().map(start).transpose()?.unzip();
        let gateway = wiring.gateway(wiring.own(&certificate), tracer).await?;
        let offer = Arc::new(ArcSwap::from_pointee(offer::offer(&gateway.rules.load())));
        files::write_public(&config.data_dir.join("txn-jwks.json"), gateway.txn_jwks().to_string().as_bytes())?;
        let (switch, drain) = Drain::new();
        let identity = certificate.identity.clone();
        let mut listeners = wiring.listen(bound, endpoint, certificate, gateway.clone(), &offer, drain.clone()).await?;
        if let Some(edges) = edges {
            edges.serve(&mut listeners, gateway.clone(), identity, drain)?;
        }
        Ok(Self {
            addresses,
            switch,
            listeners,
            gateway,
            offer,
            evidence,
            ledger,
            traces,
            grace: config.shutdown_grace.0,
            _lock: lock,
        })
    }

    /// Replaces routes, masks and policy; a bad file changes nothing and says why.
    pub fn reload(&self, config: &Config) -> Result<String, StartError> {
        let present = self.gateway.rules.load();
        let rules = load_rules(config, &self.gateway.origins, Some(&self.gateway.own), Some(&present))?;
        rules.start(Some(&present));
        let version = rules.policy.version().to_owned();
        self.offer.store(Arc::new(offer::offer(&rules)));
        self.gateway.rules.store(Arc::new(rules));
        Ok(version)
    }

    /// Stops accepting, finishes what is in flight within the grace, flushes evidence.
    pub async fn drain(mut self) {
        self.switch.send_replace(true);
        let finish = async { while self.listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(self.grace, finish).await.is_err() {
            tracing::warn!("some exchanges outlived the grace and are ended");
        }
        // Streams are told and cut, connections dropped; each exchange writes its last leaf before the log closes.
        self.gateway.ending.cancel();
        self.gateway.tasks.close();
        let _ = tokio::time::timeout(TO_SEAL, self.gateway.tasks.wait()).await;
        self.listeners.shutdown().await;
        if tokio::time::timeout(TO_SEAL, self.gateway.tasks.wait()).await.is_err() {
            tracing::error!("some exchanges did not end; the log has no last entry of theirs");
        }
        let evidence = self.evidence.clone();
        let _ = tokio::task::spawn_blocking(move || evidence.close()).await;
        self.ledger.close().await;
        if let Some(traces) = self.traces {
            let flushed = tokio::task::spawn_blocking(move || traces.shutdown()).await;
            if !matches!(flushed, Ok(Ok(()))) {
                tracing::warn!("some spans did not reach the collector");
            }
        }
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

/// The authorities of the data directory, with their keys as configured.
pub fn open_authority(config: &Config, now: Timestamp) -> Result<Authority, StartError> {
    let dir = config.data_dir.join("ca");
    let sealing = config.identity.key_encryption_key_file.as_ref().map(|f| config.base.join(f));
    let keys = FileKeys::new(&dir, sealing.as_deref()).map_err(AuthorityError::from)?;
    Ok(Authority::open(&dir, &config.trust_domain()?, Box::new(keys), config.identity.policy(), now)?)
}

async fn log_start(stores: &Stores, authority: &Authority, ledger: &SqliteLedger) -> Result<(), StartError> {
    let now = stores.clock.now();
    let append = async |event| stores.evidence.append(Staged::plain(now, event)).await;
    append(Event::Started { version: env!("CARGO_PKG_VERSION").into() }).await?;
    for change in authority.active() {
        stores.evidence.append(desk::staged(stores, &change)).await?;
    }
    for settled in ledger.settle_interrupted(now).await? {
        tracing::warn!(
            approval = settled.id,
            "a request was interrupted while it was carried out: nobody can say whether it happened"
        );
        stores.log_approval(&settled).await?;
    }
    Ok(())
}

fn load_rules(
    config: &Config,
    origins: &[Origin],
    own: Option<&OwnTls>,
    present: Option<&Rules>,
) -> Result<Rules, StartError> {
    let policies = config.policies()?;
    Ok(Rules::load(&RuleSources {
        routes: &config.routes,
        masks: &config.masks,
        policies: &policies,
        base: &config.base,
        origins,
        own,
        present,
    })?)
}

fn configured_rules(config: &Config) -> Result<Rules, StartError> {
    let mut origins = config.gateway.origins.clone();
    if origins.is_empty() {
        origins.push(format!("https://{}", config.gateway.listen));
    }
    let parse = |o: &String| Origin::parse(o).map_err(|e| StartError::Origin(o.clone(), e));
    let origins: Vec<Origin> = origins.iter().map(parse).collect::<Result<_, _>>()?;
    load_rules(config, &origins, None, None)
}

/// The Cedar schema that the configured routes make.
pub fn schema(config: &Config) -> Result<String, StartError> {
    Ok(configured_rules(config)?.policy.schema_text().to_owned())
}

/// Checks everything that can be checked without starting; gives the warnings.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let rules = configured_rules(config)?;
    let mut warnings = rules.warnings();
    if config.authz.listen.is_some() {
        warnings.extend(crate::gateway::authz::warnings(&rules));
    }
    if let Some(issuer) = &config.token.issuer {
        Origin::parse(issuer).map_err(|e| StartError::Issuer(issuer.clone(), e))?;
    }
    warnings.extend(crate::protocol::policy::warnings(&config.policies()?));
    warnings.extend(config.trust.missing(&config.base));
    Ok(warnings)
}
