//! The protocol, pure: bytes in, typed evidence out. Time and entropy come in as arguments.
//!
//! Depends on `domain` alone, so all of it can be fuzzed, property-tested and embedded elsewhere.

pub mod access_token;
pub mod authorization_details;
pub mod bundle;
pub mod canonical;
pub mod checkpoint;
pub mod claims;
pub mod content_digest;
pub mod csr;
pub mod dpop;
pub mod ecdsa_der;
pub mod form;
pub mod hpack;
pub mod htu;
pub mod json;
pub mod jwk;
pub mod jws;
pub mod jwt;
pub mod jwt_svid;
pub mod masking;
pub mod merkle;
pub mod nonce;
pub mod ocsf;
pub mod operation;
#[cfg(feature = "policy")]
pub mod policy;
pub mod saml;
pub mod scim;
pub mod security_event;
pub mod svid;
pub mod template;
pub mod tile;
pub mod traceparent;
pub mod transcript;
pub mod txn_token;
pub mod xml;
