//! The life of an approval: one state machine, each change named.

use serde::{Deserialize, Serialize};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::people::{Person, Role};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;

/// Where an approval stands.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    PartialEq,
    Serialize,
    Deserialize,
    strum::EnumString,
    strum::Display,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ApprovalState {
    /// Waits for a person.
    Pending,
    /// May be carried out once, until it expires.
    Approved,
    /// Is being carried out. A crash here becomes `Unknown`.
    Executing,
    /// Was carried out.
    Done,
    /// Was tried; upstream did not answer with success.
    Failed,
    /// Was interrupted: nobody can say whether it happened.
    Unknown,
    /// A person said no.
    Denied,
    /// Nobody decided, or nobody came back, in time.
    Expired,
    /// Void: policy changed, or requester or approver was revoked.
    Withdrawn,
}

impl ApprovalState {
    /// The states this one may become. Nothing leaves an end state.
    pub const fn next(self) -> &'static [Self] {
        match self {
            Self::Pending => &[Self::Approved, Self::Denied, Self::Expired, Self::Withdrawn],
            Self::Approved => &[Self::Executing, Self::Expired, Self::Withdrawn],
            Self::Executing => &[Self::Done, Self::Failed, Self::Unknown],
            Self::Done | Self::Failed | Self::Unknown | Self::Denied | Self::Expired | Self::Withdrawn => &[],
        }
    }

    /// Whether the machine allows the step.
    pub fn may_become(self, next: Self) -> bool {
        self.next().contains(&next)
    }

    /// Whether it can still change.
    pub const fn is_open(self) -> bool {
        !self.next().is_empty()
    }
}

/// A request that waits for people, bound to its exact bytes by `request_sha256`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approval {
    /// Public identifier, random.
    pub id: String,
    /// Where it stands.
    pub state: ApprovalState,
    /// Counts the changes: each is one compare-and-set on it.
    pub version: i64,
    /// Digest of the canonical request: see `protocol::canonical`.
    pub request_sha256: Sha256,
    /// Who asks.
    pub requester: SpiffeId,
    /// With which key.
    pub jkt: Jkt,
    /// The people who answer for the requester and so may not approve.
    pub answerable: Vec<String>,
    /// What an approver is shown: method, target, body (masked), operation.
    pub shown: Shown,
    /// Deciding rule.
    pub rule: String,
    /// Digest of the policy set at the time of asking.
    pub policy_version: String,
    /// The group an approver must be in.
    pub group: String,
    /// When it was asked.
    pub created_at: Timestamp,
    /// When the present state ends by itself.
    pub expires_at: Timestamp,
    /// The person who decided, `issuer#subject`, and how they were proved.
    pub decided_by: Option<String>,
    /// How the approver was proved, such as `certificate:<serial>`.
    pub proved_by: Option<String>,
    /// The approver's words.
    pub reason: Option<String>,
}

/// The bound content as an approver sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// HTTP method.
    pub method: String,
    /// Scheme, authority, path and query.
    pub url: String,
    /// Named operation.
    pub operation: String,
    /// The object.
    pub object: String,
    /// Content type of the body, if there is one.
    pub content_type: Option<String>,
    /// Further headers that are bound; of a cookie the length alone.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body, masked as the approver may see it.
    pub body: String,
    /// Whom the requester acts for, and who acts before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on_behalf: Vec<String>,
    /// Groups that the requester's token brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// Why a person may not decide an approval.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum Ineligible {
    #[error("this person does not hold the role approver")]
    Role,
    #[error("this person is not in the group whose approval the rule asks for")]
    Group,
    #[error("this person answers for the requester, and nobody approves their own workload's request")]
    Answerable,
}

/// Whether a person may decide an approval: checked when deciding and again when it is consumed.
pub fn may_approve(person: &Person, approval: &Approval) -> Result<(), Ineligible> {
    if !person.has(Role::Approver) {
        return Err(Ineligible::Role);
    }
    if !person.groups.contains(&approval.group) {
        return Err(Ineligible::Group);
    }
    if approval.answerable.contains(&person.id) {
        return Err(Ineligible::Answerable);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    #[test]
    fn nothing_leaves_an_end_state_and_nothing_returns_to_pending() {
        for from in ApprovalState::VARIANTS {
            assert!(!from.may_become(ApprovalState::Pending), "{from}");
            for end in [ApprovalState::Done, ApprovalState::Denied, ApprovalState::Expired, ApprovalState::Withdrawn] {
                assert!(!end.may_become(*from), "{end} to {from}");
            }
        }
    }

    #[test]
    fn only_approved_may_execute_and_only_once() {
        for from in ApprovalState::VARIANTS {
            assert_eq!(from.may_become(ApprovalState::Executing), *from == ApprovalState::Approved, "{from}");
        }
    }
}
