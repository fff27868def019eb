//! The service as strangers meet it: the real binary, over real sockets, on free ports. One module a user story.

mod approvals;
mod demo;
mod enrolment;
mod evidence;
mod gateway;
mod operator;
mod proofs;
mod replay;
mod revocation;
mod tls;
mod token;
mod world;
