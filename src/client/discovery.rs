//! From a URL to its token service: the 401's `resource_metadata` (RFC 9728), then the server's metadata (RFC 8414).

use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use serde_json::Value;

use crate::client::ClientError;
use crate::client::http::HttpClient;

/// What is needed to ask for a token for a URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// The resource, for RFC 8707.
    pub resource: String,
    /// Where tokens are minted.
    pub token_endpoint: String,
    /// Whether the certificate must be on the connection.
    pub certificate: bool,
}

/// Calls a URL without credentials; the challenge names the resource's metadata.
pub async fn probe(http: &HttpClient, url: &str) -> Result<String, ClientError> {
    let probe = Request::builder().method(Method::GET).uri(url).body(Bytes::new());
    let probe = probe.map_err(|e| ClientError::Input(format!("{url} is not a URL: {e}")))?;
    let response = http.fetch(probe).await?;
    resource_metadata(response.headers()).ok_or_else(|| ClientError::Protocol {
        what: url.to_owned(),
        cause: format!(
            "status {} without a DPoP challenge that names resource_metadata; is a popgate gateway in front of it? What is public there is called without popgate",
            response.status()
        ),
    })
}

/// Reads a resource's metadata and its authorization server's.
pub async fn read(http: &HttpClient, metadata: &str) -> Result<Target, ClientError> {
    let resource = document(http, metadata).await?;
    let server = resource["authorization_servers"][0].as_str().unwrap_or_default().trim_end_matches('/').to_owned();
    let location = format!("{server}/.well-known/oauth-authorization-server");
    let server_metadata = document(http, &location).await?;
    if server_metadata["issuer"].as_str() != Some(server.as_str()) {
        return Err(ClientError::Protocol {
            what: location,
            cause: "its issuer is another than the resource names (RFC 8414 section 3.3)".into(),
        });
    }
    Ok(Target {
        resource: resource["resource"].as_str().unwrap_or_default().to_owned(),
        token_endpoint: server_metadata["token_endpoint"].as_str().unwrap_or_default().to_owned(),
        certificate: resource["tls_client_certificate_bound_access_tokens"].as_bool().unwrap_or(false),
    })
}

async fn document(http: &HttpClient, url: &str) -> Result<Value, ClientError> {
    let bad = |cause: String| ClientError::Protocol { what: url.to_owned(), cause };
    let request = Request::builder().uri(url).body(Bytes::new()).map_err(|e| bad(e.to_string()))?;
    let response = http.fetch(request).await?;
    if !response.status().is_success() {
        return Err(bad(format!("status {}", response.status())));
    }
    serde_json::from_slice(response.body()).map_err(|e| bad(e.to_string()))
}

/// The `resource_metadata` parameter of a DPoP challenge.
fn resource_metadata(headers: &HeaderMap) -> Option<String> {
    let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    challenges.filter(|c| c.starts_with("DPoP")).find_map(|c| parameter(c, "resource_metadata"))
}

/// A quoted parameter of a challenge.
pub fn parameter(challenge: &str, name: &str) -> Option<String> {
    let after = challenge.split_once(&format!("{name}=\""))?.1;
    after.split_once('"').map(|(value, _)| value.to_owned())
}
