//! Certificate signing requests (RFC 2986): nothing is taken from one but its key, and that only if it signed.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::domain::spiffe_id::TrustDomain;
use crate::protocol::ecdsa_der;
use crate::protocol::jwk::{Algorithm, PublicKey};

/// Largest CSR in bytes that is looked at.
pub const MAX_CSR: usize = 16 * 1024;

/// Why a CSR is refused. Carries no input.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum CsrError {
    #[error("the CSR is not one DER PKCS#10 request of at most 16 KiB")]
    Form,
    #[error("the CSR's key is not P-256 or Ed25519")]
    Key,
    #[error("the CSR's signature algorithm is not its key's")]
    Algorithm,
    #[error("the CSR is not signed by its own key")]
    Signature,
}

/// What proves the possession of another certificate's key for a CSR: it is good for this CSR in this trust domain alone,
/// so that a copy of it serves nobody who lacks the CSR's key.
pub fn possession_message(trust_domain: &TrustDomain, csr: &[u8]) -> Vec<u8> {
    [b"popgate x509_pop 1\0", trust_domain.as_str().as_bytes(), b"\0", csr].concat()
}

/// Reads a CSR, verifies its self-signature, and gives the key that made it.
pub fn verify(der: &[u8]) -> Result<PublicKey, CsrError> {
    if der.len() > MAX_CSR {
        return Err(CsrError::Form);
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Form)?;
    if !rest.is_empty() {
        return Err(CsrError::Form);
    }
    let info = &csr.certification_request_info;
    let key = PublicKey::from_spki(info.subject_pki.raw).map_err(|_| CsrError::Key)?;
    let oid = csr.signature_algorithm.algorithm.to_id_string();
    let message = info.raw;
    let signature = csr.signature_value.data.as_ref();
    let holds = match (key.algorithm(), oid.as_str()) {
        (Algorithm::Es256, "1.2.840.10045.4.3.2") => {
            ecdsa_der::to_fixed(signature).is_some_and(|fixed| key.verifies(message, &fixed))
        }
        (Algorithm::Ed25519, "1.3.101.112") => key.verifies(message, signature),
        _ => return Err(CsrError::Algorithm),
    };
    if holds { Ok(key) } else { Err(CsrError::Signature) }
}
