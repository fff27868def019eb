//! Enrolment by a proof of identity and renewal by certificate. The key is made here and never leaves.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::client::ClientError;
use crate::client::http::HttpClient;
use crate::client::identity::{Identity, Servers, server_check};
use crate::domain::digest::Sha256;
use crate::domain::secret::JoinToken;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::{Clock as _, Timestamp};
use crate::net::keys::P256Key;
use crate::net::tls::{self, ClientTrust};
use crate::protocol::bundle::TrustBundle;
use crate::protocol::csr::possession_message;
use crate::protocol::svid::{X509Svid, is_self_issued_ca, spki_sha256};
use crate::store::clock::SystemClock;

/// What proves who asks.
pub enum Proof {
    /// A one-time join token; it names the server's pin itself.
    JoinToken(JoinToken),
    /// A token of the platform: `oidc` or `kubernetes`.
    Token {
        /// The method.
        method: &'static str,
        /// The token.
        token: Zeroizing<String>,
    },
    /// A certificate that the machine has already, leaf first, and its key.
    X509 {
        /// DER.
        chain: Vec<Vec<u8>>,
        /// Its private key.
        key: PrivateKeyDer<'static>,
        /// The trust domain that the signature is for.
        trust_domain: TrustDomain,
    },
}

/// An enrolment to be made.
pub struct Enrolment<'a> {
    /// Identity listener.
    pub server: &'a str,
    /// SHA-256 of the root's public key; with a join token its own counts.
    pub pin: Option<Sha256>,
    /// What proves who asks.
    pub proof: &'a Proof,
    /// Which of several fitting entries.
    pub spiffe_id: Option<&'a SpiffeId>,
    /// Whether an agent asks, for its node.
    pub node: bool,
}

/// Enrols with a one-time token at `server`, which must prove the token's pin before it sees the secret.
pub async fn join(server: &str, token: &JoinToken) -> Result<Identity, ClientError> {
    let proof = Proof::JoinToken(token.clone());
    attest(&Enrolment { server, pin: None, proof: &proof, spiffe_id: None, node: false }).await
}

/// Enrols with any proof.
pub async fn attest(enrolment: &Enrolment<'_>) -> Result<Identity, ClientError> {
    let pin = match (enrolment.proof, enrolment.pin) {
        (Proof::JoinToken(token), _) => token.pin(),
        (_, Some(pin)) => pin,
        (_, None) => {
            let why =
                "the server must be known before it sees a proof: give --pin, which `popgate status` shows as `pin`";
            return Err(ClientError::Input(why.into()));
        }
    };
    let trust = ClientTrust {
        roots: Arc::new(move |presented| pinned(presented, pin)),
        check: server_check(None),
        clock: Arc::new(SystemClock),
    };
    let http = HttpClient::new(tls::client(trust, None)?);
    let key = P256Key::generate();
    let csr = csr(&key)?;
    let mut body = match enrolment.proof {
        Proof::JoinToken(token) => json!({"method": "join_token", "join_token": token.expose().as_str()}),
        Proof::Token { method, token } => json!({"method": method, "token": token.as_str()}),
        Proof::X509 { chain, key, trust_domain } => {
            let message = possession_message(trust_domain, &csr);
            let signature = tls::sign_message(key.clone_key(), &message)?;
            let chain: Vec<String> = chain.iter().map(|der| BASE64_STANDARD.encode(der)).collect();
            json!({"method": "x509_pop", "chain": chain, "signature": BASE64_STANDARD.encode(signature)})
        }
    };
    body["csr"] = BASE64_STANDARD.encode(&csr).into();
    body["node"] = enrolment.node.into();
    if let Some(id) = enrolment.spiffe_id {
        body["spiffe_id"] = id.as_str().into();
    }
    let url = format!("{}/v1/attest", enrolment.server);
    let mut response = post(&http, &url, &body).await;
    for pause in [200, 1000] {
        // The same request again gets the same answer, so that a lost one costs no token.
        if !matches!(response, Err(ClientError::Unreachable { .. })) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        response = post(&http, &url, &body).await;
    }
    certified(key, response?, &url, enrolment.server)
}

/// Renews an identity with a new key. Whoever keeps identities in files uses [`crate::client::kept::renew`].
pub async fn renew(identity: &Identity) -> Result<Identity, ClientError> {
    renew_with(identity, P256Key::generate()).await
}

/// Renews an identity with a given key: the same key again gets the same answer again.
pub async fn renew_with(identity: &Identity, key: P256Key) -> Result<Identity, ClientError> {
    if identity.servers.identity.is_empty() {
        return Err(ClientError::Input("this identity comes from an agent, which renews it".into()));
    }
    let http = HttpClient::new(identity.tls(true)?);
    let url = format!("{}/v1/renew", identity.servers.identity);
    let response = post(&http, &url, &json!({"csr": BASE64_STANDARD.encode(csr(&key)?)})).await?;
    certified(key, response, &url, &identity.servers.identity)
}

/// The roots among what a server presents that fit the pin.
fn pinned(presented: &[CertificateDer<'_>], pin: Sha256) -> Vec<Vec<u8>> {
    presented
        .iter()
        .filter(|der| is_self_issued_ca(der) && spki_sha256(der) == Some(pin))
        .map(|der| der.to_vec())
        .collect()
}

fn csr(key: &P256Key) -> Result<Vec<u8>, ClientError> {
    key.csr().map_err(|e| ClientError::Input(format!("the CSR cannot be made: {e}")))
}

/// Sends JSON.
pub async fn post(http: &HttpClient, url: &str, body: &Value) -> Result<Response<Bytes>, ClientError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body.to_string()))
        .map_err(|e| ClientError::Input(format!("{url}: {e}")))?;
    http.fetch(request).await
}

/// The document of a successful answer.
pub fn document(response: &Response<Bytes>, url: &str) -> Result<Value, ClientError> {
    let document: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    if response.status().is_success() {
        return Ok(document);
    }
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (error, detail) = (text("type"), text("detail"));
    Err(ClientError::Refused { what: url.to_owned(), status: response.status().as_u16(), error, detail })
}

/// A chain of base64 DER certificates, leaf first.
pub fn chain(value: &Value) -> Option<Vec<Vec<u8>>> {
    let decoded: Option<Vec<Vec<u8>>> =
        value.as_array()?.iter().map(|d| BASE64_STANDARD.decode(d.as_str()?).ok()).collect();
    decoded.filter(|c| !c.is_empty())
}

fn certified(key: P256Key, response: Response<Bytes>, url: &str, server: &str) -> Result<Identity, ClientError> {
    let document = document(&response, url)?;
    let bad = |cause: &str| ClientError::Protocol { what: url.to_owned(), cause: cause.to_owned() };
    let chain = chain(&document["svid"]).ok_or_else(|| bad("there is no certificate in it"))?;
    let leaf = X509Svid::parse(&chain[0]).map_err(|e| bad(&e.to_string()))?;
    let bundle = TrustBundle::parse(leaf.spiffe_id.trust_domain(), document["bundle"].to_string().as_bytes())
        .map_err(|e| bad(&e.to_string()))?;
    let mut servers: Servers = serde_json::from_value(document["servers"].clone()).map_err(|e| bad(&e.to_string()))?;
    // Where it was reached, not where it believes to be.
    server.clone_into(&mut servers.identity);
    let renew_after = document["renew_after"].as_str().and_then(Timestamp::parse_rfc3339);
    let mut identity = Identity::new(key, chain, bundle.roots, servers)?;
    // Not at once again, whatever the two clocks say.
    let now = SystemClock.now();
    let soonest = now.plus(identity.svid.not_after.since(now) / 10);
    identity.renew_after = renew_after.unwrap_or(identity.renew_after).max(soonest);
    Ok(identity)
}
