//! The authorities, as an administrator works on them. The identity plane does the work, behind this trait.

use serde::Deserialize;
use serde_json::Value;

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::people::Role;
use crate::domain::refusal::Refusal;

/// What can be done to authorities.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum AuthorityAction {
    /// Makes one that will sign.
    Prepare { kind: String },
    /// The prepared one signs.
    Activate { kind: String },
    /// What an old one signed is replaced at once.
    Taint { id: String },
    /// One is trusted no more.
    Revoke { id: String },
    /// The request for an upstream CA.
    Csr {},
    /// The upstream CA's answer, PEM.
    Install { chain: String },
}

/// Where authorities are worked on.
#[async_trait::async_trait]
pub trait AuthorityDesk: Send + Sync {
    /// All of them.
    fn list(&self) -> Value;
    /// Does it, records it and says what came of it.
    async fn act(&self, action: AuthorityAction) -> Result<Value, Refusal>;
}

impl Console {
    /// All authorities.
    pub fn authorities(&self, actor: &Actor) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        Ok(self.desk.list())
    }

    /// Works on one.
    pub async fn act_on_authority(&self, actor: &Actor, action: AuthorityAction) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        tracing::warn!(by = actor.name(), ?action, "authorities");
        self.desk.act(action).await
    }
}
