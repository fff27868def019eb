//! A request to the token listener made by hand, so that each part of it can be wrong.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use popgate::client::http::HttpClient;
use popgate::client::identity::Identity;
use popgate::domain::time::Clock as _;
use popgate::net::keys::P256Key;
use popgate::protocol::form;
use popgate::store::clock::SystemClock;
use popgate::store::entropy::random_id;
use serde_json::{Value, json};

use crate::world::{Client, HandMade, Service, key_of};

/// The parameters of a form, in order; a name may occur twice.
pub type Pairs = Vec<(String, String)>;

/// One request.
pub struct Asking {
    pub path: &'static str,
    pub form: Pairs,
    pub kind: &'static str,
    /// Whether the connection presents the certificate.
    pub certificate: bool,
    pub proofs: usize,
    pub edit: Box<dyn Fn(&mut HandMade) + Send + Sync>,
    pub headers: Vec<(&'static str, String)>,
    /// Sent instead of the form.
    pub body: Option<String>,
}

/// What came back.
#[derive(Debug)]
pub struct Told {
    pub status: u16,
    pub headers: HeaderMap,
    pub json: Value,
    pub text: String,
}

impl Told {
    pub fn of(response: &http::Response<Bytes>) -> Self {
        let text = String::from_utf8_lossy(response.body()).into_owned();
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            json: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    pub fn error(&self) -> &str {
        self.json["error"].as_str().unwrap_or_default()
    }

    /// The access token.
    pub fn token(&self) -> &str {
        self.json["access_token"].as_str().unwrap_or_else(|| panic!("no token: {}", self.text))
    }

    /// The claims of the access token, unverified.
    pub fn claims(&self) -> Value {
        claims(self.token())
    }
}

/// The claims of a JWT, unverified.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a JWT");
    serde_json::from_slice(&B64.decode(payload).expect("base64url")).expect("JSON")
}

pub fn now() -> u64 {
    SystemClock.now().unix()
}

impl Asking {
    /// A client credentials request of a workload for `/v1`, over mTLS.
    pub fn new(service: &Service, id: &str) -> Self {
        let form =
            [("grant_type", "client_credentials"), ("client_id", id), ("resource", &service.url("gateway", "/v1"))];
        Self {
            path: "/token",
            form: form.map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec(),
            kind: "application/x-www-form-urlencoded",
            certificate: true,
            proofs: 1,
            edit: Box::new(|_| ()),
            headers: vec![],
            body: None,
        }
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.unset(name);
        self.form.push((name.to_owned(), value.into()));
        self
    }

    pub fn unset(&mut self, name: &str) -> &mut Self {
        self.form.retain(|(n, _)| n != name);
        self
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value);
        self
    }

    /// Sends it with the key of a workload.
    pub async fn send(&self, service: &Service, client: &Client) -> Told {
        self.send_as(service, client.session.identity()).await
    }

    pub async fn send_as(&self, service: &Service, identity: &Identity) -> Told {
        let told = self.once(service, identity, None).await;
        match told.headers.get("dpop-nonce") {
            Some(nonce) => self.once(service, identity, Some(nonce.to_str().expect("text"))).await,
            None => told,
        }
    }

    /// One try.
    pub async fn once(&self, service: &Service, identity: &Identity, nonce: Option<&str>) -> Told {
        let url = service.url("token", self.path);
        let http = HttpClient::new(identity.tls(self.certificate).expect("TLS"));
        let mut request = Request::builder().method(Method::POST).uri(&url).header("content-type", self.kind);
        for _ in 0..self.proofs {
            let mut proof = HandMade::new(key_of(identity), "POST", &url, None);
            if let Some(nonce) = nonce {
                proof.payload["nonce"] = nonce.into();
            }
            (self.edit)(&mut proof);
            request = request.header("dpop", proof.sign());
        }
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let pairs: Vec<(&str, &str)> = self.form.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let body = self.body.clone().unwrap_or_else(|| form::write(&pairs));
        let response = http.fetch(request.body(Bytes::from(body)).expect("builds")).await.expect("answers");
        Told::of(&response)
    }
}

/// A client assertion of a workload's own (private_key_jwt), by its certificate's key.
pub fn client_assertion(service: &Service, identity: &Identity, edit: impl FnOnce(&mut Value, &mut Value)) -> String {
    let id = identity.spiffe_id.to_string();
    let mut header = json!({"alg": "ES256", "typ": "JWT", "kid": identity.jkt().to_string()});
    let mut payload = json!({
        "iss": id, "sub": id, "aud": service.addresses["token"], "jti": random_id(), "iat": now(), "exp": now() + 60,
    });
    edit(&mut header, &mut payload);
    sign(&header, &payload, &key_of(identity))
}

/// A JWS by a P-256 key.
pub fn sign(header: &Value, payload: &Value, key: &P256Key) -> String {
    let input = format!("{}.{}", B64.encode(header.to_string()), B64.encode(payload.to_string()));
    format!("{input}.{}", B64.encode(key.sign(input.as_bytes())))
}

/// A detail of ours.
pub fn details(actions: &[&str], identifier: Option<&str>, uses: Option<u32>) -> String {
    let mut detail = json!({"type": "popgate_operation", "actions": actions});
    if let Some(identifier) = identifier {
        detail["identifier"] = identifier.into();
    }
    if let Some(uses) = uses {
        detail["uses"] = uses.into();
    }
    json!([detail]).to_string()
}
