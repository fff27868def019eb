//! The identity plane: attestation in, certificates out, each issuance recorded before it is answered.

pub mod authority;
pub mod config;
pub mod enrol;
pub mod profile;
pub mod server;
