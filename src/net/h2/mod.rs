//! HTTP/2 over the `h2` crate, which frames: a server and a client that pass interim answers (RFC 9110 section 15.2) and
//! never take a stream that was reset for a body that ended.

pub mod body;
pub mod client;
mod pipe;
mod pulse;
pub mod server;
#[cfg(test)]
mod tests;
pub mod tunnel;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields of one connection, which HTTP/2 has none of (RFC 9113 section 8.2.2).
const OF_A_CONNECTION: [HeaderName; 3] =
    [HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection"), header::TRANSFER_ENCODING];

/// Takes out what a message of HTTP/1.1 says of its connection. `TE` may say that trailers are taken, and nothing else.
fn strip(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::TE)
        .collect();
    for name in OF_A_CONNECTION.iter().chain(&[header::CONNECTION, header::UPGRADE]).chain(&listed) {
        headers.remove(name);
    }
    let mut codings = headers.get_all(header::TE).iter();
    match (codings.next(), codings.next()) {
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"trailers") => {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        _ => drop(headers.remove(header::TE)),
    }
}
