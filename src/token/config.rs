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
    /// How long a key signs before the next one does.
    pub key_life: Span,
    /// Whether every proof needs a nonce.
    pub nonce_required: bool,
    /// How old a proof may be.
    pub proof_past: Span,
    /// How far ahead a client's clock may run.
    pub proof_future: Span,
    /// Whether a JWT-SVID authenticates a client.
    pub jwt_svid_clients: bool,
    /// Requests a second of one source address; 0: any number.
    pub source_rate: u32,
    /// Requests a second of one client; 0: any number.
    pub client_rate: u32,
    /// Origins whose pages may ask; none: no page may.
    pub cors_origins: Vec<String>,
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8442).into(),
            issuer: None,
            ttl: Span(Duration::from_mins(5)),
            key_life: Span(Duration::from_hours(24)),
            nonce_required: false,
            proof_past: Span(Duration::from_mins(1)),
            proof_future: Span(Duration::from_secs(10)),
            jwt_svid_clients: false,
            source_rate: 1000,
            client_rate: 500,
            cors_origins: Vec::new(),
        }
    }
}

impl TokenConfig {
    /// Refuses values that make no sense; gives what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.proof_past.0.max(self.proof_future.0) > Duration::from_mins(5) {
            return Err("token.proof_past and token.proof_future are at most 5m".into());
        }
        if self.ttl.0 < Duration::from_secs(10) || self.ttl.0 > Duration::from_hours(1) {
            return Err("token.ttl is from 10s to 1h".into());
        }
        if self.key_life.0 < Duration::from_secs(1) || self.key_life.0 > Duration::from_hours(24 * 90) {
            return Err("token.key_life is from 1s to 90d".into());
        }
        let odd = |o: &&String| !o.starts_with("http") || o.ends_with('/') || o.contains('*');
        if let Some(odd) = self.cors_origins.iter().find(odd) {
            return Err(format!("token.cors_origins {odd:?}: write an origin, as in https://app.example.org"));
        }
        Ok(())
    }
}
