//! The gRPC code that `build.rs` generates from `proto/ext_authz.proto`: messages and server.

#![allow(clippy::all, clippy::pedantic, clippy::unwrap_used, missing_docs, reason = "generated")]

tonic::include_proto!("envoy.service.auth.v3");
