//! `POST /token`, top to bottom: read → client → proof → grant → spend → mint → record → answer.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{HeaderMap, Request, header};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::leaf::{Event, Leaf, Mint, Staged};
use crate::domain::proof::{Epoch, Role};
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::secret::{AccessToken, DpopProof};
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::net::body;
use crate::net::listener::Peer;
use crate::protocol::dpop::{self, Expected, ProofClaims, ProofError, ProofHeader, Unspent, Window};
use crate::protocol::form;
use crate::protocol::htu::Htu;
use crate::protocol::nonce::NonceKey;
use crate::store::replay::Spend;
use crate::store::{Stores, entropy};
use crate::token::client::{self, Client, Form};
use crate::token::keys::TokenKey;
use crate::token::mint::{self, Resource};

const MAX_FORM: usize = 64 * 1024;

/// The plane's state.
pub struct TokenPlane {
    /// What is remembered.
    pub stores: Stores,
    /// Issuer URL, without a trailing slash.
    pub issuer: String,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// The endpoint's own URL, which proofs name.
    pub token_url: Htu,
    /// What tokens can be for.
    pub resources: Arc<ArcSwap<Vec<Resource>>>,
    /// Signs.
    pub key: TokenKey,
    /// Makes and checks nonces.
    pub nonces: Arc<NonceKey>,
    /// Longest life.
    pub ttl: Duration,
    /// Accepted ages of proofs.
    pub window: Window,
    /// Whether each proof needs a nonce.
    pub nonce_required: bool,
}

/// A token on its way out.
pub struct Minted {
    /// The token.
    pub token: AccessToken,
    /// Seconds it lives.
    pub expires_in: u64,
    /// Granted scope.
    pub scope: String,
}

/// A proof that fits, and the epoch it was judged in.
struct Judged {
    unspent: Unspent,
    proof: DpopProof,
    epoch: Epoch,
}

impl TokenPlane {
    /// Runs the steps; the request's id names its evidence.
    pub async fn grant(&self, peer: &Peer, request: Request<Body>, request_id: &str) -> Result<Minted, Refusal> {
        let (parts, body) = request.into_parts();
        let (form, resources) = read(&parts.headers, body).await?;
        let client =
            client::authenticate(&self.stores, peer, &form, parts.headers.contains_key(header::AUTHORIZATION))?;
        client.check_issued(&self.stores, &self.trust_domain).await?;
        check_grant(&form)?;
        let judged = self.judge(&parts.headers).await?;
        check_key(&client, judged.unspent.jkt)?;
        if client.entry.nonce_required && !judged.unspent.with_nonce {
            return Err(bad_proof(ProofError::Nonce));
        }
        let known = self.resources.load_full();
        let resource = mint::resource(&known, &resources)?;
        let scope = mint::scope(&client.entry, resource, form.get("scope").map(String::as_str))?;
        self.spend(&judged).await?;
        self.mint(&client, resource, scope, judged, request_id).await
    }

    async fn judge(&self, headers: &HeaderMap) -> Result<Judged, Refusal> {
        let epoch = self.stores.replay.epoch().await?;
        let now = self.stores.clock.now();
        let values = headers.get_all("dpop").iter().map(|v| v.to_str().unwrap_or_default());
        let text = dpop::single(values).map_err(bad_proof)?;
        let want = Expected {
            role: Role::Token,
            method: "POST",
            uri: &self.token_url,
            token: None,
            window: self.window,
            nonces: &self.nonces,
            epoch,
            nonce_required: self.nonce_required,
        };
        let unspent = check(text, &want, now).map_err(bad_proof)?;
        Ok(Judged { unspent, proof: DpopProof::new(text.to_owned()), epoch })
    }

    async fn spend(&self, judged: &Judged) -> Result<(), Refusal> {
        match self.stores.replay.spend(&judged.unspent.id, judged.unspent.until, &judged.epoch).await? {
            Spend::First => Ok(()),
            Spend::Replay => Err(Refusal::new(400, "proof", "RFC 9449 §11.1: the proof was used before")
                .with_error(OauthError::InvalidDpopProof)),
            Spend::Broken => Err(bad_proof(ProofError::Nonce)),
        }
    }

    async fn mint(
        &self,
        client: &Client,
        resource: &Resource,
        scope: String,
        judged: Judged,
        request_id: &str,
    ) -> Result<Minted, Refusal> {
        let now = self.stores.clock.now();
        let claims = mint::claims(&self.issuer, client, resource, scope, self.ttl, judged.unspent.jkt, now);
        let token = AccessToken::new(claims.sign(&self.key.kid, &self.key.key));
        let proof = entropy::seal(judged.proof.expose());
        let event = Event::Mint(Mint {
            request_id: request_id.to_owned(),
            spiffe_id: claims.sub.clone(),
            jkt: claims.jkt,
            serial: client.svid.serial.clone(),
            jti_sha256: Sha256::of(claims.jti.as_bytes()),
            token_sha256: token.digest(),
            audience: claims.aud.clone(),
            scope: claims.scope.clone(),
            expires_at: claims.exp,
            proof: proof.commitment(),
        });
        let openings = [("proof".to_owned(), proof)].into();
        self.stores.evidence.append(Staged { leaf: Leaf { time: now, event }, openings }).await?;
        metrics::counter!("popgate_tokens_minted_total").increment(1);
        tracing::info!(%request_id, spiffe_id = %claims.sub, audience = claims.aud, scope = claims.scope, "token minted");
        Ok(Minted { token, expires_in: claims.exp.since(now).as_secs(), scope: claims.scope })
    }

    /// A nonce for the challenge of a refusal; none while the replay store is away.
    pub async fn nonce(&self) -> Option<String> {
        let epoch = self.stores.replay.epoch().await.ok()?;
        Some(self.nonces.make(Role::Token, &epoch, self.stores.clock.now(), &entropy::random()))
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<(Form, Vec<String>), Refusal> {
    let refuse = |detail: String| Refusal::new(400, "request", detail).with_error(OauthError::InvalidRequest);
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(refuse("the content type is not application/x-www-form-urlencoded".into()));
    }
    let bytes = body::read(body, MAX_FORM).await.map_err(|e| refuse(e.to_string()))?;
    mint::single(form::parse(&bytes).map_err(|e| refuse(e.to_string()))?)
}

/// By default the proof's key is the certificate's: one key, one identity (T2).
fn check_key(client: &Client, jkt: Jkt) -> Result<(), Refusal> {
    if jkt == client.svid.key.jkt() || client.entry.other_keys {
        return Ok(());
    }
    let detail = "the proof's key is not the certificate's, and the entry does not allow other keys";
    Err(Refusal::new(400, "proof", detail).with_error(OauthError::InvalidDpopProof))
}

fn check_grant(form: &Form) -> Result<(), Refusal> {
    let refuse = |error, detail: &str| Err(Refusal::new(400, "grant", detail).with_error(error));
    match form.get("grant_type").map(String::as_str) {
        Some("client_credentials") => {}
        None => return refuse(OauthError::InvalidRequest, "grant_type is missing"),
        Some(_) => {
            return refuse(OauthError::UnsupportedGrantType, "the grant type offered here is client_credentials");
        }
    }
    if form.contains_key("authorization_details") {
        return refuse(OauthError::InvalidAuthorizationDetails, "no type of authorization details is offered yet");
    }
    Ok(())
}

fn check(text: &str, want: &Expected<'_>, now: Timestamp) -> Result<Unspent, ProofError> {
    let parts = dpop::split(text)?;
    let header = ProofHeader::parse(&parts)?;
    let claims = ProofClaims::parse(&parts)?;
    dpop::verify(&parts, &header, &claims, want, now)
}

fn bad_proof(error: ProofError) -> Refusal {
    metrics::counter!("popgate_proofs_refused_total", "plane" => "token", "check" => <&str>::from(error)).increment(1);
    Refusal::new(400, "proof", error.to_string()).with_error(error.oauth())
}
