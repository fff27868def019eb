//! X.509-SVID rules on a leaf whose chain has been verified (X509-SVID sections 2 to 5).

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::jwk::PublicKey;

/// Why a certificate is not a leaf SVID. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum SvidError {
    #[error("not one DER X.509 certificate")]
    Form,
    #[error("X509-SVID section 2: there is not exactly one URI SAN")]
    UriCount,
    #[error("X509-SVID section 2: the URI SAN is not a SPIFFE ID with a path")]
    SpiffeId,
    #[error("X509-SVID section 4.1: a CA certificate is not a leaf")]
    IsCa,
    #[error("X509-SVID section 4.3: keyUsage lacks digitalSignature, or has keyCertSign or cRLSign")]
    KeyUsage,
    #[error("the key is not P-256 or Ed25519")]
    Key,
}

/// What a leaf SVID says, once its chain is verified elsewhere.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// The one URI SAN.
    pub spiffe_id: SpiffeId,
    /// Serial number, lower-case hex.
    pub serial: String,
    /// The key.
    pub key: PublicKey,
    /// SHA-256 of the certificate, `x5t#S256`.
    pub sha256: Sha256,
    /// Validity.
    pub not_before: Timestamp,
    /// Validity.
    pub not_after: Timestamp,
}

impl X509Svid {
    /// Reads a leaf and checks the SPIFFE rules that chain building does not know.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let (rest, cert) = X509Certificate::from_der(der).map_err(|_| SvidError::Form)?;
        if !rest.is_empty() {
            return Err(SvidError::Form);
        }
        if cert.is_ca() {
            return Err(SvidError::IsCa);
        }
        check_key_usage(&cert)?;
        Ok(Self {
            spiffe_id: uri_san(&cert)?,
            serial: hex::encode(cert.raw_serial()),
            key: PublicKey::from_spki(cert.public_key().raw).map_err(|_| SvidError::Key)?,
            sha256: Sha256::of(der),
            not_before: at(cert.validity().not_before.timestamp()),
            not_after: at(cert.validity().not_after.timestamp()),
        })
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix(u64::try_from(seconds).unwrap_or(0))
}

fn uri_san(cert: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let san = cert.subject_alternative_name().map_err(|_| SvidError::Form)?.ok_or(SvidError::UriCount)?;
    let mut uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| SvidError::SpiffeId),
        _ => Err(SvidError::UriCount),
    }
}

fn check_key_usage(cert: &X509Certificate<'_>) -> Result<(), SvidError> {
    let usage = cert.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::KeyUsage(usage) => Some(usage),
        _ => None,
    });
    match usage {
        Some(u) if u.digital_signature() && !u.key_cert_sign() && !u.crl_sign() => Ok(()),
        _ => Err(SvidError::KeyUsage),
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: the pin of a join token.
pub fn spki_sha256(der: &[u8]) -> Option<Sha256> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(Sha256::of(cert.public_key().raw))
}

/// Key identifiers of a certificate (RFC 5280 sections 4.2.1.1 and 4.2.1.2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyIdentifiers {
    /// Its own.
    pub subject: Option<Vec<u8>>,
    /// Its issuer's.
    pub authority: Option<Vec<u8>>,
}

/// Reads the key identifiers of a certificate.
pub fn key_identifiers(der: &[u8]) -> Option<KeyIdentifiers> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let mut ids = KeyIdentifiers::default();
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => ids.subject = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(a) => {
                ids.authority = a.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    Some(ids)
}

/// Cuts concatenated DER certificates apart, as the Workload API has them; at least one.
pub fn split_concatenated(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let (rest, _) = X509Certificate::from_der(bytes).ok()?;
        all.push(bytes[..bytes.len() - rest.len()].to_vec());
        bytes = rest;
    }
    (!all.is_empty()).then_some(all)
}

/// The serials in a revocation list, hex; none of one that does not read.
pub fn revoked_serials(list: &[u8]) -> Vec<String> {
    let read = x509_parser::revocation_list::CertificateRevocationList::from_der(list);
    let serials = read.iter().flat_map(|(_, list)| list.iter_revoked_certificates());
    serials.map(|c| hex::encode(c.raw_serial())).collect()
}

/// The SPIFFE IDs among a certificate's names.
pub fn spiffe_names(der: &[u8]) -> Vec<String> {
    let facts = subject_facts(der).unwrap_or_default();
    facts.iter().filter_map(|f| f.strip_prefix("uri:")).filter(|u| u.starts_with("spiffe://")).map(Into::into).collect()
}

/// Whether a certificate is a CA's.
pub fn is_ca(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(rest, cert)| rest.is_empty() && cert.is_ca())
}

/// What a certificate says of its subject, as `cn:…`, `o:…`, `dns:…`, `uri:…`, `ip:…`.
pub fn subject_facts(der: &[u8]) -> Option<Vec<String>> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let mut facts: Vec<String> =
        cert.subject().iter_common_name().filter_map(|n| n.as_str().ok()).map(|n| format!("cn:{n}")).collect();
    facts.extend(cert.subject().iter_organization().filter_map(|n| n.as_str().ok()).map(|n| format!("o:{n}")));
    let san = cert.subject_alternative_name().ok()?;
    facts.extend(san.into_iter().flat_map(|s| s.value.general_names.iter()).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(format!("dns:{name}")),
        GeneralName::URI(uri) => Some(format!("uri:{uri}")),
        GeneralName::IPAddress([a, b, c, d]) => Some(format!("ip:{a}.{b}.{c}.{d}")),
        _ => None,
    }));
    Some(facts)
}

/// How the subject of a CA below our issuing CAs begins.
pub const DOWNSTREAM: &str = "popgate downstream";

/// Whether a certificate is one that an issuing CA made for a server below it.
pub fn is_downstream_ca(der: &[u8]) -> bool {
    let named = |cert: &X509Certificate<'_>| {
        cert.subject().iter_common_name().any(|n| n.as_str().is_ok_and(|n| n.starts_with(DOWNSTREAM)))
    };
    X509Certificate::from_der(der).is_ok_and(|(_, cert)| named(&cert))
}

/// Serial number of a certificate, hex.
pub fn serial(der: &[u8]) -> Option<String> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(hex::encode(cert.raw_serial()))
}

/// Whether a certificate is a CA with this one URI SAN: a trust domain's authority (X509-SVID section 3).
pub fn is_ca_of(der: &[u8], trust_domain_id: &str) -> bool {
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return false };
    let Ok(Some(san)) = cert.subject_alternative_name() else { return false };
    let names = &san.value.general_names;
    cert.is_ca() && names.iter().any(|n| matches!(n, GeneralName::URI(u) if *u == trust_domain_id))
}

/// Whether a certificate names itself as issuer and is a CA: a root that may anchor a chain.
pub fn is_self_issued_ca(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, cert)| cert.is_ca() && cert.issuer() == cert.subject())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use strum::VariantArray as _;

    use super::*;

    /// `certs/make-chains` made them with OpenSSL.
    fn chain(name: &str) -> Vec<u8> {
        let path = format!("{}/certs/chains/{name}.pem", env!("CARGO_MANIFEST_DIR"));
        let pem = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let text: String = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        base64::prelude::BASE64_STANDARD.decode(text).expect("base64")
    }

    #[test]
    fn x5_each_leaf_with_a_fault_is_refused_by_name() {
        let faults = [
            ("no-san", SvidError::UriCount),
            ("dns-alone", SvidError::UriCount),
            ("two-uris", SvidError::UriCount),
            ("two-uris-one-https", SvidError::UriCount),
            ("no-path", SvidError::SpiffeId),
            ("https", SvidError::SpiffeId),
            ("dot-segments", SvidError::SpiffeId),
            ("port", SvidError::SpiffeId),
            ("ca", SvidError::IsCa),
            ("root", SvidError::IsCa),
            ("key-cert-sign", SvidError::KeyUsage),
            ("crl-sign", SvidError::KeyUsage),
            ("no-signature-usage", SvidError::KeyUsage),
            ("no-key-usage", SvidError::KeyUsage),
            ("rsa", SvidError::Key),
            ("p384", SvidError::Key),
        ];
        for (name, error) in faults {
            assert_eq!(X509Svid::parse(&chain(name)).err(), Some(error), "{name}");
        }
        let good = chain("good");
        assert_eq!(X509Svid::parse(&good[..good.len() - 1]).err(), Some(SvidError::Form), "cut");
        assert_eq!(X509Svid::parse(&[&good[..], &[0]].concat()).err(), Some(SvidError::Form), "with a tail");
        let named = |e: &SvidError| *e == SvidError::Form || faults.iter().any(|(_, f)| f == e);
        assert!(SvidError::VARIANTS.iter().all(named), "every error has a row");
    }

    #[test]
    fn x1_a_good_leaf_says_who_it_is_and_other_names_are_no_second_identity() {
        for name in ["good", "good-ed25519", "good-with-dns"] {
            let svid = X509Svid::parse(&chain(name)).expect(name);
            assert_eq!(svid.spiffe_id.as_str(), "spiffe://example.org/ci/solver");
            assert_eq!(svid.sha256, Sha256::of(&chain(name)));
        }
        assert!(is_self_issued_ca(&chain("root")) && !is_self_issued_ca(&chain("good")));
    }
}
