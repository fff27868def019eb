//! Where authority keys live: an interface narrow enough for a hardware module or a cloud's key service, and files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

use crate::net::files::{self, FileError};
use crate::net::keys::P256Key;
use crate::protocol::ecdsa_der;

const SEALED: &str = "popgate-sealed-key-1";

/// Why a key cannot be had or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyStoreError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0} does not hold an authority's key")]
    Form(String),
    #[error("{0} holds another key than its name says; restore it from a backup")]
    Another(String),
    #[error("{0} is sealed: set identity.key_encryption_key_file to the file with the key that sealed it")]
    Sealed(String),
    #[error("{0} does not open with the key of identity.key_encryption_key_file: it was sealed with another")]
    WrongKey(String),
    #[error("{0} does not hold 32 bytes in hex, as `openssl rand -hex 32` writes them")]
    KeyEncryptionKey(String),
}

/// One authority's private key, wherever it is. All that a PKCS#11 module (`CKM_ECDSA`) or a cloud KMS need offer.
pub trait AuthorityKey: Send + Sync {
    /// SubjectPublicKeyInfo, DER; P-256.
    fn spki(&self) -> &[u8];
    /// r‖s over SHA-256 of `message`.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyStoreError>;
}

impl AuthorityKey for P256Key {
    fn spki(&self) -> &[u8] {
        self.spki()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        Ok(self.sign(message))
    }
}

/// Makes and keeps authority keys.
pub trait KeyStore: Send + Sync {
    /// Makes a key and keeps it under its own identifier, the SHA-256 of its SPKI in hex.
    fn create(&self) -> Result<Arc<dyn AuthorityKey>, KeyStoreError>;
    /// The key that was kept under an identifier.
    fn open(&self, id: &str) -> Result<Arc<dyn AuthorityKey>, KeyStoreError>;
    /// Destroys a key; one that is gone already is no error.
    fn destroy(&self, id: &str) -> Result<(), KeyStoreError>;
}

/// Identifier of a key.
pub fn key_id(key: &dyn AuthorityKey) -> String {
    crate::domain::digest::Sha256::of(key.spki()).to_string()
}

/// Keys as files that their owner alone may read, sealed with AES-256-GCM where a key-encryption key is configured.
pub struct FileKeys {
    dir: PathBuf,
    sealing: Option<RandomizedNonceKey>,
}

impl FileKeys {
    /// Keys under `dir`; `key_file` holds the key-encryption key, 32 bytes in hex.
    pub fn new(dir: &Path, key_file: Option<&Path>) -> Result<Self, KeyStoreError> {
        files::private_dir(dir)?;
        let sealing = key_file.map(|file| {
            let text = files::read_secret(file)?;
            let mut bytes = Zeroizing::new([0; 32]);
            let refuse = || KeyStoreError::KeyEncryptionKey(file.display().to_string());
            hex::decode_to_slice(text.trim(), bytes.as_mut_slice()).map_err(|_| refuse())?;
            RandomizedNonceKey::new(&AES_256_GCM, bytes.as_slice()).map_err(|_| refuse())
        });
        Ok(Self { dir: dir.to_owned(), sealing: sealing.transpose()? })
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.key"))
    }

    fn write(&self, id: &str, key: &P256Key) -> Result<(), KeyStoreError> {
        let Some(sealing) = &self.sealing else {
            return key.write(&self.file(id)).map_err(|_| KeyStoreError::Form(self.file(id).display().to_string()));
        };
        let mut sealed = key.pkcs8().to_vec();
        let nonce = sealing.seal_in_place_append_tag(Aad::from(id.as_bytes()), &mut sealed);
        let nonce = nonce.map_err(|_| KeyStoreError::WrongKey(self.file(id).display().to_string()))?;
        let text = format!("{SEALED} {}\n", BASE64_STANDARD.encode([&nonce.as_ref()[..], &sealed].concat()));
        Ok(files::write_private(&self.file(id), text.as_bytes())?)
    }

    fn unseal(&self, id: &str, text: &str) -> Result<P256Key, KeyStoreError> {
        let name = || self.file(id).display().to_string();
        let sealing = self.sealing.as_ref().ok_or_else(|| KeyStoreError::Sealed(name()))?;
        let bytes = BASE64_STANDARD.decode(text.trim()).map_err(|_| KeyStoreError::Form(name()))?;
        let (nonce, body) = bytes.split_at_checked(NONCE_LEN).ok_or_else(|| KeyStoreError::Form(name()))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| KeyStoreError::Form(name()))?;
        let mut body = Zeroizing::new(body.to_vec());
        let opened = sealing.open_in_place(nonce, Aad::from(id.as_bytes()), &mut body);
        P256Key::from_pkcs8(opened.map_err(|_| KeyStoreError::WrongKey(name()))?)
            .map_err(|_| KeyStoreError::Form(name()))
    }
}

impl KeyStore for FileKeys {
    fn create(&self) -> Result<Arc<dyn AuthorityKey>, KeyStoreError> {
        let key = P256Key::generate();
        self.write(&key_id(&key), &key)?;
        Ok(Arc::new(key))
    }

    fn open(&self, id: &str) -> Result<Arc<dyn AuthorityKey>, KeyStoreError> {
        let file = || self.file(id).display().to_string();
        let text = files::read_secret(&self.file(id))?;
        let sealed = text.strip_prefix(SEALED);
        let key = match sealed {
            Some(sealed) => self.unseal(id, sealed)?,
            None => P256Key::read(&self.file(id)).map_err(|_| KeyStoreError::Form(file()))?,
        };
        if key_id(&key) != id {
            return Err(KeyStoreError::Another(file()));
        }
        if sealed.is_none() && self.sealing.is_some() {
            // It was made before the key-encryption key was configured.
            self.write(id, &key)?;
        }
        Ok(Arc::new(key))
    }

    fn destroy(&self, id: &str) -> Result<(), KeyStoreError> {
        match std::fs::remove_file(self.file(id)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(KeyStoreError::Form(format!("{} (it cannot be removed: {e})", self.file(id).display())))
            }
            _ => Ok(()),
        }
    }
}

/// A key as the certificate library wants it.
pub struct Remote(pub Arc<dyn AuthorityKey>);

impl rcgen::PublicKeyData for Remote {
    fn der_bytes(&self) -> &[u8] {
        // The point is what follows the 26 bytes of a P-256 SPKI's head.
        self.0.spki().get(26..).unwrap_or_default()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Remote {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let fixed = self.0.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        ecdsa_der::from_fixed(&fixed).ok_or(rcgen::Error::RemoteKeyError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l4_keys_are_sealed_where_a_key_encryption_key_is_configured() {
        let dir = tempfile::tempdir().expect("tempdir");
        let plain = FileKeys::new(dir.path(), None).expect("opens");
        let id = key_id(&*plain.create().expect("makes"));
        let text = || std::fs::read_to_string(dir.path().join(format!("{id}.key"))).expect("reads");
        assert!(text().contains("PRIVATE KEY"));
        let kek = |name: &str, byte: u8| {
            std::fs::write(dir.path().join(name), hex::encode([byte; 32])).expect("writes");
            FileKeys::new(dir.path(), Some(&dir.path().join(name)))
        };
        let sealed = kek("kek", 7).expect("opens");
        let spki = sealed.open(&id).expect("a plain key is sealed when it is next opened").spki().to_vec();
        assert!(text().starts_with(SEALED) && !text().contains("PRIVATE"));
        assert_eq!(sealed.open(&id).expect("opens").spki(), spki);
        assert!(matches!(plain.open(&id), Err(KeyStoreError::Sealed(_))));
        assert!(matches!(kek("other", 8).expect("opens").open(&id), Err(KeyStoreError::WrongKey(_))));
        std::fs::write(dir.path().join("short"), "abcd").expect("writes");
        let short = FileKeys::new(dir.path(), Some(&dir.path().join("short")));
        assert!(matches!(short.err(), Some(KeyStoreError::KeyEncryptionKey(_))));
        // A sealed key is bound to its name.
        let other = key_id(&*sealed.create().expect("makes"));
        std::fs::copy(sealed.file(&id), sealed.file(&other)).expect("copies");
        assert!(matches!(sealed.open(&other), Err(KeyStoreError::WrongKey(_))));
        let (one, two) = (key_id(&*plain.create().expect("makes")), key_id(&*plain.create().expect("makes")));
        std::fs::copy(plain.file(&one), plain.file(&two)).expect("copies");
        assert!(matches!(plain.open(&two), Err(KeyStoreError::Another(_))));
    }

    #[test]
    fn l4_keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("tempdir");
        let keys = FileKeys::new(&dir.path().join("ca"), None).expect("opens");
        let id = key_id(&*keys.create().expect("makes"));
        let mode = std::fs::metadata(keys.file(&id)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        keys.destroy(&id).expect("destroys");
        keys.destroy(&id).expect("twice is no error");
        assert!(keys.open(&id).is_err());
    }
}
