//! The service as strangers meet it: the real binary, over real sockets, on free ports. One module a user story.

#![allow(clippy::pedantic, clippy::type_complexity, reason = "tests are tables and stories, read top to bottom")]

mod agent;
mod approvals;
mod asking;
mod attestation;
mod authorities;
mod authz;
mod behalf;
mod bodies;
mod demo;
mod documented;
mod enrolment;
mod evidence;
mod federation;
mod floods;
mod gateway;
mod grants;
mod host;
mod injection;
mod interop;
mod issuer;
mod mask_report;
mod masks;
mod model;
mod nginx;
mod oauth_interop;
mod operator;
mod proofs;
mod protocols;
mod proxied;
mod refusals;
mod replay;
mod revocation;
mod rotation;
mod routing;
mod saml_idp;
mod scripts;
mod signals;
mod smuggling;
mod statements;
mod telemetry;
mod tls;
mod token;
mod web;
mod world;
