//! Sockets: TLS, listeners, draining, bodies, problem documents. Knows the words and nothing of the planes.

pub mod body;
pub mod coding;
pub mod ext_authz;
pub mod fetch;
pub mod files;
pub mod h2_authority;
pub mod interim;
pub mod keys;
pub mod listener;
pub mod problem;
pub mod process;
pub mod router;
pub mod tls;
pub mod uds;
pub mod workload_api;
