//! Request → Caller: one token, one fresh proof, spent here. Cheap refusals come first, then signatures, then the claim.

use std::sync::Arc;

use http::{HeaderMap, header};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::people::Entry;
use crate::domain::proof::{Epoch, Role};
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject;
use crate::domain::secret::{AccessToken, DpopProof};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::gateway::authorize;
use crate::gateway::read::Incoming;
use crate::gateway::serve::Gateway;
use crate::gateway::tokens::VerifiedToken;
use crate::net::listener::Peer;
use crate::protocol::access_token::{self, Claims, TokenError};
use crate::protocol::dpop::{self, Bound, Expected, ProofClaims, ProofError, ProofHeader, SignedBody, Unspent};
use crate::protocol::htu::Htu;
use crate::protocol::jwk::PublicKey;
use crate::protocol::svid::X509Svid;
use crate::store::keys::KeyUse;
use crate::store::replay::Spend;

/// A workload that has proved, for this very request, that it holds its token's key.
pub struct Caller {
    /// The verified token.
    pub token: Arc<VerifiedToken>,
    /// SHA-256 of the token.
    pub token_sha256: Sha256,
    /// The spent proof, which evidence keeps.
    pub proof: DpopProof,
    /// What it says of the body.
    pub signed_body: SignedBody,
    /// Its registration now.
    pub entry: Entry,
    /// Those of the workloads that it acts for or after.
    pub acted_for: Vec<Entry>,
    /// Everything a revocation can name.
    pub subject: Subject,
}

/// What a caller must bring here.
pub struct Demand<'a> {
    /// The audience; none: any of ours, for requests to the gateway itself or to no route.
    pub resource: Option<&'a str>,
    /// Whether the certificate must be on the connection.
    pub certificate: bool,
    /// Whether the proof needs a nonce.
    pub nonce: bool,
}

/// A refusal before the proof holds, and whom the token claims to be for.
pub struct Unproved {
    /// What the client reads.
    pub refusal: Refusal,
    /// From a verified token whose proof failed.
    pub claimed: Option<crate::domain::spiffe_id::SpiffeId>,
    /// Digest of what was sent as a proof.
    pub proof_sha256: Option<Sha256>,
}

impl From<Refusal> for Unproved {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, claimed: None, proof_sha256: None }
    }
}

impl Gateway {
    /// Authenticates one request.
    pub async fn authenticate(&self, peer: &Peer, request: &Incoming, demand: &Demand<'_>) -> Result<Caller, Unproved> {
        let now = self.stores.clock.now();
        let token = credential(&request.head.headers, request.query())?;
        let digest = token.digest();
        let values = request.head.headers.get_all("dpop").iter().map(|v| v.to_str().unwrap_or_default());
        let proof = DpopProof::new(dpop::single(values).map_err(bad_proof)?.to_owned());
        let epoch = self.stores.replay.epoch().await.map_err(Refusal::from)?;
        let unproved = |refusal| Unproved { refusal, claimed: None, proof_sha256: Some(proof.digest()) };
        let (verified, unspent, signed_body) =
            self.prove(request, demand, &token, digest, &proof, epoch, now).await.map_err(unproved)?;
        let claimed = |refusal| Unproved {
            refusal,
            claimed: Some(verified.claims.client_id.clone()),
            proof_sha256: Some(proof.digest()),
        };
        let (entry, subject) = self.standing(&verified, now).map_err(claimed)?;
        if entry.nonce_required && !unspent.with_nonce {
            return Err(claimed(bad_proof(ProofError::Nonce)));
        }
        self.check_audience(&verified, demand).map_err(claimed)?;
        self.check_certificate(peer, &verified, demand, now).map_err(claimed)?;
        self.spend(&unspent, &epoch).await.map_err(claimed)?;
        metrics::histogram!("popgate_client_clock_offset_seconds")
            .record(f64::from(i32::try_from(unspent.clock_offset).unwrap_or(i32::MAX)));
        let acted_for = self.acted_for(&verified.claims);
        Ok(Caller { token: verified, token_sha256: digest, proof, signed_body, entry, acted_for, subject })
    }

    /// The registrations of the workloads that a token's holder acts for or after.
    pub fn acted_for(&self, claims: &Claims) -> Vec<Entry> {
        claims.parties().iter().filter_map(|party| self.stores.entries.get(&party.parse().ok()?)).collect()
    }

    #[expect(clippy::too_many_arguments, reason = "one step of authenticate, split for its length alone")]
    async fn prove(
        &self,
        request: &Incoming,
        demand: &Demand<'_>,
        token: &AccessToken,
        digest: Sha256,
        proof: &DpopProof,
        epoch: Epoch,
        now: Timestamp,
    ) -> Result<(Arc<VerifiedToken>, Unspent, SignedBody), Refusal> {
        let uri = Htu::of(&request.origin, &request.path);
        let mut want = Expected {
            role: Role::Gateway,
            method: request.head.method.as_str(),
            uri: &uri,
            token: Some(Bound { digest, jkt: None }),
            window: self.window,
            nonces: &self.nonces,
            epoch,
            nonce_required: demand.nonce,
        };
        let parts = dpop::split(proof.expose()).map_err(bad_proof)?;
        let known = self.caches.headers.get(parts.header);
        let header = match &known {
            Some(header) => header.clone(),
            None => Arc::new(ProofHeader::parse(&parts).map_err(bad_proof)?),
        };
        let claims = ProofClaims::parse(&parts).map_err(bad_proof)?;
        dpop::fit(&claims, &want, now).map_err(bad_proof)?;
        let verified = self.verify_token(token, digest, now).await?;
        want.token = Some(Bound { digest, jkt: Some(verified.claims.jkt) });
        let unspent = dpop::verify(&parts, &header, &claims, &want, now).map_err(bad_proof)?;
        if known.is_none() {
            self.caches.headers.keep(parts.header, header);
        }
        Ok((verified, unspent, claims.signed_body()))
    }

    async fn verify_token(
        &self,
        token: &AccessToken,
        digest: Sha256,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        if let Some(known) = self.caches.token(&digest, now) {
            return Ok(known);
        }
        let kid = access_token::key_id(token.expose()).map_err(bad_token)?;
        let published = self.stores.keys.list(KeyUse::AccessToken, now);
        let jwk = published.iter().find(|k| k.kid == kid).and_then(|k| k.jwk.as_object());
        let key = jwk.and_then(|jwk| PublicKey::from_jwk(jwk).ok()).ok_or_else(|| bad_token(TokenError::UnknownKey))?;
        let claims = access_token::verify(token.expose(), &key, &self.issuer, now).map_err(bad_token)?;
        let issued = self.stores.issued.by_key(&claims.client_id, claims.jkt).await?;
        let svid_end = issued.map_or(claims.exp, |c| c.not_after);
        let verified = Arc::new(VerifiedToken { claims, svid_end });
        self.caches.keep_token(digest, verified.clone());
        Ok(verified)
    }

    /// Whether the workload behind a token still stands: registered, and stopped by nobody.
    pub fn standing(&self, token: &VerifiedToken, now: Timestamp) -> Result<(Entry, Subject), Refusal> {
        let gone = |detail: &str| Refusal::unauthorized(OauthError::InvalidToken, detail);
        let entry =
            self.stores.entries.get(&token.claims.client_id).filter(|e| e.expires_at.is_none_or(|end| end > now));
        let entry = entry.ok_or_else(|| gone("the workload is not registered any more"))?;
        let subject = Subject {
            serial: token.claims.svid_serial.clone(),
            jkt: Some(token.claims.jkt),
            jti: Some(token.claims.jti.clone()),
            groups: entry.groups.iter().chain(&token.claims.groups).cloned().collect(),
            ..Subject::workload(&entry)
        };
        let registered = |id: &SpiffeId| self.stores.entries.get(id).filter(|e| !e.has_expired(now));
        let subject = subject.acting_for(token.claims.parties(), token.claims.begun(), registered);
        let subject = subject.ok_or_else(|| gone("a workload that is acted for is not registered any more"))?;
        match self.revoked.borrow().stops(&subject, now) {
            Some(kind) => Err(gone("the workload or its token is revoked").because(kind)),
            None => Ok((entry, subject)),
        }
    }

    fn check_audience(&self, token: &VerifiedToken, demand: &Demand<'_>) -> Result<(), Refusal> {
        let rules = self.rules.load();
        let fits = match demand.resource {
            Some(resource) => token.claims.aud == resource,
            None => rules.routes().iter().any(|r| r.resource == token.claims.aud),
        };
        if fits {
            Ok(())
        } else {
            Err(Refusal::unauthorized(OauthError::InvalidToken, "the token is for another resource"))
        }
    }

    /// `x5t#S256` is enforced wherever it is present (RFC 8705 §3), and demanded where the route says so. A certificate
    /// that is on the connection must stand, whoever's token comes over it.
    fn check_certificate(
        &self,
        peer: &Peer,
        token: &VerifiedToken,
        demand: &Demand<'_>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let refuse = |detail: &str| Err(Refusal::unauthorized(OauthError::InvalidToken, detail));
        let svid = connection_svid(peer);
        if let Some(svid) = &svid {
            if svid.spiffe_id.is_reserved() {
                return refuse("a person's or a server's certificate does not call through the gateway");
            }
            if now >= svid.not_after {
                return refuse("the certificate of this connection has ended");
            }
            if self.revoked.borrow().stops(&Subject::certificate(&svid.spiffe_id, &svid.serial), now).is_some() {
                return refuse("the certificate on the connection is revoked");
            }
        }
        match (token.claims.x5t_s256, svid) {
            (None, _) if !demand.certificate => Ok(()),
            (None, _) => refuse("this resource demands a certificate-bound token: ask for one with its resource"),
            (Some(_), None) => refuse("the token is bound to a certificate, and the connection has none"),
            (Some(bound), Some(svid)) if bound == svid.sha256 => Ok(()),
            (Some(_), Some(_)) => refuse("the token is bound to another certificate than the connection's"),
        }
    }

    async fn spend(&self, unspent: &Unspent, epoch: &Epoch) -> Result<(), Refusal> {
        match self.stores.replay.spend(&unspent.id, unspent.until, epoch).await? {
            Spend::First => Ok(()),
            Spend::Broken => Err(bad_proof(ProofError::Nonce)),
            Spend::Replay => {
                metrics::counter!("popgate_proofs_refused_total", "plane" => "gateway", "check" => "replay")
                    .increment(1);
                Err(Refusal::unauthorized(OauthError::InvalidDpopProof, "RFC 9449 §11.1: the proof was used before"))
            }
        }
    }
}

/// The one access token of a request (P11): `DPoP` scheme, one header, nothing in the query.
fn credential(headers: &HeaderMap, query: &str) -> Result<AccessToken, Refusal> {
    without_token(query)?;
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(Refusal::new(400, "credential", "more than one Authorization header")
            .with_error(OauthError::InvalidRequest));
    }
    let Some(value) = first else {
        return Err(Refusal::new(401, "unauthorized", "no credentials: send a DPoP-bound access token and a proof"));
    };
    let value = value.to_str().unwrap_or_default();
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::unauthorized(
            OauthError::InvalidToken,
            "tokens here are bound to a key: use the DPoP scheme with a proof",
        ));
    }
    if !scheme.eq_ignore_ascii_case("dpop") || token.is_empty() || token.contains([' ', ',']) {
        return Err(Refusal::unauthorized(
            OauthError::InvalidToken,
            "the Authorization header is not `DPoP` and one token",
        ));
    }
    Ok(AccessToken::new(token.to_owned()))
}

/// A query that carries an access token is refused: upstream would get it, and write it down.
pub(super) fn without_token(query: &str) -> Result<(), Refusal> {
    if authorize::names_token(query.as_bytes()) {
        return Err(Refusal::new(400, "credential", "an access token in the query is never accepted")
            .with_error(OauthError::InvalidRequest));
    }
    Ok(())
}

/// The leaf on the connection, read once.
fn connection_svid(peer: &Peer) -> Option<Arc<X509Svid>> {
    let leaf = peer.leaf.as_ref()?;
    let read = peer.read.get_or_init(|| match X509Svid::parse(leaf) {
        Ok(svid) => Arc::new(svid),
        Err(_) => Arc::new(()),
    });
    read.clone().downcast::<X509Svid>().ok()
}

pub(super) fn bad_proof(error: ProofError) -> Refusal {
    count_refused(error);
    Refusal::unauthorized(error.oauth(), error.to_string())
}

/// Counts a proof that does not hold.
pub(super) fn count_refused(error: ProofError) {
    metrics::counter!("popgate_proofs_refused_total", "plane" => "gateway", "check" => <&str>::from(error))
        .increment(1);
}

/// One text for every state of a token: before the proof holds it is not the caller's to know.
fn bad_token(error: TokenError) -> Refusal {
    metrics::counter!("popgate_tokens_refused_total", "kind" => <&str>::from(error)).increment(1);
    Refusal::unauthorized(OauthError::InvalidToken, "the access token is not valid here").because(error)
}

/// The key that a caller's approvals are bound to.
impl Caller {
    /// The token's key.
    pub fn jkt(&self) -> Jkt {
        self.token.claims.jkt
    }
}
