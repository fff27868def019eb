//! A workload of the demo: a process of its own that keeps its key and does what the story asks, over a Unix socket.
//!
//! It uses the same client library as everyone. What it sent as credentials it can name afterwards, so that the demo
//! can search for them where they must not be.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::cli::context::Failure;
use crate::cli::serve;
use crate::client::discovery::Target;
use crate::client::enrol;
use crate::client::http::HttpClient;
use crate::client::session::{Call, Session, challenge};
use crate::domain::digest::Sha256;
use crate::domain::secret::{AccessToken, JoinToken};
use crate::net::body::read;
use crate::net::inbound::Inbound;
use crate::protocol::form;

const MAX_BODY: usize = 64 << 20;

#[derive(Args)]
pub struct WorkloadArgs {
    /// Where to take orders
    #[arg(long)]
    socket: PathBuf,
}

struct Streaming {
    head: (u16, String),
    rest: JoinHandle<(Vec<u8>, bool)>,
}

struct Workload {
    session: Option<Arc<Session>>,
    sent: Mutex<Vec<String>>,
    streams: Mutex<HashMap<u64, Streaming>>,
}

/// Takes orders until the parent is gone.
pub async fn run(args: WorkloadArgs) -> Result<(), Failure> {
    let listener = UnixListener::bind(&args.socket)?;
    let serving = async {
        let (stream, _) = listener.accept().await?;
        let (input, mut output) = stream.into_split();
        let mut lines = BufReader::new(input).lines();
        let mut workload = Workload { session: None, sent: Mutex::default(), streams: Mutex::default() };
        while let Some(line) = lines.next_line().await? {
            let order: Value = serde_json::from_str(&line)?;
            let answer = workload.obey(&order).await.unwrap_or_else(|error| json!({"failed": error}));
            output.write_all(format!("{answer}\n").as_bytes()).await?;
        }
        Ok::<(), Failure>(())
    };
    tokio::select! {
        result = serving => result,
        () = serve::parent_gone() => Ok(()),
    }
}

fn text<'a>(order: &'a Value, name: &str) -> &'a str {
    order[name].as_str().unwrap_or_default()
}

impl Workload {
    async fn obey(&mut self, order: &Value) -> Result<Value, String> {
        let result = match text(order, "op") {
            "enrol" => self.enrol(order).await,
            "mint" => self.mint(order).await,
            "mint_bare" => self.mint_bare(order).await,
            "token" => self.token(order).await,
            "prove" => self.prove(order),
            "send" => self.send(order).await,
            "call" => self.call(order).await,
            "race" => self.race(order).await,
            "open" => self.open(order).await,
            "finish" => self.finish(order).await,
            "credentials" => Ok(json!(*self.lock_sent())),
            other => Err(format!("unknown order {other}")),
        };
        result.map_err(|e| e.clone())
    }

    fn session(&self) -> Result<Arc<Session>, String> {
        self.session.clone().ok_or_else(|| "not enrolled".to_owned())
    }

    fn lock_sent(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, credential: &str) {
        let mut sent = self.lock_sent();
        if !sent.iter().any(|c| c == credential) {
            sent.push(credential.to_owned());
        }
    }

    async fn enrol(&mut self, order: &Value) -> Result<Value, String> {
        let token = JoinToken::parse(text(order, "join_token")).map_err(|e| e.to_string())?;
        let identity = match enrol::join(text(order, "server"), &token).await {
            Ok(identity) => identity,
            Err(error) => return Ok(json!({"status": error.status(), "refused": error.to_string()})),
        };
        let answer = json!({
            "status": 201,
            "spiffe_id": identity.spiffe_id,
            "serial": identity.svid.serial,
            "jkt": identity.jkt(),
            "not_after": identity.svid.not_after.millis(),
            "pid": std::process::id(),
        });
        self.session = Some(Arc::new(Session::new(Arc::new(identity)).map_err(|e| e.to_string())?));
        Ok(answer)
    }

    async fn target(&self, order: &Value) -> Result<Target, String> {
        self.session()?.target(text(order, "url")).await.map_err(|e| e.to_string())
    }

    async fn mint(&self, order: &Value) -> Result<Value, String> {
        let target = self.target(order).await?;
        match self.session()?.mint(&target, order["scope"].as_str()).await {
            Err(error) => Ok(json!({"status": error.status(), "error": error.code(), "refused": error.to_string()})),
            Ok(token) => {
                self.remember(token.expose());
                let claims = token
                    .expose()
                    .split('.')
                    .nth(1)
                    .and_then(|p| base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(p).ok());
                let claims: Value = claims.and_then(|c| serde_json::from_slice(&c).ok()).unwrap_or(Value::Null);
                let jti = claims["jti"].as_str().unwrap_or_default();
                Ok(json!({"status": 200, "jti_sha256": Sha256::of(jti.as_bytes()), "claims": claims}))
            }
        }
    }

    /// A token request with a good proof and no certificate on the connection.
    async fn mint_bare(&self, order: &Value) -> Result<Value, String> {
        let session = self.session()?;
        let target = self.target(order).await?;
        let http = HttpClient::new(session.identity().tls(false).map_err(|e| e.to_string())?);
        let body = form::write(&[
            ("grant_type", "client_credentials"),
            ("client_id", session.identity().spiffe_id.as_str()),
            ("resource", &target.resource),
        ]);
        let request = Request::builder()
            .method(Method::POST)
            .uri(&target.token_endpoint)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("dpop", session.prove("POST", &target.token_endpoint, None))
            .body(Bytes::from(body))
            .map_err(|e| e.to_string())?;
        let response = http.fetch(request).await.map_err(|e| e.to_string())?;
        Ok(json!({"status": response.status().as_u16()}))
    }

    /// The token for a URL, as a thief would find it in memory.
    async fn token(&self, order: &Value) -> Result<Value, String> {
        let target = self.target(order).await?;
        let token = self.session()?.token(&target).await.map_err(|e| e.to_string())?;
        self.remember(token.expose());
        Ok(json!({"token": token.expose()}))
    }

    /// A proof by this workload's key for any token, with the gateway's current nonce.
    fn prove(&self, order: &Value) -> Result<Value, String> {
        let token = order["token"].as_str().map(|t| AccessToken::new(t.to_owned()));
        let proof = self.session()?.prove(text(order, "method"), text(order, "url"), token.as_ref());
        self.remember(&proof);
        Ok(json!({"proof": proof}))
    }

    fn build(order: &Value) -> Result<Call<'_>, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in order["headers"].as_object().into_iter().flatten() {
            let name: HeaderName = name.parse().map_err(|_| format!("header {name}"))?;
            headers.insert(name, HeaderValue::from_str(value.as_str().unwrap_or_default()).map_err(|e| e.to_string())?);
        }
        let method = Method::from_bytes(text(order, "method").as_bytes()).map_err(|e| e.to_string())?;
        let body = match &order["body"] {
            Value::Null => Bytes::new(),
            body => {
                headers.insert("content-type", HeaderValue::from_static("application/json"));
                Bytes::from(body.to_string())
            }
        };
        Ok(Call::new(method, text(order, "url"), headers, body))
    }

    /// Exactly these headers, nothing added.
    async fn send(&self, order: &Value) -> Result<Value, String> {
        let call = Self::build(order)?;
        let headers = call.headers.clone();
        let certificate = order["certificate"].as_bool().unwrap_or(false);
        let response = self.session()?.raw(&call, headers, certificate).await.map_err(|e| e.to_string())?;
        whole(response).await
    }

    /// A proved call: what [`Session::call`] does, with each credential remembered.
    async fn proved(&self, order: &Value) -> Result<Response<Inbound>, String> {
        let session = self.session()?;
        let call = Self::build(order)?;
        let target = self.target(order).await?;
        let token = session.token(&target).await.map_err(|e| e.to_string())?;
        self.remember(token.expose());
        let certificate = order["certificate"].as_bool().unwrap_or(target.certificate);
        for attempt in 0..2 {
            let proof = session.prove(call.method.as_str(), call.url, Some(&token));
            self.remember(&proof);
            let mut headers = call.headers.clone();
            headers.insert(
                "authorization",
                HeaderValue::from_str(&format!("DPoP {}", token.expose())).map_err(|e| e.to_string())?,
            );
            headers.insert("dpop", HeaderValue::from_str(&proof).map_err(|e| e.to_string())?);
            let response = session.raw(&call, headers, certificate).await.map_err(|e| e.to_string())?;
            if attempt == 1 || challenge(&response).as_deref() != Some("use_dpop_nonce") {
                return Ok(response);
            }
        }
        Err("unreachable: the second attempt always returns".into())
    }

    async fn call(&self, order: &Value) -> Result<Value, String> {
        whole(self.proved(order).await?).await
    }

    /// Many copies of one signed request at once.
    async fn race(&self, order: &Value) -> Result<Value, String> {
        let session = self.session()?;
        let n = order["copies"].as_u64().unwrap_or(2);
        let mut copies = Vec::new();
        for _ in 0..n {
            let (session, order) = (session.clone(), order.clone());
            copies.push(tokio::spawn(async move {
                let call = Self::build(&order)?;
                let headers = call.headers.clone();
                let response = session.raw(&call, headers, false).await.map_err(|e| e.to_string())?;
                Ok::<u16, String>(response.status().as_u16())
            }));
        }
        let mut statuses = Vec::new();
        for copy in copies {
            statuses.push(copy.await.map_err(|e| e.to_string())??);
        }
        Ok(json!({"statuses": statuses}))
    }

    /// Opens a stream and reads on in the background.
    async fn open(&self, order: &Value) -> Result<Value, String> {
        let response = self.proved(order).await?;
        let status = response.status().as_u16();
        let request_id =
            response.headers().get("popgate-request-id").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let mut body = response.into_body();
        let rest = tokio::spawn(async move {
            let mut bytes = Vec::new();
            loop {
                match body.frame().await {
                    None => return (bytes, true),
                    Some(Err(_)) => return (bytes, false),
                    Some(Ok(frame)) => bytes.extend(frame.into_data().unwrap_or_default()),
                }
            }
        });
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let id = streams.len() as u64 + 1;
        streams.insert(id, Streaming { head: (status, request_id.clone()), rest });
        Ok(json!({"stream": id, "status": status, "request_id": request_id}))
    }

    /// Waits for a stream's end.
    async fn finish(&self, order: &Value) -> Result<Value, String> {
        let id = order["stream"].as_u64().unwrap_or(0);
        let stream = self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        let stream = stream.ok_or_else(|| format!("no stream {id}"))?;
        let (bytes, complete) = stream.rest.await.map_err(|e| e.to_string())?;
        Ok(
            json!({"status": stream.head.0, "request_id": stream.head.1, "complete": complete, "body": BASE64_STANDARD.encode(bytes)}),
        )
    }
}

async fn whole(response: Response<Inbound>) -> Result<Value, String> {
    let (parts, body) = response.into_parts();
    let header = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(ToOwned::to_owned);
    let bytes = read(body, MAX_BODY).await.map_err(|e| e.to_string())?;
    let challenge = header("www-authenticate").unwrap_or_default();
    Ok(json!({
        "status": parts.status.as_u16(),
        "request_id": header("popgate-request-id"),
        "location": header("location"),
        "txn_token": header("tot-txn-token"),
        "error": crate::client::discovery::parameter(&challenge, "error"),
        "body": BASE64_STANDARD.encode(&bytes),
    }))
}
