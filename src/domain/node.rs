//! Nodes: the machines, or CI runners, or pods, on which an agent has proved itself.

use serde::{Deserialize, Serialize};

use crate::domain::selector::Selector;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain, is_segment};
use crate::domain::time::Timestamp;

/// Path of every node's SPIFFE ID.
const PREFIX: &str = "/popgate/node/";

/// An attested node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// `spiffe://TD/popgate/node/…`
    pub spiffe_id: SpiffeId,
    /// The attestor: `join_token`, `x509_pop` or the name of a token issuer.
    pub attestation: String,
    /// What attestation found out.
    #[serde(default)]
    pub selectors: Vec<Selector>,
    /// When it last proved itself by more than its certificate.
    pub attested_at: Timestamp,
    /// Whether its certificate renews; where the proof is at hand again, it attests again instead.
    pub renewable: bool,
}

/// The ID of the node that a join token names.
pub fn node_id(domain: &TrustDomain, name: &str) -> Option<SpiffeId> {
    let fits = !name.is_empty() && name.split('/').all(is_segment);
    fits.then(|| domain.workload(&format!("{PREFIX}{name}")).ok())?
}

impl SpiffeId {
    /// `NAME` of `spiffe://TD/popgate/node/NAME`.
    pub fn node_name(&self) -> Option<&str> {
        self.path().strip_prefix(PREFIX)
    }
}

/// The nodes whose agents serve an entry: one, or all whose IDs begin alike, written with a `*` at the end.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parent(String);

/// Why a text names no parent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "a parent is a node's SPIFFE ID, spiffe://TD/popgate/node/NAME; a `*` may stand for its last segments, after a slash"
)]
pub struct ParentError;

impl Parent {
    /// Reads the ID of a node of `domain`, or a pattern of such.
    pub fn parse(text: &str, domain: &TrustDomain) -> Result<Self, ParentError> {
        let sample = match text.strip_suffix('*') {
            Some(stem) if stem.ends_with('/') => format!("{stem}x"),
            Some(_) => return Err(ParentError),
            None => text.to_owned(),
        };
        let id: SpiffeId = sample.parse().map_err(|_| ParentError)?;
        let named = id.node_name().is_some_and(|n| !n.is_empty());
        (named && id.is_member_of(domain) && id.as_str() == sample).then(|| Self(text.to_owned())).ok_or(ParentError)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for several nodes.
    pub fn is_pattern(&self) -> bool {
        self.0.ends_with('*')
    }

    /// Whether this node is meant.
    pub fn covers(&self, node: &SpiffeId) -> bool {
        match self.0.strip_suffix('*') {
            Some(stem) => node.as_str().starts_with(stem),
            None => node.as_str() == self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").expect("legal")
    }

    #[test]
    fn a4_a_parent_is_a_node_or_nodes_that_begin_alike() {
        let one = Parent::parse("spiffe://example.org/popgate/node/build-1", &domain()).expect("one");
        let all = Parent::parse("spiffe://example.org/popgate/node/k8s/*", &domain()).expect("many");
        let node = |name: &str| node_id(&domain(), name).expect("legal");
        assert!(one.covers(&node("build-1")) && !one.covers(&node("build-10")));
        assert!(all.covers(&node("k8s/a/b")) && !all.covers(&node("k8sx/a")));
        for bad in [
            "spiffe://example.org/ci/solver",
            "spiffe://other.org/popgate/node/a",
            "spiffe://example.org/popgate/node",
            "spiffe://example.org/popgate/node/a*",
            "spiffe://example.org/popgate/*",
            "*",
        ] {
            assert!(Parent::parse(bad, &domain()).is_err(), "{bad}");
        }
        assert!(node_id(&domain(), "a b").is_none() && node_id(&domain(), "").is_none());
    }
}
