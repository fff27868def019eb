//! `[gateway]`, `[policy]`, `[limits]`, `[[route]]` and `[mask.NAME]` as they are written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::time::Span;
use crate::protocol::operation::FieldType;

/// `[gateway]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Listener.
    pub listen: SocketAddr,
    /// Whether client certificates are asked for.
    pub client_certificate: ClientCertificate,
    /// What `htu` is compared with; the first is canonical. Default: the bound address.
    pub origins: Vec<String>,
    /// TLS 1.2 as well, for clients that have no 1.3.
    pub danger_tls_1_2: bool,
    /// How long a stream may last.
    pub stream_max: Span,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8443).into(),
            client_certificate: ClientCertificate::Request,
            origins: Vec::new(),
            danger_tls_1_2: false,
            stream_max: Span(Duration::from_hours(1)),
        }
    }
}

/// See [`GatewayConfig::client_certificate`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    /// Never asked for.
    Off,
    /// Asked for, not required.
    Request,
}

/// `[policy]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Cedar files; `*` in a name matches any.
    pub files: Vec<String>,
    /// How decisions are used.
    pub mode: PolicyMode,
}

/// See [`PolicyConfig::mode`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyMode {
    /// Decisions are enforced.
    #[default]
    Enforce,
}

/// `[limits]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Largest body, in bytes, that is held whole for a rule or an approval.
    pub held_body: u64,
    /// Live claims that the memory replay store holds.
    pub replay_claims: u64,
    /// Verified tokens that are kept.
    pub token_cache: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { held_body: 1 << 20, replay_claims: 4_000_000, token_cache: 100_000 }
    }
}

/// `[[route]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Name, unique.
    pub name: String,
    /// What it serves.
    #[serde(rename = "match")]
    pub matcher: MatchConfig,
    /// Audience, relative to the first origin or absolute.
    pub resource: String,
    /// Where it goes.
    pub upstream: UpstreamConfig,
    /// Mask on what comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// Whether exchanges are recorded.
    #[serde(default)]
    pub record: RecordMode,
    /// A credential of the upstream's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<InjectConfig>,
    /// What a caller must bring.
    #[serde(default)]
    pub access: Access,
    /// Workloads that may ask the token service about tokens of this route's resource (RFC 7662).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub introspect: Vec<String>,
    /// Whether each proof needs a nonce.
    #[serde(default)]
    pub nonce_required: bool,
    /// Whether streams end with their token.
    #[serde(default)]
    pub ends_with_token: bool,
    /// Named operations; the first match wins.
    #[serde(default, rename = "operation")]
    pub operations: Vec<OperationConfig>,
}

/// `match` of a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Path template.
    pub path: String,
}

/// `upstream` of a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// How long a connection may take.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// How long upstream may be silent.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Span,
    /// Roots for `https`, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

const fn connect_timeout() -> Span {
    Span(Duration::from_secs(2))
}

const fn idle_timeout() -> Span {
    Span(Duration::from_mins(1))
}

/// `record` of a route.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordMode {
    /// Nothing passes unrecorded.
    #[default]
    Required,
    /// Passes unrecorded, with a mark, where recording fails.
    Degraded,
    /// Not recorded; admissions are still logged.
    Off,
}

/// `inject` of a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectConfig {
    /// Header that carries it.
    pub header: String,
    /// What stands before it.
    #[serde(default)]
    pub prefix: String,
    /// File that holds it; re-read on change.
    pub file: PathBuf,
}

/// `access` of a route.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// A bound token and a proof.
    #[default]
    Proof,
    /// The certificate on the connection, too.
    ProofAndCertificate,
}

/// `[[route.operation]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationConfig {
    /// Name.
    pub name: String,
    /// `METHOD /path/{template}`.
    #[serde(rename = "match")]
    pub matcher: String,
    /// Object template over the same parameters.
    pub object: String,
    /// Body fields.
    #[serde(default)]
    pub body: BTreeMap<String, FieldConfig>,
}

/// One body field.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldConfig {
    /// JSON pointer.
    pub pointer: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: FieldType,
    /// Whether it may be absent.
    #[serde(default)]
    pub optional: bool,
}

/// `[mask.NAME]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// Detectors that are on.
    #[serde(default)]
    pub detectors: Vec<String>,
    /// `redact`, `keep-last` or `block`.
    #[serde(default = "redact")]
    pub strategy: String,
    /// Characters that `keep-last` keeps.
    #[serde(default = "four")]
    pub keep: usize,
    /// Rules on fields.
    #[serde(default, rename = "field")]
    pub fields: Vec<MaskFieldConfig>,
    /// Paths whose strings continue over server-sent events; default: those of OpenAI-compatible streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Vec<String>>,
}

fn redact() -> String {
    "redact".into()
}

const fn four() -> usize {
    4
}

/// `[[mask.NAME.field]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskFieldConfig {
    /// Path (RFC 9535).
    pub path: String,
    /// `redact`, `drop` or `block`.
    pub strategy: String,
}
