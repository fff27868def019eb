//! A web server with a certificate of its own CA: token issuers, API servers and bundle endpoints in the tests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use popgate::net::files;
use popgate::net::listener::{self, Drain};
use popgate::net::router::Routed;
use popgate::net::tls::{self, ServerIdentity};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Answers a request by method, path, headers and body.
type Answer = Arc<dyn Fn(&Method, &str, &HeaderMap, &[u8]) -> (u16, String) + Send + Sync>;

pub struct Web {
    /// `https://localhost:PORT`
    pub url: String,
    /// Its CA, PEM.
    pub ca: String,
    answer: Arc<Mutex<Answer>>,
    _switch: tokio::sync::watch::Sender<bool>,
}

/// A CA that signs what a web server needs.
pub struct WebCa {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl WebCa {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("makes");
        let mut params = CertificateParams::new(vec![]).expect("makes");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("signs").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A leaf for names, DER, and its key, PEM.
    pub fn leaf(&self, common_name: &str, names: &[&str]) -> (Vec<u8>, String) {
        let key = KeyPair::generate().expect("makes");
        let names = names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("makes");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        (params.signed_by(&key, &self.issuer).expect("signs").der().to_vec(), key.serialize_pem())
    }
}

impl Web {
    pub async fn start(documents: &[(&str, String)]) -> Self {
        let ca = WebCa::new("web CA");
        let (der, key) = ca.leaf("localhost", &["localhost"]);
        let key = rustls::pki_types::pem::PemObject::from_pem_slice(key.as_bytes()).map(|k: PrivatePkcs8KeyDer| k);
        let identity = ServerIdentity::new(vec![der], PrivateKeyDer::Pkcs8(key.expect("a key"))).expect("an identity");
        let config = tls::server(identity, None, tls::Versions::Tls13).expect("TLS");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        let documents: HashMap<String, String> = documents.iter().map(|(p, d)| ((*p).to_owned(), d.clone())).collect();
        let fixed: Answer = Arc::new(move |_, path, _, _| match documents.get(path) {
            Some(document) => (200, document.clone()),
            None => (404, String::new()),
        });
        let answer = Arc::new(Mutex::new(fixed));
        let (switch, drain) = Drain::new();
        let router = Router::new().fallback(respond).with_state(answer.clone());
        tokio::spawn(listener::serve(listener, Some(config), Routed::new(router, None), drain));
        Self { url, ca: ca.pem, answer, _switch: switch }
    }

    pub fn on_request(
        &self,
        answer: impl Fn(&Method, &str, &HeaderMap, &[u8]) -> (u16, String) + Send + Sync + 'static,
    ) {
        *self.answer.lock().expect("no panic") = Arc::new(answer);
    }

    pub fn serve(&self, documents: &[(&str, String)]) {
        let documents: HashMap<String, String> = documents.iter().map(|(p, d)| ((*p).to_owned(), d.clone())).collect();
        self.on_request(move |_, path, _, _| documents.get(path).map_or((404, String::new()), |d| (200, d.clone())));
    }
}

async fn respond(
    State(answer): State<Arc<Mutex<Answer>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, [(&'static str, &'static str); 1], String) {
    let answer = answer.lock().expect("no panic").clone();
    let (status, text) = answer(&method, uri.path(), &headers, &body);
    (StatusCode::from_u16(status).expect("a status"), [("content-type", "application/json")], text)
}

/// Certificates as PEM.
pub fn pem(ders: &[Vec<u8>]) -> String {
    ders.iter().map(|d| files::pem(d)).collect()
}
