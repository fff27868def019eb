//! The service as strangers meet it: the real binary, over real sockets, on free ports. One module a user story.

#![allow(clippy::pedantic, clippy::type_complexity, reason = "tests are tables and stories, read top to bottom")]

mod agent;
mod approvals;
mod attestation;
mod authorities;
mod bodies;
mod demo;
mod enrolment;
mod evidence;
mod federation;
mod gateway;
mod host;
mod interop;
mod operator;
mod proofs;
mod replay;
mod revocation;
mod rotation;
mod tls;
mod token;
mod web;
mod world;
