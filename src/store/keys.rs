//! The public halves of the service's keys, where replicas and planes find each other's.

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::domain::time::Timestamp;
use crate::store::Unavailable;

/// What a key is for. One key, one use.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, strum::Display, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum KeyUse {
    /// Signs access tokens.
    AccessToken,
    /// Signs transaction tokens.
    TxnToken,
}

/// One public key.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedKey {
    /// Its `kid`.
    pub kid: String,
    /// What it is for.
    pub key_use: KeyUse,
    /// Required members of the JWK.
    pub jwk: Value,
    /// Until when something it signed may live.
    pub until: Timestamp,
}

impl PublishedKey {
    /// The whole JWK (RFC 7517 section 4), as a key set shows it.
    fn shown(self) -> Value {
        let mut jwk = self.jwk;
        jwk["kid"] = self.kid.into();
        jwk["use"] = "sig".into();
        jwk["alg"] = "ES256".into();
        jwk
    }
}

impl dyn PublicKeys {
    /// The keys of one use as a JWK Set (RFC 7517 section 5).
    pub fn key_set(&self, key_use: KeyUse, now: Timestamp) -> Value {
        let keys: Vec<Value> = self.list(key_use, now).into_iter().map(PublishedKey::shown).collect();
        json!({"keys": keys})
    }
}

/// Public keys in force. `list` answers from memory, kept current by each change.
#[async_trait]
pub trait PublicKeys: Send + Sync {
    /// Publishes a key, before anything is signed with it.
    async fn publish(&self, key: &PublishedKey) -> Result<(), Unavailable>;
    /// Keys of one use whose `until` lies ahead.
    fn list(&self, key_use: KeyUse, now: Timestamp) -> Vec<PublishedKey>;
}
