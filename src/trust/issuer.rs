//! The keys of a token issuer, fetched and remembered; its tokens, decrypted where they are encrypted to us, and verified.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::domain::time::Timestamp;
use crate::net::fetch::{FetchError, Fetcher};
use crate::net::files;
use crate::protocol::json;
use crate::protocol::jws::Compact;
use crate::protocol::jwt::{self, JwtError, JwtKey};
use crate::trust::TrustError;
use crate::trust::config::KeySource;
use crate::trust::foreign;

/// How long keys are used without looking again.
const FRESH: Duration = Duration::from_mins(5);
/// How soon an unknown `kid` may make us look again.
const PAUSE: Duration = Duration::from_secs(10);

/// Verifies tokens of one issuer.
pub struct TokenIssuer {
    issuer: String,
    source: Source,
    decryption_key: Option<PathBuf>,
    held: Mutex<Held>,
}

enum Source {
    File(PathBuf),
    Web { fetcher: Box<Fetcher>, url: Option<String> },
}

#[derive(Clone, Default)]
struct Held {
    keys: Vec<JwtKey>,
    /// The whole set, for algorithms that only the breadth library knows.
    set: Value,
    read_at: Option<Timestamp>,
}

impl TokenIssuer {
    /// An issuer; nothing is fetched before the first token.
    pub fn new(issuer: &str, keys: &KeySource, base: &Path) -> Result<Self, FetchError> {
        let source = match &keys.file {
            Some(file) => Source::File(base.join(file)),
            None => Source::Web {
                fetcher: Box::new(Fetcher::web(keys.ca_file.as_ref().map(|f| base.join(f)).as_deref())?),
                url: keys.url.clone(),
            },
        };
        let decryption_key = keys.decryption_key_file.as_ref().map(|f| base.join(f));
        Ok(Self { issuer: issuer.to_owned(), source, decryption_key, held: Mutex::default() })
    }

    /// `iss` of its tokens.
    pub fn name(&self) -> &str {
        &self.issuer
    }

    /// Whether a text says that it is this issuer's; nothing of it is verified.
    pub fn is_named_by(&self, token: &str) -> bool {
        let claims = Compact::split(token).and_then(|c| c.payload_object());
        claims.is_ok_and(|c| c.get("iss").and_then(Value::as_str) == Some(&self.issuer))
    }

    /// The token in clear: itself, or what it holds if it is encrypted to us (RFC 7516, a nested JWT of RFC 7519 section 2).
    pub fn open(&self, token: &str) -> Result<String, TrustError> {
        if token.len() > jwt::MAX_JWT {
            return Err(JwtError::TooLong.into());
        }
        match &self.decryption_key {
            Some(file) if foreign::is_encrypted(token) => {
                let key = files::read_secret(file).map_err(|e| TrustError::Away(e.to_string()))?;
                foreign::decrypt(token, &key)
            }
            _ => Ok(token.to_owned()),
        }
    }

    /// The claims of a token of this issuer for one of `audiences`, with `typ` as in `types`; none if it names another issuer.
    pub async fn verify(
        &self,
        token: &str,
        audiences: &[&str],
        types: &[&str],
        now: Timestamp,
    ) -> Result<Option<Map<String, Value>>, TrustError> {
        let Some(claims) = self.authentic(token, types, now).await? else { return Ok(None) };
        jwt::check_time(&claims, now, jwt::LEEWAY, jwt::LEEWAY)?;
        if !audiences.iter().any(|a| jwt::has_audience(&claims, a)) {
            return Err(JwtError::Audience.into());
        }
        Ok(Some(claims))
    }

    /// The claims of a text that this issuer signed, whatever its time and audience; none if it names another issuer.
    pub async fn authentic(
        &self,
        token: &str,
        types: &[&str],
        now: Timestamp,
    ) -> Result<Option<Map<String, Value>>, TrustError> {
        if token.len() > jwt::MAX_JWT {
            return Err(JwtError::TooLong.into());
        }
        let claimed = Compact::split(token).and_then(|c| c.payload_object())?;
        if claimed.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Ok(None);
        }
        let held = self.held(now, FRESH).await?;
        let claims = match check(token, &held, types) {
            // The issuer may have a new key.
            Err(JwtError::UnknownKey) => check(token, &self.held(now, PAUSE).await?, types),
            done => done,
        };
        Ok(Some(claims?))
    }

    /// The keys, not older than `age`. Keys that cannot be read anew serve on.
    async fn held(&self, now: Timestamp, age: Duration) -> Result<Held, TrustError> {
        let mut held = self.held.lock().await;
        if held.read_at.is_some_and(|at| now.since(at) < age) {
            return Ok(held.clone());
        }
        match self.read().await {
            Ok((keys, set)) => *held = Held { keys, set, read_at: Some(now) },
            Err(error) if held.read_at.is_none() => return Err(TrustError::Away(error)),
            Err(error) => {
                tracing::warn!(issuer = self.issuer, %error, "keys could not be read anew; the known ones serve on");
                held.read_at = Some(now);
            }
        }
        Ok(held.clone())
    }

    async fn read(&self) -> Result<(Vec<JwtKey>, Value), String> {
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
        let set = Value::Object(json::parse_object(&document).map_err(|e| format!("the key set is not JSON: {e}"))?);
        let keys = JwtKey::from_jwks(&set);
        let breadth = set["keys"].as_array().is_some_and(|all| all.iter().any(foreign::has_key));
        if keys.is_empty() && !breadth { Err("the key set has no key that verifies".into()) } else { Ok((keys, set)) }
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

/// By the usual algorithms first; what they do not know is the breadth library's.
fn check(token: &str, held: &Held, types: &[&str]) -> Result<Map<String, Value>, JwtError> {
    match jwt::verify_typed(token, &held.keys, types) {
        Err(JwtError::Algorithm) => foreign::verify(token, &held.set, types),
        done => done,
    }
}
