//! Client authentication: `tls_client_auth` by URI SAN (RFC 8705 section 2.1.2), `private_key_jwt` by the certificate's key
//! (RFC 7523 section 2.2), and a JWT-SVID as the assertion (draft-ietf-oauth-spiffe-client-auth).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use serde_json::{Map, Value};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::people::Entry;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::net::listener::Peer;
use crate::protocol::claims::{numeric_date, text};
use crate::protocol::jwk::Algorithm;
use crate::protocol::jws::{self, Compact, JwsError};
use crate::protocol::jwt;
use crate::protocol::jwt_svid;
use crate::protocol::svid::X509Svid;
use crate::store::issued::{IssuedCertificate, Of};
use crate::store::statements::Tie;
use crate::token::endpoint::TokenPlane;

/// `client_assertion_type` of a JWT of the client's own (RFC 7523 section 2.2).
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// `client_assertion_type` of a JWT-SVID.
pub const JWT_SPIFFE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";
/// `typ` that a client's own assertion may have.
const TYPES: [&str; 3] = ["", "JWT", "client-authentication+jwt"];
/// Longest life of such an assertion.
const LONGEST: Duration = Duration::from_mins(10);
/// How far ahead a client's clock may run (FAPI 2.0 section 5.3.2.1, 13).
const EARLY: u64 = 10;
/// Certificates whose keys are tried for an assertion that names none.
const TRIED: usize = 8;

/// A workload that has proved itself.
pub struct Client {
    /// Who it is.
    pub id: SpiffeId,
    /// Its registration.
    pub entry: Entry,
    /// Its certificate, where it proved the key of one.
    pub certificate: Option<X509Svid>,
    /// Until when what it proved itself by holds.
    pub until: Timestamp,
    /// Digest of a proof that whoever has it can use, with its end: it is tied to the first key that comes with it.
    pub bearer: Option<(Sha256, Timestamp)>,
    /// Digest of the `jti` of its assertion, with the time until when it might be shown again: it counts once.
    pub once: Option<(Sha256, Timestamp)>,
    /// The method's registered name.
    pub method: &'static str,
}

/// What the ledger has of a certificate, which never changes.
pub struct KnownCertificate {
    svid: X509Svid,
    node: Option<SpiffeId>,
}

/// Parameters of the form, each occurring once.
pub type Form = BTreeMap<String, String>;

fn invalid_client(detail: impl Into<String>) -> Refusal {
    Refusal { error: Some(OauthError::InvalidClient), ..Refusal::new(401, "client", detail) }
}

fn invalid_request(detail: &str) -> Refusal {
    Refusal::new(400, "request", detail).with_error(OauthError::InvalidRequest)
}

/// One text for every fault of an assertion: before it holds, who is registered here is not the caller's to know.
fn bad_assertion(why: impl std::fmt::Display) -> Refusal {
    invalid_client("the client assertion is not accepted: is its audience this issuer alone, is it fresh, and is its key that of a certificate in force?").because(why)
}

impl TokenPlane {
    /// Authenticates the client of a request, by exactly one method (C4).
    pub async fn authenticate(&self, peer: &Peer, form: &Form, headers: &HeaderMap) -> Result<Client, Refusal> {
        let given = |name: &str| form.get(name).map(String::as_str);
        let assertion = match (given("client_assertion"), given("client_assertion_type")) {
            (None, None) => None,
            (Some(assertion), Some(kind)) => Some((assertion, kind)),
            _ => return Err(invalid_request("client_assertion and client_assertion_type come together")),
        };
        let secret = form.contains_key("client_secret") || headers.contains_key(header::AUTHORIZATION);
        let methods = usize::from(peer.leaf.is_some()) + usize::from(assertion.is_some()) + usize::from(secret);
        if methods > 1 {
            return Err(invalid_request("more than one method of client authentication (RFC 6749 section 2.3)"));
        }
        let client = match (assertion, &peer.leaf) {
            (Some((assertion, JWT_BEARER)), _) => self.by_own_jwt(assertion).await?,
            (Some((assertion, JWT_SPIFFE)), _) if self.jwt_svid_clients => self.by_jwt_svid(assertion)?,
            (Some(_), _) => return Err(invalid_client("that client_assertion_type is not offered here")),
            (None, Some(leaf)) => return self.by_certificate(leaf, given("client_id")).await,
            (None, None) => {
                let detail = "the connection has no client certificate, and the request no client assertion";
                return Err(invalid_client(detail));
            }
        };
        // RFC 7521 section 4.2: where it is there, it names the same client.
        if given("client_id").is_some_and(|id| id != client.id.as_str()) {
            return Err(invalid_client("client_id is not the assertion's subject"));
        }
        Ok(client)
    }

    async fn by_certificate(&self, leaf: &[u8], client_id: Option<&str>) -> Result<Client, Refusal> {
        let digest = Sha256::of(leaf);
        let known = self.certificates.get(&digest);
        let svid = match &known {
            Some(known) => known.svid.clone(),
            None => X509Svid::parse(leaf).map_err(|e| invalid_client(e.to_string()))?,
        };
        let client_id =
            client_id.ok_or_else(|| invalid_request("client_id is missing; it is the workload's SPIFFE ID"))?;
        if client_id != svid.spiffe_id.as_str() {
            return Err(invalid_client("client_id is not the URI SAN of the certificate"));
        }
        if svid.spiffe_id.is_reserved() {
            return Err(invalid_client("a person's, a node's or a server's certificate gets no access token"));
        }
        if self.stores.clock.now() >= svid.not_after {
            return Err(invalid_client("the certificate of this connection has ended"));
        }
        let entry = self.standing(&svid.spiffe_id, Some(&svid)).map_err(|why| invalid_client(why.0).because(why.1))?;
        let node = match &known {
            Some(known) => known.node.clone(),
            None => self.issued_through(&svid).await?,
        };
        let revoked = |kind| invalid_client("the workload is revoked").because(kind);
        self.check_node(node.as_ref(), &entry).map_err(revoked)?;
        if known.is_none() {
            self.certificates.put(digest, Arc::new(KnownCertificate { svid: svid.clone(), node }));
        }
        let (id, until) = (svid.spiffe_id.clone(), svid.not_after);
        Ok(Client { id, entry, certificate: Some(svid), until, bearer: None, once: None, method: "tls_client_auth" })
    }

    /// The registration of a workload that nothing stops; else what it reads, and what the log keeps.
    fn standing(&self, id: &SpiffeId, svid: Option<&X509Svid>) -> Result<Entry, (&'static str, String)> {
        let now = self.stores.clock.now();
        let entry = self.stores.entries.get(id).filter(|e| !e.has_expired(now));
        let entry = entry.ok_or(("the workload is not registered any more", String::new()))?;
        let subject = Subject {
            serial: svid.map(|s| s.serial.clone()),
            jkt: svid.map(|s| s.key.jkt()),
            ..Subject::workload(&entry)
        };
        match self.stores.revocations.watch().borrow().stops(&subject, now) {
            Some(kind) => Err(("the workload is revoked", kind.to_string())),
            None => Ok(entry),
        }
    }

    /// The node through which a certificate was issued. One of our own trust domain counts only if the ledger has it: what a
    /// stolen CA key signed was issued to nobody.
    async fn issued_through(&self, svid: &X509Svid) -> Result<Option<SpiffeId>, Refusal> {
        if !svid.spiffe_id.is_member_of(&self.trust_domain) {
            return Ok(None);
        }
        let row = self.stores.issued.by_serial(&svid.serial).await?;
        let row = row.filter(|r| r.spiffe_id == svid.spiffe_id && Sha256::of(&r.der) == svid.sha256);
        row.map(|r| r.lineage.node).ok_or_else(|| invalid_client("the certificate was not issued here"))
    }

    /// The certificate of the proof's key, for a client that showed none: it bounds the token as if it had been shown.
    pub async fn take_certificate(&self, client: &mut Client, jkt: Jkt) -> Result<bool, Refusal> {
        let Some(row) = self.stores.issued.by_key(&client.id, jkt).await? else { return Ok(false) };
        let svid = X509Svid::parse(&row.der).map_err(|e| invalid_client(e.to_string()))?;
        if svid.not_after <= self.stores.clock.now() {
            return Ok(false);
        }
        self.standing(&client.id, Some(&svid)).map_err(|why| invalid_client(why.0).because(why.1))?;
        self.check_node(row.lineage.node.as_ref(), &client.entry)
            .map_err(|kind| invalid_client("the workload is revoked").because(kind))?;
        client.until = client.until.min(svid.not_after);
        client.certificate = Some(svid);
        Ok(true)
    }

    /// The proof's key may be stopped where the certificate's is not.
    pub fn check_not_stopped(&self, client: &Client, jkt: Jkt) -> Result<(), Refusal> {
        let subject = Subject { jkt: Some(jkt), ..Subject::of(&client.id) };
        match self.stores.revocations.watch().borrow().stops(&subject, self.stores.clock.now()) {
            Some(kind) => Err(invalid_client("the key of the proof is revoked").because(kind)),
            None => Ok(()),
        }
    }

    /// What came through a node that is stopped is stopped with it.
    fn check_node(&self, node: Option<&SpiffeId>, entry: &Entry) -> Result<(), String> {
        let subject = Subject { node: node.cloned(), ..Subject::workload(entry) };
        let stopped = self.stores.revocations.watch().borrow().stops(&subject, self.stores.clock.now());
        stopped.map_or(Ok(()), |kind| Err(kind.to_string()))
    }

    /// `private_key_jwt`, signed by the key of a certificate in force, which the ledger has.
    async fn by_own_jwt(&self, assertion: &str) -> Result<Client, Refusal> {
        let now = self.stores.clock.now();
        if assertion.len() > jwt::MAX_JWT {
            return Err(bad_assertion("longer than 16 KiB"));
        }
        let jws = Compact::split(assertion).map_err(bad_assertion)?;
        let header = jws.header_object().map_err(bad_assertion)?;
        jwt::check_type(&header, &TYPES).map_err(bad_assertion)?;
        let algorithm = text(&header, "alg").and_then(Algorithm::from_name);
        let algorithm = algorithm.ok_or_else(|| bad_assertion(JwsError::Algorithm))?;
        let claims = jws.payload_object().map_err(bad_assertion)?;
        let id = text(&claims, "sub").and_then(|s| s.parse::<SpiffeId>().ok());
        let id = id.ok_or_else(|| bad_assertion("sub is no SPIFFE ID"))?;
        let until = own_claims(&claims, &id, &self.issuer, now).map_err(bad_assertion)?;
        let rows = self.certificates(&id, text(&header, "kid")).await?;
        let fits = |row: IssuedCertificate| {
            let svid = X509Svid::parse(&row.der).ok()?;
            (svid.not_after > now && svid.key.algorithm() == algorithm && jws.verify(&svid.key).is_ok())
                .then_some((svid, row))
        };
        let found = rows.into_iter().find_map(fits);
        let (svid, row) = found.ok_or_else(|| bad_assertion("signed by no certificate's key"))?;
        let entry = self.standing(&id, Some(&svid)).map_err(|why| bad_assertion(format!("{}: {}", why.0, why.1)))?;
        self.check_node(row.lineage.node.as_ref(), &entry).map_err(bad_assertion)?;
        let jti = text(&claims, "jti").unwrap_or_default();
        let digest = Sha256::of_parts(&[b"client-assertion\0", id.as_str().as_bytes(), b"\0", jti.as_bytes()]);
        let once = Some((digest, until.plus(Duration::from_mins(2))));
        let until = svid.not_after;
        Ok(Client { id, entry, certificate: Some(svid), until, bearer: None, once, method: "private_key_jwt" })
    }

    /// Spends the client's assertion. Not before the request's proof fits: who is asked for a nonce sends the same again.
    pub async fn spend_assertion(&self, client: &Client) -> Result<(), Refusal> {
        let Some((digest, until)) = client.once else { return Ok(()) };
        match self.stores.statements.tie(digest, Jkt([0; 32]), until, self.stores.clock.now()).await? {
            Tie::First => Ok(()),
            _ => Err(bad_assertion("its jti was used before")),
        }
    }

    /// The certificates whose key may have signed: the one that `kid` names by its thumbprint, or the latest.
    async fn certificates(&self, id: &SpiffeId, kid: Option<&str>) -> Result<Vec<IssuedCertificate>, Refusal> {
        if let Some(jkt) = kid.and_then(|k| k.parse::<Jkt>().ok()) {
            return Ok(self.stores.issued.by_key(id, jkt).await?.into_iter().collect());
        }
        let mut live = self.stores.issued.live(Of::Identity(id), self.stores.clock.now()).await?;
        live.sort_by_key(|c| std::cmp::Reverse(c.not_after));
        let mut found = Vec::new();
        for certificate in live.into_iter().take(TRIED) {
            found.extend(self.stores.issued.by_serial(&certificate.serial).await?);
        }
        Ok(found)
    }

    /// A JWT-SVID of our own trust domain or of one that is federated. SVIDs are reused, so its `jti` is not counted.
    fn by_jwt_svid(&self, assertion: &str) -> Result<Client, Refusal> {
        let svid = self.jwt_svid(assertion).map_err(bad_assertion)?;
        let entry =
            self.standing(&svid.spiffe_id, None).map_err(|why| bad_assertion(format!("{}: {}", why.0, why.1)))?;
        let signed = Compact::split(assertion).map_err(bad_assertion)?;
        Ok(Client {
            bearer: Some((signed.statement(), svid.expires_at)),
            id: svid.spiffe_id,
            entry,
            certificate: None,
            once: None,
            until: svid.expires_at,
            method: "spiffe_jwt",
        })
    }

    /// Verifies a JWT-SVID whose audience is this issuer alone.
    pub fn jwt_svid(&self, text: &str) -> Result<jwt_svid::JwtSvid, String> {
        let claimed = Compact::split(text).and_then(|c| c.payload_object()).map_err(|e| e.to_string())?;
        let domain = self::text(&claimed, "sub").and_then(|s| s.parse::<SpiffeId>().ok()).map(|id| id.trust_domain());
        let bundle = domain.and_then(|d| (self.bundles)(&d));
        let svid = jwt_svid::verify(text, &self.issuer, |_| bundle.as_ref(), self.stores.clock.now());
        let svid = svid.map_err(|e| e.to_string())?;
        let sole = match svid.claims.get("aud") {
            Some(Value::Array(many)) => many.len() == 1,
            Some(Value::String(_)) => true,
            _ => false,
        };
        if !sole {
            return Err("it has another audience besides".into());
        }
        if svid.spiffe_id.is_reserved() {
            return Err("it is popgate's own".into());
        }
        // Of our own there is one text, by which the evidence knows it.
        let own = svid.spiffe_id.is_member_of(&self.trust_domain);
        let signature = Compact::split(text).and_then(|c| c.signature_bytes()).map_err(|e| e.to_string())?;
        if own && !jws::is_low_s(&signature) {
            return Err("its signature is another form of the one that was made".into());
        }
        Ok(svid)
    }
}

/// RFC 7523 section 3 and FAPI 2.0: `iss` and `sub` are the client, `aud` the issuer as one text. An array may name another
/// server beside it, which could then use the assertion here (CVE-2025-27370).
fn own_claims(claims: &Map<String, Value>, id: &SpiffeId, issuer: &str, now: Timestamp) -> Result<Timestamp, String> {
    if text(claims, "iss") != Some(id.as_str()) {
        return Err("iss is not sub".into());
    }
    if text(claims, "aud") != Some(issuer) {
        return Err("aud is not the issuer as one text".into());
    }
    let until = jwt::check_time(claims, now, 0, EARLY).map_err(|e| e.to_string())?;
    if until > now.plus(LONGEST) {
        return Err("exp is more than ten minutes ahead".into());
    }
    if claims.contains_key("iat") && numeric_date(claims, "iat").is_none() {
        return Err("iat is no date".into());
    }
    let jti = text(claims, "jti").filter(|j| !j.is_empty() && j.len() <= 256);
    jti.map(|_| until).ok_or_else(|| "jti is missing".into())
}
