//! Which headers pass, which are written, and which never do.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Headers of one hop (RFC 9110 §7.6.1), and what would frame the message anew.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Headers from outside that upstream would believe, and our own.
const CLAIMS: [&str; 12] = [
    "authorization",
    "dpop",
    "txn-token",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-real-ip",
    "popgate-approval",
    "popgate-request-id",
    "client-cert",
];

/// Response headers that a changed body would make false.
const ABOUT_BODY: [&str; 8] =
    ["content-length", "etag", "digest", "content-digest", "repr-digest", "content-md5", "accept-ranges", "signature"];

/// Headers that vary from one try to the next and change nothing upstream acts on; approvals do not bind them.
const VOLATILE: [&str; 9] = [
    "accept-encoding",
    "accept-language",
    "user-agent",
    "host",
    "content-length",
    "prefer",
    "traceparent",
    "tracestate",
    "date",
];

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).filter_map(|n| n.trim().parse().ok()).collect()
}

fn remove_hop(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in HOP {
        headers.remove(name);
    }
}

/// Headers that make another method of a request's.
const METHODS: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];

/// Names that upstreams believe for what a proxy says, or that turn the request into another than policy judged. A name
/// with `_` reads as the same name with `-` behind CGI and WSGI.
fn is_claim(name: &str) -> bool {
    const PREFIXES: [&str; 13] = [
        "x-forwarded-",
        "popgate-",
        "client-cert",
        "ssl-client",
        "x-ssl-",
        "x-client-cert",
        "x-original-",
        "x-rewrite-",
        "remote-user",
        "x-remote-",
        "x-auth-request-",
        "x-authenticated-",
        "x-webauth-",
    ];
    name.contains('_') || METHODS.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p))
}

/// Names that make another request of one which an edge passes on as it is, or that claim what nobody has checked. What
/// edges write of their own clients is theirs.
pub fn changes_request(name: &str) -> bool {
    const EDGES_OWN: [&str; 4] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port"];
    name == "txn-token" || (is_claim(name) && !EDGES_OWN.contains(&name))
}

/// Fields that a trailer must not carry: framing, routing, credentials, and how the content is read (RFC 9110 §6.5.1).
const NOT_IN_TRAILERS: [&str; 10] = [
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "set-cookie",
    "cookie",
    "cache-control",
    "www-authenticate",
    "trailer",
];

/// Whether the client understands trailers (RFC 9110 §10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case("trailers"))
}

/// The trailers that pass, either way.
pub fn trailers(sent: &HeaderMap) -> HeaderMap {
    let mut passing = sent.clone();
    remove_hop(&mut passing);
    let forbidden: Vec<HeaderName> = passing
        .keys()
        .filter(|n| {
            let name = n.as_str();
            NOT_IN_TRAILERS.contains(&name) || CLAIMS.contains(&name) || is_claim(name) || is_ours(name)
        })
        .cloned()
        .collect();
    for name in forbidden {
        passing.remove(name);
    }
    passing
}

/// Ours to say, or for the gateway's whole origin.
fn is_ours(name: &str) -> bool {
    name.starts_with("popgate-") || ["dpop-nonce", "txn-token", "alt-svc"].contains(&name)
}

/// The headers that upstream gets, before ours are added.
pub fn towards_upstream(client: &HeaderMap, masked: bool) -> HeaderMap {
    let mut headers = client.clone();
    remove_hop(&mut headers);
    for name in CLAIMS {
        headers.remove(name);
    }
    let forbidden: Vec<HeaderName> = headers.keys().filter(|n| is_claim(n.as_str())).cloned().collect();
    for name in forbidden {
        headers.remove(name);
    }
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT, HeaderName::from_static("prefer")] {
        headers.remove(name);
    }
    if masked {
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    headers
}

/// The headers that the client gets, before ours are added. A value that holds an injected credential goes.
pub fn towards_client(upstream: &HeaderMap, masked: bool, secret: Option<&[u8]>) -> HeaderMap {
    let mut headers = upstream.clone();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // Its chunks were read, whatever length it told besides (RFC 9112 section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop(&mut headers);
    let ours: Vec<HeaderName> = headers.keys().filter(|n| is_ours(n.as_str())).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    let challenges = headers.get_all(header::WWW_AUTHENTICATE);
    if challenges.iter().any(|v| memchr::memmem::find(&v.as_bytes().to_ascii_lowercase(), b"dpop").is_some()) {
        headers.remove(header::WWW_AUTHENTICATE);
    }
    if masked {
        for name in ABOUT_BODY {
            headers.remove(name);
        }
    }
    if let Some(secret) = secret.filter(|s| !s.is_empty()) {
        let leaking: Vec<HeaderName> = headers
            .iter()
            .filter(|(_, v)| memchr::memmem::find(v.as_bytes(), secret).is_some())
            .map(|(n, _)| n.clone())
            .collect();
        for name in leaking {
            headers.remove(name);
        }
    }
    headers
}

/// The headers that an approval binds: all that upstream gets, less the volatile ones; sorted.
pub fn bound(client: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut bound: Vec<(String, Vec<u8>)> = towards_upstream(client, false)
        .iter()
        .filter(|(n, _)| !VOLATILE.contains(&n.as_str()) && *n != header::CONTENT_TYPE)
        .map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()))
        .collect();
    bound.sort();
    bound
}

/// Headers whose values are credentials, or may be.
pub fn is_secret(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "authorization",
        "dpop",
        "cookie",
        "set-cookie",
        "proxy-authorization",
        "txn-token",
        "x-api-key",
        "api-key",
        "x-auth-token",
    ];
    NAMES.contains(&name)
}

/// What no route may change: it frames the message or says how it is read, is checked elsewhere, or is ours to say.
pub fn is_fixed(name: &str) -> bool {
    const NAMES: [&str; 14] = [
        "host",
        "range",
        "if-range",
        "accept-encoding",
        "content-length",
        "content-type",
        "content-encoding",
        "content-range",
        "expect",
        "trailer",
        "via",
        "forwarded",
        "traceparent",
        "www-authenticate",
    ];
    const PREFIXES: [&str; 4] = ["grpc-", "sec-websocket-", "access-control-", "mcp-"];
    HOP.contains(&name)
        || NAMES.contains(&name)
        || METHODS.contains(&name)
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || is_ours(name)
}

/// Names and values for a recording: credentials and cookies have no place in it.
pub fn recorded(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .filter(|(n, v)| !is_secret(n.as_str()) && !v.is_sensitive())
        .map(|(n, v)| (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (n, v) in pairs {
            headers.append(n.parse::<HeaderName>().expect("name"), v.parse().expect("value"));
        }
        headers
    }

    #[test]
    fn a_length_beside_chunks_is_not_the_answers() {
        let both = map(&[("content-length", "5"), ("transfer-encoding", "chunked"), ("etag", "e")]);
        assert_eq!(towards_client(&both, false, None).keys().collect::<Vec<_>>(), ["etag"]);
        assert!(towards_client(&map(&[("content-length", "5")]), false, None).contains_key("content-length"));
    }

    #[test]
    fn upstream_gets_no_credential_no_claim_and_no_hop_header() {
        let client = map(&[
            ("authorization", "DPoP t"),
            ("dpop", "p"),
            ("txn-token", "forged"),
            ("x-forwarded-for", "1.2.3.4"),
            ("remote-user", "root"),
            ("ssl-client-cert", "forged"),
            ("x-remote-groups", "admins"),
            ("x-auth-request-user", "root"),
            ("x-authenticated-user", "root"),
            ("x-webauth-user", "root"),
            ("connection", "x-secret, close"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("range", "bytes=0-1"),
            ("x-app", "kept"),
        ]);
        let upstream = towards_upstream(&client, true);
        let names: Vec<&str> = upstream.keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(upstream["x-app"], "kept");
        assert_eq!(upstream["accept-encoding"], "identity");
    }

    #[test]
    fn the_client_gets_no_challenge_nonce_or_credential_of_upstream() {
        let upstream = map(&[
            ("dpop-nonce", "n"),
            ("txn-token", "t"),
            ("alt-svc", "h3=\":443\""),
            ("popgate-request-id", "forged"),
            ("www-authenticate", "Basic realm=\"x\", DPoP error=\"x\""),
            ("etag", "\"1\""),
            ("content-length", "5"),
            ("x-echo", "key hunter2!"),
            ("x-app", "kept"),
        ]);
        let client = towards_client(&upstream, true, Some(b"hunter2"));
        assert_eq!(client.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-app"]);
        assert!(towards_client(&upstream, false, None).contains_key("etag"));
    }

    #[test]
    fn a_recording_has_no_credential_headers() {
        let headers =
            map(&[("authorization", "DPoP t"), ("DPoP", "p"), ("cookie", "c"), ("set-cookie", "c"), ("x-app", "v")]);
        assert_eq!(recorded(&headers), [("x-app".to_owned(), "v".to_owned())]);
    }
}
