//! `[[trust.oidc]]`, `[[trust.kubernetes]]`, `[[trust.x509]]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whom attestation trusts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Issuers of CI tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oidc: Vec<OidcTrust>,
    /// Clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<KubernetesTrust>,
    /// CAs of machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub x509: Vec<X509Trust>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySource {
    /// URL of the JWK Set; none: what the issuer's discovery document names.
    pub url: Option<String>,
    /// A file with the JWK Set, re-read on change.
    pub file: Option<PathBuf>,
    /// CA certificates, PEM, for the issuer's TLS; none: the system's.
    pub ca_file: Option<PathBuf>,
}

/// An issuer of OIDC tokens to CI jobs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcTrust {
    /// Type of its selectors: `github:repository:acme/site`.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `aud`; by default the trust domain's own SPIFFE ID.
    #[serde(default)]
    pub audience: Option<String>,
    /// Claims that become selectors; none: those that GitHub and GitLab sign.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Its keys.
    #[serde(default)]
    pub keys: KeySource,
    /// Selectors that a node must have, all of them; none: its tokens are for workloads alone.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// A Kubernetes cluster whose projected service account tokens attest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesTrust {
    /// Type of its selectors, `prod:ns:web`, and first segment of its nodes' names.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `aud`; by default the trust domain's own SPIFFE ID.
    #[serde(default)]
    pub audience: Option<String>,
    /// Its keys.
    #[serde(default)]
    pub keys: KeySource,
    /// Selectors that a node must have, all of them; none: its tokens are for workloads alone.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Also asks the API server, which knows of deleted pods.
    #[serde(default)]
    pub token_review: Option<TokenReview>,
}

/// Where TokenReview is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// `https://API-SERVER/apis/authentication.k8s.io/v1/tokenreviews`
    pub url: String,
    /// The token that may ask.
    pub token_file: PathBuf,
}

/// A CA whose certificates machines have already.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Trust {
    /// Type of its selectors, `fleet:cn:db-1`, and first segment of its nodes' names.
    pub name: String,
    /// The CA, PEM.
    pub ca_file: PathBuf,
}

impl TrustConfig {
    /// Refuses names that could be mistaken; gives what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let oidc = self.oidc.iter().map(|t| &t.name);
        let names: Vec<&String> =
            oidc.chain(self.kubernetes.iter().map(|t| &t.name)).chain(self.x509.iter().map(|t| &t.name)).collect();
        for (i, name) in names.iter().enumerate() {
            let sound = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && !["unix", "systemd"].contains(&name.as_str());
            if !sound || names[..i].contains(name) {
                return Err(format!(
                    "trust: the name {name:?} is the type of selectors: unique, of a-z, 0-9 and _, neither unix nor systemd"
                ));
            }
        }
        Ok(())
    }
}
