//! The token plane: a workload authenticates with its certificate, proves its key, and gets a token bound to it.

pub mod client;
pub mod config;
pub mod endpoint;
pub mod keys;
pub mod metadata;
pub mod mint;
pub mod server;
