//! Enrolment by join token and renewal by certificate. The key is made here and never leaves.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, header};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::client::ClientError;
use crate::client::http::HttpClient;
use crate::client::identity::{Identity, Servers, server_check};
use crate::domain::digest::Sha256;
use crate::domain::secret::JoinToken;
use crate::net::keys::P256Key;
use crate::net::tls::{self, ClientTrust};
use crate::protocol::bundle::TrustBundle;
use crate::protocol::svid::{X509Svid, is_self_issued_ca, spki_sha256};
use crate::store::clock::SystemClock;

/// Enrols with a one-time token at `server`, which must prove the token's pin before it sees the secret.
pub async fn join(server: &str, token: &JoinToken) -> Result<Identity, ClientError> {
    let pin = token.pin();
    let trust = ClientTrust {
        roots: Arc::new(move |presented| pinned(presented, pin)),
        check: server_check(None),
        clock: Arc::new(SystemClock),
    };
    let http = HttpClient::new(tls::client(trust, None)?);
    let key = P256Key::generate();
    let body = json!({"method": "join_token", "join_token": token.expose().as_str(), "csr": csr(&key)?});
    let response = post(&http, &format!("{server}/v1/attest"), &body).await?;
    certified(key, response, &format!("{server}/v1/attest"))
}

/// Renews an identity with a new key.
pub async fn renew(identity: &Identity) -> Result<Identity, ClientError> {
    let http = HttpClient::new(identity.tls(true)?);
    let key = P256Key::generate();
    let url = format!("{}/v1/renew", identity.servers.identity);
    let response = post(&http, &url, &json!({"csr": csr(&key)?})).await?;
    certified(key, response, &url)
}

/// The roots among what a server presents that fit the pin.
fn pinned(presented: &[CertificateDer<'_>], pin: Sha256) -> Vec<Vec<u8>> {
    presented
        .iter()
        .filter(|der| is_self_issued_ca(der) && spki_sha256(der) == Some(pin))
        .map(|der| der.to_vec())
        .collect()
}

fn csr(key: &P256Key) -> Result<String, ClientError> {
    let der = key.csr().map_err(|e| ClientError::Input(format!("the CSR cannot be made: {e}")))?;
    Ok(BASE64_STANDARD.encode(der))
}

async fn post(http: &HttpClient, url: &str, body: &Value) -> Result<Response<Bytes>, ClientError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Bytes::from(body.to_string()))
        .map_err(|e| ClientError::Input(format!("{url}: {e}")))?;
    http.fetch(request).await
}

fn certified(key: P256Key, response: Response<Bytes>, url: &str) -> Result<Identity, ClientError> {
    let document: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !response.status().is_success() {
        return Err(ClientError::Refused {
            what: url.to_owned(),
            status: response.status().as_u16(),
            error: text("type"),
            detail: text("detail"),
        });
    }
    let bad = |cause: &str| ClientError::Protocol { what: url.to_owned(), cause: cause.to_owned() };
    let chain: Option<Vec<Vec<u8>>> = document["svid"]
        .as_array()
        .map(|list| list.iter().filter_map(|d| BASE64_STANDARD.decode(d.as_str()?).ok()).collect());
    let chain = chain.filter(|c| !c.is_empty()).ok_or_else(|| bad("there is no certificate in it"))?;
    let leaf = X509Svid::parse(&chain[0]).map_err(|e| bad(&e.to_string()))?;
    let bundle = TrustBundle::parse(leaf.spiffe_id.trust_domain(), document["bundle"].to_string().as_bytes())
        .map_err(|e| bad(&e.to_string()))?;
    let servers: Servers = serde_json::from_value(document["servers"].clone()).map_err(|e| bad(&e.to_string()))?;
    Identity::new(key, chain, bundle.roots, servers)
}
