//! `upstream` of a route, as it is written.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::time::Span;

/// `upstream` of a route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host:port`; several are one pool, and so are the addresses of a name.
    pub url: Urls,
    /// What is spoken there.
    #[serde(default)]
    pub protocol: Protocol,
    /// The `Host` it reads; default: the first URL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How long a connection may take, TLS included.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// How long it may think once it has the request; default: `idle_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_timeout: Option<Span>,
    /// How long it, or a client that sends a body, may be silent.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Span,
    /// Most requests under way; one more is 503 at once.
    #[serde(default = "max_requests")]
    pub max_requests: usize,
    /// How often its name is resolved anew.
    #[serde(default = "resolve_every")]
    pub resolve_every: Span,
    /// Roots for `https`, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// The name its certificate must have; default: the host dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The workload that must answer, by its SPIFFE ID, instead of a name and roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<String>,
    /// Whether the gateway presents its own certificate.
    #[serde(default)]
    pub mtls: bool,
    /// Requests that ask whether it is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthConfig>,
    /// When an endpoint that fails is left out for a while.
    #[serde(default)]
    pub eject: EjectConfig,
}

/// One URL or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Urls {
    /// One.
    One(String),
    /// A pool.
    Many(Vec<String>),
}

impl Urls {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(url) => std::slice::from_ref(url),
            Self::Many(urls) => urls,
        }
    }
}

/// `protocol` of an upstream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1 in the clear; over TLS what ALPN agrees on.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, in the clear with prior knowledge (RFC 9113 section 3.3).
    Http2,
}

/// `health` of an upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthConfig {
    /// Path that answers 2xx while all is well.
    pub path: String,
    /// How often it is asked for.
    #[serde(default = "health_every")]
    pub every: Span,
    /// How long an answer may take.
    #[serde(default = "health_timeout")]
    pub timeout: Span,
    /// Failures in a row that make an endpoint unwell.
    #[serde(default = "three")]
    pub fall: u32,
    /// Answers in a row that make it well again.
    #[serde(default = "two")]
    pub rise: u32,
}

/// `eject` of an upstream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EjectConfig {
    /// Failures in a row after which an endpoint is left out; 0: never.
    pub failures: u32,
    /// For how long the first time; each further time in a row adds as much, up to ten times of it.
    pub time: Span,
    /// Most percent of the endpoints that are left out at once.
    pub at_most: u8,
}

impl Default for EjectConfig {
    fn default() -> Self {
        Self { failures: 5, time: Span(Duration::from_secs(30)), at_most: 50 }
    }
}

const fn connect_timeout() -> Span {
    Span(Duration::from_secs(2))
}

const fn idle_timeout() -> Span {
    Span(Duration::from_mins(1))
}

const fn max_requests() -> usize {
    16_384
}

const fn resolve_every() -> Span {
    Span(Duration::from_secs(30))
}

const fn health_every() -> Span {
    Span(Duration::from_secs(5))
}

const fn health_timeout() -> Span {
    Span(Duration::from_secs(2))
}

const fn three() -> u32 {
    3
}

const fn two() -> u32 {
    2
}
