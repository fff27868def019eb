//! What the routes let tokens be for.

use crate::gateway::config::Access;
use crate::gateway::routes::{Route, Rules};
use crate::token::endpoint::Offer;
use crate::token::mint::Resource;

/// What tokens can be for, and what decides about it.
pub(super) fn offer(rules: &Rules) -> Offer {
    Offer { resources: resources(rules), policy: rules.policy.clone() }
}

/// The broadest first: it is the default.
fn resources(rules: &Rules) -> Vec<Resource> {
    let resource = |r: &Route| Resource {
        url: r.resource.clone(),
        certificate: r.access == Access::ProofAndCertificate,
        operations: r.operations.iter().map(|o| o.name.clone()).collect(),
        introspect: r.introspect.clone(),
    };
    let mut resources: Vec<Resource> = Vec::new();
    for route in rules.routes().iter().filter(|r| r.access != Access::DangerPublic) {
        let more = resource(route);
        match resources.iter_mut().find(|r| r.url == more.url) {
            Some(known) => {
                known.certificate |= more.certificate;
                known.operations.extend(more.operations);
                known.introspect.extend(more.introspect);
            }
            None => resources.push(more),
        }
    }
    resources.sort_by_key(|r| r.url.len());
    resources
}
