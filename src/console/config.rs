//! `[console]`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The administration listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// Listener; person certificates only.
    pub listen: SocketAddr,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 8444).into() }
    }
}
