//! P-256 private keys: made here, kept here, zeroed on drop. Files are readable by their owner alone.

use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use crate::net::files::{self, FileError};

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{0} does not hold a P-256 private key in PKCS#8 PEM")]
    Form(String),
    #[error(transparent)]
    File(#[from] FileError),
}

/// A P-256 key pair.
pub struct P256Key {
    pkcs8: Zeroizing<Vec<u8>>,
    signer: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl P256Key {
    /// Makes a fresh key.
    pub fn generate() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("the generator works or nothing here can");
        Self::from_pkcs8(pair.serialized_der()).expect("a key just made reads back")
    }

    /// From PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let refuse = || KeyError::Form("the input".into());
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).map_err(|_| refuse())?;
        let pair = rcgen_pair(der).map_err(|_| refuse())?;
        let spki = rcgen::PublicKeyData::subject_public_key_info(&pair);
        Ok(Self { pkcs8: Zeroizing::new(der.to_vec()), signer, spki })
    }

    /// Reads a PEM file.
    pub fn read(file: &Path) -> Result<Self, KeyError> {
        let pem = files::read_secret(file)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| KeyError::Form(file.display().to_string()))?;
        Self::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| KeyError::Form(file.display().to_string()))
    }

    /// Writes a PEM file, mode 0600.
    pub fn write(&self, file: &Path) -> Result<(), KeyError> {
        let pem = Zeroizing::new(self.rcgen().serialize_pem());
        Ok(files::write_private(file, pem.as_bytes())?)
    }

    /// A CSR (RFC 2986), DER: it carries the key and nothing else that counts.
    pub fn csr(&self) -> Result<Vec<u8>, rcgen::Error> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        Ok(params.serialize_request(&self.rcgen())?.der().to_vec())
    }

    /// A certificate that leads nowhere, for a listener that must present one before there is an authority.
    pub fn self_signed(&self) -> Result<Vec<u8>, rcgen::Error> {
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?;
        Ok(params.self_signed(&self.rcgen())?.der().to_vec())
    }

    /// r‖s over `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.signer.sign(&SystemRandom::new(), message);
        signature.expect("signing fails only without entropy").as_ref().to_vec()
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// PKCS#8, DER: for sealing, and for the standard that hands it to a workload.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key as the certificate library wants it.
    pub fn rcgen(&self) -> rcgen::KeyPair {
        rcgen_pair(&self.pkcs8).expect("the key was read this way before")
    }

    /// The key as the TLS library wants it.
    pub fn tls(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()))
    }
}

fn rcgen_pair(der: &[u8]) -> Result<rcgen::KeyPair, rcgen::Error> {
    rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &rcgen::PKCS_ECDSA_P256_SHA256)
}
