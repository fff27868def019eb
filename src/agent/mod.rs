//! The agent: on a workload's host it attests the processes that call its socket and serves them the SPIFFE Workload API.
//! What it knows comes from the server, by a stream; what it serves comes from memory, so it serves while the server is
//! away.

pub mod attest;
pub mod callers;
pub mod keeper;
pub mod serve;
pub mod server;
pub mod state;
pub mod workload_api;
