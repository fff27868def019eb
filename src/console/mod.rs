//! The administration API: over the socket in the data directory, and over HTTPS with a person's certificate.

pub mod actor;
pub mod approvals;
pub mod authorities;
pub mod config;
pub mod entries;
pub mod nodes;
pub mod registry;
pub mod server;
pub mod stops;
