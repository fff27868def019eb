//! People as a SCIM client tells of them (RFC 7643 section 4.1).

use async_trait::async_trait;
use serde_json::Value;

use crate::store::Unavailable;

/// One user resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ScimUser {
    /// Name of the SCIM client in the configuration.
    pub provider: String,
    /// Our identifier.
    pub id: String,
    /// Unique for the client, whatever its case.
    pub user_name: String,
    /// The client's identifier.
    pub external_id: Option<String>,
    /// The whole resource.
    pub body: Value,
}

/// User resources.
#[async_trait]
pub trait ScimUsers: Send + Sync {
    /// Those of a client.
    async fn list(&self, provider: &str) -> Result<Vec<ScimUser>, Unavailable>;
    /// One of them.
    async fn get(&self, provider: &str, id: &str) -> Result<Option<ScimUser>, Unavailable>;
    /// Adds one; false if its user name is another's.
    async fn create(&self, user: &ScimUser) -> Result<bool, Unavailable>;
    /// Replaces one; false if its user name is another's.
    async fn replace(&self, user: &ScimUser) -> Result<bool, Unavailable>;
    /// Removes one.
    async fn delete(&self, provider: &str, id: &str) -> Result<(), Unavailable>;
}
