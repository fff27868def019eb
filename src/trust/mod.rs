//! Whom we believe about people and jobs besides ourselves: OIDC issuers and SAML providers, what their statements are
//! verified by, and what they come to here.

pub mod config;
pub mod events;
mod foreign;
pub mod issuer;
pub mod mapping;
pub mod providers;
mod saml;

use crate::protocol::jws::JwsError;
use crate::protocol::jwt::JwtError;

/// Why a statement is not believed. For the log and for `trust test`; callers read less.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TrustError {
    /// It does not hold.
    #[error("{0}")]
    Refused(String),
    /// What decides about it cannot be had now.
    #[error("{0}")]
    Away(String),
}

impl From<JwtError> for TrustError {
    fn from(error: JwtError) -> Self {
        Self::Refused(error.to_string())
    }
}

impl From<JwsError> for TrustError {
    fn from(error: JwsError) -> Self {
        Self::Refused(error.to_string())
    }
}
