//! popgate: a proof-of-possession gate for machine identities.
//!
//! See `ARCHITECTURE.md` for the house and one request's way through it. Without default features only
//! [`domain`] and [`protocol`] are built: pure, and all that another gateway would embed.

pub mod domain;
pub mod protocol;

#[cfg(feature = "full")]
pub mod agent;
#[cfg(feature = "full")]
pub mod app;
#[cfg(feature = "full")]
pub mod cli;
#[cfg(feature = "full")]
pub mod client;
#[cfg(feature = "full")]
pub mod config;
#[cfg(feature = "full")]
pub mod console;
#[cfg(feature = "full")]
pub mod evidence;
#[cfg(feature = "full")]
pub mod gateway;
#[cfg(feature = "full")]
pub mod identity;
#[cfg(feature = "full")]
pub mod net;
#[cfg(feature = "full")]
pub mod store;
#[cfg(feature = "full")]
pub mod telemetry;
#[cfg(feature = "full")]
pub mod token;
#[cfg(feature = "full")]
pub mod tot;
#[cfg(feature = "full")]
pub mod trust;
