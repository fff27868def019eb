//! What policy answers.

use serde::Serialize;

/// How many people of which group must approve, from `@approval("1 of security")`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ApprovalRule {
    /// Distinct people needed.
    pub needed: u32,
    /// The group they must be in.
    pub group: String,
}

/// The answer's kind.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Carry it out.
    Allow,
    /// Carry it out once people have approved exactly this request.
    AllowWithApproval(ApprovalRule),
    /// Do not.
    Deny,
}

/// A decision with its reasons.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The answer.
    pub decision: Decision,
    /// Identifiers of the deciding policies; empty when nothing permitted it.
    pub rules: Vec<String>,
    /// Digest of the policy set that decided.
    pub policy_version: String,
    /// `@fix` of the deciding policy: what the caller can do about a denial.
    pub fix: Option<String>,
    /// Why, where no policy says it: nothing permits it, or an evaluation error is named.
    pub reason: Option<String>,
}

impl Verdict {
    /// The first deciding rule, or why there is none.
    pub fn rule(&self) -> &str {
        self.rules.first().map_or("default-deny", String::as_str)
    }
}
