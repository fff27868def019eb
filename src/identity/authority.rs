//! The mini-CA: a root kept in a file, an issuing CA kept in memory and replaced at half its life.

use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;
use crate::identity::profile::{self, CaProfile};
use crate::net::files;
use crate::net::keys::P256Key;
use crate::protocol::bundle::TrustBundle;
use crate::protocol::jwk::{Algorithm, PublicKey};
use crate::protocol::svid::{self, X509Svid};
use crate::store::entropy;

/// Why the authority cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Key(#[from] crate::net::keys::KeyError),
    #[error(transparent)]
    File(#[from] crate::net::files::FileError),
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(
        "{0} is not a root certificate of trust domain {1}; restore it with its key, or start with a fresh data_dir"
    )]
    Root(String, TrustDomain),
    #[error("the certificate made does not read back as an SVID: {0}")]
    Profile(#[from] svid::SvidError),
    #[error("{0:?} is neither a DNS name nor an IP address")]
    Name(String),
}

struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    serial: String,
    not_after: Timestamp,
    renew_at: Timestamp,
    key_id: String,
}

/// The authority of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    root_key: P256Key,
    root_der: Vec<u8>,
    root_not_after: Timestamp,
    issuing: RwLock<Issuing>,
}

/// A certificate just made.
pub struct Made {
    /// Leaf first, then the issuing CA; the root only where a server serves it.
    pub chain: Vec<Vec<u8>>,
    /// The leaf, read back.
    pub svid: X509Svid,
    /// Key of the issuing CA.
    pub issuer_key_id: String,
}

/// What an operator sees of the authority.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Status {
    /// The trust domain.
    pub trust_domain: String,
    /// SHA-256 of the root certificate.
    pub root_sha256: Sha256,
    /// SHA-256 of the root's public key: the pin of join tokens.
    pub pin: Sha256,
    /// End of the root.
    #[serde(serialize_with = "Timestamp::written")]
    pub root_not_after: Timestamp,
    /// Serial of the issuing CA.
    pub issuing_serial: String,
    /// End of the issuing CA.
    #[serde(serialize_with = "Timestamp::written")]
    pub issuing_not_after: Timestamp,
    /// Sequence of the bundle.
    pub bundle_sequence: u64,
}

impl Authority {
    /// Reads the root under `dir`, or makes one; makes an issuing CA.
    pub fn open(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, AuthorityError> {
        files::private_dir(dir)?;
        let (key_file, cert_file) = (dir.join("root.key"), dir.join("root.pem"));
        if !key_file.exists() {
            P256Key::generate().write(&key_file)?;
        }
        let root_key = P256Key::read(&key_file)?;
        if !cert_file.exists() {
            let params = ca_params(&profile::root(), trust_domain, now, Timestamp::from_unix(Timestamp::MAX_SECONDS));
            files::write_public(&cert_file, params.self_signed(&root_key.rcgen())?.pem().as_bytes())?;
        }
        let pem = files::read(&cert_file)?;
        let refuse = || AuthorityError::Root(cert_file.display().to_string(), trust_domain.clone());
        let root_der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| refuse())?.to_vec();
        let root_not_after = check_root(&root_der, &root_key, trust_domain).ok_or_else(refuse)?;
        let issuing = make_issuing(&root_key, trust_domain, now, root_not_after)?;
        Ok(Self {
            trust_domain: trust_domain.clone(),
            root_key,
            root_der,
            root_not_after,
            issuing: RwLock::new(issuing),
        })
    }

    /// The root certificate, DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// The pin of join tokens.
    pub fn pin(&self) -> Sha256 {
        Sha256::of(self.root_key.spki())
    }

    /// The trust bundle.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: self.trust_domain.clone(),
            sequence: 1,
            refresh_hint: 300,
            roots: vec![self.root_der.clone()],
        }
    }

    /// Replaces the issuing CA once half its life has passed; true if it did.
    pub fn rotate_if_due(&self, now: Timestamp) -> Result<bool, AuthorityError> {
        if now < self.read().renew_at {
            return Ok(false);
        }
        let next = make_issuing(&self.root_key, &self.trust_domain, now, self.root_not_after)?;
        *self.issuing.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(true)
    }

    /// What an operator sees.
    pub fn status(&self) -> Status {
        let issuing = self.read();
        Status {
            trust_domain: self.trust_domain.to_string(),
            root_sha256: Sha256::of(&self.root_der),
            pin: self.pin(),
            root_not_after: self.root_not_after,
            issuing_serial: issuing.serial.clone(),
            issuing_not_after: issuing.not_after,
            bundle_sequence: self.bundle().sequence,
        }
    }

    /// The issuing CA's key id, certificate digest and end, for the log.
    pub fn issuing_key(&self) -> (String, Sha256, Timestamp) {
        let issuing = self.read();
        (issuing.key_id.clone(), Sha256::of(&issuing.der), issuing.not_after)
    }

    /// Issues a leaf for a key that its holder has proved.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: &PublicKey,
        dns: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<Made, AuthorityError> {
        let issuing = self.read();
        let not_after = now.plus(life).min(issuing.not_after);
        let params = leaf_params(id, dns, now, not_after)?;
        let der = params.signed_by(&LeafKey(key), &issuing.issuer)?.der().to_vec();
        let svid = X509Svid::parse(&der)?;
        Ok(Made { chain: vec![der, issuing.der.clone()], svid, issuer_key_id: issuing.key_id.clone() })
    }

    /// Issues a server certificate: the chain ends with the root, so that a client with a pin finds its anchor.
    pub fn issue_server(&self, key: &P256Key, names: &[String], now: Timestamp) -> Result<Made, AuthorityError> {
        let id = self.trust_domain.workload("/popgate/server").expect("a constant path");
        let public = PublicKey::from_spki(key.spki()).expect("our own key is P-256");
        let mut made = self.issue(&id, &public, names, profile::server_life(), now)?;
        made.chain.push(self.root_der.clone());
        Ok(made)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Issuing> {
        self.issuing.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a root that is this domain's, for this key.
fn check_root(der: &[u8], key: &P256Key, trust_domain: &TrustDomain) -> Option<Timestamp> {
    use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let san = cert.subject_alternative_name().ok()??;
    let ours = san.value.general_names.iter().any(|n| matches!(n, GeneralName::URI(u) if *u == trust_domain.id()));
    let same_key = cert.public_key().raw == key.spki();
    let end = u64::try_from(cert.validity().not_after.timestamp()).ok()?;
    (ours && same_key && cert.is_ca()).then(|| Timestamp::from_unix(end))
}

fn make_issuing(
    root_key: &P256Key,
    trust_domain: &TrustDomain,
    now: Timestamp,
    bound: Timestamp,
) -> Result<Issuing, AuthorityError> {
    let profile = profile::issuing();
    let root = Issuer::new(ca_params(&profile::root(), trust_domain, now, bound), root_key.rcgen());
    let key = P256Key::generate();
    let params = ca_params(&profile, trust_domain, now, bound);
    let serial = params.serial_number.as_ref().map(|s| hex::encode(s.to_bytes())).unwrap_or_default();
    let der = params.signed_by(&key.rcgen(), &root)?.der().to_vec();
    let not_after = now.plus(profile.life.0).min(bound);
    Ok(Issuing {
        der,
        serial,
        not_after,
        renew_at: now.plus(profile.life.0 / 2),
        key_id: Sha256::of(key.spki()).to_string(),
        issuer: Issuer::new(params, key.rcgen()),
    })
}

fn date(at: Timestamp) -> OffsetDateTime {
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

/// X509-SVID section 4: a CA has a subject, critical basicConstraints and keyUsage, and its trust domain's ID. No name
/// constraints: webpki refuses chains with URI constraints.
fn ca_params(profile: &CaProfile, trust_domain: &TrustDomain, now: Timestamp, bound: Timestamp) -> CertificateParams {
    let mut params = base(now, now.plus(profile.life.0).min(bound));
    params.distinguished_name.push(DnType::CommonName, format!("{} {trust_domain}", profile.common_name));
    params.subject_alt_names = vec![uri(&trust_domain.id()).expect("a trust domain is ASCII")];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(profile.path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = profile.path_length == 0;
    params
}

/// X509-SVID sections 2 and 4: one URI SAN, an explicit cA=false, digitalSignature alone, both purposes.
fn leaf_params(
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
struct LeafKey<'a>(&'a PublicKey);

impl PublicKeyData for LeafKey<'_> {
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

#[cfg(test)]
mod tests;
