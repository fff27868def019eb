//! Who tells of people that are gone, and by which keys (OpenID Shared Signals).

use std::path::{Path, PathBuf};

use crate::domain::time::Timestamp;
use crate::net::fetch::{FetchError, Fetcher};
use crate::protocol::jwt::has_audience;
use crate::protocol::security_event::{self, SecurityEvent};
use crate::trust::TrustError;
use crate::trust::config::{EventsConfig, OidcTrust};
use crate::trust::issuer::TokenIssuer;

/// `typ` of a security event token (RFC 8417 section 2.3).
const TYP: [&str; 1] = ["secevent+jwt"];
/// One transmitter.
pub struct Transmitter {
    /// Name of the trust entry.
    pub name: String,
    issuer: TokenIssuer,
    audience: Option<String>,
    /// The bearer token file of its pushes.
    pub push_token: Option<PathBuf>,
    /// Where and with which token file events are fetched.
    pub poll: Option<(String, Option<PathBuf>, Fetcher)>,
}

impl Transmitter {
    /// The transmitter of a trust entry, if it is one.
    pub fn new(trust: &OidcTrust, base: &Path) -> Result<Option<Self>, FetchError> {
        let Some(EventsConfig { audience, push_token_file, poll_url, poll_token_file }) = &trust.events else {
            return Ok(None);
        };
        let poll = match poll_url {
            None => None,
            Some(url) => {
                let fetcher = Fetcher::web(trust.keys.ca_file.as_ref().map(|f| base.join(f)).as_deref())?;
                Some((url.clone(), poll_token_file.as_ref().map(|f| base.join(f)), fetcher))
            }
        };
        Ok(Some(Self {
            name: trust.name.clone(),
            issuer: TokenIssuer::new(&trust.issuer, &trust.keys, base)?,
            audience: audience.clone(),
            push_token: push_token_file.as_ref().map(|f| base.join(f)),
            poll,
        }))
    }

    /// Whether a text says that it is this transmitter's; nothing of it is verified.
    pub fn is_named_by(&self, token: &str) -> bool {
        self.issuer.is_named_by(token)
    }

    /// Verifies an event token; none if it names another issuer. It has no end: what was said once stays said.
    pub async fn verify(
        &self,
        token: &str,
        default_audience: &str,
        now: Timestamp,
    ) -> Result<Option<SecurityEvent>, TrustError> {
        let Some(claims) = self.issuer.authentic(token, &TYP, now).await? else { return Ok(None) };
        if !has_audience(&claims, self.audience.as_deref().unwrap_or(default_audience)) {
            return Err(TrustError::Refused("aud does not name this receiver".into()));
        }
        security_event::read(&claims, &self.name, self.issuer.name(), now).map(Some).map_err(TrustError::Refused)
    }
}
