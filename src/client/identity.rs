//! An identity on disk or in memory: certificate, key, bundle and server addresses as one generation.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use crate::client::ClientError;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::domain::time::Timestamp;
use crate::net::files;
use crate::net::keys::P256Key;
use crate::net::tls::{self, ClientTrust, LeafCheck};
use crate::protocol::jwk::PublicKey;
use crate::protocol::jws::SigningKey;
use crate::protocol::svid::{self, X509Svid};
use crate::store::clock::SystemClock;

/// The file of the key that the next certificate will have.
pub const NEXT_KEY: &str = "next-key.pem";

/// Where the trust domain's listeners are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Servers {
    /// Enrolment and renewal.
    pub identity: String,
    /// Token service.
    pub token: String,
    /// Gateway.
    pub gateway: String,
    /// Administration.
    pub admin: String,
}

/// One generation of an identity.
pub struct Identity {
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The leaf, read.
    pub svid: X509Svid,
    /// Leaf first, DER.
    pub chain: Vec<Vec<u8>>,
    /// Roots of the trust domain, DER.
    pub roots: Vec<Vec<u8>>,
    /// Where to go.
    pub servers: Servers,
    /// Whose servers are called, where that is not the identity's own trust domain: with its roots.
    pub trusted_domain: Option<TrustDomain>,
    /// When to come for the next: as the server said, else at half its life.
    pub renew_after: Timestamp,
    key: Arc<P256Key>,
    signer: SigningKey,
}

impl Identity {
    /// Joins the parts; the key must be the certificate's.
    pub fn new(key: P256Key, chain: Vec<Vec<u8>>, roots: Vec<Vec<u8>>, servers: Servers) -> Result<Self, ClientError> {
        let bad = |cause: String| ClientError::Input(format!("the identity cannot be used: {cause}"));
        let leaf = chain.first().ok_or_else(|| bad("it has no certificate".into()))?;
        let svid = X509Svid::parse(leaf).map_err(|e| bad(e.to_string()))?;
        let public = PublicKey::from_spki(key.spki()).map_err(|e| bad(e.to_string()))?;
        if public.jkt() != svid.key.jkt() {
            return Err(bad("key.pem is not the key of svid.pem".into()));
        }
        let key = Arc::new(key);
        let signing = key.clone();
        let signer = SigningKey::new(public, move |message| signing.sign(message));
        let renew_after = svid.not_before.plus(svid.not_after.since(svid.not_before) / 2);
        Ok(Self {
            spiffe_id: svid.spiffe_id.clone(),
            svid,
            chain,
            roots,
            servers,
            trusted_domain: None,
            renew_after,
            key,
            signer,
        })
    }

    /// Reads what `svid fetch` wrote.
    pub fn load(dir: &Path) -> Result<Self, ClientError> {
        let bad = |name: &str, cause: String| {
            ClientError::Input(format!(
                "{}: {cause}; `popgate svid fetch --out {}` writes it anew",
                dir.join(name).display(),
                dir.display()
            ))
        };
        let pems = |name: &str| -> Result<Vec<Vec<u8>>, ClientError> {
            let text = files::read(&dir.join(name))?;
            let certs = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
            Ok(certs.map_err(|e| bad(name, e.to_string()))?.into_iter().map(|c| c.to_vec()).collect())
        };
        if !dir.join("popgate.json").exists() {
            let how = format!("`popgate svid fetch --join-token-file FILE --out {}` makes one", dir.display());
            return Err(ClientError::Input(format!("{} holds no identity; {how}", dir.display())));
        }
        let servers = files::read(&dir.join("popgate.json"))?;
        let servers: Servers = serde_json::from_str(&servers).map_err(|e| bad("popgate.json", e.to_string()))?;
        let (chain, roots) = (pems("svid.pem")?, pems("bundle.pem")?);
        let made =
            Self::new(P256Key::read(&dir.join("key.pem"))?, chain.clone(), roots.clone(), Servers::clone(&servers));
        match P256Key::read(&dir.join(NEXT_KEY)) {
            // The last replacement broke off between certificate and key.
            Ok(next) if made.is_err() => Self::new(next, chain, roots, servers),
            _ => made,
        }
    }

    /// Writes `svid.pem`, `key.pem` (0600), `bundle.pem` and `popgate.json`.
    pub fn save(&self, dir: &Path) -> Result<(), ClientError> {
        files::private_dir(dir)?;
        let pem = |ders: &[Vec<u8>]| ders.iter().map(|d| files::pem(d)).collect::<String>();
        let servers = serde_json::to_string_pretty(&self.servers).expect("four strings");
        // In this order a crash at any moment leaves a certificate with its key, here or in the next key's file.
        self.key.write(&dir.join(NEXT_KEY))?;
        files::write_public(&dir.join("bundle.pem"), pem(&self.roots).as_bytes())?;
        files::write_public(&dir.join("svid.pem"), pem(&self.chain).as_bytes())?;
        self.key.write(&dir.join("key.pem"))?;
        files::write_public(&dir.join("popgate.json"), servers.as_bytes())?;
        let _ = std::fs::remove_file(dir.join(NEXT_KEY));
        Ok(())
    }

    /// Signs proofs.
    pub const fn signer(&self) -> &SigningKey {
        &self.signer
    }

    /// The private key, for a TLS stack of the workload's own.
    pub fn private_key(&self) -> rustls::pki_types::PrivateKeyDer<'static> {
        self.key.tls()
    }

    /// Whether another generation says the same: certificate and roots.
    pub fn is_same(&self, other: &Self) -> bool {
        self.svid.serial == other.svid.serial && self.roots == other.roots
    }

    /// The key's thumbprint.
    pub const fn jkt(&self) -> Jkt {
        self.signer.public().jkt()
    }

    /// TLS towards this trust domain's servers, with the certificate or without.
    pub fn tls(&self, with_certificate: bool) -> Result<rustls::ClientConfig, ClientError> {
        let trust = ClientTrust {
            roots: tls::fixed_roots(self.roots.clone()),
            check: server_check(Some(
                self.trusted_domain.clone().unwrap_or_else(|| self.spiffe_id.trust_domain()).to_string(),
            )),
            clock: Arc::new(SystemClock),
        };
        let identity = with_certificate.then(|| (self.chain.clone(), self.key.tls()));
        Ok(tls::client(trust, identity)?)
    }
}

/// A server is `spiffe://TD/popgate/server`, of this trust domain if it is known.
pub fn server_check(trust_domain: Option<String>) -> LeafCheck {
    Arc::new(move |der, cas| {
        // What is signed for a server below says so itself, and cannot say otherwise: we made it.
        if cas.iter().any(|ca| svid::is_downstream_ca(ca)) {
            return Err("the server's certificate comes from a downstream CA, which may not name a server".to_owned());
        }
        let svid = X509Svid::parse(der).map_err(|e| e.to_string())?;
        let ours = trust_domain.as_ref().is_none_or(|td| svid.spiffe_id.trust_domain().as_str() == td);
        if ours && svid.spiffe_id.path() == "/popgate/server" {
            return Ok(());
        }
        Err(format!(
            "the server is {}, not spiffe://{}/popgate/server",
            svid.spiffe_id,
            trust_domain.as_deref().unwrap_or("TD")
        ))
    })
}
