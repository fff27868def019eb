//! What a client prefers (RFC 7240), as far as it concerns being held.

use std::time::Duration;

use http::HeaderMap;

fn preferences(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split([',', ';'])).map(str::trim)
}

/// `Prefer: respond-async` (RFC 7240 section 4.1).
pub fn respond_async(headers: &HeaderMap) -> bool {
    preferences(headers).any(|p| p.eq_ignore_ascii_case("respond-async"))
}

/// `Prefer: wait=N` (RFC 7240 section 4.3).
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    preferences(headers)
        .filter_map(|p| p.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(Duration::from_secs)
}
