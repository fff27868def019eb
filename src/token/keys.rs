//! The keys that sign access tokens (T3): made by this replica, published before they sign, and shown for as long as
//! something that they signed may live.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::domain::time::Timestamp;
use crate::net::keys::P256Key;
use crate::net::listener::Drain;
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::store::keys::{KeyUse, PublishedKey};
use crate::store::{Stores, Unavailable, entropy};

/// Clocks differ, and whoever verifies may have read the key set a while ago.
const MARGIN: Duration = Duration::from_mins(15);

/// A signing key with its `kid`.
pub struct TokenKey {
    /// Its identifier.
    pub kid: String,
    /// Signs.
    pub key: SigningKey,
    made_at: Timestamp,
}

/// The key that signs and the one that is to come.
pub struct TokenKeys {
    stores: Stores,
    current: ArcSwap<TokenKey>,
    next: ArcSwap<TokenKey>,
    life: Duration,
    ttl: Duration,
}

impl TokenKeys {
    /// Makes the first two keys; each signs for `life`, and what it signs lives for `ttl`.
    pub async fn new(stores: &Stores, life: Duration, ttl: Duration) -> Result<Self, Unavailable> {
        let now = stores.clock.now();
        let current = make(stores, now, life + ttl).await?;
        // Published while the first one signs: whoever caches the set knows it before it is needed.
        let next = make(stores, now, life * 2 + ttl).await?;
        let swap = |key| ArcSwap::from_pointee(key);
        Ok(Self { stores: stores.clone(), current: swap(current), next: swap(next), life, ttl })
    }

    /// The key that signs.
    pub fn current(&self) -> Arc<TokenKey> {
        self.current.load_full()
    }

    /// The public half of a key that this issuer published and that may still verify.
    pub fn published(&self, kid: &str, now: Timestamp) -> Option<PublicKey> {
        let all = self.stores.keys.list(KeyUse::AccessToken, now);
        let jwk = all.iter().find(|k| k.kid == kid)?.jwk.as_object()?.clone();
        PublicKey::from_jwk(&jwk).ok()
    }

    /// Rotates until the drain begins: the key that was published signs, and another is published.
    pub async fn keep(self: Arc<Self>, mut drain: Drain) {
        loop {
            let due = self.current.load().made_at.plus(self.life);
            let wait = due.since(self.stores.clock.now()).max(Duration::from_millis(100));
            tokio::select! {
                () = drain.begun() => return,
                () = tokio::time::sleep(wait.min(Duration::from_mins(1))) => {}
            }
            if self.stores.clock.now() < due {
                continue;
            }
            if let Err(error) = self.rotate().await {
                tracing::error!(%error, "the token signing key could not be rotated; the present one serves on");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn rotate(&self) -> Result<(), Unavailable> {
        let now = self.stores.clock.now();
        // Beyond its time a key that still signs would be taken from the set too early.
        let until = now.plus(self.life + self.ttl + MARGIN);
        let next = self.next.load_full();
        self.stores.keys.publish(&published(&next, until)).await?;
        let after = make(&self.stores, now, self.life * 2 + self.ttl).await?;
        tracing::info!(kid = next.kid, "another key signs access tokens");
        self.current.store(Arc::new(TokenKey { kid: next.kid.clone(), key: next.key.clone(), made_at: now }));
        self.next.store(Arc::new(after));
        Ok(())
    }
}

fn published(key: &TokenKey, until: Timestamp) -> PublishedKey {
    PublishedKey { kid: key.kid.clone(), key_use: KeyUse::AccessToken, jwk: key.key.public().to_jwk(), until }
}

/// Makes a key and publishes its public half.
async fn make(stores: &Stores, now: Timestamp, shown_for: Duration) -> Result<TokenKey, Unavailable> {
    let private = P256Key::generate();
    let public = PublicKey::from_spki(private.spki()).expect("our own key is P-256");
    let kid = format!("at-{}", entropy::random_id());
    let key = TokenKey { kid, key: SigningKey::new(public, move |message| private.sign(message)), made_at: now };
    stores.keys.publish(&published(&key, now.plus(shown_for + MARGIN))).await?;
    Ok(key)
}
