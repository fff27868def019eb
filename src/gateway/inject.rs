//! The upstream's own credential, which the workload never sees: from a file, or a token of an OAuth client of ours.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::gateway::config::{InjectConfig, InjectTokenConfig};
use crate::net::fetch::Fetcher;
use crate::net::files;
use crate::protocol::form;

/// The life of a token whose answer names none (RFC 6749 section 5.1).
const UNNAMED_LIFE: u64 = 60;
/// A token is replaced this long before its end, or after three quarters of a shorter life.
const AHEAD: u64 = 30;
/// No token is kept for longer, whatever its answer says.
const LONGEST: u64 = 24 * 3600;
/// How long the token endpoint may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a failure counts for those who come next.
const FAILED: Duration = Duration::from_secs(2);
/// Tokens that upstream refuses are replaced once in so long: a request that it always refuses must not cost one each time.
const BETWEEN: Duration = Duration::from_secs(5);

/// Where a credential comes from, and where it goes.
pub struct Inject {
    /// Header that carries it.
    pub header: http::HeaderName,
    prefix: String,
    source: Source,
}

enum Source {
    /// Re-read when it changes.
    File(PathBuf),
    /// Asked for by client credentials (RFC 6749 section 4.4).
    Token(Arc<Client>),
}

/// An upstream's credential, read once for one request.
pub struct Injected {
    /// The header's value.
    pub value: http::HeaderValue,
    /// The bare secret, which must not come back.
    pub secret: Zeroizing<Vec<u8>>,
}

impl Inject {
    /// Checks `inject` of a route; the text names the key.
    pub fn new(config: &InjectConfig, base: &Path) -> Result<Self, String> {
        let name = config.header.to_ascii_lowercase().parse();
        let header = name.map_err(|_| format!("inject.header {:?} is not a header name", config.header))?;
        let source = match (&config.file, &config.token) {
            (Some(file), None) => {
                let file = base.join(file);
                secret(&file).map_err(|e| format!("inject.file: {e}"))?;
                Source::File(file)
            }
            (None, Some(token)) => Source::Token(Arc::new(Client::new(token, base)?)),
            _ => return Err("inject takes its credential from `file` or by `token`, one of them".into()),
        };
        Ok(Self { header, prefix: config.prefix.clone(), source })
    }

    /// The credential now.
    pub async fn read(&self) -> Result<Injected, String> {
        let (secret, whence) = match &self.source {
            Source::File(file) => (secret(file)?, file.display().to_string()),
            Source::Token(client) => (client.token().await?, client.url.clone()),
        };
        let mut value = http::HeaderValue::from_str(&format!("{}{}", self.prefix, secret.as_str()))
            .map_err(|_| format!("{whence} gives bytes that no header can carry"))?;
        value.set_sensitive(true);
        Ok(Injected { value, secret: Zeroizing::new(secret.as_bytes().to_vec()) })
    }

    /// Upstream did not take this credential: another token is asked for the next time, unless one was just now.
    pub fn refused(&self, injected: Option<&Injected>) {
        let (Source::Token(client), Some(injected)) = (&self.source, injected) else { return };
        // Whoever holds it is about to have another.
        let Ok(mut kept) = client.kept.try_lock() else { return };
        let same = |had: &Had| matches!(&had.token, Ok(token) if token.as_bytes() == injected.secret.as_slice());
        let mut last = client.discarded.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(same) && last.is_none_or(|at| at.elapsed() >= BETWEEN) {
            *last = Some(Instant::now());
            *kept = None;
        }
    }
}

fn secret(file: &Path) -> Result<Zeroizing<String>, String> {
    let secret = files::read_secret(file).map_err(|e| e.to_string())?;
    if secret.is_empty() { Err(format!("{} is empty", file.display())) } else { Ok(secret) }
}

/// A client of somebody's authorization server.
struct Client {
    url: String,
    id: String,
    secret_file: PathBuf,
    form: String,
    fetcher: Fetcher,
    /// Held while one is asked for: the requests that come meanwhile share it.
    kept: Mutex<Option<Had>>,
    /// When one that upstream refused was given up last.
    discarded: std::sync::Mutex<Option<Instant>>,
}

/// What was answered, good or bad, and until when it counts.
struct Had {
    token: Result<Zeroizing<String>, String>,
    until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: String,
    expires_in: Option<u64>,
}

impl Client {
    fn new(config: &InjectTokenConfig, base: &Path) -> Result<Self, String> {
        if !config.url.starts_with("https://") {
            return Err(format!(
                "inject.token.url {:?}: write https://, since the client's secret goes there",
                config.url
            ));
        }
        let secret_file = base.join(&config.client_secret_file);
        secret(&secret_file).map_err(|e| format!("inject.token.client_secret_file: {e}"))?;
        let ca = config.ca_file.as_ref().map(|file| base.join(file));
        let fetcher = Fetcher::web(ca.as_deref()).map_err(|e| format!("inject.token.ca_file: {e}"))?;
        let more = [("scope", &config.scope), ("resource", &config.resource)];
        let more = more.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let form = form::write(&std::iter::once(("grant_type", "client_credentials")).chain(more).collect::<Vec<_>>());
        let (url, id) = (config.url.clone(), config.client_id.clone());
        Ok(Self { url, id, secret_file, form, fetcher, kept: Mutex::new(None), discarded: std::sync::Mutex::default() })
    }

    /// A token that is good now. Who asks first asks for all that come meanwhile, even if its own client goes.
    async fn token(self: &Arc<Self>) -> Result<Zeroizing<String>, String> {
        let asking = self.clone();
        let asked = tokio::spawn(async move {
            let mut kept = asking.kept.lock().await;
            if let Some(had) = kept.as_ref().filter(|had| had.until > Instant::now()) {
                return had.token.clone();
            }
            let answer = tokio::time::timeout(PATIENCE, asking.ask()).await;
            let answer =
                answer.unwrap_or_else(|_| Err(format!("{}: no answer in {} s", asking.url, PATIENCE.as_secs())));
            let good = answer.as_ref().map_or(FAILED, |(_, good)| *good);
            let token = answer.map(|(token, _)| token);
            *kept = Some(Had { token: token.clone(), until: Instant::now() + good });
            token
        });
        asked.await.map_err(|e| e.to_string())?
    }

    async fn ask(&self) -> Result<(Zeroizing<String>, Duration), String> {
        let secret = secret(&self.secret_file)?;
        // RFC 6749 section 2.3.1: both are form-encoded before they are joined.
        let pair = Zeroizing::new(format!("{}:{}", form::encode(&self.id), form::encode(&secret)));
        let body = self.fetcher.post_form(&self.url, &pair, Bytes::from(self.form.clone())).await;
        let body = Zeroizing::new(body.map_err(|e| e.to_string())?.to_vec());
        // What the answer holds is not repeated: it may be a token.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| format!("{}: the answer is no token response (RFC 6749 section 5.1)", self.url))?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") || answer.access_token.is_empty() {
            return Err(format!("{}: the answer is not a bearer token", self.url));
        }
        let life = answer.expires_in.unwrap_or(UNNAMED_LIFE).min(LONGEST);
        let good = life.saturating_sub(AHEAD).max(life / 4 * 3);
        Ok((Zeroizing::new(answer.access_token), Duration::from_secs(good)))
    }
}
