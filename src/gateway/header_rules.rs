//! Headers that a route sets and removes, either way: the operator's own, never a credential, and nothing that would make
//! another message of the one that was judged.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::gateway::config::HeaderRulesConfig;
use crate::gateway::headers;

/// What happens to the headers of one direction.
#[derive(Clone, Debug, Default)]
pub struct HeaderRules {
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderRules {
    /// Checks what is configured.
    pub fn new(config: &HeaderRulesConfig) -> Result<Self, String> {
        let set = config.set.iter().map(|(name, value)| {
            let text = HeaderValue::from_str(value).map_err(|_| format!("set.{name}: {value:?} is no header value"))?;
            Ok((named(name)?, text))
        });
        let set = set.collect::<Result<Vec<_>, String>>()?;
        let remove = config.remove.iter().map(|name| named(name)).collect::<Result<Vec<_>, _>>()?;
        match remove.iter().find(|name| set.iter().any(|(n, _)| n == *name)) {
            Some(name) => Err(format!("{name} is both set and removed: to set it is enough")),
            None => Ok(Self { set, remove }),
        }
    }

    /// Removes from trailers what is removed or set in headers: it would be read as one of them.
    pub fn strip(&self, trailers: &mut HeaderMap) {
        for name in self.remove.iter().chain(self.set.iter().map(|(name, _)| name)) {
            trailers.remove(name);
        }
    }

    /// Whether nothing is changed.
    pub const fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Removes, then sets. What is set is there once.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
    }
}

fn named(name: &str) -> Result<HeaderName, String> {
    let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header name"))?;
    if headers::is_secret(parsed.as_str()) {
        return Err(format!("{parsed} is a credential: `inject` is the way for one of upstream's own"));
    }
    if headers::is_fixed(parsed.as_str()) {
        return Err(format!("{parsed} frames or describes the message, or is the gateway's own: it cannot be changed"));
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(set: &[(&str, &str)], remove: &[&str]) -> Result<HeaderRules, String> {
        let owned = |text: &&str| (*text).to_owned();
        let set = set.iter().map(|(n, v)| (owned(n), owned(v))).collect();
        HeaderRules::new(&HeaderRulesConfig { set, remove: remove.iter().map(owned).collect() })
    }

    #[test]
    fn what_is_set_is_there_once_and_what_is_removed_is_not() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x-a", "1"), ("x-a", "2"), ("server", "engine/1"), ("x-b", "kept")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        rules(&[("X-A", "3"), ("x-new", "4")], &["Server", "x-none"]).expect("sound").apply(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().expect("text"))).collect();
        left.sort_unstable();
        assert_eq!(left, [("x-a", "3"), ("x-b", "kept"), ("x-new", "4")]);
    }

    #[test]
    fn credentials_framing_and_our_own_are_refused() {
        for name in [
            "Authorization",
            "cookie",
            "Set-Cookie",
            "x-api-key",
            "dpop",
            "dpop-nonce",
            "txn-token",
            "popgate-request-id",
            "host",
            "content-length",
            "content-type",
            "content-encoding",
            "transfer-encoding",
            "connection",
            "te",
            "expect",
            "via",
            "forwarded",
            "traceparent",
            "www-authenticate",
            "x-http-method-override",
            "grpc-status",
            "sec-websocket-key",
            "mcp-method",
            "range",
            "accept-encoding",
            "no name",
        ] {
            assert!(rules(&[(name, "x")], &[]).is_err(), "{name} is set");
            assert!(rules(&[], &[name]).is_err(), "{name} is removed");
        }
        assert!(rules(&[("x-a", "a\nb")], &[]).is_err() && rules(&[("x-a", "1")], &["x-a"]).is_err());
    }
}
