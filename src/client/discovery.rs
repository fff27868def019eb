//! From a URL to its token service: the 401's `resource_metadata` (RFC 9728), then the server's metadata (RFC 8414).

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
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

/// Calls a URL without credentials; the challenge names the resource's metadata. A path that anybody may GET may still demand
/// proofs of other methods: then the metadata is where it belongs (RFC 9728 section 3.1), of the path or of one above it.
pub async fn probe(http: &HttpClient, url: &str) -> Result<String, ClientError> {
    let probe = get(url)?;
    let uri = probe.uri().clone();
    let response = http.send(probe).await?;
    if let Some(metadata) = resource_metadata(response.headers()) {
        return Ok(metadata);
    }
    let status = response.status();
    if status != StatusCode::UNAUTHORIZED {
        for metadata in well_known(&uri) {
            if http.send(get(&metadata)?).await?.status().is_success() {
                return Ok(metadata);
            }
        }
    }
    Err(ClientError::Protocol {
        what: url.to_owned(),
        cause: format!(
            "status {status} without a DPoP challenge that names resource_metadata, and no metadata of a resource that it is part of; is a popgate gateway in front of it? What is public there is called without popgate"
        ),
    })
}

fn get(url: &str) -> Result<Request<Bytes>, ClientError> {
    let request = Request::builder().method(Method::GET).uri(url).body(Bytes::new());
    request.map_err(|e| ClientError::Input(format!("{url} is not a URL: {e}")))
}

/// Where the metadata of a URL is, and of what lies above it, narrowest first.
fn well_known(uri: &Uri) -> impl Iterator<Item = String> {
    let authority = uri.authority().map_or("", Authority::as_str);
    let origin = format!("{}://{authority}", uri.scheme_str().unwrap_or("https"));
    let mut rest = Some(uri.path().trim_end_matches('/'));
    std::iter::from_fn(move || {
        let path = rest?;
        rest = path.rsplit_once('/').map(|(above, _)| above);
        Some(format!("{origin}/.well-known/oauth-protected-resource{path}"))
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
    let response = http.fetch(get(url)?).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_looked_for_from_the_narrowest_resource_up() {
        let of = |url: &'static str| well_known(&Uri::from_static(url)).collect::<Vec<_>>();
        let at = |path| format!("https://gw:8443/.well-known/oauth-protected-resource{path}");
        assert_eq!(of("https://gw:8443/a/b"), [at("/a/b"), at("/a"), at("")]);
        assert_eq!(of("https://gw:8443/a/"), [at("/a"), at("")]);
        assert_eq!(of("https://gw:8443/"), [at("")]);
        assert_eq!(of("https://gw:8443"), [at("")]);
    }
}
