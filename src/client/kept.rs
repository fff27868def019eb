//! An identity kept in a directory: renewed by one process at a time, with a key that is kept before it is asked for, so that
//! neither a lost answer nor a crash makes a second key that the server takes for a thief's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::client::ClientError;
use crate::client::enrol;
use crate::client::identity::{Identity, NEXT_KEY};
use crate::net::files;
use crate::net::keys::P256Key;

/// How long another process's renewal is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// Renews the identity in a directory and keeps the new one there; what another process renewed meanwhile is taken instead.
pub async fn renew(dir: &Path, present: &Identity) -> Result<Identity, ClientError> {
    let _lock = lock(dir).await?;
    let mut there = Identity::load(dir)?;
    if there.svid.serial != present.svid.serial {
        return Ok(there);
    }
    // Where the server is may be known better than the directory says.
    there.servers.identity.clone_from(&present.servers.identity);
    let next = dir.join(NEXT_KEY);
    if !next.exists() {
        P256Key::generate().write(&next)?;
    }
    match enrol::renew_with(&there, P256Key::read(&next)?).await {
        Ok(fresh) => {
            fresh.save(dir)?;
            Ok(fresh)
        }
        Err(error) => {
            if error.status().is_some_and(|s| (400..500).contains(&s)) {
                // Refused for good: the key led to nothing.
                let _ = std::fs::remove_file(&next);
            }
            Err(error)
        }
    }
}

async fn lock(dir: &Path) -> Result<File, ClientError> {
    let path: PathBuf = dir.join(".lock");
    let failed = |what: String| ClientError::Input(format!("{}: {what}", path.display()));
    files::private_dir(dir)?;
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| failed(e.to_string()))?;
    let held = async {
        while file.try_lock().is_err() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(PATIENCE, held).await.is_err() {
        return Err(failed("another process holds the identity for half a minute already".into()));
    }
    Ok(file)
}
