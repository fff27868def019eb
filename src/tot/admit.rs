//! Admits only what the gateway has decided: each request needs its transaction token.

use std::sync::{Mutex, PoisonError};

use axum::http::HeaderMap;
use serde_json::Value;

use crate::domain::time::Timestamp;
use crate::protocol::json;
use crate::protocol::jwk::PublicKey;
use crate::protocol::txn_token::{self, TxnTokenError, Verified, request_digest};

/// Whose tokens count.
pub struct Admission {
    trust_domain: String,
    /// The file that the gateway writes its keys to.
    keys_file: std::path::PathBuf,
    known: Mutex<Vec<(String, PublicKey)>>,
}

impl Admission {
    /// Demands tokens for `trust_domain` by keys in a JWKS file, which may appear later.
    pub fn new(trust_domain: String, keys_file: std::path::PathBuf) -> Self {
        Self { trust_domain, keys_file, known: Mutex::default() }
    }

    /// Verifies the token of one request.
    pub fn check(
        &self,
        headers: &HeaderMap,
        method: &str,
        target: &str,
        now: Timestamp,
    ) -> Result<Verified, TxnTokenError> {
        let token = headers.get("txn-token").and_then(|v| v.to_str().ok()).ok_or(TxnTokenError::Missing)?;
        let host = headers.get("host").and_then(|v| v.to_str().ok()).unwrap_or_default();
        let key = self.key(&txn_token::key_id(token)?)?;
        txn_token::verify(token, &key, &self.trust_domain, request_digest(method, host, target), now)
    }

    /// The key of a `kid`; an unknown one makes the file be read again.
    fn key(&self, kid: &str) -> Result<PublicKey, TxnTokenError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, key)) = known.iter().find(|(k, _)| k == kid) {
            return Ok(key.clone());
        }
        let text = std::fs::read(&self.keys_file).map_err(|_| TxnTokenError::UnknownKey)?;
        let document = json::parse_object(&text).map_err(|_| TxnTokenError::UnknownKey)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(TxnTokenError::UnknownKey)?;
        let read = |jwk: &Value| {
            let jwk = jwk.as_object()?;
            Some((jwk.get("kid")?.as_str()?.to_owned(), PublicKey::from_jwk(jwk).ok()?))
        };
        *known = keys.iter().filter_map(read).collect();
        known.iter().find(|(k, _)| k == kid).map(|(_, key)| key.clone()).ok_or(TxnTokenError::UnknownKey)
    }
}
