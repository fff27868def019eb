//! The agent's socket: every local process may connect, each is attested by what the kernel says of it.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::agent::workload_api::WorkloadApi;
use crate::net::h2_authority::Mended;
use crate::net::listener::{Drain, Peer, Spoken, connection};
use crate::net::process::PeerProcess;
use crate::net::router::Routed;
use crate::net::uds::{self, SocketError};
use crate::net::workload_api::DESCRIPTORS;
use crate::net::workload_api::spiffe_workload_api_server::{SERVICE_NAME, SpiffeWorkloadApiServer};
use crate::protocol::hpack;

/// Workloads keep a connection each: a host has this many at most.
const MAX_CONNECTIONS: usize = 15_000;
/// Of these, one user has this many at most.
const MAX_OF_ONE_USER: usize = MAX_CONNECTIONS / 10;
/// How long calls in flight have when the agent ends.
const GRACE: Duration = Duration::from_secs(5);

/// The Workload API with health and reflection.
pub async fn routes(api: WorkloadApi) -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::new(SpiffeWorkloadApiServer::new(api)).add_service(health);
    if let (Ok(v1), Ok(v1alpha)) = (reflection().build_v1(), reflection().build_v1alpha()) {
        routes = routes.add_service(v1).add_service(v1alpha);
    }
    routes.into_axum_router()
}

/// Binds the socket so that any local process may connect. One that somebody listens on is left alone, and so is what is
/// no socket.
pub fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    if let Ok(about) = std::fs::symlink_metadata(path) {
        let why = if !about.file_type().is_socket() {
            Some("it is there and no socket: name another path")
        } else if std::os::unix::net::UnixStream::connect(path).is_ok() {
            Some("another process listens on it: stop that one, or name another path")
        } else {
            None
        };
        if let Some(why) = why {
            let cause = std::io::Error::new(std::io::ErrorKind::AddrInUse, why);
            return Err(SocketError::Io { path: path.to_owned(), cause });
        }
    }
    let listener = uds::bind(path)?;
    let open = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777));
    open.map_err(|cause| SocketError::Io { path: path.to_owned(), cause })?;
    Ok(listener)
}

/// The connections of each user: one user cannot take every place.
#[derive(Default)]
struct Places {
    of_user: HashMap<u32, usize>,
    /// Users that were warned of; once each, until they have given half of their places back.
    warned: HashSet<u32>,
}

impl Places {
    fn take(&mut self, uid: u32) -> bool {
        let taken = self.of_user.entry(uid).or_default();
        if *taken < MAX_OF_ONE_USER {
            *taken += 1;
            return true;
        }
        metrics::counter!("popgate_agent_connections_refused_total").increment(1);
        if self.warned.insert(uid) {
            tracing::warn!(uid, "this user has too many connections: more are turned away");
        }
        false
    }

    fn leave(&mut self, uid: u32) {
        self.of_user.entry(uid).and_modify(|n| *n = n.saturating_sub(1));
        self.of_user.retain(|_, n| *n > 0);
        if self.of_user.get(&uid).is_none_or(|n| *n < MAX_OF_ONE_USER / 2) {
            self.warned.remove(&uid);
        }
    }
}

/// Serves until the drain begins.
pub async fn serve(listener: UnixListener, router: Router, mut drain: Drain) {
    let service = Routed::new(router, None);
    let mut connections = JoinSet::new();
    let mut places = Places::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.begun() => break,
            Some(ended) = connections.join_next() => {
                if let Ok(uid) = ended {
                    places.leave(uid);
                }
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if connections.len() >= MAX_CONNECTIONS {
            tracing::warn!("too many connections: one is turned away");
            continue;
        }
        let process = match PeerProcess::of(&stream) {
            Ok(process) => process,
            Err(error) => {
                tracing::info!(%error, "a caller had gone before it could be told who it is");
                continue;
            }
        };
        let uid = process.uid;
        if !places.take(uid) {
            continue;
        }
        let peer = Peer { process: Some(Arc::new(process)), ..Peer::new(None, None, None) };
        let mended = Mended::new(stream, hpack::mend_authority);
        let served = connection(mended, Spoken::Http2, peer, service.clone(), drain.clone());
        connections.spawn(async move {
            served.await;
            uid
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(GRACE, ended).await;
}
