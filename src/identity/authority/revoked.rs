//! Certificate revocation lists (RFC 5280 section 5), and what is asked of a chain from an upstream CA.

use std::time::Duration;

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};

use crate::domain::digest::Sha256;
use crate::domain::spiffe_id::TrustDomain;
use crate::domain::time::Timestamp;
use crate::identity::authority::certificates::date;
use crate::identity::authority::state::{AuthorityKind, AuthorityState, Der, Record};
use crate::identity::authority::{Authority, AuthorityError};
use crate::protocol::svid;

/// How long a list is good.
pub const LIST_LIFE: Duration = Duration::from_hours(1);

/// A certificate that is revoked.
#[derive(Clone, Debug)]
pub struct RevokedCertificate {
    /// SHA-256 of the CA certificate that signed it.
    pub issuer_sha256: Sha256,
    /// Hex.
    pub serial: String,
    /// Since when.
    pub at: Timestamp,
}

impl Authority {
    /// One list for each CA that has unended certificates, DER, the active issuing CA's first. A root's list names the
    /// issuing CAs that are trusted no more.
    pub fn revocation_lists(
        &self,
        revoked: &[RevokedCertificate],
        number: u64,
        now: Timestamp,
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let records = self.list();
        let mut signers: Vec<&Record> = records
            .iter()
            .filter(|r| {
                matches!(r.kind, AuthorityKind::Root | AuthorityKind::Issuing)
                    && r.is_trusted(now)
                    && !r.chain.is_empty()
            })
            .filter(|r| r.state != AuthorityState::Prepared || r.kind == AuthorityKind::Issuing)
            // An upstream CA's root signs its own lists.
            .filter(|r| r.kind != AuthorityKind::Root || !self.policy.upstream)
            .collect();
        signers.sort_by_key(|r| (r.kind == AuthorityKind::Root, r.state != AuthorityState::Active));
        signers.into_iter().map(|signer| self.list_of(signer, &records, revoked, number, now)).collect()
    }

    fn list_of(
        &self,
        signer: &Record,
        records: &[Record],
        revoked: &[RevokedCertificate],
        number: u64,
        now: Timestamp,
    ) -> Result<Vec<u8>, AuthorityError> {
        let entry = |serial: &str, at: Timestamp, reason| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&hex::decode(serial).unwrap_or_default()),
            revocation_time: date(at),
            reason_code: Some(reason),
            invalidity_date: None,
        };
        let revoked_certs = if signer.kind == AuthorityKind::Root {
            let ended = |r: &&Record| r.state == AuthorityState::Revoked && r.root.as_ref() == Some(&signer.id);
            let bridge = |r: &Record| r.bridges.iter().find(|(root, _)| *root == signer.id).map(|(_, der)| der.bytes());
            let bridged =
                |r: &Record| (r.state == AuthorityState::Revoked).then(|| svid::serial(&bridge(r)?)).flatten();
            let own = records.iter().filter(ended).filter_map(|r| svid::serial(&r.chain.first()?.bytes()));
            let serials = own.chain(records.iter().filter_map(bridged));
            serials.map(|s| entry(&s, now, RevocationReason::CaCompromise)).collect()
        } else {
            let own = signer.chain.first().map(|c| Sha256::of(&c.bytes()));
            let of = revoked.iter().filter(|r| Some(r.issuer_sha256) == own);
            let below = |r: &&Record| {
                r.kind == AuthorityKind::Downstream
                    && r.state == AuthorityState::Revoked
                    && r.root.as_ref() == Some(&signer.id)
            };
            let below = records.iter().filter(below).filter_map(|r| svid::serial(&r.chain.first()?.bytes()));
            let leaves = of.map(|r| entry(&r.serial, r.at, RevocationReason::PrivilegeWithdrawn));
            leaves.chain(below.map(|s| entry(&s, now, RevocationReason::CaCompromise))).collect()
        };
        let params = CertificateRevocationListParams {
            this_update: date(now),
            next_update: date(now.plus(LIST_LIFE)),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer = self.issuer(signer)?;
        let key_identifier_method = svid::key_identifiers(&signer.chain.first().map(Der::bytes).unwrap_or_default())
            .and_then(|ids| ids.subject)
            .map_or(KeyIdMethod::Sha256, KeyIdMethod::PreSpecified);
        let params = CertificateRevocationListParams { key_identifier_method, ..params };
        Ok(params.signed_by(&issuer)?.der().to_vec())
    }
}

/// The end of a certificate.
pub fn end_of(der: &[u8]) -> Option<Timestamp> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    u64::try_from(cert.validity().not_after.timestamp()).ok().map(Timestamp::from_unix)
}

/// Holds an upstream CA's chain, its root last, to what our leaves need; gives the first end.
pub fn check_upstream(chain: &[Vec<u8>], trust_domain: &TrustDomain, now: Timestamp) -> Result<Timestamp, String> {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    let mut certs = Vec::new();
    for der in chain {
        let (_, cert) = X509Certificate::from_der(der).map_err(|_| "a certificate in it is not DER".to_owned())?;
        certs.push(cert);
    }
    if certs.len() < 2 {
        return Err("it needs the issuing CA's certificate first, and the upstream root last".into());
    }
    if !svid::is_ca_of(&chain[0], &trust_domain.id()) {
        return Err(format!("its first certificate is not a CA with the URI SAN {}", trust_domain.id()));
    }
    for (i, cert) in certs.iter().enumerate() {
        let signer = certs.get(i + 1).unwrap_or(cert);
        let usage = cert.key_usage().ok().flatten();
        if !cert.is_ca() || usage.is_some_and(|u| !u.value.key_cert_sign()) {
            return Err(format!("certificate {} in it may not sign certificates", i + 1));
        }
        if cert.issuer() != signer.subject() || cert.verify_signature(Some(signer.public_key())).is_err() {
            return Err(format!("certificate {} in it is not signed by the next", i + 1));
        }
    }
    let end = |c: &X509Certificate<'_>| u64::try_from(c.validity().not_after.timestamp()).unwrap_or(0);
    let first_end = Timestamp::from_unix(certs.iter().map(end).min().unwrap_or(0));
    if first_end <= now {
        return Err("a certificate in it has ended".into());
    }
    Ok(first_end)
}
