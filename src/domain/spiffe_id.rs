//! SPIFFE IDs and trust domains (SPIFFE-ID sections 2.1 to 2.4).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest SPIFFE ID in bytes (SPIFFE-ID section 2.3).
const MAX_ID: usize = 2048;
/// Longest trust domain in bytes (SPIFFE-ID section 2.3).
const MAX_TRUST_DOMAIN: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a text is not a SPIFFE ID. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum SpiffeIdError {
    #[error("longer than 2048 bytes")]
    TooLong,
    #[error("does not begin with spiffe://")]
    Scheme,
    #[error("the trust domain is empty, over 255 bytes, or has a character outside a-z 0-9 . _ -")]
    TrustDomain,
    #[error("a path segment is empty, which a trailing slash makes too")]
    EmptySegment,
    #[error("a path segment is . or ..")]
    DotSegment,
    #[error("a path segment has a character outside A-Z a-z 0-9 . _ -")]
    SegmentCharacter,
    #[error("a workload's ID needs a path")]
    NoPath,
}

/// A trust domain's name, in lower case.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Reads a bare name such as `example.org`; upper case is folded (SPIFFE-ID section 2.1).
    pub fn parse(name: &str) -> Result<Self, SpiffeIdError> {
        let lower = name.to_ascii_lowercase();
        let fits = (1..=MAX_TRUST_DOMAIN).contains(&lower.len());
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        (fits && lower.bytes().all(legal)).then_some(Self(lower)).ok_or(SpiffeIdError::TrustDomain)
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own ID, which has no path.
    pub fn id(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }

    /// The ID of a workload in this domain; `path` begins with a slash.
    pub fn workload(&self, path: &str) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::from_str(&format!("{SCHEME}{}{path}", self.0))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's SPIFFE ID: always with a path, scheme and trust domain in lower case.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    text: String,
    path_at: usize,
}

impl SpiffeId {
    /// The whole ID.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.text[self.path_at..]
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.text[SCHEME.len()..self.path_at].to_owned())
    }

    /// Whether the ID is of this trust domain.
    pub fn is_member_of(&self, domain: &TrustDomain) -> bool {
        &self.text[SCHEME.len()..self.path_at] == domain.as_str()
    }

    /// Whether the path is kept for the product itself, so that no entry may claim it.
    pub fn is_reserved(&self) -> bool {
        self.path() == "/popgate" || self.path().starts_with("/popgate/")
    }

    /// `NAME` of `spiffe://TD/popgate/person/NAME`.
    pub fn person_name(&self) -> Option<&str> {
        self.path().strip_prefix("/popgate/person/").filter(|rest| !rest.contains('/'))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong);
        }
        let scheme = text.get(..SCHEME.len()).ok_or(SpiffeIdError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(SpiffeIdError::Scheme);
        }
        let rest = &text[SCHEME.len()..];
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let domain = TrustDomain::parse(domain)?;
        check_path(path)?;
        Ok(Self { path_at: SCHEME.len() + domain.0.len(), text: format!("{SCHEME}{domain}{path}") })
    }
}

fn check_path(path: &str) -> Result<(), SpiffeIdError> {
    let segments = path.strip_prefix('/').ok_or(SpiffeIdError::NoPath)?;
    segments.split('/').try_for_each(|segment| match segment {
        "" => Err(SpiffeIdError::EmptySegment),
        "." | ".." => Err(SpiffeIdError::DotSegment),
        s if s.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) => Ok(()),
        _ => Err(SpiffeIdError::SegmentCharacter),
    })
}

/// Whether `name` can stand as one path segment.
pub fn is_segment(name: &str) -> bool {
    !name.contains('/') && check_path(&format!("/{name}")).is_ok()
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for SpiffeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each row is one fault.
    const REFUSED: &[(&str, SpiffeIdError)] = &[
        ("http://example.org/a", SpiffeIdError::Scheme),
        ("spiffe:/", SpiffeIdError::Scheme),
        ("spiffe:///a", SpiffeIdError::TrustDomain),
        ("spiffe://example.org:443/a", SpiffeIdError::TrustDomain),
        ("spiffe://user@example.org/a", SpiffeIdError::TrustDomain),
        ("spiffe://exämple.org/a", SpiffeIdError::TrustDomain),
        ("spiffe://example.org?q=/a", SpiffeIdError::TrustDomain),
        ("spiffe://example.org", SpiffeIdError::NoPath),
        ("spiffe://example.org/", SpiffeIdError::EmptySegment),
        ("spiffe://example.org/a/", SpiffeIdError::EmptySegment),
        ("spiffe://example.org//a", SpiffeIdError::EmptySegment),
        ("spiffe://example.org/./a", SpiffeIdError::DotSegment),
        ("spiffe://example.org/a/..", SpiffeIdError::DotSegment),
        ("spiffe://example.org/a%20b", SpiffeIdError::SegmentCharacter),
        ("spiffe://example.org/a?b", SpiffeIdError::SegmentCharacter),
        ("spiffe://example.org/a#b", SpiffeIdError::SegmentCharacter),
        ("spiffe://example.org/a\0", SpiffeIdError::SegmentCharacter),
    ];

    #[test]
    fn i1_each_malformed_id_is_refused_by_name() {
        for (text, want) in REFUSED {
            assert_eq!(text.parse::<SpiffeId>(), Err(*want), "{text}");
        }
    }

    #[test]
    fn i1_every_error_has_a_row() {
        use strum::VariantArray as _;
        for error in SpiffeIdError::VARIANTS {
            let covered = *error == SpiffeIdError::TooLong || REFUSED.iter().any(|(_, e)| e == error);
            assert!(covered, "no row expects: {error}");
        }
    }

    #[test]
    fn i1_length_limits_come_in_pairs() {
        let id = |n: usize| format!("spiffe://t/{}", "a".repeat(n - 11));
        assert!(id(2048).parse::<SpiffeId>().is_ok());
        assert_eq!(id(2049).parse::<SpiffeId>(), Err(SpiffeIdError::TooLong));
        assert!(TrustDomain::parse(&"a".repeat(255)).is_ok());
        assert!(TrustDomain::parse(&"a".repeat(256)).is_err());
    }

    #[test]
    fn i1_scheme_and_trust_domain_fold_case_and_the_path_keeps_it() {
        let id: SpiffeId = "SPIFFE://Example.ORG/Ci/Solver".parse().expect("legal");
        assert_eq!(id.as_str(), "spiffe://example.org/Ci/Solver");
        assert_eq!(id.path(), "/Ci/Solver");
    }

    #[test]
    fn i2_a_trust_domain_has_no_path_and_a_workload_has_one() {
        let td = TrustDomain::parse("example.org").expect("legal");
        assert_eq!(td.id(), "spiffe://example.org");
        assert_eq!(td.id().parse::<SpiffeId>(), Err(SpiffeIdError::NoPath));
    }

    #[test]
    fn the_products_own_paths_are_reserved() {
        let td = TrustDomain::parse("example.org").expect("legal");
        for (path, reserved) in [("/popgate/server", true), ("/popgate", true), ("/popgates/x", false)] {
            assert_eq!(td.workload(path).expect("legal").is_reserved(), reserved, "{path}");
        }
    }

    proptest! {
        #[test]
        fn i1_parse_never_panics_and_reads_back(text in "\\PC{0,80}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str().parse::<SpiffeId>().expect("canonical"), id);
            }
        }

        #[test]
        fn i1_every_legal_id_is_accepted(td in "[a-z0-9._-]{1,40}", segs in proptest::collection::vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,9}", 1..5)) {
            let text = format!("spiffe://{td}/{}", segs.join("/"));
            let id = text.parse::<SpiffeId>().expect("legal");
            prop_assert_eq!(id.as_str(), text);
        }
    }
}
