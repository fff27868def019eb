//! The gateway plane. `serve` is one request, top to bottom; the other files are its steps.

pub mod answer;
pub mod approve;
pub mod authenticate;
pub mod authorize;
pub mod authz;
pub mod bounds;
pub mod config;
pub mod cors;
pub mod details;
pub mod execution;
pub mod forward;
pub mod grpc_mask;
pub mod headers;
pub mod mask;
pub mod masks;
pub mod matching;
pub mod parts;
pub mod pump;
pub mod read;
pub mod record;
pub mod routes;
pub mod serve;
pub mod tokens;
pub mod upstream;
pub mod websocket;
pub mod wellknown;
