//! Nodes and the bundles of other trust domains.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::console::actor::Actor;
use crate::console::server::Console;
use crate::domain::people::Role;
use crate::domain::refusal::Refusal;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::protocol::bundle::TrustBundle;
use crate::store::bundles::ForeignBundle;
use crate::store::issued::Of;

/// What `bundle set` sends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleForm {
    trust_domain: String,
    bundle: Value,
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(400, "input", detail)
}

impl Console {
    fn node_id(text: &str) -> Result<SpiffeId, Refusal> {
        let id = text.parse::<SpiffeId>().ok().filter(|id| id.node_name().is_some());
        id.ok_or_else(|| bad(format!("{text:?} is no node's SPIFFE ID; `popgate node list` shows them")))
    }

    /// All nodes, or one with what its agent serves.
    pub fn nodes(&self, actor: &Actor, id: Option<&str>) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        let Some(id) = id else { return Ok(json!(self.stores.nodes.list())) };
        let id = Self::node_id(id)?;
        let node = self.stores.nodes.get(&id);
        let node = node.ok_or_else(|| Refusal::new(404, "not-found", format!("there is no node {id}")))?;
        let entries: Vec<SpiffeId> = self.stores.entries.of_node(&id).into_iter().map(|e| e.spiffe_id).collect();
        let mut shown = json!(node);
        shown["attested_at"] = node.attested_at.rfc3339().into();
        shown["entries"] = json!(entries);
        Ok(shown)
    }

    /// Ends a node's agent and what was issued through it. It may attest again; `revoke node` keeps it from that.
    pub async fn evict_node(&self, actor: &Actor, id: &str) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let id = Self::node_id(id)?;
        let now = self.stores.clock.now();
        let known =
            self.stores.nodes.get(&id).is_some() || !self.stores.issued.live(Of::Node(&id), now).await?.is_empty();
        if !known {
            return Err(Refusal::new(404, "not-found", format!("there is no node {id}")));
        }
        self.stores.join_tokens.void(&id).await?;
        // The node first, so that nothing more is issued; where the rest fails, the same command again finds it.
        self.stores.nodes.delete(&id).await?;
        self.stop_certificates(actor, Of::Node(&id), "its node was evicted").await?;
        self.log_registration(actor, "node", "evict", id.as_str()).await?;
        Ok(json!({"evicted": id}))
    }

    /// Our bundle, and the known ones of other trust domains.
    pub fn bundles(&self, actor: &Actor, id: Option<&str>) -> Result<Value, Refusal> {
        actor.need(Role::Viewer)?;
        let shown = |b: &ForeignBundle| {
            json!({
                "trust_domain": b.trust_domain.as_str(), "source": b.source, "read_at": b.read_at.rfc3339(),
                "bundle": serde_json::from_str::<Value>(&b.document).unwrap_or(Value::Null),
            })
        };
        let all = self.stores.bundles.list();
        match id {
            None => Ok(all.iter().map(shown).collect()),
            Some(own) if own == self.trust_domain.as_str() => Ok((self.bundle)()),
            Some(id) => all.iter().find(|b| b.trust_domain.as_str() == id).map(shown).ok_or_else(|| {
                Refusal::new(404, "not-found", format!("no bundle of {id} is known; `popgate bundle list` shows them"))
            }),
        }
    }

    /// Sets the bundle of another trust domain by hand.
    pub async fn set_bundle(&self, actor: &Actor, form: BundleForm) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let trust_domain = self.foreign(&form.trust_domain)?;
        let document = form.bundle.to_string();
        TrustBundle::parse(trust_domain.clone(), document.as_bytes()).map_err(|e| bad(e.to_string()))?;
        let read_at = self.stores.clock.now();
        let bundle = ForeignBundle { trust_domain, document, source: format!("set by {}", actor.name()), read_at };
        self.stores.bundles.put(&bundle).await?;
        self.log_registration(actor, "bundle", "set", bundle.trust_domain.as_str()).await?;
        Ok(json!({"set": bundle.trust_domain.as_str()}))
    }

    /// Forgets the bundle of another trust domain: its certificates are refused from now on.
    pub async fn delete_bundle(&self, actor: &Actor, trust_domain: &str) -> Result<Value, Refusal> {
        actor.need(Role::Admin)?;
        let trust_domain = self.foreign(trust_domain)?;
        if self.federated.contains(&trust_domain) {
            let detail =
                format!("{trust_domain} is configured: take its [[federation]] out of the configuration and restart");
            return Err(Refusal::new(409, "configured", detail));
        }
        if !self.stores.bundles.delete(&trust_domain).await? {
            return Err(Refusal::new(404, "not-found", format!("no bundle of {trust_domain} is known")));
        }
        self.log_registration(actor, "bundle", "delete", trust_domain.as_str()).await?;
        Ok(json!({"deleted": trust_domain.as_str()}))
    }

    fn foreign(&self, name: &str) -> Result<TrustDomain, Refusal> {
        let trust_domain = TrustDomain::parse(name).map_err(|e| bad(format!("trust domain {name:?}: {e}")))?;
        if trust_domain == self.trust_domain {
            return Err(bad("this server's own bundle comes from its authorities; see `popgate ca status`"));
        }
        Ok(trust_domain)
    }
}
