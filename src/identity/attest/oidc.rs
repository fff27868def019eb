//! CI jobs by the OIDC token of their platform: its claims become selectors.

use std::path::Path;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::domain::digest::Sha256;
use crate::domain::refusal::Refusal;
use crate::domain::selector::Selector;
use crate::identity::attest::{Attested, Attestor, Evidence, distrusted, may_be_node, refused};
use crate::net::fetch::FetchError;
use crate::protocol::jwt::PLAIN;
use crate::trust::config::OidcTrust;
use crate::trust::issuer::TokenIssuer;

/// What GitHub and GitLab sign about a job and a policy may want to hold.
const CLAIMS: [&str; 24] = [
    "sub",
    "actor",
    "environment",
    "event_name",
    "job_workflow_ref",
    "ref",
    "ref_type",
    "ref_protected",
    "repository",
    "repository_id",
    "repository_owner",
    "repository_owner_id",
    "repository_visibility",
    "runner_environment",
    "workflow",
    "workflow_ref",
    "namespace_id",
    "namespace_path",
    "project_id",
    "project_path",
    "pipeline_source",
    "environment_protected",
    "ci_config_ref_uri",
    "user_login",
];

/// Attests by tokens of one issuer.
pub struct OidcAttestor {
    name: String,
    audience: Option<String>,
    claims: Vec<String>,
    nodes: Vec<String>,
    issuer: TokenIssuer,
}

impl OidcAttestor {
    /// From its configuration.
    pub fn new(trust: &OidcTrust, base: &Path) -> Result<Self, FetchError> {
        let usual = || CLAIMS.map(Into::into).to_vec();
        let claims = if trust.claims.is_empty() { usual() } else { trust.claims.clone() };
        let issuer = TokenIssuer::new(&trust.issuer, &trust.keys, base)?;
        let (name, audience, nodes) = (trust.name.clone(), trust.audience.clone(), trust.nodes.clone());
        Ok(Self { name, audience, claims, nodes, issuer })
    }
}

#[async_trait]
impl Attestor for OidcAttestor {
    fn method(&self) -> &'static str {
        "oidc"
    }

    async fn attest(&self, evidence: &Evidence<'_>) -> Result<Option<Attested>, Refusal> {
        let token = evidence.members.get("token").and_then(Value::as_str).unwrap_or_default();
        let audience = self.audience.as_deref().unwrap_or(evidence.audience());
        let claims = self.issuer.verify(token, &[audience], &PLAIN, evidence.now).await.map_err(distrusted)?;
        let Some(claims) = claims else { return Ok(None) };
        let subject = claims.get("sub").and_then(Value::as_str).ok_or_else(|| refused("sub is missing"))?;
        let selectors = self.claims.iter().filter_map(|claim| selector(&self.name, claim, &claims)).collect();
        Ok(Some(Attested {
            method: format!("oidc:{}", self.name),
            evidence: Sha256::of(token.as_bytes()),
            node_name: format!("{}/{}", self.name, &Sha256::of(subject.as_bytes()).to_string()[..32]),
            may_be_node: may_be_node(&self.nodes, &selectors),
            selectors,
            renewable: false,
        }))
    }
}

/// `NAME:CLAIM:VALUE`, where the claim is a text, a number or a truth value.
fn selector(name: &str, claim: &str, claims: &Map<String, Value>) -> Option<Selector> {
    let value = match claims.get(claim)? {
        Value::String(text) => text.clone(),
        other @ (Value::Number(_) | Value::Bool(_)) => other.to_string(),
        _ => return None,
    };
    Selector::found(name, &format!("{claim}:{value}"))
}
