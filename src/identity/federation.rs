//! Federation (SPIFFE Federation): fetching the bundles of other trust domains, and showing ours.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::spiffe_id::{SpiffeId, TrustDomain};
use crate::net::fetch::Fetcher;
use crate::net::files;
use crate::net::listener::Drain;
use crate::net::tls::{self, ClientTrust};
use crate::protocol::bundle::{BundleError, TrustBundle};
use crate::protocol::svid::X509Svid;
use crate::store::Stores;
use crate::store::bundles::ForeignBundle;

/// How soon a bundle that could not be had is asked for again, and how seldom at least, whatever its hint says.
const RETRY: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_hours(1);
/// The hint of a bundle that has none (SPIFFE Trust Domain and Bundle section 4.1.2).
const DEFAULT_HINT: u64 = 300;

/// How a bundle endpoint proves itself (SPIFFE Federation section 5.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// By a certificate of the web's.
    HttpsWeb,
    /// By an X.509-SVID.
    HttpsSpiffe,
}

/// `[[federation]]`: a trust domain whose bundle is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FederationConfig {
    /// Its name.
    pub trust_domain: String,
    /// Its bundle endpoint; none: the file alone.
    #[serde(default)]
    pub url: Option<String>,
    /// How the endpoint proves itself.
    #[serde(default)]
    pub profile: Option<Profile>,
    /// The endpoint's SPIFFE ID, with `https_spiffe`.
    #[serde(default)]
    pub endpoint_spiffe_id: Option<String>,
    /// A bundle to begin with, or to keep to: a JWK Set.
    #[serde(default)]
    pub bundle_file: Option<PathBuf>,
    /// CA certificates, PEM, with `https_web`; none: the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// A federation is not configured soundly.
#[derive(Clone, Debug, thiserror::Error)]
#[error("federation with {trust_domain}: {why}")]
pub struct FederationError {
    trust_domain: String,
    why: String,
}

/// One trust domain that is federated with.
pub struct Relation {
    trust_domain: TrustDomain,
    config: FederationConfig,
    base: PathBuf,
    endpoint: Option<SpiffeId>,
}

impl Relation {
    /// Checks a configuration.
    pub fn new(config: &FederationConfig, base: &Path, own: &TrustDomain) -> Result<Self, FederationError> {
        let bad = |why: String| FederationError { trust_domain: config.trust_domain.clone(), why };
        let trust_domain = TrustDomain::parse(&config.trust_domain).map_err(|e| bad(e.to_string()))?;
        if trust_domain == *own {
            return Err(bad("that is this server's own trust domain".into()));
        }
        if config.url.is_none() && config.bundle_file.is_none() {
            return Err(bad("name a url, a bundle_file, or both".into()));
        }
        if config.url.as_ref().is_some_and(|u| !u.starts_with("https://")) {
            return Err(bad("url is not https".into()));
        }
        let spiffe = config.profile == Some(Profile::HttpsSpiffe);
        let endpoint = match (&config.endpoint_spiffe_id, spiffe) {
            (Some(id), true) => Some(id.parse::<SpiffeId>().map_err(|e| bad(format!("endpoint_spiffe_id: {e}")))?),
            (None, true) => return Err(bad("https_spiffe needs endpoint_spiffe_id".into())),
            (Some(_), false) => return Err(bad("endpoint_spiffe_id goes with profile = \"https_spiffe\"".into())),
            (None, false) => None,
        };
        if config.url.is_some() && config.profile.is_none() {
            return Err(bad("url needs profile: https_web or https_spiffe".into()));
        }
        if endpoint.as_ref().is_some_and(|e| e.is_member_of(&trust_domain)) && config.bundle_file.is_none() {
            return Err(bad(
                "its endpoint proves itself by the bundle that it serves: bundle_file must hold the first one".into(),
            ));
        }
        Ok(Self { trust_domain, config: config.clone(), base: base.to_owned(), endpoint })
    }

    /// Fetches on and on, as often as the bundle's hint says.
    pub async fn keep(self, stores: Stores, mut drain: Drain) {
        if let Some(file) = &self.config.bundle_file {
            self.begin(&stores, &self.base.join(file)).await;
        }
        let Some(url) = self.config.url.clone() else { return };
        loop {
            let pause = match self.fetch(&stores, &url).await {
                Ok(bundle) => {
                    let hint = if bundle.refresh_hint == 0 { DEFAULT_HINT } else { bundle.refresh_hint };
                    Duration::from_secs(hint).clamp(Duration::from_secs(1), SELDOM)
                }
                Err(error) => {
                    metrics::counter!("popgate_federation_failures_total", "trust_domain" => self.trust_domain.to_string()).increment(1);
                    tracing::warn!(trust_domain = %self.trust_domain, error, "its bundle could not be fetched; the known one serves on");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = drain.begun() => return,
            }
        }
    }

    /// The file's bundle, unless a later one is known.
    async fn begin(&self, stores: &Stores, file: &Path) {
        let read = files::read(file).map_err(|e| e.to_string());
        let known = known(stores, &self.trust_domain);
        let later =
            |b: &TrustBundle| self.config.url.is_none() || known.as_ref().is_none_or(|k| k.sequence < b.sequence);
        let kept = match read.and_then(|text| Ok((parse(&self.trust_domain, &text).map_err(|e| e.to_string())?, text)))
        {
            Ok((bundle, text)) if later(&bundle) => self.put(stores, text, file.display().to_string()).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::error!(trust_domain = %self.trust_domain, file = %file.display(), error, "its bundle file is not taken");
        }
    }

    async fn fetch(&self, stores: &Stores, url: &str) -> Result<TrustBundle, String> {
        let document = self.fetcher(stores)?.get(url).await.map_err(|e| e.to_string())?;
        let text = String::from_utf8(document.to_vec()).map_err(|_| format!("{url}: it is not UTF-8"))?;
        let bundle = parse(&self.trust_domain, &text).map_err(|e| format!("{url}: {e}"))?;
        match known(stores, &self.trust_domain) {
            Some(known) if known.to_jwks() == bundle.to_jwks() => {}
            Some(known) if bundle.sequence < known.sequence => {
                return Err(format!(
                    "{url}: its sequence {} is older than the known {}",
                    bundle.sequence, known.sequence
                ));
            }
            _ => self.put(stores, text, url.to_owned()).await?,
        }
        Ok(bundle)
    }

    async fn put(&self, stores: &Stores, document: String, source: String) -> Result<(), String> {
        let read_at = stores.clock.now();
        let bundle = ForeignBundle { trust_domain: self.trust_domain.clone(), document, source, read_at };
        tracing::info!(trust_domain = %self.trust_domain, source = bundle.source, "bundle taken");
        stores.bundles.put(&bundle).await.map_err(|e| e.to_string())
    }

    /// `https_spiffe` is judged by the known bundle of the endpoint's own trust domain, anew each time.
    fn fetcher(&self, stores: &Stores) -> Result<Fetcher, String> {
        let Some(endpoint) = self.endpoint.clone() else {
            let file = self.config.ca_file.as_ref().map(|f| self.base.join(f));
            return Fetcher::web(file.as_deref()).map_err(|e| e.to_string());
        };
        let bundle = known(stores, &endpoint.trust_domain());
        let bundle = bundle.ok_or_else(|| format!("no bundle of {} is known", endpoint.trust_domain()))?;
        let check: tls::LeafCheck = Arc::new(move |der, _| {
            let svid = X509Svid::parse(der).map_err(|e| e.to_string())?;
            (svid.spiffe_id == endpoint).then_some(()).ok_or_else(|| format!("the endpoint is {}", svid.spiffe_id))
        });
        let trust = ClientTrust { roots: tls::fixed_roots(bundle.roots), check, clock: stores.clock.clone() };
        Ok(Fetcher::new(tls::client(trust, None).map_err(|e| e.to_string())?))
    }
}

/// Reads a foreign bundle whole; a document that is no bundle replaces nothing.
pub fn parse(trust_domain: &TrustDomain, text: &str) -> Result<TrustBundle, BundleError> {
    TrustBundle::parse(trust_domain.clone(), text.as_bytes())
}

fn known(stores: &Stores, trust_domain: &TrustDomain) -> Option<TrustBundle> {
    let kept = stores.bundles.list().into_iter().find(|b| b.trust_domain == *trust_domain)?;
    parse(trust_domain, &kept.document).ok()
}

/// The known foreign bundles, read.
pub fn foreign(stores: &Stores) -> BTreeMap<TrustDomain, TrustBundle> {
    let read = |b: ForeignBundle| Some((b.trust_domain.clone(), parse(&b.trust_domain, &b.document).ok()?));
    stores.bundles.list().into_iter().filter_map(read).collect()
}
