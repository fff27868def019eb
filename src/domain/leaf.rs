//! The events that the evidence log keeps, one leaf each.
//!
//! A leaf holds digests, never a body or a credential. What may be personal (proofs, paths, people)
//! enters as a commitment whose opening lives beside the log and can be erased.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::domain::approval::{Approval, ApprovalState};
use crate::domain::digest::{Opening, Sha256};
use crate::domain::key::Jkt;
use crate::domain::revocation::RevocationKind;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leaf {
    /// When the service saw it.
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// A leaf with the openings of its commitments, by field name.
#[derive(Clone, Debug)]
pub struct Staged {
    /// What the log keeps.
    pub leaf: Leaf,
    /// What lives beside it.
    pub openings: BTreeMap<String, Opening>,
}

/// What happened. The variants' fields are the log's schema: `docs/evidence.md` explains each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The service started on this log.
    Started { version: String },
    /// Nothing happened for a while; the log is alive.
    Heartbeat {},
    /// A key of the service itself: root, issuing CA, JWT-SVID, token, transaction token.
    Authority {
        role: String,
        key_id: String,
        certificate_sha256: Option<Sha256>,
        not_after: Option<Timestamp>,
        /// What became of it: `prepared`, `active`, `tainted`, `revoked`; none: it is active.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<String>,
    },
    /// A certificate was issued to a workload or a person.
    Issuance(Issuance),
    /// A JWT-SVID was issued to a workload.
    JwtIssuance(JwtIssuance),
    /// An access token was minted.
    Mint(Mint),
    /// A request was proved, decided and admitted.
    Admission(Admission),
    /// A request of a public route was admitted: nobody was proved.
    PublicAdmission(PublicAdmission),
    /// A proved request was not carried out.
    Denial(Denial),
    /// A request to any listener was refused before it was proved; the claimed subject is unproved.
    Refusal {
        request_id: String,
        plane: String,
        status: u16,
        check: String,
        claimed: Option<SpiffeId>,
        proof_sha256: Option<Sha256>,
    },
    /// Refusals beyond the rate at which each has its own leaf.
    RefusalsSummarised { count: u64 },
    /// An approval changed its state.
    ApprovalChanged(ApprovalChange),
    /// An admitted request ended.
    Completion(Completion),
    /// Something was stopped.
    Revoked { id: i64, subject: RevocationKind, value: Sha256, reason: Sha256, by: Sha256, until: Option<Timestamp> },
    /// A stop was lifted.
    Lifted { id: i64, by: Sha256 },
    /// A registration entry or a person was changed.
    Registration { what: String, action: String, value: Sha256, by: Sha256 },
}

/// See [`Event::Issuance`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Issuance {
    pub spiffe_id: SpiffeId,
    pub serial: String,
    pub jkt: Jkt,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub issuer_key_id: String,
    pub certificate_sha256: Sha256,
    /// `join_token`, `renewal`, `agent`, or the attestor with the name of what it trusts, as in `oidc:github`.
    pub attestation: String,
    /// Digest of the attestation's evidence: the hashed join token, the token of its platform, the old certificate's
    /// serial, or the CSR that an agent made.
    pub attestation_sha256: Sha256,
}

/// See [`Event::JwtIssuance`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JwtIssuance {
    pub spiffe_id: SpiffeId,
    /// The node whose agent asked for it.
    pub node: Option<SpiffeId>,
    /// `kid` of the key that signed it.
    pub key_id: String,
    pub token_sha256: Sha256,
    /// Of the audiences, one a line.
    pub audience_sha256: Sha256,
    pub expires_at: Timestamp,
}

/// See [`Event::Mint`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mint {
    pub request_id: String,
    pub spiffe_id: SpiffeId,
    pub jkt: Jkt,
    /// The certificate whose key authenticated the client; none where a JWT-SVID did.
    pub serial: Option<String>,
    pub jti_sha256: Sha256,
    pub token_sha256: Sha256,
    pub audience: String,
    pub scope: String,
    pub expires_at: Timestamp,
    /// Commitment to the spent proof.
    pub proof: Sha256,
    /// Grant type and client authentication; none: by client credentials and certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<MintedBy>,
    /// SHA-256 of the authorization details, as the token has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details_sha256: Option<Sha256>,
    /// Commitment to whoever is acted for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Sha256>,
    /// Digest of the policy set that allowed it, and the rules that did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<MintPolicy>,
}

/// See [`Mint::by`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MintedBy {
    pub grant: String,
    pub client_auth: String,
    /// SHA-256 of the client assertion, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assertion_sha256: Option<Sha256>,
}

/// See [`Mint::policy`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MintPolicy {
    pub version: String,
    pub rules: Vec<String>,
}

/// See [`Event::Admission`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Admission {
    pub request_id: String,
    pub spiffe_id: SpiffeId,
    pub jkt: Jkt,
    pub token_sha256: Sha256,
    /// Commitment to the spent proof.
    pub proof: Sha256,
    pub method: String,
    /// Commitment to path and query.
    pub target: Sha256,
    pub route: String,
    pub operation: String,
    /// Commitment to the object.
    pub object: Sha256,
    pub rules: Vec<String>,
    pub policy_version: String,
    /// The approval that was consumed, and the digest of the request it was bound to.
    pub approval: Option<ConsumedApproval>,
    pub recorded: bool,
    /// The grant of exact operations that a use was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Sha256>,
    /// SHA-256 of the request's whole body, where the proof signs for it and upstream gets no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<Sha256>,
}

/// See [`Event::PublicAdmission`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublicAdmission {
    pub request_id: String,
    pub method: String,
    /// Commitment to path and query.
    pub target: Sha256,
    pub route: String,
    pub operation: String,
    /// Commitment to the object.
    pub object: Sha256,
    /// Of the policy set that was in force; it was not asked.
    pub policy_version: String,
    pub recorded: bool,
}

/// See [`Admission::approval`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConsumedApproval {
    pub id: String,
    pub request_sha256: Sha256,
}

/// See [`Event::Denial`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denial {
    pub request_id: String,
    pub spiffe_id: SpiffeId,
    pub jkt: Jkt,
    pub token_sha256: Sha256,
    pub proof: Sha256,
    pub method: String,
    pub target: Sha256,
    pub operation: Option<String>,
    pub status: u16,
    pub reason: String,
    pub rules: Vec<String>,
    pub policy_version: String,
}

/// See [`Event::ApprovalChanged`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalChange {
    pub id: String,
    pub state: ApprovalState,
    pub request_sha256: Sha256,
    pub requester: SpiffeId,
    pub jkt: Jkt,
    pub rule: String,
    pub policy_version: String,
    /// Commitment to the person who decided.
    pub person: Option<Sha256>,
    /// How that person was proved.
    pub proved_by: Option<String>,
}

/// How an exchange ended here that another edge carries out: status, bytes and digests of its answer are not known.
pub const LEFT_TO_EDGE: &str = "left_to_edge";

/// See [`Event::Completion`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    pub request_id: String,
    /// None: anybody's, of a public route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    pub status: u16,
    pub request_bytes: u64,
    pub request_sha256: Sha256,
    /// The body as the client saw it.
    pub response_bytes: u64,
    pub response_sha256: Sha256,
    pub upstream_bytes: u64,
    /// What was masked, by kind.
    pub masked: BTreeMap<String, u64>,
    /// Digest of the whole recording file; none where the route does not record.
    pub recording_sha256: Option<Sha256>,
    /// `complete`, or why the exchange ended early.
    pub ended: String,
    pub duration_ms: u64,
}

/// What an admission opened, and a completion must close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Key of both.
    pub request_id: String,
    /// Whose it is; none: anybody's, of a public route.
    pub spiffe_id: Option<SpiffeId>,
    /// Whether its bytes are recorded.
    pub recorded: bool,
    /// The body that its proof signs for.
    pub body_sha256: Option<Sha256>,
}

impl Event {
    /// The exchange that this event opens.
    pub fn opens(&self) -> Option<Opened> {
        let (request_id, spiffe_id, recorded, body_sha256) = match self {
            Self::Admission(a) => (&a.request_id, Some(a.spiffe_id.clone()), a.recorded, a.body_sha256),
            Self::PublicAdmission(a) => (&a.request_id, None, a.recorded, None),
            _ => return None,
        };
        Some(Opened { request_id: request_id.clone(), spiffe_id, recorded, body_sha256 })
    }

    /// The commitments of this event by the names of their openings. Each must have its opening beside the log.
    pub fn commitments(&self) -> Vec<(&'static str, Sha256)> {
        match self {
            Self::Mint(m) => std::iter::once(("proof", m.proof)).chain(m.subject.map(|s| ("subject", s))).collect(),
            Self::Admission(a) => vec![("proof", a.proof), ("target", a.target), ("object", a.object)],
            Self::PublicAdmission(a) => vec![("target", a.target), ("object", a.object)],
            Self::Denial(d) => vec![("proof", d.proof), ("target", d.target)],
            Self::ApprovalChanged(a) => a.person.map(|p| ("person", p)).into_iter().collect(),
            Self::Revoked { value, reason, by, .. } => vec![("value", *value), ("reason", *reason), ("by", *by)],
            Self::Lifted { by, .. } => vec![("by", *by)],
            Self::Registration { value, by, .. } => vec![("value", *value), ("by", *by)],
            Self::Started { .. }
            | Self::Heartbeat {}
            | Self::Authority { .. }
            | Self::Issuance(_)
            | Self::JwtIssuance(_)
            | Self::Refusal { .. }
            | Self::RefusalsSummarised { .. }
            | Self::Completion(_) => Vec::new(),
        }
    }
}

impl Leaf {
    /// The bytes that the tree hashes: compact JSON, fields in the schema's order.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a leaf has string keys and finite numbers only")
    }
}

impl ApprovalChange {
    /// What the log keeps of an approval in its present state; `person` is the commitment to whoever decided.
    pub fn of(approval: &Approval, person: Option<Sha256>) -> Self {
        Self {
            id: approval.id.clone(),
            state: approval.state,
            request_sha256: approval.request_sha256,
            requester: approval.requester.clone(),
            jkt: approval.jkt,
            rule: approval.rule.clone(),
            policy_version: approval.policy_version.clone(),
            person,
            proved_by: approval.proved_by.clone(),
        }
    }
}

impl Staged {
    /// An approval's change; `person` opens the commitment to whoever decided.
    pub fn approval(time: Timestamp, approval: &Approval, person: Option<Opening>) -> Self {
        let change = ApprovalChange::of(approval, person.as_ref().map(Opening::commitment));
        let openings = person.map(|p| ("person".to_owned(), p)).into_iter().collect();
        Self { leaf: Leaf { time, event: Event::ApprovalChanged(change) }, openings }
    }

    /// A leaf without commitments.
    pub fn registration(time: Timestamp, what: &str, action: &str, value: Opening, by: Opening) -> Self {
        let event = Event::Registration {
            what: what.into(),
            action: action.into(),
            value: value.commitment(),
            by: by.commitment(),
        };
        let openings = [("value".to_owned(), value), ("by".to_owned(), by)].into();
        Self { leaf: Leaf { time, event }, openings }
    }

    /// An event without commitments.
    pub fn plain(time: Timestamp, event: Event) -> Self {
        Self { leaf: Leaf { time, event }, openings: BTreeMap::new() }
    }
}
