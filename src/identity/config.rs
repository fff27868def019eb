//! `[identity]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::domain::time::Span;

/// Where and how certificates are issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// Listener of `/v1/attest` and `/v1/renew`.
    pub listen: SocketAddr,
    /// Host names besides localhost, 127.0.0.1 and ::1 that server certificates carry.
    pub names: Vec<String>,
    /// Life of a certificate whose entry names none.
    pub svid_ttl: Span,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8441).into(),
            names: Vec::new(),
            svid_ttl: Span(std::time::Duration::from_hours(1)),
        }
    }
}
