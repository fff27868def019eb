//! `Content-Digest` (RFC 9530): the digest of a body, as a structured field of the form `sha-256=:BASE64:`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::domain::digest::Sha256;

/// The field's value for a body.
pub fn of(body: &[u8]) -> String {
    write(Sha256::of(body))
}

/// The field's value for a SHA-256.
pub fn write(digest: Sha256) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(digest.0))
}

/// The SHA-256 that a value states. Other algorithms may stand beside it; twice the same one is no statement.
pub fn read(value: &str) -> Option<Sha256> {
    let mut found = None;
    for member in value.split(',') {
        let (name, bytes) = member.trim().split_once('=')?;
        let bytes = bytes.strip_prefix(':')?.strip_suffix(':')?;
        let bytes = BASE64_STANDARD.decode(bytes).ok()?;
        if name == "sha-256" && found.replace(Sha256(bytes.try_into().ok()?)).is_some() {
            return None;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_nothing_else_does() {
        let body = b"{\"hello\": \"world\"}\n";
        assert_eq!(read(&of(body)), Some(Sha256::of(body)));
        let both = format!("sha-512=:AAAA:, {}", of(body));
        assert_eq!(read(&both), Some(Sha256::of(body)));
        for bad in [
            "",
            "sha-256",
            "sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=",
            "sha-256=:AAAA:",
            "sha-512=:AAAA:",
            "SHA-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
            "sha-256=:%%:",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(read(&format!("{}, {}", of(b"a"), of(b"b"))), None);
    }
}
