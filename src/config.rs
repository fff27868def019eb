//! Configuration: built-in defaults, file with its includes, environment; each plane's section lives beside its plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::console::config::ConsoleConfig;
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Span;
use crate::gateway::config::{AuthzConfig, GatewayConfig, LimitsConfig, MaskConfig, PolicyConfig, RouteConfig};
use crate::identity::config::{BundleEndpointConfig, IdentityConfig};
use crate::identity::federation::{FederationConfig, Relation};
use crate::protocol::policy::PolicySource;
use crate::token::config::TokenConfig;
use crate::trust::config::TrustConfig;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "no configuration: {0}; give --config FILE, set POPGATE_CONFIG, or put one at ./config/popgate.toml or /etc/popgate/popgate.toml"
    )]
    None(String),
    #[error("cannot read {}: {cause}; --config and POPGATE_CONFIG name the file, `include` in it further ones", path.display())]
    Read { path: PathBuf, cause: std::io::Error },
    #[error("{}: {what}", path.display())]
    Syntax { path: PathBuf, what: String },
    #[error("{name} is defined in {} and in {}", first.display(), second.display())]
    Twice { name: String, first: PathBuf, second: PathBuf },
    #[error("a POPGATE_ variable of the environment: {0}")]
    Environment(String),
    #[error("{0}")]
    Value(String),
}

/// What `telemetry.log_level` may be.
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The whole configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What every SPIFFE ID begins with.
    pub trust_domain: String,
    /// Keys, ledger, evidence, socket.
    pub data_dir: PathBuf,
    /// More files.
    pub include: Vec<String>,
    /// How long a drain may take.
    pub shutdown_grace: Span,
    /// `[identity]`.
    pub identity: IdentityConfig,
    /// `[bundle_endpoint]`.
    pub bundle_endpoint: BundleEndpointConfig,
    /// `[trust]`: whom attestation believes.
    pub trust: TrustConfig,
    /// `[[federation]]`.
    #[serde(rename = "federation", skip_serializing_if = "Vec::is_empty")]
    pub federations: Vec<FederationConfig>,
    /// `[token]`.
    pub token: TokenConfig,
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[authz]`.
    pub authz: AuthzConfig,
    /// `[console]`.
    pub console: ConsoleConfig,
    /// `[policy]`.
    pub policy: PolicyConfig,
    /// `[replay]`.
    pub replay: ReplayConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[telemetry]`.
    pub telemetry: TelemetryConfig,
    /// `[[route]]`.
    #[serde(rename = "route")]
    pub routes: Vec<RouteConfig>,
    /// `[mask.NAME]`.
    #[serde(rename = "mask")]
    pub masks: BTreeMap<String, MaskConfig>,
    /// The directory of the file: what relative paths are relative to.
    #[serde(skip)]
    pub base: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            trust_domain: "example.org".into(),
            data_dir: "popgate-data".into(),
            include: Vec::new(),
            shutdown_grace: Span(Duration::from_secs(10)),
            identity: IdentityConfig::default(),
            bundle_endpoint: BundleEndpointConfig::default(),
            trust: TrustConfig::default(),
            federations: Vec::new(),
            token: TokenConfig::default(),
            gateway: GatewayConfig::default(),
            authz: AuthzConfig::default(),
            console: ConsoleConfig::default(),
            policy: PolicyConfig::default(),
            replay: ReplayConfig::default(),
            limits: LimitsConfig::default(),
            telemetry: TelemetryConfig::default(),
            routes: Vec::new(),
            masks: BTreeMap::new(),
            base: PathBuf::new(),
        }
    }
}

/// `[replay]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayConfig {
    /// Where spent proofs are remembered.
    pub store: ReplayStore,
    /// A file with the Redis URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis_url_file: Option<PathBuf>,
    /// How many processes share the store; more than one needs Redis and a nonce key of their own.
    pub replicas: u32,
    /// A file with 32 bytes in hex that makes and checks nonces on every replica; none: one of this data directory's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce_key_file: Option<PathBuf>,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { store: ReplayStore::Memory, redis_url_file: None, replicas: 1, nonce_key_file: None }
    }
}

impl ReplayConfig {
    /// Refuses what would let one proof pass on two replicas, or send clients in circles between them.
    fn check(&self) -> Result<(), String> {
        if self.store == ReplayStore::Redis && self.redis_url_file.is_none() {
            return Err("replay.store is redis, so replay.redis_url_file must name a file with its URL".into());
        }
        if self.replicas == 0 {
            return Err("replay.replicas is how many processes there are, this one included: 1 or more".into());
        }
        if self.replicas > 1 && self.store == ReplayStore::Memory {
            return Err(format!(
                "replay.replicas is {}, and replay.store is memory: each would let the same proof pass once; use redis",
                self.replicas
            ));
        }
        if self.replicas > 1 && self.nonce_key_file.is_none() {
            return Err(
                "replay.replicas is more than 1, so replay.nonce_key_file must name the key that all of them share: openssl rand -hex 32"
                    .into(),
            );
        }
        Ok(())
    }
}

/// See [`ReplayConfig::store`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayStore {
    /// In this process: one replica.
    #[default]
    Memory,
    /// In Redis: any number of replicas.
    Redis,
}

/// `[telemetry]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Listener of `/metrics`, `/livez`, `/readyz`.
    pub listen: SocketAddr,
    /// Least severe level that is logged.
    pub log_level: String,
    /// Whether log lines are JSON.
    pub log_json: bool,
    /// Whether each request through the gateway has a line in the log.
    pub access_log: bool,
    /// An OpenTelemetry collector (OTLP over gRPC) that traces go to; none: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// The part of traces that begin here and are exported, from 0 to 1; a client's own are continued as it says.
    pub otlp_sample: f64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 9464).into(),
            log_level: "info".into(),
            log_json: false,
            access_log: false,
            otlp_endpoint: None,
            otlp_sample: 1.0,
        }
    }
}

impl TelemetryConfig {
    fn check(&self) -> Result<(), String> {
        if !LOG_LEVELS.contains(&self.log_level.as_str()) {
            return Err(format!("telemetry.log_level {:?} is not one of: {}", self.log_level, LOG_LEVELS.join(", ")));
        }
        if self.otlp_endpoint.as_ref().is_some_and(|url| !url.starts_with("http://")) {
            return Err("telemetry.otlp_endpoint is the URL of a collector's OTLP over gRPC, as http://127.0.0.1:4317; only http:// is spoken".into());
        }
        if !(0.0..=1.0).contains(&self.otlp_sample) {
            return Err("telemetry.otlp_sample is a part: from 0.0 to 1.0".into());
        }
        Ok(())
    }
}

impl Config {
    /// Finds and reads the configuration: `--config`, else `POPGATE_CONFIG`, `./config/popgate.toml`, `/etc/popgate/popgate.toml`.
    pub fn find(given: Option<&Path>, env: &BTreeMap<String, String>) -> Result<(Self, PathBuf), ConfigError> {
        let named = given.map(Path::to_owned).or_else(|| env.get("POPGATE_CONFIG").map(PathBuf::from));
        let usual = [PathBuf::from("config/popgate.toml"), PathBuf::from("/etc/popgate/popgate.toml")];
        let path = named.or_else(|| usual.iter().find(|p| p.exists()).cloned());
        let path = path.ok_or_else(|| ConfigError::None("none was given and none is in its usual place".into()))?;
        Ok((Self::load(&path, env)?, path))
    }

    /// Reads a file with its includes, then the environment.
    pub fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let base = path.parent().map(Path::to_owned).unwrap_or_default();
        let mut table = read(path)?;
        // Each file alone first, so that a fault is told with its file, line and column.
        check(path, None)?;
        let patterns: Vec<String> = table
            .get("include")
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect())
            .unwrap_or_default();
        let mut origins: BTreeMap<String, PathBuf> = BTreeMap::new();
        note_names(&table, path, &mut origins)?;
        for file in patterns.iter().map(|p| matching(&base, p)).collect::<Result<Vec<_>, _>>()?.concat() {
            check(&file, Some(path))?;
            let more = read(&file)?;
            note_names(&more, &file, &mut origins)?;
            merge(&mut table, more);
        }
        overlay(&mut table, env)?;
        // The files alone are sound, so what is wrong now came from the environment.
        let mut config: Self =
            table.try_into().map_err(|e: toml::de::Error| ConfigError::Environment(nearest(&e.to_string())))?;
        config.base = base;
        config.data_dir = config.base.join(&config.data_dir);
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.relations()?;
        self.apart()?;
        self.identity.check().map_err(ConfigError::Value)?;
        self.trust.check().map_err(ConfigError::Value)?;
        let endpoint = &self.bundle_endpoint;
        if endpoint.listen.is_some() && (endpoint.certificate_file.is_none() || endpoint.key_file.is_none()) {
            return Err(ConfigError::Value(
                "bundle_endpoint.listen needs certificate_file and key_file: it proves itself to the web".into(),
            ));
        }
        self.token.check().map_err(ConfigError::Value)?;
        self.authz.check().map_err(ConfigError::Value)?;
        self.telemetry.check().map_err(ConfigError::Value)?;
        self.replay.check().map_err(ConfigError::Value)
    }

    /// No two listeners may have one address.
    fn apart(&self) -> Result<(), ConfigError> {
        let listeners = [
            ("identity.listen", Some(self.identity.listen)),
            ("token.listen", Some(self.token.listen)),
            ("gateway.listen", Some(self.gateway.listen)),
            ("console.listen", Some(self.console.listen)),
            ("telemetry.listen", Some(self.telemetry.listen)),
            ("authz.listen", self.authz.listen),
            ("bundle_endpoint.listen", self.bundle_endpoint.listen),
        ];
        // Port 0 is another one each time.
        let given = listeners.into_iter().filter_map(|(key, at)| Some((key, at.filter(|at| at.port() != 0)?)));
        let mut seen: Vec<(&str, SocketAddr)> = Vec::new();
        for (key, at) in given {
            let clash = |b: SocketAddr| {
                at.port() == b.port() && (at.ip() == b.ip() || at.ip().is_unspecified() || b.ip().is_unspecified())
            };
            if let Some((other, _)) = seen.iter().find(|(_, b)| clash(*b)) {
                let why = format!("{other} and {key} are both at port {}: give each a port of its own", at.port());
                return Err(ConfigError::Value(why));
            }
            seen.push((key, at));
        }
        Ok(())
    }

    /// The trust domain, checked.
    pub fn trust_domain(&self) -> Result<TrustDomain, ConfigError> {
        TrustDomain::parse(&self.trust_domain)
            .map_err(|e| ConfigError::Value(format!("trust_domain {:?}: {e}", self.trust_domain)))
    }

    /// The trust domains that are federated with.
    pub fn relations(&self) -> Result<Vec<Relation>, ConfigError> {
        let own = self.trust_domain()?;
        let read = |f| Relation::new(f, &self.base, &own).map_err(|e| ConfigError::Value(e.to_string()));
        self.federations.iter().map(read).collect()
    }

    /// Reads the policy files.
    pub fn policies(&self) -> Result<Vec<PolicySource>, ConfigError> {
        let mut found = Vec::new();
        for pattern in &self.policy.files {
            for file in matching(&self.base, pattern)? {
                let text =
                    std::fs::read_to_string(&file).map_err(|cause| ConfigError::Read { path: file.clone(), cause })?;
                found.push(PolicySource { name: file.display().to_string(), text });
            }
        }
        Ok(found)
    }
}

fn read(path: &Path) -> Result<Table, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    text.parse().map_err(|e: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), what: e.to_string() })
}

/// Deserialises one file alone, for its line and column.
fn check(path: &Path, included_by: Option<&Path>) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    if included_by.is_some() && text.parse::<Table>().is_ok_and(|t| t.contains_key("include")) {
        return Err(ConfigError::Syntax {
            path: path.to_owned(),
            what: "an included file includes no further files".into(),
        });
    }
    toml::from_str::<Config>(&text)
        .map(drop)
        .map_err(|e| ConfigError::Syntax { path: path.to_owned(), what: nearest(&e.to_string()) })
}

/// Adds the nearest known name to an unknown-field message.
fn nearest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((wrong, known)) = quoted.split_first().filter(|_| message.contains("unknown field")) else {
        return message.to_owned();
    };
    let best = known.iter().max_by(|a, b| strsim::jaro_winkler(wrong, a).total_cmp(&strsim::jaro_winkler(wrong, b)));
    match best {
        Some(best) => format!("{}\ndid you mean `{best}`?", message.trim_end()),
        None => message.to_owned(),
    }
}

/// A name is defined once over all files.
fn note_names(table: &Table, file: &Path, origins: &mut BTreeMap<String, PathBuf>) -> Result<(), ConfigError> {
    let mut names: Vec<String> = Vec::new();
    for (key, value) in table {
        match value {
            Value::Array(items) if items.iter().any(Value::is_table) => names.extend(named(key, items)),
            Value::Table(inner) => names.extend(inner.iter().flat_map(|(k, v)| match v {
                Value::Array(items) if items.iter().any(Value::is_table) => named(&format!("{key}.{k}"), items),
                _ => vec![format!("{key}.{k}")],
            })),
            _ => names.push(key.clone()),
        }
    }
    for name in names {
        if let Some(first) = origins.insert(name.clone(), file.to_owned()) {
            return Err(ConfigError::Twice { name, first, second: file.to_owned() });
        }
    }
    Ok(())
}

/// The names of the tables in an array.
fn named(what: &str, items: &[Value]) -> Vec<String> {
    let name = |t: &Value| t.get("name").or_else(|| t.get("trust_domain"))?.as_str().map(|n| format!("{what} {n:?}"));
    items.iter().filter_map(name).collect()
}

fn merge(into: &mut Table, more: Table) {
    for (key, value) in more {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(have)), Value::Table(new)) => merge(have, new),
            (Some(Value::Array(have)), Value::Array(new)) => have.extend(new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// `POPGATE_GATEWAY__LISTEN` sets `gateway.listen`.
fn overlay(table: &mut Table, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
    const NOT_KEYS: [&str; 3] = ["POPGATE_CONFIG", "POPGATE_JOIN_TOKEN", "POPGATE_SERVER"];
    let is_key = |name: &str| {
        let tests = ["POPGATE_TEST_", "POPGATE_BENCH_"].iter().any(|prefix| name.starts_with(prefix));
        name.starts_with("POPGATE_") && !tests && !NOT_KEYS.contains(&name)
    };
    for (name, text) in env.iter().filter(|(name, _)| is_key(name)) {
        let path: Vec<String> = name["POPGATE_".len()..].split("__").map(str::to_lowercase).collect();
        let Some((last, parents)) = path.split_last() else { continue };
        let mut here = &mut *table;
        for parent in parents {
            let next = here.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
            here = next
                .as_table_mut()
                .ok_or_else(|| ConfigError::Environment(format!("{name}: {parent} is not a section")))?;
        }
        let value = format!("v = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        here.insert(last.clone(), value.unwrap_or_else(|| Value::String(text.clone())));
    }
    Ok(())
}

/// Files that a pattern names, sorted; `*` stands in the last part alone.
fn matching(base: &Path, pattern: &str) -> Result<Vec<PathBuf>, ConfigError> {
    let full = base.join(pattern);
    let name = full.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let Some((before, after)) = name.split_once('*') else { return Ok(vec![full]) };
    let dir = full.parent().map(Path::to_owned).unwrap_or_default();
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(ConfigError::Read { path: dir, cause }),
    };
    let fits = |path: &PathBuf| {
        path.file_name()
            .and_then(|n| n.to_str())
            .is_some_and(|n| n.starts_with(before) && n.ends_with(after) && n.len() >= before.len() + after.len())
    };
    let mut files: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).filter(fits).collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Config, String> {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).expect("writes");
        }
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Config::load(&dir.path().join("popgate.toml"), &env).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_file_shows_every_key_with_its_default() {
        let shipped = include_str!("../config/popgate.toml");
        let read: Config = toml::from_str(shipped).expect("reads");
        let written = |c: &Config| {
            toml::to_string(&Config { include: vec![], policy: PolicyConfig::default(), ..c.clone() }).expect("writes")
        };
        assert_eq!(written(&read), written(&Config::default()));
        let defaults: Table = toml::to_string(&Config::default()).expect("writes").parse().expect("reads");
        for (section, value) in &defaults {
            let keys: Vec<&String> = value.as_table().map(|t| t.keys().collect()).unwrap_or_default();
            assert!(shipped.contains(section) || section == "route" || section == "mask", "{section}");
            for key in keys {
                assert!(
                    shipped.contains(&format!("\n{key} ")) || shipped.contains(&format!("\n# {key} ")),
                    "{section}.{key}"
                );
            }
        }
    }

    #[test]
    fn an_unknown_key_names_its_place_and_the_nearest_known_one() {
        let error = load(&[("popgate.toml", "[gateway]\nlisen = \"127.0.0.1:1\"\n")], &[]).expect_err("refused");
        assert!(error.contains("line 2") && error.contains("did you mean `listen`?"), "{error}");
    }

    #[test]
    fn l1_short_lives_need_the_dangerous_setting_and_long_ones_a_long_issuing_ca() {
        for text in [
            "[identity]\ndanger_short_lives = true\nissuing_life = \"20s\"\njwt_key_life = \"20s\"\nsvid_ttl = \"2s\"",
            "[identity]\nissuing_life = \"60d\"\nsvid_ttl = \"7d\"",
        ] {
            load(&[("popgate.toml", text)], &[]).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
    }

    #[test]
    fn lists_of_tables_are_joined_over_files_and_a_name_stands_once() {
        let main = "include = [\"t-*.toml\"]\n[[trust.oidc]]\nname = \"a\"\nissuer = \"https://a\"\n";
        let more = |name: &str| format!("[[trust.oidc]]\nname = \"{name}\"\nissuer = \"https://b\"\n");
        let config = load(&[("popgate.toml", main), ("t-b.toml", &more("b"))], &[]).expect("reads");
        assert_eq!(config.trust.oidc.len(), 2);
        let error = load(&[("popgate.toml", main), ("t-b.toml", &more("a"))], &[]).expect_err("refused");
        assert!(error.contains("trust.oidc \"a\"") && error.contains("t-b.toml"), "{error}");
    }

    #[test]
    fn a_name_defined_twice_names_both_places() {
        let files = [
            ("popgate.toml", "include = [\"m-*.toml\"]\n"),
            ("m-a.toml", "[mask.pii]\n"),
            ("m-b.toml", "[mask.pii]\n"),
        ];
        let error = load(&files, &[]).expect_err("refused");
        assert!(error.contains("mask.pii") && error.contains("m-a.toml") && error.contains("m-b.toml"), "{error}");
    }

    #[test]
    fn the_environment_goes_over_the_file() {
        let config = load(
            &[("popgate.toml", "[token]\nttl = \"1m\"\n")],
            &[("POPGATE_TOKEN__TTL", "2m"), ("POPGATE_LIMITS__HELD_BODY", "7"), ("POPGATE_DATA_DIR", "elsewhere")],
        );
        let config = config.expect("reads");
        assert_eq!(config.token.ttl.0, Duration::from_mins(2));
        assert_eq!(config.limits.held_body, 7);
        assert!(config.data_dir.ends_with("elsewhere"));
        assert!(load(&[("popgate.toml", "")], &[("POPGATE_TOKEN__TTLL", "2m")]).expect_err("refused").contains("ttl"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "[token]\nttl = \"1d\"",
            "[token]\nproof_past = \"1h\"",
            "trust_domain = \"Ex ample\"",
            "[replay]\nstore = \"redis\"",
            "[replay]\nreplicas = 0",
            "[replay]\nreplicas = 2",
            "[replay]\nreplicas = 2\nstore = \"redis\"\nredis_url_file = \"u\"",
            "[policy]\nmode = \"shadow\"",
            "[identity]\nissuing_life = \"30m\"",
            "[identity]\njwt_key_life = \"2h\"",
            "[identity]\nsvid_ttl = \"1m\"",
            "[identity]\nsvid_ttl = \"5h\"",
            "[identity]\ndanger_short_lives = true\nissuing_life = \"1s\"",
            "[bundle_endpoint]\nlisten = \"127.0.0.1:0\"",
            "[[trust.oidc]]\nname = \"unix\"\nissuer = \"https://x\"",
            "[[trust.oidc]]\nname = \"a\"\nissuer = \"https://x\"\n[[trust.x509]]\nname = \"a\"\nca_file = \"x\"",
            "[telemetry]\nlog_level = \"loud\"",
            "[telemetry]\notlp_sample = 1.5",
            "[authz]\nlisten = \"127.0.0.1:0\"",
            "[token]\nlisten = \"127.0.0.1:9000\"\n[gateway]\nlisten = \"127.0.0.1:9000\"",
            "[token]\nlisten = \"127.0.0.1:9000\"\n[telemetry]\nlisten = \"0.0.0.0:9000\"",
            "[authz]\nlisten = \"127.0.0.1:0\"\npeers = [\"edge.example\"]",
        ] {
            assert!(load(&[("popgate.toml", text)], &[]).is_err(), "{text}");
        }
        for text in [
            "[token]\nlisten = \"127.0.0.1:0\"\n[gateway]\nlisten = \"127.0.0.1:0\"",
            "[token]\nlisten = \"127.0.0.1:9000\"\n[gateway]\nlisten = \"127.0.0.2:9000\"",
        ] {
            assert!(load(&[("popgate.toml", text)], &[]).is_ok(), "{text}");
        }
    }
}
