//! The identity plane: attestation in, certificates out, each issuance recorded before it is answered.

pub mod agents;
pub mod attest;
pub mod authority;
pub mod config;
pub mod enrol;
pub mod federation;
pub mod grant;
pub mod issue;
pub mod profile;
pub mod revocation_lists;
pub mod server;
