//! An identity that stays fresh: renewed at the server, or followed at an agent.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::ClientError;
use crate::client::enrol;
use crate::client::identity::Identity;
use crate::client::kept;
use crate::client::session::Session;
use crate::client::workload::WorkloadApi;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::{Clock as _, Timestamp};
use crate::net::keys::P256Key;
use crate::store::clock::SystemClock;

/// How soon what failed is tried again, and how late at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// How long to wait at most before looking at the clock again.
const LOOK: Duration = Duration::from_secs(30);

/// The present identity, kept fresh by a task of its own until the source is dropped.
pub struct SvidSource {
    present: watch::Receiver<Arc<Identity>>,
    task: JoinHandle<()>,
}

impl Drop for SvidSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SvidSource {
    /// Renews `first` at its server, and in the directory where it is kept.
    pub fn renewing(first: Identity, kept: Option<PathBuf>) -> Self {
        let (sender, present) = watch::channel(Arc::new(first));
        Self { present, task: tokio::spawn(renew(sender, kept)) }
    }

    /// Follows an agent; one that is not ready yet is waited for.
    pub async fn following(agent: WorkloadApi, wanted: Option<SpiffeId>) -> Result<Self, ClientError> {
        let mut pause = PAUSES.0;
        let first = loop {
            match agent.identity(wanted.clone()).await {
                Err(ClientError::Unreachable { url, cause }) => {
                    tracing::warn!(url, cause, "the agent is not ready yet");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                done => break done?,
            }
        };
        let (sender, present) = watch::channel(Arc::new(first));
        Ok(Self { present, task: tokio::spawn(follow(agent, wanted, sender)) })
    }

    /// The identity of now.
    pub fn identity(&self) -> Arc<Identity> {
        self.present.borrow().clone()
    }

    /// Each next identity as it comes.
    pub fn watch(&self) -> watch::Receiver<Arc<Identity>> {
        self.present.clone()
    }
}

/// Waits for a moment of the wall clock, which may step, while machines sleep.
pub async fn until(at: Timestamp) {
    loop {
        let rest = at.since(SystemClock.now());
        if rest.is_zero() {
            return;
        }
        tokio::time::sleep(rest.min(LOOK)).await;
    }
}

async fn renew(present: watch::Sender<Arc<Identity>>, kept: Option<PathBuf>) {
    let mut pause = PAUSES.0;
    // Kept while the answer is not there: the same key again gets the same answer, so a lost one costs nothing.
    let mut key = P256Key::generate();
    loop {
        let identity = present.borrow().clone();
        until(identity.renew_after).await;
        let fresh = match &kept {
            Some(dir) => kept::renew(dir, &identity).await,
            None => match P256Key::from_pkcs8(key.pkcs8()) {
                Ok(same) => enrol::renew_with(&identity, same).await,
                Err(error) => Err(error.into()),
            },
        };
        match fresh {
            Ok(fresh) => {
                (pause, key) = (PAUSES.0, P256Key::generate());
                if present.send(Arc::new(fresh)).is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, not_after = %identity.svid.not_after, "the certificate is not renewed yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }
}

async fn follow(agent: WorkloadApi, wanted: Option<SpiffeId>, present: watch::Sender<Arc<Identity>>) {
    let mut pause = PAUSES.0;
    loop {
        match agent.identities(wanted.clone()).await {
            Ok(mut identities) => {
                while let Some(next) = identities.next().await {
                    let identity = match next {
                        Ok(identity) => identity,
                        Err(error) => {
                            tracing::warn!(%error, "the agent's stream broke off; the present certificate serves on");
                            break;
                        }
                    };
                    pause = PAUSES.0;
                    if !present.borrow().is_same(&identity) && present.send(Arc::new(identity)).is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the agent does not answer; the present certificate serves on"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Calls over rotations: each session keeps certificate, key, token and connections of one generation, so that a call ends
/// with what it began with.
pub struct Sessions {
    source: SvidSource,
    patience: Duration,
    present: std::sync::Mutex<Arc<Session>>,
}

impl Sessions {
    /// Sessions over a source, whose answers may take so long to begin.
    pub fn new(source: SvidSource, patience: Duration) -> Result<Self, ClientError> {
        let first = Arc::new(Session::waiting(source.identity(), patience)?);
        Ok(Self { source, patience, present: std::sync::Mutex::new(first) })
    }

    /// The session for a call that begins now.
    pub fn session(&self) -> Result<Arc<Session>, ClientError> {
        let identity = self.source.identity();
        let mut present = self.present.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !present.identity().is_same(&identity) {
            *present = Arc::new(Session::waiting(identity, self.patience)?);
        }
        Ok(present.clone())
    }
}
