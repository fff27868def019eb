//! What certificates say: X509-SVID sections 2 to 4 and the profiles of `certs/profiles.toml`.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;
use crate::identity::authority::AuthorityError;
use crate::identity::profile::{self, CaProfile};
use crate::protocol::jwk::{Algorithm, PublicKey};
use crate::store::entropy;

pub(super) fn date(at: Timestamp) -> OffsetDateTime {
    let seconds = i64::try_from(at.unix()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// 128 random bits, positive, of full length.
fn serial() -> SerialNumber {
    let mut bytes = entropy::random::<16>();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(text.try_into()?))
}

fn base(now: Timestamp, not_after: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date(now.minus(profile::backdated()));
    params.not_after = date(not_after);
    params.serial_number = Some(serial());
    params.distinguished_name = DistinguishedName::new();
    params
}

/// Longest name in a subject (RFC 5280 appendix A.1, ub-organization-name).
const MAX_NAME: usize = 64;

/// X509-SVID section 4: a CA has a subject, critical basicConstraints and keyUsage, and its trust domain's ID. No name
/// constraints: webpki refuses chains with URI constraints. `id` is its key's, `signed` whether another CA
/// signs it.
pub(super) fn ca(
    profile: &CaProfile,
    trust_domain: &TrustDomain,
    id: &str,
    path_length: u8,
    signed: bool,
    now: Timestamp,
    not_after: Timestamp,
) -> CertificateParams {
    let mut params = base(now, not_after);
    // Each key has a name of its own: a verifier then finds its way to the root without trying every CA of the domain.
    let short: String = id.chars().take(16).collect();
    params.distinguished_name.push(DnType::CommonName, format!("{} {short}", profile.common_name));
    if trust_domain.as_str().len() <= MAX_NAME {
        params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    }
    params.subject_alt_names = vec![uri(&trust_domain.id()).expect("a trust domain is ASCII")];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = signed;
    params
}

/// X509-SVID sections 2 and 4: one URI SAN, an explicit cA=false, digitalSignature alone, both purposes.
pub(super) fn leaf(
    id: &SpiffeId,
    names: &[String],
    now: Timestamp,
    not_after: Timestamp,
) -> Result<CertificateParams, AuthorityError> {
    let mut params = base(now, not_after);
    params.subject_alt_names = vec![uri(id.as_str())?];
    for name in names {
        params.subject_alt_names.push(match name.parse() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(name.as_str().try_into().map_err(|_| AuthorityError::Name(name.clone()))?),
        });
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// A proved key as the certificate library wants it.
pub(super) struct ProvedKey<'a>(pub(super) &'a PublicKey);

impl PublicKeyData for ProvedKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.raw()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.0.algorithm() {
            Algorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::Ed25519 => &rcgen::PKCS_ED25519,
        }
    }
}
