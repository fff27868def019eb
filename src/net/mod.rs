//! Sockets: TLS, listeners, draining, bodies, problem documents. Knows the words and nothing of the planes.

pub mod body;
pub mod coding;
pub mod connections;
mod date;
pub mod ext_authz;
pub mod fetch;
pub mod files;
mod h1_interim;
pub mod h2;
pub mod h2_authority;
pub mod inbound;
pub mod interim;
pub mod keys;
pub mod listener;
mod preface;
pub mod problem;
pub mod process;
pub mod router;
pub mod tls;
pub mod uds;
pub mod upgrade;
pub mod workload_api;
