//! Attestation: how a node or a workload proves what it is without a certificate. One attestor a file.

pub mod kubernetes;
pub mod oidc;
pub mod x509_pop;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::domain::digest::Sha256;
use crate::domain::refusal::Refusal;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::net::fetch::FetchError;
use crate::trust::TrustError;
use crate::trust::config::TrustConfig;

/// What an attestor found out.
#[derive(Clone, Debug)]
pub struct Attested {
    /// How, for the log: `oidc:github`.
    pub method: String,
    /// Digest of the evidence; never the evidence, which may be a credential.
    pub evidence: Sha256,
    /// The facts.
    pub selectors: BTreeSet<Selector>,
    /// What it is called as a node, below `/popgate/node/`.
    pub node_name: String,
    /// Whether it may be a node at all: whoever has some token of a public platform is none.
    pub may_be_node: bool,
    /// Whether its certificate renews; where the proof is at hand again, it attests again instead.
    pub renewable: bool,
}

/// What an attestor is given.
pub struct Evidence<'a> {
    /// The request's members.
    pub members: &'a Map<String, Value>,
    /// Our trust domain's SPIFFE ID: the audience of tokens for us, unless another is configured.
    pub audience: &'a str,
    /// The CSR, whose key has been proved.
    pub csr: &'a [u8],
    /// The time.
    pub now: Timestamp,
}

impl Evidence<'_> {
    /// See [`Self::audience`].
    pub const fn audience(&self) -> &str {
        self.audience
    }
}

/// One way to attest. Join tokens are not among them: they are spent, not verified.
#[async_trait]
pub trait Attestor: Send + Sync {
    /// The `method` of requests.
    fn method(&self) -> &'static str;
    /// Verifies the evidence; none if it is another attestor's of this method.
    async fn attest(&self, evidence: &Evidence<'_>) -> Result<Option<Attested>, Refusal>;
}

/// The attestors that are configured.
pub fn attestors(
    config: &TrustConfig,
    base: &std::path::Path,
    trust_domain: &TrustDomain,
) -> Result<Vec<Arc<dyn Attestor>>, FetchError> {
    let mut all: Vec<Arc<dyn Attestor>> = Vec::new();
    for trust in &config.oidc {
        all.push(Arc::new(oidc::OidcAttestor::new(trust, base)?));
    }
    for trust in &config.kubernetes {
        all.push(Arc::new(kubernetes::KubernetesAttestor::new(trust, base)?));
    }
    for trust in &config.x509 {
        all.push(Arc::new(x509_pop::X509Attestor::new(trust, base, trust_domain)?));
    }
    Ok(all)
}

/// Asks each attestor of a method in turn.
pub async fn attest(
    attestors: &[Arc<dyn Attestor>],
    method: &str,
    evidence: &Evidence<'_>,
) -> Result<Attested, Refusal> {
    let mut known: Vec<&str> = attestors.iter().map(|a| a.method()).collect();
    known.sort_unstable();
    known.dedup();
    if !known.contains(&method) {
        let ways = std::iter::once("join_token").chain(known).collect::<Vec<_>>().join(", ");
        return Err(Refusal::new(
            400,
            "method",
            format!("this server does not attest by that method; it does by: {ways}"),
        ));
    }
    // Two clusters may share an issuer's name: one that refuses is not the last word.
    let mut last = refused("no configured issuer fits");
    for attestor in attestors.iter().filter(|a| a.method() == method) {
        match attestor.attest(evidence).await {
            Ok(Some(attested)) => return Ok(attested),
            Ok(None) => {}
            Err(refusal) => last = refusal,
        }
    }
    Err(last)
}

/// Whether all of the selectors that a node must have were found; without any, nobody may be one.
fn may_be_node(required: &[String], found: &BTreeSet<Selector>) -> bool {
    !required.is_empty() && required.iter().all(|r| found.iter().any(|s| s.as_str() == r))
}

/// A token that is not believed, or whose keys cannot be had.
fn distrusted(error: TrustError) -> Refusal {
    match error {
        TrustError::Refused(why) => refused(why),
        TrustError::Away(cause) => Refusal::unavailable("the token issuer's key set", cause),
    }
}

/// One text for every fault of evidence; the log tells which.
pub fn refused(why: impl std::fmt::Display) -> Refusal {
    Refusal::new(401, "attestation", "the evidence is not accepted here: is its issuer configured, its audience this trust domain, and has it not expired? The server's log says what failed")
        .because(why)
}
