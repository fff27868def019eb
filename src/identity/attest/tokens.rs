//! The keys of a token issuer, fetched and remembered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::domain::refusal::Refusal;
use crate::domain::time::Timestamp;
use crate::identity::attest::config::KeySource;
use crate::identity::attest::refused;
use crate::net::fetch::{FetchError, Fetcher};
use crate::net::files;
use crate::protocol::json;
use crate::protocol::jws::Compact;
use crate::protocol::jwt::{self, JwtError, JwtKey};

/// How long keys are used without looking again.
const FRESH: Duration = Duration::from_mins(5);
/// How soon an unknown `kid` may make us look again.
const PAUSE: Duration = Duration::from_secs(10);
/// Clocks of issuers run differently.
const LEEWAY: u64 = 60;

/// Verifies tokens of one issuer for one audience.
pub struct TokenIssuer {
    issuer: String,
    audience: Option<String>,
    source: Source,
    held: Mutex<Held>,
}

enum Source {
    File(PathBuf),
    Web { fetcher: Box<Fetcher>, url: Option<String> },
}

#[derive(Default)]
struct Held {
    keys: Vec<JwtKey>,
    read_at: Option<Timestamp>,
}

impl TokenIssuer {
    /// An issuer; nothing is fetched before the first token.
    pub fn new(issuer: &str, audience: Option<&str>, keys: &KeySource, base: &Path) -> Result<Self, FetchError> {
        let source = match &keys.file {
            Some(file) => Source::File(base.join(file)),
            None => Source::Web {
                fetcher: Box::new(Fetcher::web(keys.ca_file.as_ref().map(|f| base.join(f)).as_deref())?),
                url: keys.url.clone(),
            },
        };
        Ok(Self { issuer: issuer.to_owned(), audience: audience.map(Into::into), source, held: Mutex::default() })
    }

    /// The claims of a token of this issuer for `default_audience` or the configured one; none if it names another issuer.
    pub async fn verify(
        &self,
        token: &str,
        default_audience: &str,
        now: Timestamp,
    ) -> Result<Option<Map<String, Value>>, Refusal> {
        if token.len() > jwt::MAX_JWT {
            return Err(refused(JwtError::TooLong));
        }
        let claimed = Compact::split(token).and_then(|c| c.payload_object()).map_err(refused)?;
        if claimed.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Ok(None);
        }
        let claims = match jwt::verify(token, &self.keys(now, FRESH).await?) {
            // The issuer may have a new key.
            Err(JwtError::UnknownKey) => jwt::verify(token, &self.keys(now, PAUSE).await?),
            done => done,
        };
        let claims = claims.map_err(refused)?;
        jwt::check_time(&claims, now, LEEWAY, LEEWAY).map_err(refused)?;
        if !jwt::has_audience(&claims, self.audience.as_deref().unwrap_or(default_audience)) {
            return Err(refused(JwtError::Audience));
        }
        Ok(Some(claims))
    }

    /// The keys, not older than `age`. Keys that cannot be read anew serve on.
    async fn keys(&self, now: Timestamp, age: Duration) -> Result<Vec<JwtKey>, Refusal> {
        let mut held = self.held.lock().await;
        if held.read_at.is_some_and(|at| now.since(at) < age) {
            return Ok(held.keys.clone());
        }
        match self.read().await {
            Ok(keys) => *held = Held { keys, read_at: Some(now) },
            Err(error) if held.keys.is_empty() => {
                return Err(Refusal::unavailable("the token issuer's key set", error));
            }
            Err(error) => {
                tracing::warn!(issuer = self.issuer, %error, "keys could not be read anew; the known ones serve on");
                held.read_at = Some(now);
            }
        }
        Ok(held.keys.clone())
    }

    async fn read(&self) -> Result<Vec<JwtKey>, String> {
        let document = match &self.source {
            Source::File(file) => files::read(file).map_err(|e| e.to_string())?.into_bytes(),
            Source::Web { fetcher, url } => {
                let url = match url {
                    Some(url) => url.clone(),
                    None => self.discover(fetcher).await?,
                };
                fetcher.get(&url).await.map_err(|e| e.to_string())?.to_vec()
            }
        };
        let set = json::parse_object(&document).map_err(|e| format!("the key set is not JSON: {e}"))?;
        let keys = JwtKey::from_jwks(&Value::Object(set));
        if keys.is_empty() { Err("the key set has no key that verifies".into()) } else { Ok(keys) }
    }

    /// OpenID Connect Discovery section 4: the document must name the issuer it was asked for.
    async fn discover(&self, fetcher: &Fetcher) -> Result<String, String> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let document = fetcher.get(&url).await.map_err(|e| e.to_string())?;
        let document = json::parse_object(&document).map_err(|e| format!("{url} is not JSON: {e}"))?;
        if document.get("issuer").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(format!("{url} names another issuer"));
        }
        let keys = document.get("jwks_uri").and_then(Value::as_str);
        keys.map(ToOwned::to_owned).ok_or_else(|| format!("{url} names no jwks_uri"))
    }
}
