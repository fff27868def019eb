//! `[token]`.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::time::Span;

/// How tokens are minted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    /// Listener of `/token` and the metadata.
    pub listen: SocketAddr,
    /// Issuer URL; the bound address if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Longest life of a token.
    pub ttl: Span,
    /// Whether every proof needs a nonce.
    pub nonce_required: bool,
    /// How old a proof may be.
    pub proof_past: Span,
    /// How far ahead a client's clock may run.
    pub proof_future: Span,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8442).into(),
            issuer: None,
            ttl: Span(Duration::from_mins(5)),
            nonce_required: false,
            proof_past: Span(Duration::from_mins(1)),
            proof_future: Span(Duration::from_secs(10)),
        }
    }
}
