//! Who asks to do what to which resource: the question that policy answers.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::domain::spiffe_id::SpiffeId;

/// The workload as policy sees it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Principal {
    /// Proved identity.
    pub spiffe_id: SpiffeId,
    /// Groups of its entry.
    pub groups: Vec<String>,
    /// The person who answers for it.
    pub owner: String,
    /// A second such person.
    pub sponsor: Option<String>,
}

/// One question to policy. Everything in it is proved or read from configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Intent {
    /// Who asks.
    pub principal: Principal,
    /// The route's named operation, such as `tot.prune`.
    pub operation: String,
    /// The route's name.
    pub route: String,
    /// The object, without the route's name: `/runs/r1/nodes/n7`.
    pub object: String,
    /// `method`, `time`, `scope`, `client_certificate`, `subject`, `actors`, `params`, and `body` where the operation declares fields.
    pub context: Map<String, Value>,
}
