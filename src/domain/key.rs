//! The name of a public key: its JWK thumbprint (RFC 7638).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// SHA-256 JWK thumbprint. Prints and serialises as unpadded base64url, as `cnf.jkt` has it.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Jkt(pub [u8; 32]);

/// A text that is not 32 bytes of canonical unpadded base64url.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a key thumbprint is 43 characters of unpadded base64url")]
pub struct JktError;

impl FromStr for Jkt {
    type Err = JktError;

    fn from_str(text: &str) -> Result<Self, JktError> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| JktError)?;
        bytes.try_into().map(Self).map_err(|_| JktError)
    }
}

impl fmt::Display for Jkt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Jkt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Jkt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Jkt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
