//! TLS for SPIFFE: chain building is the library's, the rules on the leaf are handed in.
//!
//! URI-only leaves carry no DNS name, so both sides bring their own verifier: webpki builds the chain to the trust
//! domain's roots, then the leaf check decides. TLS 1.3 alone, post-quantum key exchange preferred, no tickets and no
//! early data, so that each connection proves its key again (`docs/requirements.md` X5, X6).

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::domain::time::{Clock, Timestamp};

/// Decides about a leaf whose chain holds, given the CAs on its way to the root, the leaf's issuer first; the text says why
/// not.
pub type LeafCheck = Arc<dyn Fn(&[u8], &[&[u8]]) -> Result<(), String> + Send + Sync>;

/// Finds the roots that a presented chain may lead to: for a pinned root, the presented one that fits the pin.
pub type RootFinder = Arc<dyn Fn(&[CertificateDer<'_>]) -> Vec<Vec<u8>> + Send + Sync>;

/// A configuration cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("TLS: {0}")]
pub struct TlsError(String);

impl TlsError {
    fn new(cause: impl fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}

/// Verifies peers of both sides.
struct PeerVerifier {
    roots: RootFinder,
    check: LeafCheck,
    clock: Arc<dyn Clock>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerVerifier")
    }
}

impl PeerVerifier {
    fn new(roots: RootFinder, check: LeafCheck, clock: Arc<dyn Clock>) -> Arc<Self> {
        let algorithms = provider().signature_verification_algorithms;
        Arc::new(Self { roots, check, clock, algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        let bad = |e: webpki::Error| rustls::Error::InvalidCertificate(named(&e));
        let mut presented = vec![leaf.clone()];
        presented.extend_from_slice(intermediates);
        let roots: Vec<CertificateDer<'_>> = (self.roots)(&presented).into_iter().map(CertificateDer::from).collect();
        let anchors: Vec<TrustAnchor<'_>> =
            roots.iter().map(anchor_from_trusted_cert).collect::<Result<_, _>>().map_err(bad)?;
        let end_entity = EndEntityCert::try_from(leaf).map_err(bad)?;
        let now = UnixTime::since_unix_epoch(self.clock.now().since(Timestamp::ZERO));
        let path = end_entity
            .verify_for_usage(self.algorithms.all, &anchors, intermediates, now, usage, None, None)
            .map_err(bad)?;
        let cas: Vec<CertificateDer<'_>> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        let cas: Vec<&[u8]> = cas.iter().map(AsRef::as_ref).collect();
        (self.check)(leaf.as_ref(), &cas).map_err(|why| {
            tracing::debug!(why, "leaf refused");
            rustls::Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(TlsError(
                why,
            )))))
        })
    }
}

fn named(error: &webpki::Error) -> rustls::CertificateError {
    use rustls::CertificateError;
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        other => CertificateError::Other(rustls::OtherError(Arc::new(TlsError::new(other)))),
    }
}

/// What the two verifier traits of rustls both ask for.
macro_rules! signature_checks {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for PeerVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    signature_checks!();
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, intermediates, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    signature_checks!();
}

/// A server's certificate and key, which rotation replaces under live listeners.
pub struct ServerIdentity(ArcSwap<CertifiedKey>);

impl fmt::Debug for ServerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdentity")
    }
}

impl ServerIdentity {
    /// From a chain, leaf first, and the leaf's key.
    pub fn new(chain: Vec<Vec<u8>>, key: PrivateKeyDer<'static>) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(chain, key)?))))
    }

    /// New connections get this one.
    pub fn replace(&self, chain: Vec<Vec<u8>>, key: PrivateKeyDer<'static>) -> Result<(), TlsError> {
        self.0.store(Arc::new(certified(chain, key)?));
        Ok(())
    }
}

fn certified(chain: Vec<Vec<u8>>, key: PrivateKeyDer<'static>) -> Result<CertifiedKey, TlsError> {
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::new)
}

impl ResolvesClientCert for ServerIdentity {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full()).filter(|own| own.key.choose_scheme(schemes).is_some())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for ServerIdentity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Who may present a client certificate.
pub struct ClientTrust {
    /// Roots of our trust domain.
    pub roots: RootFinder,
    /// Rules on the leaf.
    pub check: LeafCheck,
    /// Time for validity.
    pub clock: Arc<dyn Clock>,
}

/// Which versions of TLS a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Versions {
    /// 1.3 alone.
    Tls13,
    /// 1.2 as well.
    AlsoTls12,
}

/// A listener's TLS: client certificates are requested, never required; without trust none is asked for.
pub fn server(
    identity: Arc<ServerIdentity>,
    clients: Option<ClientTrust>,
    versions: Versions,
) -> Result<Arc<ServerConfig>, TlsError> {
    let spoken: &[&rustls::SupportedProtocolVersion] = match versions {
        Versions::Tls13 => &[&rustls::version::TLS13],
        Versions::AlsoTls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
    };
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(spoken).map_err(TlsError::new)?;
    let builder = match clients {
        Some(trust) => builder.with_client_cert_verifier(PeerVerifier::new(trust.roots, trust.check, trust.clock)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(identity);
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A client's TLS: the server is whom `trust` says, whatever name was dialled; the certificate is ours, if we have one.
pub fn client(
    trust: ClientTrust,
    identity: Option<(Vec<Vec<u8>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .dangerous()
        .with_custom_certificate_verifier(PeerVerifier::new(trust.roots, trust.check, trust.clock));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = chain.into_iter().map(CertificateDer::from).collect();
            builder.with_client_auth_cert(chain, key).map_err(TlsError::new)?
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What this process shows and believes as a member of its trust domain.
#[derive(Clone)]
pub struct OwnTls {
    /// Its own certificate, which rotation replaces.
    pub identity: Arc<ServerIdentity>,
    /// The roots of the trust domain that a presented chain is of.
    pub roots: RootFinder,
    /// Time for validity.
    pub clock: Arc<dyn Clock>,
}

/// A client's TLS towards a workload that passes `check`, whatever name was dialled; with `identity` it presents that.
pub fn workload_client(
    own: &OwnTls,
    check: LeafCheck,
    identity: Option<Arc<ServerIdentity>>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::new)?
        .dangerous()
        .with_custom_certificate_verifier(PeerVerifier::new(own.roots.clone(), check, own.clock.clone()));
    Ok(match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    })
}

/// Like [`web_client`]; with `identity` it presents that.
pub fn web_client_as(roots: &[Vec<u8>], identity: Option<Arc<ServerIdentity>>) -> Result<ClientConfig, TlsError> {
    let mut config = web_client(roots)?;
    if let Some(identity) = identity {
        config.client_auth_cert_resolver = identity;
    }
    Ok(config)
}

/// A client's TLS towards a server with a certificate from the given roots, by the name that was dialled.
pub fn web_client(roots: &[Vec<u8>]) -> Result<ClientConfig, TlsError> {
    let mut store = rustls::RootCertStore::empty();
    for root in roots {
        store.add(CertificateDer::from(root.clone())).map_err(TlsError::new)?;
    }
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(builder.map_err(TlsError::new)?.with_root_certificates(store).with_no_client_auth())
}

/// Holds a chain, leaf first, to roots: for client authentication, outside of a handshake.
pub fn verify_chain(chain: &[CertificateDer<'_>], roots: &[Vec<u8>], now: Timestamp) -> Result<(), webpki::Error> {
    let roots: Vec<CertificateDer<'_>> = roots.iter().map(|r| CertificateDer::from(r.as_slice())).collect();
    let anchors = roots.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<TrustAnchor<'_>>, _>>()?;
    let (leaf, intermediates) = chain.split_first().ok_or(webpki::Error::BadDer)?;
    let algorithms = provider().signature_verification_algorithms;
    let now = UnixTime::since_unix_epoch(now.since(Timestamp::ZERO));
    EndEntityCert::try_from(leaf)?
        .verify_for_usage(algorithms.all, &anchors, intermediates, now, KeyUsage::client_auth(), None, None)
        .map(drop)
}

/// Verifies a signature by a certificate's key, with any algorithm that fits the key.
pub fn verify_message(leaf: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> Result<(), webpki::Error> {
    let leaf = EndEntityCert::try_from(leaf)?;
    let algorithms = provider().signature_verification_algorithms;
    let holds = algorithms.all.iter().any(|a| leaf.verify_signature(*a, message, signature).is_ok());
    if holds { Ok(()) } else { Err(webpki::Error::InvalidSignatureForPublicKey) }
}

/// Signs with any private key, as the TLS library would.
pub fn sign_message(key: PrivateKeyDer<'static>, message: &[u8]) -> Result<Vec<u8>, TlsError> {
    let provider = provider();
    let key = provider.key_provider.load_private_key(key).map_err(TlsError::new)?;
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let signer = key.choose_scheme(&schemes).ok_or_else(|| TlsError::new("the key signs by no known scheme"))?;
    signer.sign(message).map_err(TlsError::new)
}

/// Always the same roots.
pub fn fixed_roots(roots: Vec<Vec<u8>>) -> RootFinder {
    Arc::new(move |_| roots.clone())
}
