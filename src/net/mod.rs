//! Sockets: TLS, listeners, draining, bodies, problem documents. Knows the words and nothing of the planes.

pub mod body;
pub mod files;
pub mod keys;
pub mod listener;
pub mod problem;
pub mod router;
pub mod tls;
pub mod uds;
