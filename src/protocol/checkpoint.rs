//! Checkpoints as C2SP signed notes (c2sp.org/tlog-checkpoint, c2sp.org/signed-note).

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use crate::domain::digest::Sha256;

/// Signature type byte of Ed25519 in a signed note.
const ED25519_TYPE: u8 = 1;
/// Longest note in bytes that is looked at.
const MAX_NOTE: usize = 64 * 1024;

/// Why a note is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a signed note holding a checkpoint")]
    Form,
    #[error("the verification key is not NAME+HASH+BASE64 of an Ed25519 key")]
    Vkey,
    #[error("no signature of the log's key is on the note")]
    Unsigned,
    #[error("the log's signature does not verify")]
    Signature,
    #[error("the note is of another log")]
    Origin,
}

/// A tree head.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// Root over them.
    pub root: Sha256,
}

impl Checkpoint {
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64_STANDARD.encode(self.root.0))
    }

    /// Signs the checkpoint into a note.
    pub fn sign(&self, key: &Ed25519KeyPair) -> String {
        use aws_lc_rs::signature::KeyPair as _;
        let body = self.body();
        let mut blob = key_id(&self.origin, key.public_key().as_ref()).to_vec();
        blob.extend(key.sign(body.as_bytes()).as_ref());
        format!("{body}\n— {} {}\n", self.origin, BASE64_STANDARD.encode(blob))
    }

    /// Verifies a note with the log's key.
    pub fn verify(note: &str, vkey: &Vkey) -> Result<Self, CheckpointError> {
        let checkpoint = Self::parse(note)?;
        if checkpoint.origin != vkey.name {
            return Err(CheckpointError::Origin);
        }
        let signatures = note.split_once("\n\n").map_or("", |(_, s)| s);
        let prefix = format!("— {} ", vkey.name);
        let blob = signatures
            .lines()
            .filter_map(|line| BASE64_STANDARD.decode(line.strip_prefix(&prefix)?).ok())
            .find(|blob| blob.len() == 68 && blob[..4] == vkey.id())
            .ok_or(CheckpointError::Unsigned)?;
        UnparsedPublicKey::new(&ED25519, &vkey.key)
            .verify(checkpoint.body().as_bytes(), &blob[4..])
            .map_err(|_| CheckpointError::Signature)?;
        Ok(checkpoint)
    }

    /// Reads a note without believing it.
    pub fn parse(note: &str) -> Result<Self, CheckpointError> {
        if note.len() > MAX_NOTE {
            return Err(CheckpointError::Form);
        }
        let (body, _) = note.split_once("\n\n").ok_or(CheckpointError::Form)?;
        let mut lines = body.split('\n');
        let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(CheckpointError::Form);
        };
        let canonical = size == "0" || (!size.starts_with('0') && size.bytes().all(|b| b.is_ascii_digit()));
        let size = size.parse().ok().filter(|_| canonical && !origin.is_empty()).ok_or(CheckpointError::Form)?;
        let root = BASE64_STANDARD.decode(root).ok().and_then(|r| r.try_into().ok()).ok_or(CheckpointError::Form)?;
        Ok(Self { origin: origin.to_owned(), size, root: Sha256(root) })
    }
}

/// A note's verification key, `NAME+HASH+BASE64`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Vkey {
    name: String,
    key: Vec<u8>,
}

impl Vkey {
    /// From the log's name and Ed25519 public key.
    pub fn new(name: &str, key: &[u8]) -> Self {
        Self { name: name.to_owned(), key: key.to_vec() }
    }

    /// Reads the text form and checks its hash.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(hash), Some(blob)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(CheckpointError::Vkey);
        };
        let blob = BASE64_STANDARD.decode(blob).map_err(|_| CheckpointError::Vkey)?;
        let (Some(&ED25519_TYPE), 33) = (blob.first(), blob.len()) else { return Err(CheckpointError::Vkey) };
        let vkey = Self::new(name, &blob[1..]);
        (hex::encode(vkey.id()) == hash).then_some(vkey).ok_or(CheckpointError::Vkey)
    }

    /// The log's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text form.
    pub fn text(&self) -> String {
        let mut blob = vec![ED25519_TYPE];
        blob.extend(&self.key);
        format!("{}+{}+{}", self.name, hex::encode(self.id()), BASE64_STANDARD.encode(blob))
    }

    fn id(&self) -> [u8; 4] {
        key_id(&self.name, &self.key)
    }
}

/// SHA-256(name ‖ 0x0A ‖ type ‖ key), first four bytes.
fn key_id(name: &str, key: &[u8]) -> [u8; 4] {
    let digest = Sha256::of_parts(&[name.as_bytes(), b"\n", &[ED25519_TYPE], key]);
    [digest.0[0], digest.0[1], digest.0[2], digest.0[3]]
}
