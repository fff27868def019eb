//! The gRPC code that `build.rs` generates from `proto/spiffe_workload.proto`: messages, client and server.

#![allow(clippy::all, clippy::pedantic, clippy::unwrap_used, missing_docs, reason = "generated")]

tonic::include_proto!("_");

/// The service's descriptors, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/spiffe_workload.bin"));

/// The metadata that every call carries (SPIFFE Workload Endpoint section 4).
pub const SECURITY_HEADER: &str = "workload.spiffe.io";
