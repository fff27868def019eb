//! Pods by their projected service account token: by the cluster's keys, and by TokenReview where its API is reachable.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::domain::digest::Sha256;
use crate::domain::refusal::Refusal;
use crate::domain::selector::Selector;
use crate::identity::attest::{Attested, Attestor, Evidence, distrusted, may_be_node, refused};
use crate::net::fetch::{FetchError, Fetcher};
use crate::net::files;
use crate::protocol::jwt::PLAIN;
use crate::trust::config::KubernetesTrust;
use crate::trust::issuer::TokenIssuer;

/// Attests by tokens of one cluster.
pub struct KubernetesAttestor {
    name: String,
    audience: Option<String>,
    nodes: Vec<String>,
    issuer: TokenIssuer,
    review: Option<Review>,
}

struct Review {
    fetcher: Fetcher,
    url: String,
    token_file: PathBuf,
}

impl KubernetesAttestor {
    /// From its configuration.
    pub fn new(trust: &KubernetesTrust, base: &Path) -> Result<Self, FetchError> {
        let issuer = TokenIssuer::new(&trust.issuer, &trust.keys, base)?;
        let review = trust.token_review.as_ref().map(|review| {
            let fetcher = Fetcher::web(trust.keys.ca_file.as_ref().map(|f| base.join(f)).as_deref())?;
            Ok(Review { fetcher, url: review.url.clone(), token_file: base.join(&review.token_file) })
        });
        let (name, audience, nodes) = (trust.name.clone(), trust.audience.clone(), trust.nodes.clone());
        Ok(Self { name, audience, nodes, issuer, review: review.transpose()? })
    }

    /// TokenReview (authentication.k8s.io/v1): it knows whether the pod is still there.
    async fn review(&self, review: &Review, token: &str, audience: &str) -> Result<(), Refusal> {
        let away = |e: String| Refusal::unavailable("the cluster's TokenReview", e);
        let bearer = files::read_secret(&review.token_file).map_err(|e| away(e.to_string()))?;
        let ask = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token, "audiences": [audience]},
        });
        let answer = review.fetcher.post(&review.url, bearer.trim(), Bytes::from(ask.to_string())).await;
        let answer: Value = serde_json::from_slice(&answer.map_err(|e| away(e.to_string()))?).unwrap_or(Value::Null);
        let status = &answer["status"];
        let ours = status["audiences"].as_array().is_none_or(|list| list.iter().any(|a| a == audience));
        if status["authenticated"] == true && ours {
            return Ok(());
        }
        Err(refused(format!("TokenReview: {}", status["error"].as_str().unwrap_or("not authenticated"))))
    }
}

#[async_trait]
impl Attestor for KubernetesAttestor {
    fn method(&self) -> &'static str {
        "kubernetes"
    }

    async fn attest(&self, evidence: &Evidence<'_>) -> Result<Option<Attested>, Refusal> {
        let token = evidence.members.get("token").and_then(Value::as_str).unwrap_or_default();
        let audience = self.audience.as_deref().unwrap_or(evidence.audience());
        let claims = self.issuer.verify(token, &[audience], &PLAIN, evidence.now).await.map_err(distrusted)?;
        let Some(claims) = claims else { return Ok(None) };
        if let Some(review) = &self.review {
            self.review(review, token, audience).await?;
        }
        let about =
            claims.get("kubernetes.io").ok_or_else(|| refused("it is no projected token: kubernetes.io is missing"))?;
        let text = |pointer: &str| about.pointer(pointer).and_then(Value::as_str);
        let facts = [
            ("ns", text("/namespace")),
            ("sa", text("/serviceaccount/name")),
            ("sa-uid", text("/serviceaccount/uid")),
            ("pod-name", text("/pod/name")),
            ("pod-uid", text("/pod/uid")),
            ("node-name", text("/node/name")),
            ("node-uid", text("/node/uid")),
        ];
        let found = |(name, value): (&str, Option<&str>)| Selector::found(&self.name, &format!("{name}:{}", value?));
        let (ns, sa) = (text("/namespace"), text("/serviceaccount/name"));
        let (ns, sa) = ns.zip(sa).ok_or_else(|| refused("it names no namespace or no service account"))?;
        // An agent runs once a node; a token that names no node stands for its pod.
        let place = text("/node/name").or_else(|| text("/pod/uid")).unwrap_or("none");
        let selectors = facts.into_iter().filter_map(found).collect();
        Ok(Some(Attested {
            method: format!("kubernetes:{}", self.name),
            evidence: Sha256::of(token.as_bytes()),
            node_name: format!("k8s/{}/{ns}/{sa}/{place}", self.name),
            may_be_node: may_be_node(&self.nodes, &selectors),
            selectors,
            renewable: false,
        }))
    }
}
