//! Attested nodes.

use async_trait::async_trait;

use crate::domain::node::Node;
use crate::domain::spiffe_id::SpiffeId;
use crate::store::Unavailable;
use crate::store::nodes::Nodes;
use crate::store::sql::registry::body;
use crate::store::sql::{SqliteLedger, away};

impl SqliteLedger {
    pub(super) async fn read_nodes(&self) -> Result<(), Unavailable> {
        let nodes: Vec<Node> = self.bodies("SELECT body FROM node").await?;
        let nodes = nodes.into_iter().map(|n| (n.spiffe_id.to_string(), n)).collect();
        self.replace(|held| held.nodes = nodes);
        Ok(())
    }
}

#[async_trait]
impl Nodes for SqliteLedger {
    fn get(&self, id: &SpiffeId) -> Option<Node> {
        self.held().nodes.get(id.as_str()).cloned()
    }

    fn list(&self) -> Vec<Node> {
        self.held().nodes.values().cloned().collect()
    }

    async fn put(&self, node: &Node) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        sqlx::query("INSERT INTO node (spiffe_id, body) VALUES (?, ?) ON CONFLICT (spiffe_id) DO UPDATE SET body = excluded.body")
            .bind(node.spiffe_id.as_str())
            .bind(body(node))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.replace(|held| drop(held.nodes.insert(node.spiffe_id.to_string(), node.clone())));
        Ok(())
    }

    async fn delete(&self, id: &SpiffeId) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let gone = sqlx::query("DELETE FROM node WHERE spiffe_id = ?").bind(id.as_str()).execute(&self.pool).await;
        let gone = gone.map_err(away)?;
        self.replace(|held| drop(held.nodes.remove(id.as_str())));
        Ok(gone.rows_affected() > 0)
    }
}
