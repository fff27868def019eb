//! `[gateway]`, `[policy]`, `[limits]`, `[[route]]` and `[mask.NAME]` as they are written.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::time::Span;
use crate::gateway::authz::peers::Peers;
use crate::gateway::upstream::config::UpstreamConfig;
use crate::protocol::operation::{FieldType, Reads, WebSocket};

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

/// `[authz]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthzConfig {
    /// Where the edges of others ask; none: nowhere. TLS with the gateway's certificate, unless on a loopback address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Addresses and networks of the edges that are believed.
    pub peers: Vec<String>,
}

impl AuthzConfig {
    /// What an edge says counts for the client's own word, so that it must be a known one.
    pub fn check(&self) -> Result<(), String> {
        Peers::parse(&self.peers)?;
        if self.listen.is_some() && self.peers.is_empty() {
            return Err("authz.listen needs authz.peers: the addresses of the edges that are believed".into());
        }
        Ok(())
    }
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
    /// Pages that may call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsConfig>,
    /// Descriptors of the gRPC services behind it, a `FileDescriptorSet`: their messages can be masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<PathBuf>,
    /// Mask on what comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// Whether exchanges are recorded.
    #[serde(default)]
    pub record: RecordMode,
    /// A credential of the upstream's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<InjectConfig>,
    /// Headers of requests towards upstream.
    #[serde(default, skip_serializing_if = "HeaderRulesConfig::is_empty")]
    pub request_headers: HeaderRulesConfig,
    /// Headers of answers towards the client.
    #[serde(default, skip_serializing_if = "HeaderRulesConfig::is_empty")]
    pub response_headers: HeaderRulesConfig,
    /// What a caller must bring.
    #[serde(default)]
    pub access: Access,
    /// Workloads that may ask the token service about tokens of this route's resource (RFC 7662).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub introspect: Vec<String>,
    /// Whether each proof needs a nonce.
    #[serde(default)]
    pub nonce_required: bool,
    /// Whether each proof must sign for the body.
    #[serde(default)]
    pub content_digest: bool,
    /// Whether streams end with their token.
    #[serde(default)]
    pub ends_with_token: bool,
    /// Named operations; the first match wins.
    #[serde(default, rename = "operation")]
    pub operations: Vec<OperationConfig>,
}

/// `cors` of a route.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsConfig {
    /// Origins of the pages.
    pub origins: Vec<String>,
    /// Headers that they may send besides those of every proved request.
    #[serde(default)]
    pub headers: Vec<String>,
    /// How long a browser need not ask again.
    #[serde(default = "ten_minutes")]
    pub max_age: Span,
}

const fn ten_minutes() -> Span {
    Span(Duration::from_mins(10))
}

/// `match` of a route: all that is given must hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchConfig {
    /// Path template.
    pub path: String,
    /// One of the gateway's origins, by its host or host and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Methods; none: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Headers and their values; `*`: any value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
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

/// `request_headers` and `response_headers` of a route.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderRulesConfig {
    /// Names and values that are there once, whatever was sent.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Names that go.
    #[serde(default)]
    pub remove: Vec<String>,
}

impl HeaderRulesConfig {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Or: an OAuth client of ours, whose access token it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<InjectTokenConfig>,
}

/// `inject.token` of a route: client credentials (RFC 6749 section 4.4).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InjectTokenConfig {
    /// The token endpoint.
    pub url: String,
    /// Our name there.
    pub client_id: String,
    /// File with the secret, which goes into the Authorization header (`client_secret_basic`).
    pub client_secret_file: PathBuf,
    /// Scope that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Resource that is asked for (RFC 8707).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Certificates that the endpoint's leads to, PEM; none: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
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
    /// Nothing: anybody may call the operations that the route lists. Policy is not asked.
    DangerPublic,
}

/// `[[route.operation]]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperationConfig {
    /// Name.
    pub name: String,
    /// `METHOD /path/{template}`; `MESSAGE` for messages of a WebSocket, `CALL` for tool calls in an answer.
    #[serde(rename = "match")]
    pub matcher: String,
    /// Object template over the same parameters.
    pub object: String,
    /// Body fields.
    #[serde(default)]
    pub body: BTreeMap<String, FieldConfig>,
    /// How the body is read.
    #[serde(default)]
    pub reads: Reads,
    /// Strings of the body that must be one of these for the operation to fit, by JSON pointer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub select: BTreeMap<String, OneOrMany>,
    /// Further parameters for `object`: strings of the body, by JSON pointer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// Whether it opens a WebSocket, and whether its messages are judged.
    #[serde(default)]
    pub websocket: WebSocket,
}

/// One string or several.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Any of these.
    Many(Vec<String>),
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
    /// `redact`, `keep-last`, `token`, `format` or `block`.
    #[serde(default = "redact")]
    pub strategy: String,
    /// Characters that `keep-last` keeps.
    #[serde(default = "four")]
    pub keep: usize,
    /// Key of `token` and `format`: a file with random text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Detectors of one's own: regular expressions by the name of what they find.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub patterns: BTreeMap<String, String>,
    /// Names of people, whatever their case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Response headers whose values are scanned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Content types that pass unread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Whether what upstream gets is masked, too.
    #[serde(default)]
    pub mask_request: bool,
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
    /// `redact`, `token`, `base64`, `drop` or `block`.
    pub strategy: String,
}
