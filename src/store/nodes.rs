//! Attested nodes.

use async_trait::async_trait;

use crate::domain::node::Node;
use crate::domain::spiffe_id::SpiffeId;
use crate::store::Unavailable;

/// Attested nodes. Reads answer from memory, kept current by each change.
#[async_trait]
pub trait Nodes: Send + Sync {
    /// By SPIFFE ID.
    fn get(&self, id: &SpiffeId) -> Option<Node>;
    /// All nodes, by SPIFFE ID.
    fn list(&self) -> Vec<Node>;
    /// Adds or replaces a node.
    async fn put(&self, node: &Node) -> Result<(), Unavailable>;
    /// Removes a node; false if there was none.
    async fn delete(&self, id: &SpiffeId) -> Result<bool, Unavailable>;
}
