//! The canonical form of a request that an approval is bound to: one bit different, another request.

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;

/// Everything an approval binds.
pub struct CanonicalRequest<'a> {
    /// Method.
    pub method: &'a str,
    /// Canonical authority, from configuration.
    pub authority: &'a str,
    /// Canonical path.
    pub path: &'a str,
    /// Query as sent, with its question mark; empty if absent.
    pub query: &'a str,
    /// Content type, as sent; empty if absent.
    pub content_type: &'a str,
    /// The whole body.
    pub body: &'a [u8],
    /// Further headers that the upstream acts on, lower-case names, sorted.
    pub headers: &'a [(String, Vec<u8>)],
    /// Who asks.
    pub principal: &'a SpiffeId,
    /// With which key.
    pub jkt: Jkt,
    /// Whom it acts for, and who acts before it.
    pub on_behalf: &'a [String],
    /// Groups that its token brings.
    pub groups: &'a [String],
    /// Deciding rule.
    pub rule: &'a str,
    /// Digest of the policy set.
    pub policy_version: &'a str,
}

impl CanonicalRequest<'_> {
    /// SHA-256 over the length-prefixed parts, so that no two requests share a form.
    pub fn digest(&self) -> Sha256 {
        let jkt = self.jkt.to_string();
        let body = Sha256::of(self.body);
        let mut parts: Vec<&[u8]> = [
            self.method,
            self.authority,
            self.path,
            self.query,
            self.content_type,
            self.principal.as_str(),
            &jkt,
            self.rule,
            self.policy_version,
        ]
        .map(str::as_bytes)
        .to_vec();
        parts.push(&body.0);
        let listed = [self.on_behalf, self.groups].map(|list| serde_json::to_vec(list).unwrap_or_default());
        parts.extend(listed.iter().map(Vec::as_slice));
        for (name, value) in self.headers {
            parts.push(name.as_bytes());
            parts.push(value);
        }
        let mut framed = b"popgate canonical request v2\n".to_vec();
        for part in parts {
            framed.extend((part.len() as u64).to_be_bytes());
            framed.extend(part);
        }
        Sha256::of(&framed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Edit = fn(&mut CanonicalRequest<'_>);

    #[test]
    fn each_bound_part_changes_the_digest() {
        let id: SpiffeId = "spiffe://example.org/a".parse().expect("legal");
        let other: SpiffeId = "spiffe://example.org/b".parse().expect("legal");
        let base = || CanonicalRequest {
            method: "POST",
            authority: "gw.example",
            path: "/v1/x",
            query: "",
            content_type: "application/json",
            body: b"{}",
            headers: &[],
            principal: &id,
            jkt: Jkt([1; 32]),
            on_behalf: &[],
            groups: &[],
            rule: "r",
            policy_version: "v",
        };
        let edits: &[(&str, Edit)] = &[
            ("method", |r| r.method = "PUT"),
            ("authority", |r| r.authority = "gw.example:1"),
            ("path", |r| r.path = "/v1/y"),
            ("query", |r| r.query = "?a=1"),
            ("an empty query", |r| r.query = "?"),
            ("content type", |r| r.content_type = "text/plain"),
            ("body", |r| r.body = b"{ }"),
            ("jkt", |r| r.jkt = Jkt([2; 32])),
            ("rule", |r| r.rule = "s"),
            ("policy version", |r| r.policy_version = "w"),
        ];
        for (name, edit) in edits {
            let mut changed = base();
            edit(&mut changed);
            assert_ne!(changed.digest(), base().digest(), "{name}");
        }
        assert_ne!(CanonicalRequest { principal: &other, ..base() }.digest(), base().digest());
        let headers = [("x-mode".to_owned(), b"dry".to_vec())];
        assert_ne!(CanonicalRequest { headers: &headers, ..base() }.digest(), base().digest());
        let names = ["https://idp#jane".to_owned()];
        let for_jane = CanonicalRequest { on_behalf: &names, ..base() }.digest();
        assert_ne!(for_jane, base().digest());
        assert_ne!(for_jane, CanonicalRequest { groups: &names, ..base() }.digest());
    }

    #[test]
    fn moving_a_byte_between_parts_changes_the_digest() {
        let id: SpiffeId = "spiffe://example.org/a".parse().expect("legal");
        let of = |path: &str, query: &str| {
            CanonicalRequest {
                method: "GET",
                authority: "h",
                path,
                query,
                content_type: "",
                body: b"",
                headers: &[],
                principal: &id,
                jkt: Jkt([0; 32]),
                on_behalf: &[],
                groups: &[],
                rule: "",
                policy_version: "",
            }
            .digest()
        };
        assert_ne!(of("/ab", "c"), of("/a", "bc"));
    }
}
