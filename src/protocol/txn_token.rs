//! Transaction tokens (draft-ietf-oauth-transaction-tokens): what the gateway tells upstream about a request it admitted.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::claims::{numeric_date, text};
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::{self, Compact, SigningKey};

/// `typ` of a transaction token.
pub const TYP: &str = "txntoken+jwt";
/// Longest life.
pub const LIFE: Duration = Duration::from_mins(1);
/// How far the clocks of gateway and upstream may differ.
const SKEW: Duration = Duration::from_secs(5);

/// Why upstream refuses a request's token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum TxnTokenError {
    #[error("there is no Txn-Token: call through the gateway")]
    Missing,
    #[error("the Txn-Token is not a compact JWS of type txntoken+jwt and algorithm ES256")]
    Form,
    #[error("the Txn-Token is signed by no key of the gateway")]
    UnknownKey,
    #[error("the Txn-Token's signature does not verify")]
    Signature,
    #[error("the Txn-Token's aud is another trust domain")]
    Audience,
    #[error("the Txn-Token is not valid now")]
    Expired,
    #[error("the Txn-Token is for another request")]
    Request,
}

/// What the token says about the request (`tctx`).
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Upstream's URL.
    pub upstream: String,
    /// Named operation.
    pub operation: String,
    /// The object.
    pub object: String,
    /// Deciding rule.
    pub rule: String,
    /// Digest of the policy set.
    pub policy_version: String,
    /// See [`request_digest`].
    pub request_sha256: Sha256,
    /// SHA-256 of the body, where the gateway held it whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_sha256: Option<Sha256>,
}

#[derive(Serialize)]
struct Header {
    typ: &'static str,
    alg: &'static str,
    kid: Jkt,
}

/// Written from its parts: each request has one of its own.
#[derive(Serialize)]
struct Payload<'a> {
    iss: &'a str,
    aud: &'a str,
    txn: &'a str,
    sub: &'a SpiffeId,
    req_wl: &'a SpiffeId,
    iat: u64,
    exp: u64,
    tctx: &'a Context,
}

/// Digest of the request as upstream receives it.
pub fn request_digest(method: &str, authority: &str, path_and_query: &str) -> Sha256 {
    Sha256::of_parts(&[method.as_bytes(), b"\n", authority.as_bytes(), b"\n", path_and_query.as_bytes()])
}

/// Signs the token for one request.
pub fn sign(
    trust_domain: &str,
    request_id: &str,
    workload: &SpiffeId,
    context: &Context,
    now: Timestamp,
    signer: &SigningKey,
) -> String {
    let payload = Payload {
        iss: &format!("spiffe://{trust_domain}/popgate/gateway"),
        aud: trust_domain,
        txn: request_id,
        sub: workload,
        req_wl: workload,
        iat: now.unix(),
        exp: now.plus(LIFE).unix(),
        tctx: context,
    };
    jws::sign(&Header { typ: TYP, alg: "ES256", kid: signer.public().jkt() }, &payload, signer)
}

/// The `kid` of a token, for the key lookup.
pub fn key_id(token: &str) -> Result<String, TxnTokenError> {
    let header = Compact::split(token).and_then(|c| c.header_object()).map_err(|_| TxnTokenError::Form)?;
    jws::check_header(&header, TYP).map_err(|_| TxnTokenError::Form)?;
    text(&header, "kid").map(ToOwned::to_owned).ok_or(TxnTokenError::Form)
}

/// What a verified token says.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The gateway's request id.
    pub request_id: String,
    /// The calling workload.
    pub workload: String,
    /// What was decided.
    pub context: Context,
}

/// Verifies signature, audience, life and that the token is for this request.
pub fn verify(
    token: &str,
    key: &PublicKey,
    trust_domain: &str,
    request: Sha256,
    now: Timestamp,
) -> Result<Verified, TxnTokenError> {
    let parts = Compact::split(token).map_err(|_| TxnTokenError::Form)?;
    parts.verify(key).map_err(|_| TxnTokenError::Signature)?;
    let payload = parts.payload_object().map_err(|_| TxnTokenError::Form)?;
    if text(&payload, "aud") != Some(trust_domain) {
        return Err(TxnTokenError::Audience);
    }
    let date = |name| numeric_date(&payload, name).ok_or(TxnTokenError::Form);
    if date("exp")? <= now || date("iat")? > now.plus(SKEW) {
        return Err(TxnTokenError::Expired);
    }
    let tctx = payload.get("tctx").cloned().unwrap_or(Value::Null);
    let context: Context = serde_json::from_value(tctx).map_err(|_| TxnTokenError::Form)?;
    if context.request_sha256 != request {
        return Err(TxnTokenError::Request);
    }
    let need = |name| text(&payload, name).map(ToOwned::to_owned).ok_or(TxnTokenError::Form);
    Ok(Verified { request_id: need("txn")?, workload: need("sub")?, context })
}
