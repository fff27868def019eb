//! Files that hold secrets, and files that must be whole or absent.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use zeroize::Zeroizing;

/// What went wrong with which file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}: {cause}", path.display())]
pub struct FileError {
    doing: &'static str,
    path: PathBuf,
    cause: io::Error,
}

fn named(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |cause| FileError { doing, path, cause }
}

/// Largest secret that is read.
const MAX_SECRET: u64 = 64 * 1024;

/// Reads a secret of one line or one PEM from a file, or from standard input for `-`.
pub fn read_secret(path: &Path) -> Result<Zeroizing<String>, FileError> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        io::stdin().take(MAX_SECRET).read_to_string(&mut text).map_err(named("read", path))?;
    } else {
        File::open(path).and_then(|f| f.take(MAX_SECRET).read_to_string(&mut text)).map_err(named("read", path))?;
    }
    Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()))
}

/// Reads a file as text.
pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(named("read", path))
}

/// Reads a file's bytes.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(named("read", path))
}

/// Writes a file that only its owner may read; it is whole or absent, never half.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, 0o600)
}

/// Writes a file that everyone may read; it is whole or absent, never half.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_whole(path, bytes, 0o644)
}

fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&beside)?;
        // The process's umask takes from the mode above, and the mode here is meant exactly.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), sync_dir)
    };
    write().map_err(named("write", path))
}

/// Makes what was renamed or created in a directory survive a crash.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// A certificate as PEM (RFC 7468).
pub fn pem(der: &[u8]) -> String {
    pem_block("CERTIFICATE", der)
}

/// DER as PEM under a label (RFC 7468 section 2).
pub fn pem_block(label: &str, der: &[u8]) -> String {
    let encoded = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = (0..encoded.len()).step_by(64).map(|at| &encoded[at..encoded.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Creates a directory, with its parents, that only its owner may enter.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(named("create", path))
}
