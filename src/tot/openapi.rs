//! The API's own description.

use axum::body::Body;
use axum::http::{HeaderValue, Response, header};

/// The document, of OpenAPI 3.1.
const DOCUMENT: &str = include_str!("openapi.json");

/// Answers with the document, in this build's version.
pub async fn show() -> Response<Body> {
    let text = DOCUMENT.replacen("\"version\": \"0\"", concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\""), 1);
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The paths that a router's source names.
    fn routed(source: &str) -> impl Iterator<Item = String> + '_ {
        source.split(".route(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
    }

    #[test]
    fn every_path_is_described_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).expect("JSON");
        let described: BTreeSet<String> = document["paths"].as_object().expect("paths").keys().cloned().collect();
        let sources = [include_str!("serve.rs"), include_str!("facades.rs")];
        let served: BTreeSet<String> =
            sources.iter().flat_map(|s| routed(s)).filter(|p| p != "/openapi.json").collect();
        assert_eq!(described, served);
    }
}
