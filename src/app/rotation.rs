//! Rotation: the timer of the authorities, and the servers' certificate, replaced under live listeners.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::app::{StartError, desk};
use crate::domain::time::Timestamp;
use crate::identity::authority::{Authority, AuthorityError};
use crate::net::files;
use crate::net::keys::P256Key;
use crate::net::listener::Drain;
use crate::net::tls::ServerIdentity;
use crate::store::Stores;

/// How often ended certificates are forgotten, and how long after their end.
const PRUNE: Duration = Duration::from_hours(1);
const REMEMBERED: Duration = Duration::from_hours(24 * 7);

/// The certificate of our own listeners.
pub(super) struct ServerCertificate {
    /// What listeners present.
    pub(super) identity: Arc<ServerIdentity>,
    authority: Arc<Authority>,
    names: Vec<String>,
    stores: Stores,
    due: Timestamp,
}

impl ServerCertificate {
    /// Makes the first one. While an upstream CA has not answered there is none, and listeners present one that leads
    /// nowhere: administration goes on through the socket.
    pub(super) fn new(authority: Arc<Authority>, names: Vec<String>, stores: Stores) -> Result<Self, StartError> {
        let now = stores.clock.now();
        let (identity, due) = match make(&authority, &names, now) {
            Ok((chain, key, due)) => (ServerIdentity::new(chain, key.tls())?, due),
            Err(AuthorityError::NoIssuer(why)) => {
                tracing::warn!(why, "no certificate can be issued yet");
                let key = P256Key::generate();
                (ServerIdentity::new(vec![key.self_signed().map_err(AuthorityError::from)?], key.tls())?, now)
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { identity, authority, names, stores, due })
    }

    /// Rotates authorities as they come due and this certificate with them.
    pub(super) async fn keep(mut self, pace: Duration, ca_file: PathBuf, mut drain: Drain) {
        let mut changes = self.authority.changes();
        let mut pruned_at = Timestamp::ZERO;
        self.write_roots(&ca_file);
        loop {
            let changed = tokio::select! {
                () = drain.begun() => return,
                () = tokio::time::sleep(pace) => false,
                _ = changes.changed() => true,
            };
            let now = self.stores.clock.now();
            match self.authority.tick(now) {
                Ok(done) => done.iter().for_each(|change| {
                    tracing::info!(kind = %change.kind, id = change.id, state = %change.state, "authority rotated");
                    self.stores.evidence.note(desk::staged(&self.stores, change));
                }),
                Err(error) => tracing::error!(%error, "authorities could not be rotated"),
            }
            if changed {
                self.write_roots(&ca_file);
            }
            if changed || now >= self.due {
                self.replace(now);
            }
            if now.since(pruned_at) >= PRUNE {
                pruned_at = now;
                if let Err(error) = self.stores.issued.prune(now.minus(REMEMBERED)).await {
                    tracing::warn!(%error, "ended certificates could not be forgotten");
                }
            }
        }
    }

    /// The present roots, for whoever configures trust by hand.
    fn write_roots(&self, file: &std::path::Path) {
        let roots: String = self.authority.bundle().roots.iter().map(|r| files::pem(r)).collect();
        if let Err(error) = files::write_public(file, roots.as_bytes()) {
            tracing::error!(%error, "ca.pem could not be written");
        }
    }

    fn replace(&mut self, now: Timestamp) {
        let made = make(&self.authority, &self.names, now).map_err(|e| e.to_string());
        let replaced = made.and_then(|(chain, key, due)| {
            self.identity.replace(chain, key.tls()).map_err(|e| e.to_string())?;
            Ok(due)
        });
        match replaced {
            Ok(due) => self.due = due,
            Err(error) => tracing::error!(error, "the server certificate could not be replaced"),
        }
    }
}

fn make(
    authority: &Authority,
    names: &[String],
    now: Timestamp,
) -> Result<(Vec<Vec<u8>>, P256Key, Timestamp), AuthorityError> {
    let key = P256Key::generate();
    let made = authority.issue_server(&key, names, now)?;
    let due = now.plus(made.svid.not_after.since(now) / 2);
    Ok((made.chain, key, due))
}
