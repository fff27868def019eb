//! A refusal separates what the client reads from what the log keeps.

use std::fmt;

/// The `error` of the challenge or of the token answer (RFC 6749 §5.2, RFC 6750 §3.1, RFC 9449 §5 to §9).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, strum::Display, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum OauthError {
    InvalidRequest,
    InvalidClient,
    InvalidGrant,
    InvalidScope,
    InvalidTarget,
    InvalidAuthorizationDetails,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidToken,
    InsufficientScope,
    InvalidDpopProof,
    UseDpopNonce,
    TemporarilyUnavailable,
}

/// Why a request is not carried out.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Last part of the problem's `type` and the metric's label: one of few.
    pub kind: &'static str,
    /// The standard's error code, where one applies.
    pub error: Option<OauthError>,
    /// What the client reads. Names the failed check and nothing it did not prove.
    pub detail: String,
    /// What the log keeps besides; never sent.
    pub cause: Option<String>,
    /// Policy's reasons, once the caller is proved.
    pub policy: Option<PolicyReason>,
    /// `Location` of an approval.
    pub location: Option<String>,
    /// `Retry-After` in seconds.
    pub retry_after: Option<u32>,
}

/// The members that RFC 9457 bodies carry for a policy refusal.
#[derive(Clone, Debug)]
pub struct PolicyReason {
    /// Deciding rule.
    pub rule: String,
    /// Digest of the policy set.
    pub policy_version: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Refusal {
    /// A refusal with a status, a kind and a text for the client.
    pub fn new(status: u16, kind: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            error: None,
            detail: detail.into(),
            cause: None,
            policy: None,
            location: None,
            retry_after: None,
        }
    }

    /// 401 with a standard's error code.
    pub fn unauthorized(error: OauthError, detail: impl Into<String>) -> Self {
        Self { error: Some(error), ..Self::new(401, "unauthorized", detail) }
    }

    /// 503: a part that the decision needs is away. Nothing passes.
    pub fn unavailable(part: &'static str, cause: impl fmt::Display) -> Self {
        Self {
            error: Some(OauthError::TemporarilyUnavailable),
            cause: Some(cause.to_string()),
            retry_after: Some(1),
            ..Self::new(503, "unavailable", format!("{part} is not available; nothing was done, try again"))
        }
    }

    /// The same refusal with a standard's error code.
    pub const fn with_error(mut self, error: OauthError) -> Self {
        self.error = Some(error);
        self
    }

    /// The same refusal with a cause for the log alone.
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.status, self.kind, self.detail)?;
        self.cause.as_ref().map_or(Ok(()), |cause| write!(f, " ({cause})"))
    }
}

impl std::error::Error for Refusal {}
