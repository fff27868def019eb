//! Calls as a workload: discovers, gets a bound token, proves each request, and follows nonces once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use serde_json::Value;

use crate::client::ClientError;
use crate::client::discovery::{self, Target, parameter};
use crate::client::http::{HttpClient, PATIENCE};
use crate::client::identity::Identity;
use crate::domain::secret::AccessToken;
use crate::domain::time::{Clock, Timestamp};
use crate::net::body::AnyBody;
use crate::net::inbound::Inbound;
use crate::net::interim::OnInterim;
use crate::protocol::dpop;
use crate::protocol::form;
use crate::store::clock::SystemClock;
use crate::store::entropy;

/// A token is replaced this long before it ends.
const EARLY: Duration = Duration::from_secs(15);

/// How long a proof that was taken says that the next will be.
const SETTLED: Duration = Duration::from_secs(20);

/// Paths whose resource is remembered.
const MAX_TARGETS: usize = 10_000;

/// One workload's calls.
pub struct Session {
    identity: Arc<Identity>,
    plain: HttpClient,
    mutual: HttpClient,
    nonces: Mutex<HashMap<String, String>>,
    targets: Mutex<HashMap<String, Target>>,
    tokens: Mutex<HashMap<String, (AccessToken, Timestamp)>>,
    /// When the gateway last took a proof for a resource.
    settled: Mutex<HashMap<String, Timestamp>>,
}

/// A request to be made, as often as a nonce or a fresh token takes.
pub struct Call<'a> {
    /// Method.
    pub method: Method,
    /// Absolute URL.
    pub url: &'a str,
    /// Headers besides the credential.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Told of interim answers.
    pub told: Option<OnInterim>,
}

impl<'a> Call<'a> {
    /// A call that nobody is told of before it is answered.
    pub const fn new(method: Method, url: &'a str, headers: HeaderMap, body: Bytes) -> Self {
        Self { method, url, headers, body, told: None }
    }

    fn tell<B>(&self, request: &mut Request<B>) {
        if let Some(told) = &self.told {
            told.attach(request);
        }
    }
}

impl Session {
    /// A session for an identity.
    pub fn new(identity: Arc<Identity>) -> Result<Self, ClientError> {
        Self::waiting(identity, PATIENCE)
    }

    /// A session whose answers may take that long to begin.
    pub fn waiting(identity: Arc<Identity>, patience: Duration) -> Result<Self, ClientError> {
        let client = |certificate| Ok::<_, ClientError>(HttpClient::new(identity.tls(certificate)?).waiting(patience));
        let (plain, mutual) = (client(false)?, client(true)?);
        Ok(Self {
            identity,
            plain,
            mutual,
            nonces: Mutex::default(),
            targets: Mutex::default(),
            tokens: Mutex::default(),
            settled: Mutex::default(),
        })
    }

    /// Whose session it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where tokens for a URL come from. A broader resource may have a narrower one inside it, so each path is asked for
    /// once; what the answer points to is read once for all paths.
    pub async fn target(&self, url: &str) -> Result<Target, ClientError> {
        let bare = url.split(['?', '#']).next().unwrap_or_default();
        let known = lock(&self.targets).get(bare).cloned();
        if let Some(target) = known {
            return Ok(target);
        }
        let metadata = discovery::probe(&self.plain, bare).await?;
        let read = lock(&self.targets).get(&metadata).cloned();
        let target = match read {
            Some(target) => target,
            None => discovery::read(&self.plain, &metadata).await?,
        };
        // RFC 9728 section 3.3: a resource that is not the URL's own would send its token elsewhere.
        let inside = bare.strip_prefix(&target.resource).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !inside && !bare.contains("/.popgate/") {
            return Err(ClientError::Elsewhere { url: bare.to_owned(), resource: target.resource });
        }
        let mut targets = lock(&self.targets);
        if targets.len() >= MAX_TARGETS {
            targets.clear();
        }
        targets.insert(metadata, target.clone());
        targets.insert(bare.to_owned(), target.clone());
        Ok(target)
    }

    /// A token for a target, from memory or minted.
    pub async fn token(&self, target: &Target) -> Result<AccessToken, ClientError> {
        let held = lock(&self.tokens).get(&target.resource).cloned();
        match held {
            Some((token, until)) if SystemClock.now().plus(EARLY) < until => Ok(token),
            _ => self.mint(target, None).await,
        }
    }

    /// Mints a token over mTLS.
    pub async fn mint(&self, target: &Target, scope: Option<&str>) -> Result<AccessToken, ClientError> {
        let pairs: Vec<(&str, String)> = scope.iter().map(|s| ("scope", (*s).to_owned())).collect();
        let document = self.ask(target, "client_credentials", &pairs).await?;
        let token = AccessToken::new(document["access_token"].as_str().unwrap_or_default().to_owned());
        let life = Duration::from_secs(document["expires_in"].as_u64().unwrap_or(0));
        lock(&self.tokens).insert(target.resource.clone(), (token.clone(), SystemClock.now().plus(life)));
        Ok(token)
    }

    /// What the token service answers to a grant with further parameters.
    pub async fn ask(&self, target: &Target, grant: &str, more: &[(&str, String)]) -> Result<Value, ClientError> {
        let client_id = self.identity.spiffe_id.to_string();
        let mut pairs = vec![("grant_type", grant), ("client_id", &client_id), ("resource", &target.resource)];
        pairs.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let body = Bytes::from(form::write(&pairs));
        let mut response = self.post_token(&target.token_endpoint, body.clone()).await?;
        if asks_for_nonce(&response) {
            response = self.post_token(&target.token_endpoint, body).await?;
        }
        let document: Value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        let text = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        if response.status() != StatusCode::OK {
            return Err(ClientError::Refused {
                what: target.token_endpoint.clone(),
                status: response.status().as_u16(),
                error: text("error"),
                detail: with_clock_hint(text("error_description"), response.headers()),
            });
        }
        Ok(document)
    }

    async fn post_token(&self, url: &str, body: Bytes) -> Result<Response<Bytes>, ClientError> {
        let proof = self.prove("POST", url, None);
        let request = Request::builder()
            .method(Method::POST)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header("dpop", proof)
            .body(body)
            .map_err(|e| ClientError::Input(format!("{url}: {e}")))?;
        let response = self.mutual.fetch(request).await?;
        self.keep_nonce(url, response.headers());
        Ok(response)
    }

    /// Signs a fresh proof with the nonce that the URL's origin gave last.
    pub fn prove(&self, method: &str, url: &str, token: Option<&AccessToken>) -> String {
        self.prove_body(method, url, token, None)
    }

    /// The same, signing for the body as well.
    pub fn prove_body(&self, method: &str, url: &str, token: Option<&AccessToken>, body: Option<&[u8]>) -> String {
        let nonce = lock(&self.nonces).get(&origin(url)).cloned();
        let jti = entropy::random_id();
        let now = SystemClock.now();
        let request = dpop::Request { method, url, token, nonce: nonce.as_deref(), jti: &jti, now, body };
        dpop::prove(&request, self.identity.signer())
    }

    /// Takes a nonce that somebody else was told.
    pub fn learn_nonce(&self, url: &str, nonce: String) {
        lock(&self.nonces).insert(origin(url), nonce);
    }

    fn keep_nonce(&self, url: &str, headers: &HeaderMap) {
        if let Some(nonce) = headers.get("dpop-nonce").and_then(|v| v.to_str().ok()) {
            lock(&self.nonces).insert(origin(url), nonce.to_owned());
        }
    }

    /// Makes a call: one retry for a nonce, one for a token that is good no more.
    pub async fn call(&self, call: &Call<'_>) -> Result<Response<Inbound>, ClientError> {
        let target = self.target(call.url).await?;
        let mut token = self.token(&target).await?;
        let mut minted = false;
        for _ in 0..3 {
            let response = self.once(call, &target, &token).await?;
            match challenge(&response).as_deref() {
                Some("use_dpop_nonce") => {}
                Some("invalid_token") if !minted => {
                    minted = true;
                    token = self.mint(&target, None).await?;
                }
                _ => return Ok(response),
            }
        }
        self.once(call, &target, &token).await
    }

    /// One try, with a fresh proof.
    pub async fn once(
        &self,
        call: &Call<'_>,
        target: &Target,
        token: &AccessToken,
    ) -> Result<Response<Inbound>, ClientError> {
        let body = (!call.body.is_empty()).then_some(&call.body[..]);
        let proof = self.prove_body(call.method.as_str(), call.url, Some(token), body);
        self.raw(call, with_proof(&call.headers, token, &proof)?, target.certificate).await
    }

    /// Makes a call whose body comes as it goes, or that is to switch protocols. It can be sent once alone, so what could
    /// refuse it is settled before: a token that is good, and a nonce.
    pub async fn stream(
        &self,
        call: &Call<'_>,
        body: AnyBody,
        upgrade: bool,
    ) -> Result<Response<Inbound>, ClientError> {
        let target = self.target(call.url).await?;
        let token = self.settled(call.url, &target).await?;
        let proof = self.prove(call.method.as_str(), call.url, Some(&token));
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.url)
            .body(body)
            .map_err(|e| ClientError::Input(format!("{}: {e}", call.url)))?;
        *request.headers_mut() = with_proof(&call.headers, &token, &proof)?;
        call.tell(&mut request);
        let http = if target.certificate { &self.mutual } else { &self.plain };
        let response = http.stream(request, upgrade).await?;
        self.keep_nonce(call.url, response.headers());
        Ok(response)
    }

    /// A token that the gateway has just taken, with a nonce where it wants one.
    async fn settled(&self, url: &str, target: &Target) -> Result<AccessToken, ClientError> {
        let token = self.token(target).await?;
        let now = SystemClock.now();
        let fresh = lock(&self.settled).get(&target.resource).is_some_and(|at| now.since(*at) < SETTLED);
        if fresh {
            return Ok(token);
        }
        // Nobody has such an approval; who is refused before that learns why.
        let own = format!("{}/.popgate/approvals/none", origin(url));
        let call = Call::new(Method::GET, &own, HeaderMap::new(), Bytes::new());
        let mut token = token;
        for _ in 0..3 {
            let response = self.once(&call, target, &token).await?;
            match challenge(&response).as_deref() {
                Some("use_dpop_nonce") => {}
                Some("invalid_token") => token = self.mint(target, None).await?,
                _ => {
                    lock(&self.settled).insert(target.resource.clone(), now);
                    break;
                }
            }
        }
        Ok(token)
    }

    /// Sends exactly these headers.
    pub async fn raw(
        &self,
        call: &Call<'_>,
        headers: HeaderMap,
        certificate: bool,
    ) -> Result<Response<Inbound>, ClientError> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.url)
            .body(call.body.clone())
            .map_err(|e| ClientError::Input(format!("{}: {e}", call.url)))?;
        *request.headers_mut() = headers;
        call.tell(&mut request);
        let http = if certificate { &self.mutual } else { &self.plain };
        let response = http.send(request).await?;
        self.keep_nonce(call.url, response.headers());
        Ok(response)
    }

    /// The error of a challenged response, with a hint where the clocks are the cause.
    pub fn explain(response: &Response<Inbound>) -> Option<String> {
        let challenge = response.headers().get(header::WWW_AUTHENTICATE)?.to_str().ok()?;
        let text = parameter(challenge, "error_description")?;
        Some(with_clock_hint(text, response.headers()))
    }
}

fn with_proof(headers: &HeaderMap, token: &AccessToken, proof: &str) -> Result<HeaderMap, ClientError> {
    let value = |text: &str| HeaderValue::from_str(text).map_err(|e| ClientError::Input(e.to_string()));
    let mut headers = headers.clone();
    let mut authorization = value(&format!("DPoP {}", token.expose()))?;
    authorization.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, authorization);
    headers.insert("dpop", value(proof)?);
    Ok(headers)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn origin(url: &str) -> String {
    let uri: Uri = url.parse().unwrap_or_default();
    format!("{}://{}", uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |a| a.as_str()))
}

fn asks_for_nonce(response: &Response<Bytes>) -> bool {
    response.status().is_client_error() && response.headers().contains_key("dpop-nonce")
}

/// The error code of a DPoP challenge.
pub fn challenge<B>(response: &Response<B>) -> Option<String> {
    if response.status() != StatusCode::UNAUTHORIZED {
        return None;
    }
    // Another scheme's challenge is upstream's, which has had the request.
    let values = response.headers().get_all(header::WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    values.filter(|v| v.starts_with("DPoP ")).find_map(|v| parameter(v, "error"))
}

/// A proof refused for its age usually means a clock: the server's `Date` tells which way.
fn with_clock_hint(detail: String, headers: &HeaderMap) -> String {
    let theirs = headers.get(header::DATE).and_then(|v| v.to_str().ok()).and_then(http_date);
    let (Some(theirs), true) = (theirs, detail.contains("(11)")) else { return detail };
    let ours = SystemClock.now();
    let (off, way) = if ours > theirs { (ours.since(theirs), "ahead of") } else { (theirs.since(ours), "behind") };
    format!("{detail}; this machine's clock is {} s {way} the server's: set it right", off.as_secs())
}

/// RFC 9110 section 5.6.7.
fn http_date(text: &str) -> Option<Timestamp> {
    let since = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_unix(since.as_secs()))
}
