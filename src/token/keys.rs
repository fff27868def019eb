//! The key that signs access tokens: made by this replica, published before it signs.

use std::time::Duration;

use crate::domain::time::Timestamp;
use crate::net::keys::P256Key;
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::store::keys::{KeyUse, PublicKeys, PublishedKey};
use crate::store::{Unavailable, entropy};

/// How long a key is published: this replica makes a new one at each start.
const PUBLISHED: Duration = Duration::from_hours(720);

/// A signing key with its `kid`.
pub struct TokenKey {
    /// Its identifier.
    pub kid: String,
    /// Signs.
    pub key: SigningKey,
}

impl TokenKey {
    /// Makes a key and publishes its public half.
    pub async fn make(keys: &dyn PublicKeys, now: Timestamp) -> Result<Self, Unavailable> {
        let private = P256Key::generate();
        let public = PublicKey::from_spki(private.spki()).expect("our own key is P-256");
        let kid = format!("at-{}", entropy::random_id());
        keys.publish(&PublishedKey {
            kid: kid.clone(),
            key_use: KeyUse::AccessToken,
            jwk: public.to_jwk(),
            until: now.plus(PUBLISHED),
        })
        .await?;
        Ok(Self { kid, key: SigningKey::new(public, move |message| private.sign(message)) })
    }
}
