//! Credentials as types that neither print nor serialise and are zeroed on drop.

use zeroize::Zeroizing;

use crate::domain::digest::Sha256;

/// An access token as it came in or as it goes out.
#[derive(Clone)]
pub struct AccessToken(Zeroizing<String>);

/// A DPoP proof as it came in or as it goes out. It is spendable until it is spent.
#[derive(Clone)]
pub struct DpopProof(Zeroizing<String>);

/// A one-time join token, `pgj1.<secret>.<pin>`.
#[derive(Clone)]
pub struct JoinToken {
    secret: Zeroizing<String>,
    pin: Sha256,
}

/// A text that does not have the form of a join token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a join token: it has the form pgj1.<secret>.<pin>; check that the file holds one line and nothing else")]
pub struct JoinTokenError;

impl AccessToken {
    /// Takes the text out of circulation.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, to be sent or verified, never to be stored.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What evidence keeps instead.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.0.as_bytes())
    }
}

impl DpopProof {
    /// Takes the text out of circulation.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, to be sent or verified. Evidence may keep it once it is spent.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What evidence keeps of a proof that is not spent.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.0.as_bytes())
    }
}

impl JoinToken {
    /// Joins 256 random bits (hex) and the SHA-256 of the root's public key.
    pub fn new(secret_hex: String, pin: Sha256) -> Self {
        Self { secret: Zeroizing::new(secret_hex), pin }
    }

    /// Reads the one-line form.
    pub fn parse(text: &str) -> Result<Self, JoinTokenError> {
        let mut parts = text.trim().split('.');
        let (Some("pgj1"), Some(secret), Some(pin), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(JoinTokenError);
        };
        Sha256::from_hex(secret).ok_or(JoinTokenError)?;
        let pin = Sha256::from_hex(pin).ok_or(JoinTokenError)?;
        Ok(Self::new(secret.to_owned(), pin))
    }

    /// The one-line form, to be handed to the workload.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("pgj1.{}.{}", self.secret.as_str(), self.pin))
    }

    /// SHA-256 of the SPKI of the root that the enrolment server must chain to.
    pub const fn pin(&self) -> Sha256 {
        self.pin
    }

    /// What the ledger keeps: the secret has full entropy, so a plain hash hides it.
    pub fn digest(&self) -> Sha256 {
        Sha256::of_parts(&[b"popgate join token\0", self.secret.as_bytes()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_reads_back_and_a_malformed_one_is_refused() {
        let token = JoinToken::new("ab".repeat(32), Sha256([7; 32]));
        let text = token.expose();
        assert_eq!(JoinToken::parse(&text).map(|t| t.digest()), Ok(token.digest()));
        for bad in ["", "pgj1", "pgj2.a.b", "pgj1.zz.zz", &format!("{}.x", text.as_str())] {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
    }
}
