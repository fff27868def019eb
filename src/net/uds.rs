//! Sockets for the owner's processes alone, for administration and the signing proxy: 0600, peer credentials checked.

use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::net::listener::{Drain, Peer, Serve, Spoken, connection};

/// Longest path that fits `sockaddr_un` (unix(7)).
const MAX_PATH: usize = 107;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("the socket path {} has {length} bytes, and the system allows 107: set a shorter data_dir", path.display())]
    TooLong { path: PathBuf, length: usize },
    #[error("cannot listen on {}: {cause}", path.display())]
    Io { path: PathBuf, cause: std::io::Error },
}

/// Binds a socket that only the owner may open. A stale file is replaced: the data directory's lock says that nobody listens.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), length });
    }
    let io = |cause| SocketError::Io { path: path.to_owned(), cause };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(io)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(listener)
}

/// Serves root and the service's own user until the drain begins.
pub async fn serve<S: Serve>(listener: UnixListener, service: S, mut drain: Drain) {
    let mut connections = JoinSet::new();
    let own = nix::unistd::Uid::effective().as_raw();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => break,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let Some(uid) = stream.peer_cred().ok().map(|c| c.uid()).filter(|uid| *uid == 0 || *uid == own) else {
            tracing::warn!("a process of another user tried this socket");
            continue;
        };
        let peer = Peer::new(None, None, Some(uid));
        connections.spawn(connection(stream, Spoken::Either, peer, service.clone(), drain.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
