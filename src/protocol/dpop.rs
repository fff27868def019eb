//! DPoP proofs (RFC 9449 §4): decode one, hold it against one request, name what is left to do.
//!
//! Pure. Cheap checks come before the signature; single use (§11.1) needs memory, so it is the
//! caller's next step: see [`Unspent`].

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use serde_json::{Map, Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::proof::{Epoch, ProofId, Role};
use crate::domain::refusal::OauthError;
use crate::domain::secret::AccessToken;
use crate::domain::time::Timestamp;
use crate::protocol::claims;
use crate::protocol::content_digest;
use crate::protocol::htu::Htu;
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::{self, Compact, JwsError, SigningKey};
use crate::protocol::nonce::{NONCE_LIFE, NonceKey};

/// `typ` of a proof.
pub const TYP: &str = "dpop+jwt";
/// Longest proof in bytes that is looked at.
pub const MAX_PROOF: usize = 8 * 1024;
const MAX_JTI: usize = 256;

/// Why a proof is refused, in the order of RFC 9449 §4.3. Carries no client bytes, so every variant is safe to log and to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, strum::IntoStaticStr, thiserror::Error)]
#[strum(serialize_all = "snake_case")]
pub enum ProofError {
    #[error("RFC 9449 §4.3 (1): there is not exactly one DPoP header field")]
    Count,
    #[error("RFC 9449 §4.3 (2): the proof is not one compact JWS")]
    Form,
    #[error("RFC 9449 §4.3 (3): a required claim is absent or malformed")]
    Claims,
    #[error("RFC 9449 §4.3 (4): typ is not dpop+jwt")]
    Type,
    #[error("RFC 9449 §4.3 (5): alg is not an accepted asymmetric algorithm, or not the key's")]
    Algorithm,
    #[error("RFC 9449 §4.3 (6): the signature does not verify with jwk")]
    Signature,
    #[error("RFC 9449 §4.3 (7): jwk is not a usable public key, or has a private member")]
    Jwk,
    #[error("RFC 9449 §4.3 (8): htm is not the request method")]
    Method,
    #[error("RFC 9449 §4.3 (9): htu is not the request URI")]
    Uri,
    #[error("RFC 9449 §4.3 (10): nonce is absent, stale or not ours")]
    Nonce,
    #[error("RFC 9449 §4.3 (11): iat is outside the window")]
    Age,
    #[error("RFC 9449 §4.3 (12): ath is not the hash of the access token")]
    TokenHash,
    #[error("RFC 9449 §4.3 (12): the proof key is not the token's cnf.jkt")]
    Key,
    #[error("RFC 9530: the proof's content_digest is absent, or is not the body's")]
    ContentDigest,
}

impl ProofError {
    /// The `error` value that the client sees: RFC 9449 §5, §8, §9; RFC 6750 §3.1 for the key.
    pub const fn oauth(self) -> OauthError {
        match self {
            Self::Nonce => OauthError::UseDpopNonce,
            Self::Key => OauthError::InvalidToken,
            Self::Count
            | Self::Form
            | Self::Claims
            | Self::Type
            | Self::Algorithm
            | Self::Signature
            | Self::Jwk
            | Self::Method
            | Self::Uri
            | Self::Age
            | Self::TokenHash
            | Self::ContentDigest => OauthError::InvalidDpopProof,
        }
    }
}

/// The key of a proof's header. A client's header repeats byte for byte, so callers may keep it under those bytes.
#[derive(Clone, Debug)]
pub struct ProofHeader {
    key: PublicKey,
}

impl ProofHeader {
    /// Reads the header: checks 4, 5 and 7.
    pub fn parse(parts: &Compact<'_>) -> Result<Self, ProofError> {
        let header = parts.header_object().map_err(form)?;
        let algorithm = jws::check_header(&header, TYP).map_err(|e| match e {
            JwsError::Type => ProofError::Type,
            JwsError::Algorithm => ProofError::Algorithm,
            _ => ProofError::Form,
        })?;
        let jwk = header.get("jwk").and_then(Value::as_object).ok_or(ProofError::Jwk)?;
        let key = PublicKey::from_jwk(jwk).map_err(|_| ProofError::Jwk)?;
        (key.algorithm() == algorithm).then_some(Self { key }).ok_or(ProofError::Algorithm)
    }
}

/// The claims of a proof, read and not yet believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProofClaims {
    htm: String,
    htu: Htu,
    iat: Timestamp,
    jti: String,
    ath: Option<String>,
    nonce: Option<String>,
    content_digest: Option<String>,
}

impl ProofClaims {
    /// The body that the client signed for: `content_digest` in the form of RFC 9530, a claim of this product.
    pub fn signed_body(&self) -> SignedBody {
        match self.content_digest.as_deref().map(content_digest::read) {
            None => SignedBody::Any,
            Some(None) => SignedBody::Unreadable,
            Some(Some(digest)) => SignedBody::Exactly(digest),
        }
    }

    /// Reads the payload: check 3.
    pub fn parse(parts: &Compact<'_>) -> Result<Self, ProofError> {
        let payload = parts.payload_object().map_err(form)?;
        let jti = claims::text(&payload, "jti").filter(|j| is_jti(j)).ok_or(ProofError::Claims)?;
        Ok(Self {
            htm: claims::text(&payload, "htm").ok_or(ProofError::Claims)?.to_owned(),
            htu: claims::text(&payload, "htu").and_then(|u| Htu::parse(u).ok()).ok_or(ProofError::Claims)?,
            iat: claims::numeric_date(&payload, "iat").ok_or(ProofError::Claims)?,
            jti: jti.to_owned(),
            ath: optional_text(&payload, "ath")?,
            nonce: optional_text(&payload, "nonce")?,
            content_digest: optional_text(&payload, "content_digest")?,
        })
    }
}

/// What a proof says of the body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SignedBody {
    /// Nothing.
    Any,
    /// Something that states no SHA-256.
    Unreadable,
    /// It has this SHA-256.
    Exactly(Sha256),
}

impl SignedBody {
    /// Whether the proof says anything of the body.
    pub const fn is_claimed(self) -> bool {
        !matches!(self, Self::Any)
    }

    /// Holds a body against it. With `required` a body that is not empty must be signed for.
    pub fn check(self, body: &[u8], required: bool) -> Result<(), ProofError> {
        let fits = match self {
            Self::Any => body.is_empty() || !required,
            Self::Unreadable => false,
            Self::Exactly(digest) => digest == Sha256::of(body),
        };
        if fits { Ok(()) } else { Err(ProofError::ContentDigest) }
    }
}

fn optional_text(payload: &Map<String, Value>, name: &str) -> Result<Option<String>, ProofError> {
    match payload.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ProofError::Claims),
    }
}

fn is_jti(jti: &str) -> bool {
    (1..=MAX_JTI).contains(&jti.len()) && !jti.chars().any(char::is_control)
}

const fn form(error: JwsError) -> ProofError {
    match error {
        JwsError::Payload => ProofError::Claims,
        _ => ProofError::Form,
    }
}

/// How far `iat` may be from now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// How old a proof may be.
    pub past: Duration,
    /// How far ahead a client's clock may run.
    pub future: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self { past: Duration::from_mins(1), future: Duration::from_secs(10) }
    }
}

impl Window {
    fn contains(self, iat: Timestamp, now: Timestamp) -> bool {
        iat.plus(self.past).unix() >= now.unix() && iat.unix() <= now.plus(self.future).unix()
    }
}

/// What the proof must say to fit this request.
pub struct Expected<'a> {
    /// Who asks.
    pub role: Role,
    /// The request's method, case-sensitive.
    pub method: &'a str,
    /// The request's URI, built from configuration.
    pub uri: &'a Htu,
    /// The token that the proof comes with; none at the token service.
    pub token: Option<Bound>,
    /// The accepted ages.
    pub window: Window,
    /// Checks nonces.
    pub nonces: &'a NonceKey,
    /// The replay store's unbroken stretch.
    pub epoch: Epoch,
    /// Whether each proof needs a nonce.
    pub nonce_required: bool,
}

/// The access token that a proof at the gateway is tied to.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    /// SHA-256 of the token.
    pub digest: Sha256,
    /// The token's `cnf.jkt`; none while the token itself is not verified yet.
    pub jkt: Option<Jkt>,
}

/// A proof that fits its request and is not yet spent. Only [`verify`] makes one.
#[derive(Debug)]
pub struct Unspent {
    /// What to claim in the replay store.
    pub id: ProofId,
    /// Until when the claim must be remembered.
    pub until: Timestamp,
    /// The proof's key.
    pub jkt: Jkt,
    /// Whether it has a nonce, which then was good.
    pub with_nonce: bool,
    /// The client's clock less ours, in seconds.
    pub clock_offset: i64,
}

/// Takes the one `DPoP` field value of a request: check 1. A comma joins values (RFC 9110 §5.3), so none is accepted.
pub fn single<'a>(mut values: impl Iterator<Item = &'a str>) -> Result<&'a str, ProofError> {
    match (values.next(), values.next()) {
        (Some(value), None) if !value.is_empty() && !value.contains(',') => Ok(value),
        _ => Err(ProofError::Count),
    }
}

/// Cuts a proof into its parts: check 2.
pub fn split(proof: &str) -> Result<Compact<'_>, ProofError> {
    if proof.len() > MAX_PROOF {
        return Err(ProofError::Form);
    }
    Compact::split(proof).map_err(form)
}

/// Runs the checks that cost next to nothing, 8 to 12 but for the key, in the order of the RFC. The first failure wins.
pub fn fit(proof: &ProofClaims, want: &Expected<'_>, now: Timestamp) -> Result<(), ProofError> {
    let ensure = |ok: bool, error: ProofError| if ok { Ok(()) } else { Err(error) };
    ensure(proof.htm == want.method, ProofError::Method)?;
    ensure(proof.htu == *want.uri, ProofError::Uri)?;
    ensure(nonce_holds(proof, want, now), ProofError::Nonce)?;
    ensure(want.window.contains(proof.iat, now), ProofError::Age)?;
    let hash_fits = |bound: Bound| proof.ath.as_deref() == Some(ath(bound.digest).as_str());
    ensure(want.token.is_none_or(hash_fits), ProofError::TokenHash)
}

/// Runs checks 8 to 12 in the order of the RFC and then 6, the only costly one. The first failure wins.
pub fn verify(
    parts: &Compact<'_>,
    header: &ProofHeader,
    proof: &ProofClaims,
    want: &Expected<'_>,
    now: Timestamp,
) -> Result<Unspent, ProofError> {
    fit(proof, want, now)?;
    let jkt = header.key.jkt();
    if want.token.and_then(|bound| bound.jkt).is_some_and(|bound| bound != jkt) {
        return Err(ProofError::Key);
    }
    parts
        .verify(&header.key)
        .map_err(|e| if e == JwsError::Form { ProofError::Form } else { ProofError::Signature })?;
    Ok(Unspent {
        id: ProofId::new(want.role, jkt, &proof.jti),
        until: remember_until(proof, want.window),
        jkt,
        with_nonce: proof.nonce.is_some(),
        clock_offset: signed_seconds(proof.iat) - signed_seconds(now),
    })
}

/// A proof without a nonce passes only if the store is unbroken since its `iat` less the future window.
fn nonce_holds(proof: &ProofClaims, want: &Expected<'_>, now: Timestamp) -> bool {
    match &proof.nonce {
        Some(nonce) => want.nonces.accepts(nonce, want.role, &want.epoch, now),
        None => !want.nonce_required && proof.iat.minus(want.window.future) >= want.epoch.since,
    }
}

/// Until the age check alone refuses the proof; never counted from "now", which would end too early.
fn remember_until(proof: &ProofClaims, window: Window) -> Timestamp {
    let nonce = if proof.nonce.is_some() { NONCE_LIFE } else { Duration::ZERO };
    Timestamp::from_unix(proof.iat.plus(window.past + window.future + nonce).unix() + 1)
}

fn signed_seconds(at: Timestamp) -> i64 {
    i64::try_from(at.unix()).unwrap_or(i64::MAX)
}

/// The `ath` claim for a token: base64url of its SHA-256.
pub fn ath(token_digest: Sha256) -> String {
    B64.encode(token_digest.0)
}

/// What a client puts into a proof.
pub struct Request<'a> {
    /// Method of the request.
    pub method: &'a str,
    /// Its URI; query and fragment are left out.
    pub url: &'a str,
    /// The token that goes with it.
    pub token: Option<&'a AccessToken>,
    /// The server's nonce, if it gave one.
    pub nonce: Option<&'a str>,
    /// Random, unique for each proof.
    pub jti: &'a str,
    /// The client's clock.
    pub now: Timestamp,
    /// The body, where it is signed for.
    pub body: Option<&'a [u8]>,
}

/// Makes a proof, for clients.
pub fn prove(request: &Request<'_>, signer: &SigningKey) -> String {
    let header = json!({"typ": TYP, "alg": "ES256", "jwk": signer.public().to_jwk()});
    let bare = request.url.split(['?', '#']).next().unwrap_or_default();
    let mut payload = json!({"jti": request.jti, "htm": request.method, "htu": bare, "iat": request.now.unix()});
    if let Some(token) = request.token {
        payload["ath"] = ath(token.digest()).into();
    }
    if let Some(nonce) = request.nonce {
        payload["nonce"] = nonce.into();
    }
    if let Some(body) = request.body {
        payload["content_digest"] = content_digest::of(body).into();
    }
    jws::sign(&header, &payload, signer)
}

/// A spent proof as evidence reads it again, long after its time: signature and key hold, age and nonce are history.
pub struct SpentProof {
    /// The key that signed.
    pub jkt: Jkt,
    /// Signed method.
    pub htm: String,
    /// Signed target.
    pub htu: Htu,
    /// Signed time.
    pub iat: Timestamp,
    /// Signed hash of the token.
    pub ath: Option<String>,
    /// Signed hash of the body.
    pub body: SignedBody,
}

/// Verifies a kept proof's form and signature (checks 2 to 7).
pub fn reread(proof: &str) -> Result<SpentProof, ProofError> {
    let parts = split(proof)?;
    let header = ProofHeader::parse(&parts)?;
    let claims = ProofClaims::parse(&parts)?;
    parts.verify(&header.key).map_err(|_| ProofError::Signature)?;
    let body = claims.signed_body();
    Ok(SpentProof { jkt: header.key.jkt(), htm: claims.htm, htu: claims.htu, iat: claims.iat, ath: claims.ath, body })
}
