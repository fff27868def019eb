//! The token service: who may ask, on whose behalf, for what, and the tokens that come of it.

pub mod client;
pub mod config;
pub mod endpoint;
pub mod events;
pub mod grants;
pub mod introspect;
pub mod keys;
pub mod limits;
pub mod metadata;
pub mod mint;
pub mod scim;
pub mod server;
