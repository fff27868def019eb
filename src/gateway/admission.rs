//! The opening leaf of an exchange: who was admitted to do what, by which rule.

use std::collections::BTreeMap;

use crate::domain::digest::{Opening, Sha256};
use crate::domain::leaf::{Admission, Event, Leaf, PublicAdmission, Staged};
use crate::domain::time::Timestamp;
use crate::gateway::approve::Permit;
use crate::gateway::authenticate::Caller;
use crate::gateway::carry::Carry;
use crate::protocol::dpop::SignedBody;
use crate::store::entropy;

/// The entry of a request that is admitted, with what opens its commitments.
pub(super) fn admission(carry: &Carry<'_>, permit: &Permit, recorded: bool, now: Timestamp) -> Staged {
    let request = carry.request;
    let mut openings: BTreeMap<String, Opening> = [
        ("target".to_owned(), entropy::seal(request.target())),
        ("object".to_owned(), entropy::seal(carry.object.to_owned())),
    ]
    .into();
    let (target, object) = (openings["target"].commitment(), openings["object"].commitment());
    // The method that the client signed: CONNECT for a WebSocket over HTTP/2, whatever policy calls it.
    let (request_id, method) = (request.id.clone(), request.head.method.to_string());
    let (route, operation) = (carry.route.name.clone(), carry.operation.to_owned());
    let policy_version = permit.verdict().policy_version.clone();
    let event = match carry.caller {
        None => Event::PublicAdmission(PublicAdmission {
            request_id,
            method,
            target,
            route,
            operation,
            object,
            policy_version,
            recorded,
        }),
        Some(caller) => {
            let proof = entropy::seal(caller.proof.expose());
            let commitment = proof.commitment();
            openings.insert("proof".to_owned(), proof);
            Event::Admission(Admission {
                request_id,
                spiffe_id: caller.token.claims.client_id.clone(),
                jkt: caller.jkt(),
                token_sha256: caller.token_sha256,
                proof: commitment,
                method,
                target,
                route,
                operation,
                object,
                rules: permit.verdict().rules.clone(),
                policy_version,
                approval: permit.consumed().cloned(),
                recorded,
                used: permit.used(),
                body_sha256: signed_body(carry, caller),
            })
        }
    };
    Staged { leaf: Leaf { time: now, event }, openings }
}

/// The body that the proof signs for, if it was read whole, and so held against it, and goes to upstream as it is.
fn signed_body(carry: &Carry<'_>, caller: &Caller) -> Option<Sha256> {
    let masked = carry.route.mask.as_ref().is_some_and(|m| m.requests);
    let messages = carry.request.handshake.is_some();
    match caller.signed_body {
        SignedBody::Exactly(body) if carry.body.is_some() && !masked && !messages => Some(body),
        _ => None,
    }
}
