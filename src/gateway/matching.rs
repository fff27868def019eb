//! Which requests a route is for: path, host, method, headers.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};

use crate::gateway::config::MatchConfig;
use crate::protocol::htu::Origin;
use crate::protocol::template::Template;

/// What a route asks of a request, checked.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// Path template.
    pub path: Template,
    origin: Option<Origin>,
    methods: Vec<String>,
    headers: BTreeMap<String, String>,
}

/// What of a request a route is found by.
pub struct Wanted<'a> {
    /// The origin it is for.
    pub origin: &'a Origin,
    /// Its canonical path.
    pub path: &'a str,
    /// Its method; GET for a WebSocket.
    pub method: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

impl Matcher {
    /// Checks `match` of a route; the text names the key.
    pub fn new(config: &MatchConfig, origins: &[Origin]) -> Result<Self, String> {
        let path = Template::parse(&config.path).map_err(|e| format!("match.path: {e}"))?;
        let origin = match &config.host {
            None => None,
            Some(host) => Some(named(host, origins).ok_or_else(|| {
                let known: Vec<&str> = origins.iter().map(Origin::authority).collect();
                format!("match.host {host:?} is in none of gateway.origins: {}", known.join(", "))
            })?),
        };
        if let Some(bad) = config.methods.iter().find(|m| m.parse::<http::Method>().is_err() || *m == "CONNECT") {
            return Err(format!("match.methods: {bad:?} is no method that passes here"));
        }
        let mut headers = BTreeMap::new();
        for (name, value) in &config.headers {
            let parsed: HeaderName = name.parse().map_err(|_| format!("match.headers: {name:?} is no header name"))?;
            headers.insert(parsed.as_str().to_owned(), value.clone());
        }
        Ok(Self { path, origin, methods: config.methods.clone(), headers })
    }

    /// Whether requests of a method may be for the route.
    pub fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|m| m == method)
    }

    /// Whether a request is for the route.
    pub fn matches(&self, wanted: &Wanted<'_>) -> bool {
        self.path.matches(wanted.path).is_some()
            && self.origin.as_ref().is_none_or(|o| o == wanted.origin)
            && self.takes(wanted.method)
            && self.headers.iter().all(|(name, value)| carries(wanted.headers, name, value))
    }

    /// How specific it is: the path first, then host, headers and methods.
    pub fn rank(&self) -> (usize, usize, bool, bool, usize, bool) {
        let (literals, length, closed) = self.path.rank();
        (literals, length, closed, self.origin.is_some(), self.headers.len(), !self.methods.is_empty())
    }

    /// Whether some request could be for both, and neither is more specific.
    pub fn ties_with(&self, other: &Self) -> bool {
        let apart = |a: &Option<Origin>, b: &Option<Origin>| matches!((a, b), (Some(a), Some(b)) if a != b);
        let methods = !self.methods.is_empty()
            && !other.methods.is_empty()
            && !self.methods.iter().any(|m| other.methods.contains(m));
        let headers =
            self.headers.iter().any(|(n, v)| v != "*" && other.headers.get(n).is_some_and(|w| w != "*" && w != v));
        self.path.same_paths(&other.path)
            && self.rank() == other.rank()
            && !(apart(&self.origin, &other.origin) || methods || headers)
    }
}

/// The origin that a host, or a host and port, names.
fn named(host: &str, origins: &[Origin]) -> Option<Origin> {
    let bare = |o: &Origin| o.authority().rsplit_once(':').map_or(o.authority(), |(h, _)| h).to_owned();
    origins.iter().find(|o| o.is_named_by(host) || bare(o).eq_ignore_ascii_case(host)).cloned()
}

/// One value of the header, exactly. A header that comes twice has no one value.
fn carries(headers: &HeaderMap, name: &str, value: &str) -> bool {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(one), None) => value == "*" || one.as_bytes() == value.as_bytes(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(path: &str, host: Option<&str>, methods: &[&str], headers: &[(&str, &str)]) -> MatchConfig {
        MatchConfig {
            path: path.into(),
            host: host.map(Into::into),
            methods: methods.iter().map(ToString::to_string).collect(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn matcher(path: &str, host: Option<&str>, methods: &[&str], headers: &[(&str, &str)]) -> Matcher {
        Matcher::new(&config(path, host, methods, headers), &origins()).expect("a matcher")
    }

    fn origins() -> [Origin; 2] {
        ["https://a.example:8443", "https://b.example"].map(|o| Origin::parse(o).expect("an origin"))
    }

    fn wanted(route: &Matcher, origin: &Origin, path: &str, method: &str, headers: &HeaderMap) -> bool {
        route.matches(&Wanted { origin, path, method, headers })
    }

    #[test]
    fn all_that_is_given_must_hold() {
        let route = matcher("/v1/**", Some("a.example"), &["GET", "POST"], &[("x-tier", "gold"), ("x-any", "*")]);
        let [a, b] = origins();
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in pairs {
                map.append(*name, value.parse().expect("a value"));
            }
            map
        };
        let good = headers(&[("x-tier", "gold"), ("x-any", "1")]);
        assert!(wanted(&route, &a, "/v1/x", "GET", &good));
        assert!(!wanted(&route, &b, "/v1/x", "GET", &good), "another host");
        assert!(!wanted(&route, &a, "/v2/x", "GET", &good), "another path");
        assert!(!wanted(&route, &a, "/v1/x", "PUT", &good), "another method");
        assert!(!wanted(&route, &a, "/v1/x", "GET", &headers(&[("x-tier", "gold")])), "a header is missing");
        assert!(!wanted(&route, &a, "/v1/x", "GET", &headers(&[("x-tier", "Gold"), ("x-any", "1")])), "another value");
        assert!(!wanted(
            &route,
            &a,
            "/v1/x",
            "GET",
            &headers(&[("x-tier", "gold"), ("x-tier", "gold"), ("x-any", "1")])
        ));
    }

    #[test]
    fn a_tie_is_what_no_request_can_tell_apart() {
        let plain = matcher("/v1/{a}", None, &[], &[]);
        assert!(plain.ties_with(&matcher("/v1/{b}", None, &[], &[])));
        assert!(!plain.ties_with(&matcher("/v1/{b}", Some("b.example"), &[], &[])), "the host makes it more specific");
        let (get, post) = (matcher("/v1/{b}", None, &["GET"], &[]), matcher("/v1/{b}", None, &["POST"], &[]));
        assert!(!get.ties_with(&post));
        assert!(get.ties_with(&matcher("/v1/{b}", None, &["PUT", "GET"], &[])));
        let (gold, tin) =
            (matcher("/v1/{b}", None, &[], &[("x", "gold")]), matcher("/v1/{b}", None, &[], &[("x", "tin")]));
        assert!(!gold.ties_with(&tin));
        assert!(gold.ties_with(&matcher("/v1/{b}", None, &[], &[("y", "tin")])), "a request may carry both");
    }

    #[test]
    fn what_can_match_nothing_is_refused() {
        for bad in [
            config("v1", None, &[], &[]),
            config("/v1", Some("c.example"), &[], &[]),
            config("/v1", None, &["CONNECT"], &[]),
            config("/v1", None, &["G T"], &[]),
            config("/v1", None, &[], &[("x y", "1")]),
        ] {
            assert!(Matcher::new(&bad, &origins()).is_err(), "{bad:?}");
        }
    }
}
