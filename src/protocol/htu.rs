//! The request URI of a proof and the one canonical path of a request (RFC 9449 §4.3 (9), RFC 3986 §6.2.2, §6.2.3).
//!
//! Hand-written on purpose: a WHATWG parser repairs `\`, tabs and leading spaces, and a repair is a second reading.

/// Why a URI or path is refused. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum UriError {
    #[error("not an absolute http or https URI")]
    NotAbsolute,
    #[error("has user information")]
    UserInfo,
    #[error("has a host or port that is not legal")]
    Authority,
    #[error("has a character that a URI may not have")]
    Character,
    #[error("has a malformed percent-encoding")]
    PercentEncoding,
    #[error("has a dot segment, plain or encoded")]
    DotSegment,
    #[error("has an encoded slash")]
    EncodedSlash,
    #[error("has a backslash or NUL, plain or encoded")]
    Forbidden,
}

/// An absolute URI without query and fragment, normalised: two equal values name the same target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Htu(String);

impl Htu {
    /// Reads and normalises the `htu` claim.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        if !text.bytes().all(is_uri_byte) {
            return Err(UriError::Character);
        }
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let (scheme, rest) = text[..end].split_once("://").ok_or(UriError::NotAbsolute)?;
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => "443",
            "http" => "80",
            _ => return Err(UriError::NotAbsolute),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let authority = normal_authority(authority, default_port)?;
        let path = normal_percent(if path.is_empty() { "/" } else { path })?;
        Ok(Self(format!("{scheme}://{authority}{path}")))
    }

    /// The target of a request: a configured origin and the request's canonical path.
    pub fn of(origin: &Origin, path: &CanonicalPath) -> Self {
        Self(format!("{}{}", origin.0, path.0))
    }

    /// The path of the URI.
    pub fn path(&self) -> &str {
        let authority = self.0.find("://").map_or(0, |at| at + 3);
        self.0[authority..].find('/').map_or("/", |at| &self.0[authority + at..])
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Scheme and authority of a URI that we serve, normalised, without a path.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Origin(String);

impl Origin {
    /// Reads `https://host[:port]`, with nothing after it but an optional slash.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let htu = Htu::parse(text)?;
        let bare = htu.0.strip_suffix('/').filter(|_| !text.contains(['?', '#'])).ok_or(UriError::NotAbsolute)?;
        let authority = bare.split_once("://").map_or("", |(_, a)| a);
        (!authority.contains('/')).then(|| Self(bare.to_owned())).ok_or(UriError::NotAbsolute)
    }

    /// The normalised text, `https://host[:port]`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Host and port, as `Host` and `:authority` carry them.
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or("", |(_, authority)| authority)
    }

    /// Whether a `Host` or `:authority` value names this origin.
    pub fn is_named_by(&self, host: &str) -> bool {
        let scheme = self.0.split_once("://").map_or("https", |(scheme, _)| scheme);
        let default_port = if scheme == "http" { "80" } else { "443" };
        normal_authority(host, default_port).is_ok_and(|a| a == self.authority())
    }
}

/// The one path that `htu`, policy and upstream all see.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct CanonicalPath(String);

impl CanonicalPath {
    /// Normalises a request's path and refuses what has two readings.
    pub fn parse(raw: &str) -> Result<Self, UriError> {
        if !raw.starts_with('/') {
            return Err(UriError::NotAbsolute);
        }
        if raw.contains(['\\', '\0']) {
            return Err(UriError::Forbidden);
        }
        if !raw.bytes().all(is_uri_byte) || raw.contains(['?', '#']) {
            return Err(UriError::Character);
        }
        let path = normal_percent(raw)?;
        if path.contains("%5C") || path.contains("%00") {
            return Err(UriError::Forbidden);
        }
        if path.contains("%2F") {
            return Err(UriError::EncodedSlash);
        }
        if path.split('/').any(is_dot_segment) {
            return Err(UriError::DotSegment);
        }
        Ok(Self(path))
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `.` and `..`, also with a path parameter behind them, which some servers cut off.
fn is_dot_segment(segment: &str) -> bool {
    let bare = segment.split(';').next().unwrap_or_default();
    bare == "." || bare == ".."
}

/// Printable ASCII less what RFC 3986 never allows.
const fn is_uri_byte(b: u8) -> bool {
    b.is_ascii_graphic() && !matches!(b, b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}')
}

const fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

/// Decodes escapes of unreserved characters and writes the others in upper case (RFC 3986 §6.2.2.1, §6.2.2.2).
fn normal_percent(path: &str) -> Result<String, UriError> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(char::from(b));
            continue;
        }
        let (high, low) = (hex_digit(bytes.next())?, hex_digit(bytes.next())?);
        let decoded = high << 4 | low;
        if is_unreserved(decoded) {
            out.push(char::from(decoded));
        } else {
            out.push_str(&format!("%{decoded:02X}"));
        }
    }
    Ok(out)
}

fn hex_digit(b: Option<u8>) -> Result<u8, UriError> {
    let digit = b.and_then(|b| char::from(b).to_digit(16)).ok_or(UriError::PercentEncoding)?;
    u8::try_from(digit).map_err(|_| UriError::PercentEncoding)
}

fn normal_authority(authority: &str, default_port: &str) -> Result<String, UriError> {
    if authority.contains('@') {
        return Err(UriError::UserInfo);
    }
    let host_end = match authority.strip_prefix('[') {
        Some(_) => authority.find(']').ok_or(UriError::Authority)? + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at(host_end);
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
    if host.is_empty() || !host.bytes().all(legal) {
        return Err(UriError::Authority);
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => "",
        Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => digits,
        _ => return Err(UriError::Authority),
    };
    let host = host.to_ascii_lowercase();
    Ok(if port.is_empty() || port == default_port { host } else { format!("{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn p5_equal_targets_normalise_to_the_same_text() {
        let rows = [
            ("HTTPS://Gw.Example/a", "https://gw.example/a"),
            ("https://gw.example:443/a", "https://gw.example/a"),
            ("https://gw.example:/a", "https://gw.example/a"),
            ("https://gw.example", "https://gw.example/"),
            ("https://gw.example/%7Ea%2d", "https://gw.example/~a-"),
            ("https://gw.example/%c3%a9", "https://gw.example/%C3%A9"),
            ("https://gw.example/a?x=1#y", "https://gw.example/a"),
            ("https://[::1]:8443/a", "https://[::1]:8443/a"),
        ];
        for (text, want) in rows {
            assert_eq!(Htu::parse(text).expect(text).as_str(), want);
        }
    }

    #[test]
    fn p5_different_targets_stay_different() {
        let rows = [
            ("https://gw.example/a/", "https://gw.example/a"),
            ("https://gw.example//a", "https://gw.example/a"),
            ("https://gw.example/a%2Fb", "https://gw.example/a/b"),
            ("https://gw.example:8443/a", "https://gw.example/a"),
            ("http://gw.example/a", "https://gw.example/a"),
            ("https://gw.example/A", "https://gw.example/a"),
        ];
        for (a, b) in rows {
            assert_ne!(Htu::parse(a).expect(a), Htu::parse(b).expect(b), "{a} {b}");
        }
    }

    #[test]
    fn p5_each_malformed_htu_is_refused_by_name() {
        let rows = [
            ("/a", UriError::NotAbsolute),
            ("ftp://gw.example/a", UriError::NotAbsolute),
            ("https:gw.example/a", UriError::NotAbsolute),
            ("https://user@gw.example/a", UriError::UserInfo),
            ("https:///a", UriError::Authority),
            ("https://gw.example:99999999/a", UriError::Authority),
            ("https://gw.example:x/a", UriError::Authority),
            ("https://[::1/a", UriError::Authority),
            (" https://gw.example/a", UriError::Character),
            ("https://gw.example\\a", UriError::Character),
            ("https://gw.example/\ta", UriError::Character),
            ("https://gw.example/é", UriError::Character),
            ("https://gw.example/%zz", UriError::PercentEncoding),
            ("https://gw.example/%2", UriError::PercentEncoding),
        ];
        for (text, want) in rows {
            assert_eq!(Htu::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn p6_each_path_with_two_readings_is_refused_by_name() {
        let rows = [
            ("/a\\b", UriError::Forbidden),
            ("/a%5Cb", UriError::Forbidden),
            ("/a%5cb", UriError::Forbidden),
            ("/a%00", UriError::Forbidden),
            ("/a/../b", UriError::DotSegment),
            ("/a/%2e%2E/b", UriError::DotSegment),
            ("/a/.", UriError::DotSegment),
            ("/a/..;x/b", UriError::DotSegment),
            ("/a%2fb", UriError::EncodedSlash),
            ("a", UriError::NotAbsolute),
            ("*", UriError::NotAbsolute),
            ("/a%", UriError::PercentEncoding),
            ("/a{b}", UriError::Character),
        ];
        for (text, want) in rows {
            assert_eq!(CanonicalPath::parse(text), Err(want), "{text}");
        }
    }

    #[test]
    fn an_origin_is_named_by_its_host_and_by_no_other() {
        let origin = Origin::parse("https://gw.example:8443").expect("origin");
        assert!(origin.is_named_by("GW.example:8443"));
        for other in ["gw.example", "gw.example:443", "evil.example:8443", "u@gw.example:8443", ""] {
            assert!(!origin.is_named_by(other), "{other}");
        }
        assert!(Origin::parse("https://gw.example/a").is_err());
        assert!(Origin::parse("https://gw.example?x").is_err());
    }

    proptest! {
        #[test]
        fn p5_normalising_twice_changes_nothing(text in "https://[a-zA-Z.]{1,9}(:[0-9]{1,5})?(/[a-zA-Z0-9%._~-]{0,9}){0,3}") {
            if let Ok(once) = Htu::parse(&text) {
                prop_assert_eq!(Htu::parse(once.as_str()).expect("normal"), once);
            }
        }

        #[test]
        fn p6_a_canonical_path_is_its_own_canonical_form(raw in "(/[a-zA-Z0-9%._~;-]{0,9}){1,4}") {
            if let Ok(once) = CanonicalPath::parse(&raw) {
                prop_assert_eq!(CanonicalPath::parse(once.as_str()).expect("canonical"), once);
            }
        }
    }
}
