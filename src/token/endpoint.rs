//! `POST /token`, top to bottom: read → client → proof → grant → bounds → policy → spend → mint → record → answer.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{HeaderMap, Request, header};

use crate::domain::digest::Sha256;
use crate::domain::intent::Principal;
use crate::domain::key::Jkt;
use crate::domain::leaf::{Event, Leaf, Mint, MintPolicy, MintedBy, Staged};
use crate::domain::proof::{Epoch, Role};
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::RevocationKind;
use crate::domain::secret::{AccessToken, DpopProof};
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::domain::verdict::{Decision, Verdict};
use crate::net::body;
use crate::net::listener::Peer;
use crate::protocol::access_token::MAX_TOKEN;
use crate::protocol::authorization_details::Detail;
use crate::protocol::bundle::TrustBundle;
use crate::protocol::dpop::{self, Expected, ProofClaims, ProofError, ProofHeader, Unspent, Window};
use crate::protocol::form;
use crate::protocol::htu::Htu;
use crate::protocol::nonce::NonceKey;
use crate::protocol::policy::PolicyEngine;
use crate::protocol::policy::mint::MintIntent;
use crate::store::cache::{Bounded, Texts};
use crate::store::replay::Spend;
use crate::store::revocations::Stopper;
use crate::store::{Stores, entropy};
use crate::token::client::{Client, Form, KnownCertificate};
use crate::token::grants::{Grant, Subject};
use crate::token::keys::TokenKeys;
use crate::token::limits::Limits;
use crate::token::mint::{self, Granted, Minting, Resource};
use crate::trust::events::Transmitter;
use crate::trust::providers::Providers;

const MAX_FORM: usize = 64 * 1024;

/// What tokens can be for, and what decides about it; a reload replaces both at once.
pub struct Offer {
    /// The resources, the broadest first.
    pub resources: Vec<Resource>,
    /// Decides.
    pub policy: Arc<PolicyEngine>,
}

/// Gives the bundle of a trust domain whose workloads are believed.
pub type Bundles = Arc<dyn Fn(&TrustDomain) -> Option<TrustBundle> + Send + Sync>;

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
    pub offer: Arc<ArcSwap<Offer>>,
    /// Sign.
    pub keys: Arc<TokenKeys>,
    /// Makes and checks nonces.
    pub nonces: Arc<NonceKey>,
    /// Longest life.
    pub ttl: Duration,
    /// Accepted ages of proofs.
    pub window: Window,
    /// Whether each proof needs a nonce.
    pub nonce_required: bool,
    /// Whether a JWT-SVID authenticates a client.
    pub jwt_svid_clients: bool,
    /// Bundles of trust domains.
    pub bundles: Bundles,
    /// Whose statements are grants.
    pub providers: Providers,
    /// Who tells of people that are gone.
    pub transmitters: Vec<Transmitter>,
    /// SCIM clients.
    pub scim: Vec<crate::trust::config::ScimTrust>,
    /// Stops people.
    pub stopper: Arc<dyn Stopper>,
    /// How often who may ask.
    pub limits: Limits,
    /// Origins whose pages may ask (CORS).
    pub cors: Vec<String>,
    /// Parsed proof headers.
    pub headers: Texts<Arc<ProofHeader>>,
    /// Certificates that the ledger has, by the digest of their bytes.
    pub certificates: Bounded<Sha256, Arc<KnownCertificate>>,
    /// Stops that are in force and not yet recorded.
    pub half_done: Mutex<HashSet<(RevocationKind, String)>>,
}

/// A token on its way out.
pub struct Minted {
    /// The token.
    pub token: AccessToken,
    /// Seconds it lives.
    pub expires_in: u64,
    /// Granted scope.
    pub scope: String,
    /// Granted details.
    pub details: Vec<Detail>,
    /// By which grant.
    pub grant: Grant,
}

/// A proof that fits, and the epoch it was judged in.
struct Judged {
    unspent: Unspent,
    proof: DpopProof,
    epoch: Epoch,
}

/// Everything about a token that is about to be minted.
struct Decided<'a> {
    client: &'a Client,
    grant: Grant,
    subject: &'a Subject,
    resource: &'a Resource,
    granted: Granted,
    verdict: Verdict,
    assertion_sha256: Option<Sha256>,
}

impl TokenPlane {
    /// Runs the steps; the request's id names its evidence.
    pub async fn grant(&self, peer: &Peer, request: Request<Body>, request_id: &str) -> Result<Minted, Refusal> {
        self.limits.source(peer.address.map(|a| a.ip()))?;
        let (parts, body) = request.into_parts();
        let (form, resources) = read(&parts.headers, body).await?;
        let mut client = self.authenticate(peer, &form, &parts.headers).await?;
        self.limits.client(&client.id)?;
        let judged = self.judge(&parts.headers).await?;
        let jkt = judged.unspent.jkt;
        self.check_key(&mut client, jkt).await?;
        if client.entry.nonce_required && !judged.unspent.with_nonce {
            return Err(bad_proof(ProofError::Nonce));
        }
        let (grant, subject) = self.subject(&client, &form, jkt).await?;
        let offer = self.offer.load_full();
        let bounds = subject.bounds.as_ref();
        let resource = mint::resource(&offer.resources, &resources, bounds)?;
        if resource.certificate && client.certificate.is_none() {
            let detail = "this resource demands the certificate on the connection: authenticate with one";
            return Err(Refusal::new(400, "resource", detail).with_error(OauthError::InvalidTarget));
        }
        let granted = mint::granted(&client.entry, resource, bounds, &form)?;
        let verdict = self.decide(&offer.policy, &client, grant, &subject, resource, &granted)?;
        self.check_owner(&client, &subject).await?;
        self.spend(&judged).await?;
        self.spend_assertion(&client).await?;
        self.tie(&client, &subject, jkt).await?;
        let assertion_sha256 = form.get("client_assertion").map(|a| Sha256::of(a.as_bytes()));
        let decided =
            Decided { client: &client, grant, subject: &subject, resource, granted, verdict, assertion_sha256 };
        self.mint(decided, judged, request_id).await
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
        let unspent = self.check(text, &want, now).map_err(bad_proof)?;
        Ok(Judged { unspent, proof: DpopProof::new(text.to_owned()), epoch })
    }

    fn check(&self, text: &str, want: &Expected<'_>, now: Timestamp) -> Result<Unspent, ProofError> {
        let parts = dpop::split(text)?;
        let known = self.headers.get(parts.header);
        let header = match &known {
            Some(header) => header.clone(),
            None => Arc::new(ProofHeader::parse(&parts)?),
        };
        let claims = ProofClaims::parse(&parts)?;
        let unspent = dpop::verify(&parts, &header, &claims, want, now)?;
        if known.is_none() {
            self.headers.keep(parts.header, header);
        }
        Ok(unspent)
    }

    /// By default the proof's key is a certificate's: one key, one identity (T2).
    async fn check_key(&self, client: &mut Client, jkt: Jkt) -> Result<(), Refusal> {
        let own = match &client.certificate {
            Some(svid) => svid.key.jkt() == jkt,
            None => self.take_certificate(client, jkt).await?,
        };
        if !own && !client.entry.other_keys {
            let detail = "the proof's key is not the certificate's, and the entry does not allow other keys";
            return Err(Refusal::new(400, "proof", detail).with_error(OauthError::InvalidDpopProof));
        }
        self.check_not_stopped(client, jkt)
    }

    /// Minting is itself a policy decision (T6).
    fn decide(
        &self,
        policy: &PolicyEngine,
        client: &Client,
        grant: Grant,
        subject: &Subject,
        resource: &Resource,
        granted: &Granted,
    ) -> Result<Verdict, Refusal> {
        let entry = &client.entry;
        let verdict = policy.decide_mint(&MintIntent {
            principal: Principal {
                spiffe_id: client.id.clone(),
                groups: entry.groups.iter().chain(&subject.groups).cloned().collect(),
                owner: entry.owner.clone(),
                sponsor: entry.sponsor.clone(),
            },
            audience: &resource.url,
            grant: grant.into(),
            scope: granted.scope.iter().map(String::as_str).collect(),
            subject: &subject.sub,
            groups: &subject.groups,
            provider: subject.provider.as_deref(),
            client_auth: client.method,
            now: self.stores.clock.now(),
        });
        if verdict.decision == Decision::Allow {
            return Ok(verdict);
        }
        let why = match (&verdict.decision, &verdict.reason) {
            (Decision::AllowWithApproval(_), _) => "it asks for approval, which minting does not wait for",
            (_, Some(reason)) => reason.as_str(),
            (_, None) => "it forbids it",
        };
        let fix = verdict.fix.as_ref().map(|f| format!("; {f}")).unwrap_or_default();
        let detail = format!("policy does not let this token be minted (rule {}): {why}{fix}", verdict.rule());
        Err(Refusal::new(400, "policy", detail).with_error(OauthError::UnauthorizedClient))
    }

    async fn spend(&self, judged: &Judged) -> Result<(), Refusal> {
        match self.stores.replay.spend(&judged.unspent.id, judged.unspent.until, &judged.epoch).await? {
            Spend::First => Ok(()),
            Spend::Replay => Err(Refusal::new(400, "proof", "RFC 9449 §11.1: the proof was used before")
                .with_error(OauthError::InvalidDpopProof)),
            Spend::Broken => Err(bad_proof(ProofError::Nonce)),
        }
    }

    async fn mint(&self, decided: Decided<'_>, judged: Judged, request_id: &str) -> Result<Minted, Refusal> {
        let Decided { client, grant, subject, resource, granted, verdict, assertion_sha256 } = decided;
        let now = self.stores.clock.now();
        let (issuer, ttl, jkt) = (self.issuer.as_str(), self.ttl, judged.unspent.jkt);
        let claims = mint::claims(Minting { issuer, client, subject, resource, granted, ttl, jkt, now });
        let key = self.keys.current();
        let token = AccessToken::new(claims.sign(&key.kid, &key.key));
        if token.expose().len() > MAX_TOKEN {
            let detail = "the token would be longer than 16 KiB, and accepted nowhere: ask for less";
            return Err(Refusal::new(400, "scope", detail).with_error(OauthError::InvalidScope));
        }
        let proof = entropy::seal(judged.proof.expose());
        let mut openings = [("proof".to_owned(), proof.clone())].into();
        let acted_for = (claims.sub != client.id.as_str()).then(|| entropy::seal(claims.sub.clone()));
        let plain = grant == Grant::ClientCredentials && client.method == "tls_client_auth";
        let by =
            MintedBy { grant: <&str>::from(grant).to_owned(), client_auth: client.method.to_owned(), assertion_sha256 };
        let details = serde_json::to_vec(&claims.details).unwrap_or_default();
        let event = Event::Mint(Mint {
            request_id: request_id.to_owned(),
            spiffe_id: claims.client_id.clone(),
            jkt: claims.jkt,
            serial: claims.svid_serial.clone(),
            jti_sha256: Sha256::of(claims.jti.as_bytes()),
            token_sha256: token.digest(),
            audience: claims.aud.clone(),
            scope: claims.scope.clone(),
            expires_at: claims.exp,
            proof: proof.commitment(),
            by: (!plain).then_some(by),
            details_sha256: (!claims.details.is_empty()).then(|| Sha256::of(&details)),
            subject: acted_for.as_ref().map(crate::domain::digest::Opening::commitment),
            policy: Some(MintPolicy { version: verdict.policy_version, rules: verdict.rules }),
        });
        if let Some(subject) = acted_for {
            let openings: &mut std::collections::BTreeMap<_, _> = &mut openings;
            openings.insert("subject".to_owned(), subject);
        }
        self.stores.evidence.append(Staged { leaf: Leaf { time: now, event }, openings }).await?;
        metrics::counter!("popgate_tokens_minted_total", "grant" => <&str>::from(grant)).increment(1);
        tracing::debug!(%request_id, spiffe_id = %claims.client_id, audience = claims.aud, scope = claims.scope, "token minted");
        let expires_in = claims.exp.since(now).as_secs();
        Ok(Minted { token, expires_in, scope: claims.scope, details: claims.details, grant })
    }

    /// Reads the form of another endpoint and authenticates its client.
    pub async fn asked(&self, peer: &Peer, request: Request<Body>) -> Result<(Client, Form, HeaderMap), Refusal> {
        self.limits.source(peer.address.map(|a| a.ip()))?;
        let (parts, body) = request.into_parts();
        let (form, _) = read(&parts.headers, body).await?;
        let client = self.authenticate(peer, &form, &parts.headers).await?;
        self.limits.client(&client.id)?;
        if client.bearer.is_some() {
            let detail = "a JWT-SVID proves no key, so it asks for tokens alone: authenticate with the certificate";
            return Err(Refusal { error: Some(OauthError::InvalidClient), ..Refusal::new(401, "client", detail) });
        }
        self.spend_assertion(&client).await?;
        Ok((client, form, parts.headers))
    }

    /// A nonce for the challenge of a refusal; none while the replay store is away.
    pub async fn nonce(&self) -> Option<String> {
        let epoch = self.stores.replay.epoch().await.ok()?;
        Some(self.nonces.make(Role::Token, &epoch, self.stores.clock.now(), &entropy::random()))
    }

    /// Holds a source without authentication to its rate.
    pub fn limit_source(&self, source: Option<IpAddr>) -> Result<(), Refusal> {
        self.limits.source(source)
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<(Form, Vec<String>), Refusal> {
    let refuse = |detail: String| Refusal::new(400, "request", detail).with_error(OauthError::InvalidRequest);
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let kind = kinds.next().and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if kinds.next().is_some() || !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Err(refuse("the content type is not application/x-www-form-urlencoded".into()));
    }
    let bytes = body::read(body, MAX_FORM).await.map_err(|e| refuse(e.to_string()))?;
    mint::single(form::parse(&bytes).map_err(|e| refuse(e.to_string()))?)
}

fn bad_proof(error: ProofError) -> Refusal {
    metrics::counter!("popgate_proofs_refused_total", "plane" => "token", "check" => <&str>::from(error)).increment(1);
    Refusal::new(400, "proof", error.to_string()).with_error(error.oauth())
}
