//! Who may be given an identity and who may approve: registration entries and people.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::node::Parent;
use crate::domain::selector::Selector;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;

/// A registration entry: what a workload may become once it has attested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The identity the entry grants.
    pub spiffe_id: SpiffeId,
    /// The nodes whose agents serve it; none: it enrols itself, by join token or by a token of its platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// What attestation must find, all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selectors: Vec<Selector>,
    /// The template that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// The person who answers for the workload, `issuer#subject`.
    pub owner: String,
    /// A second person who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<String>,
    /// Groups, which policies name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Upper bound of what a token may be scoped to: operation names, `*` at the end only.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Life of each certificate.
    pub svid_ttl: Seconds,
    /// Life of each JWT-SVID; none: five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_svid_ttl: Option<Seconds>,
    /// What a workload with several identities is told about this one (Workload API, `hint`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whether it may have a CA certificate, for a trust domain's part that another server issues in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downstream: bool,
    /// Whether its certificates go on when one of them was renewed with two keys.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_lineage: bool,
    /// DNS names the certificate may carry beside the URI.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
    /// Whether tokens may be bound to another key than the certificate's.
    #[serde(default)]
    pub other_keys: bool,
    /// The workload that may exchange this one's tokens and act for it (RFC 8693 section 4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_act: Option<SpiffeId>,
    /// Whether each proof of this workload needs a nonce.
    #[serde(default)]
    pub nonce_required: bool,
    /// After this no certificate and no token is issued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A life in whole seconds, as the ledger keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub u64);

impl Seconds {
    /// The same as a standard duration.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl Entry {
    /// An entry with nothing but its names and the life of its certificates.
    pub fn new(spiffe_id: SpiffeId, owner: String, svid_ttl: Seconds) -> Self {
        Self {
            spiffe_id,
            owner,
            svid_ttl,
            parent: None,
            selectors: Vec::new(),
            template: None,
            sponsor: None,
            groups: Vec::new(),
            operations: Vec::new(),
            jwt_svid_ttl: None,
            hint: None,
            downstream: false,
            keep_lineage: false,
            dns_names: Vec::new(),
            other_keys: false,
            may_act: None,
            nonce_required: false,
            expires_at: None,
        }
    }

    /// Whether its time is over.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// Whether a token of this entry may carry `operation` in its scope.
    pub fn covers(&self, operation: &str) -> bool {
        self.operations.iter().any(|pattern| operation_matches(pattern, operation))
    }
}

/// Whether an operation pattern (`tot.run`, `tot.*`, `*`) covers an operation or a narrower pattern.
pub fn operation_matches(pattern: &str, operation: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => operation.starts_with(prefix),
        None => pattern == operation,
    }
}

/// What a person may do beyond asking.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::Display,
    strum::VariantNames,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Reads entries, approvals and status.
    Viewer,
    /// Decides approvals.
    Approver,
    /// Reads evidence.
    Auditor,
    /// Changes entries, people, revocations.
    Admin,
}

/// A person: `issuer#subject`, with a name that is one SPIFFE path segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// `issuer#subject`.
    pub id: String,
    /// Unique; the last segment of the person's certificate.
    pub name: String,
    /// Groups, which approval rules name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What the person may do.
    #[serde(default)]
    pub roles: Vec<Role>,
}

impl Person {
    /// Whether the person holds a role; an admin also reads.
    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role) || (role == Role::Viewer && !self.roles.is_empty())
    }

    /// The ID in the person's certificates.
    pub fn spiffe_id(&self, domain: &TrustDomain) -> SpiffeId {
        let id = domain.workload(&format!("/popgate/person/{}", self.name));
        id.expect("a person's name is one segment of at most 128 bytes")
    }
}

/// Whether a text names a person: `issuer#subject`, both parts non-empty, one `#`, nothing a terminal would obey.
pub fn is_person_id(text: &str) -> bool {
    let clean = text.len() <= 512 && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    clean
        && matches!(text.split_once('#'), Some((iss, sub)) if !iss.is_empty() && !sub.is_empty() && !sub.contains('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_only_at_the_end() {
        assert!(operation_matches("tot.*", "tot.run"));
        assert!(operation_matches("*", "tot.run"));
        assert!(!operation_matches("tot.*", "to"));
        assert!(!operation_matches("*.run", "tot.run"));
        assert!(!operation_matches("tot.run", "tot.run.x"));
    }

    #[test]
    fn a_person_is_issuer_and_subject() {
        assert!(is_person_id("https://idp.example.org#bob"));
        for bad in ["bob", "#bob", "https://idp#", "a#b#c", "a# b", "a#b\n"] {
            assert!(!is_person_id(bad), "{bad}");
        }
    }
}
