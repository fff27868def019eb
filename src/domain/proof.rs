//! What a spent proof is remembered by, and the stretch of memory it is remembered in.

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::time::Timestamp;

/// Who asks for the proof. A nonce of one role is nothing to the other.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// The token service.
    Token,
    /// The gateway.
    Gateway,
}

impl Role {
    /// One byte, part of each nonce and of each spent proof's identifier.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Token => b'T',
            Self::Gateway => b'G',
        }
    }
}

/// What the replay store remembers and since when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Epoch {
    /// Random name of the unbroken stretch.
    pub id: [u8; 8],
    /// Everything spent after this moment is remembered.
    pub since: Timestamp,
}

/// Identifies a spent proof: SHA-256(role ‖ jkt ‖ len(jti) ‖ jti). Never the proof's bytes, since a second
/// valid signature makes other bytes, and never the bare `jti`, which another client may choose.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ProofId {
    /// The identifier.
    pub digest: Sha256,
    /// Whose proof it is, for quotas.
    pub jkt: Jkt,
}

impl ProofId {
    /// The identifier of a proof by `jkt` with `jti` at `role`.
    pub fn new(role: Role, jkt: Jkt, jti: &str) -> Self {
        let length = u16::try_from(jti.len()).unwrap_or(u16::MAX).to_be_bytes();
        Self { digest: Sha256::of_parts(&[&[role.byte()], &jkt.0, &length, jti.as_bytes()]), jkt }
    }
}
