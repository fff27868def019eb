//! `[identity]` and `[bundle_endpoint]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::time::{Span, format_duration};
use crate::identity::authority::Policy;
use crate::identity::profile;

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
    /// Life of an issuing CA.
    pub issuing_life: Span,
    /// Life of a JWT-SVID key.
    pub jwt_key_life: Span,
    /// After how long a lineage of renewals ends.
    pub reattest_after: Span,
    /// An upstream CA signs issuing CAs.
    pub upstream: bool,
    /// Issuing CAs may have CAs below them, for entries with `downstream`.
    pub downstream: bool,
    /// The key that seals authority keys on disk, 32 bytes in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_encryption_key_file: Option<PathBuf>,
    /// Lives below the floors: for tests of rotation.
    pub danger_short_lives: bool,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8441).into(),
            names: Vec::new(),
            svid_ttl: Span(Duration::from_hours(1)),
            issuing_life: Span(Duration::from_hours(24)),
            jwt_key_life: Span(Duration::from_hours(24)),
            reattest_after: Span(Duration::from_hours(24 * 30)),
            upstream: false,
            downstream: false,
            key_encryption_key_file: None,
            danger_short_lives: false,
        }
    }
}

/// Longest life of a JWT-SVID.
pub const LONGEST_JWT: Duration = Duration::from_hours(1);
/// Floor of the life of an authority that rotates.
const LEAST_AUTHORITY: Duration = Duration::from_hours(1);

impl IdentityConfig {
    /// Shortest and longest life that an entry may ask for: more than usual where the issuing CA lives longer, less where
    /// the configuration dares.
    pub fn svid_bounds(&self) -> (Duration, Duration) {
        let (least, most) = profile::workload_bounds();
        let least = if self.danger_short_lives { Duration::from_secs(2) } else { least };
        (least, most.max(self.issuing_life.0 / 6))
    }

    /// What the authority needs to know.
    pub fn policy(&self) -> Policy {
        Policy {
            issuing_life: self.issuing_life.0,
            jwt_life: self.jwt_key_life.0,
            longest_jwt: LONGEST_JWT,
            upstream: self.upstream,
            downstream: self.downstream,
        }
    }

    /// Refuses lives that make no sense; gives what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let least = if self.danger_short_lives { Duration::from_secs(6) } else { LEAST_AUTHORITY };
        for (name, life) in [("issuing_life", self.issuing_life.0), ("jwt_key_life", self.jwt_key_life.0)] {
            if life < least || life > Duration::from_hours(24 * 365) {
                let least = format_duration(least);
                return Err(format!(
                    "identity.{name} is from {least} to 365d; shorter needs identity.danger_short_lives"
                ));
            }
        }
        if !self.danger_short_lives && self.jwt_key_life.0 < LONGEST_JWT * 6 {
            return Err("identity.jwt_key_life is 6h at least: a key stays in the bundle for a sixth of its life after it last signed".into());
        }
        let (least, most) = self.svid_bounds();
        if !(least..=most).contains(&self.svid_ttl.0) {
            let (least, most) = (format_duration(least), format_duration(most));
            return Err(format!("identity.svid_ttl is from {least} to {most}"));
        }
        Ok(())
    }
}

/// `[bundle_endpoint]`: our bundle for other trust domains, on a listener of its own with a certificate of the web's.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundleEndpointConfig {
    /// The listener; none: `https_spiffe` alone, at `/bundle.json` of the identity listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Certificate chain, PEM; re-read on change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// Its key, PKCS#8 PEM; re-read on change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}
