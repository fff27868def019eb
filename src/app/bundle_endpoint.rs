//! The bundle endpoint with a certificate of the web's, which is read anew when its file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use tokio::net::TcpListener;

use crate::app::StartError;
use crate::config::{Config, ConfigError};
use crate::net::fetch::certificates;
use crate::net::files;
use crate::net::listener::{self, Drain};
use crate::net::tls::ServerIdentity;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The files of its certificate and key.
pub(super) struct WebCertificate {
    chain: PathBuf,
    key: PathBuf,
}

impl WebCertificate {
    fn read(&self) -> Result<(Vec<Vec<u8>>, PrivateKeyDer<'static>), ConfigError> {
        let bad = |file: &Path, why: String| ConfigError::Value(format!("bundle_endpoint: {}: {why}", file.display()));
        let chain = certificates(&self.chain).map_err(|e| bad(&self.chain, e))?;
        let pem = files::read_secret(&self.key).map_err(|e| bad(&self.key, e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| bad(&self.key, e.to_string()))?;
        Ok((chain, key))
    }

    fn changed_at(&self) -> Option<SystemTime> {
        let at = |file: &Path| std::fs::metadata(file).and_then(|m| m.modified()).ok();
        at(&self.chain).max(at(&self.key))
    }

    /// Serves the files' present certificate; what cannot be read changes nothing.
    pub(super) async fn keep(self, identity: Arc<ServerIdentity>, mut drain: Drain) {
        let mut seen = self.changed_at();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = drain.begun() => return,
            }
            if self.changed_at() == seen {
                continue;
            }
            seen = self.changed_at();
            let replaced = self.read().map_err(|e| e.to_string());
            match replaced.and_then(|(chain, key)| identity.replace(chain, key).map_err(|e| e.to_string())) {
                Ok(()) => tracing::info!("the bundle endpoint's certificate is read anew"),
                Err(error) => tracing::error!(error, "the bundle endpoint keeps its old certificate"),
            }
        }
    }
}

/// A listener, what it presents, and the files that come from.
pub(super) type Endpoint = (TcpListener, Arc<ServerIdentity>, WebCertificate);

/// The endpoint, if it is configured.
pub(super) async fn bind(config: &Config) -> Result<Option<Endpoint>, StartError> {
    let section = &config.bundle_endpoint;
    let (Some(listen), Some(chain), Some(key)) = (section.listen, &section.certificate_file, &section.key_file) else {
        return Ok(None);
    };
    let files = WebCertificate { chain: config.base.join(chain), key: config.base.join(key) };
    let (chain, key) = files.read()?;
    let identity = ServerIdentity::new(chain, key)?;
    let listener = listener::bind(listen, "the bundle endpoint", "bundle_endpoint.listen").await?;
    Ok(Some((listener, identity, files)))
}
