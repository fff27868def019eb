//! The token endpoint: C1, E1, E3, E4, P9, P12, T1, T2, T4.

use bytes::Bytes;
use http::{Method, Request};
use popgate::client::http::HttpClient;
use serde_json::Value;

use crate::world::{Client, HandMade, SOLVER, Service, key_of};

/// One token request made by hand.
struct Ask {
    form: String,
    kind: &'static str,
    certificate: bool,
    proofs: usize,
    edit: fn(&mut HandMade),
    extra: Vec<(&'static str, &'static str)>,
}

fn good(service: &Service) -> Ask {
    let resource = service.url("gateway", "/v1").replace(':', "%3A").replace('/', "%2F");
    Ask {
        form: format!(
            "grant_type=client_credentials&client_id={}&resource={resource}",
            SOLVER.replace(':', "%3A").replace('/', "%2F")
        ),
        kind: "application/x-www-form-urlencoded",
        certificate: true,
        proofs: 1,
        edit: |_| (),
        extra: vec![],
    }
}

async fn ask(service: &Service, client: &Client, nonce: Option<&str>, ask: &Ask) -> (u16, Value, http::HeaderMap) {
    let url = service.url("token", "/token");
    let identity = client.session.identity();
    let http = HttpClient::new(identity.tls(ask.certificate).expect("TLS"));
    let mut request = Request::builder().method(Method::POST).uri(&url).header("content-type", ask.kind);
    for _ in 0..ask.proofs {
        let mut proof = HandMade::new(key_of(identity), "POST", &url, None);
        if let Some(nonce) = nonce {
            proof.payload["nonce"] = nonce.into();
        }
        (ask.edit)(&mut proof);
        request = request.header("dpop", proof.sign());
    }
    for (name, value) in &ask.extra {
        request = request.header(*name, *value);
    }
    let response = http.fetch(request.body(Bytes::from(ask.form.clone())).expect("builds")).await.expect("answers");
    let document = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
    (response.status().as_u16(), document, response.headers().clone())
}

/// The nonce of a first refusal.
async fn nonce(service: &Service, client: &Client) -> String {
    let (status, document, headers) = ask(service, client, None, &good(service)).await;
    assert_eq!((status, document["error"].as_str()), (400, Some("use_dpop_nonce")), "{document}");
    headers["dpop-nonce"].to_str().expect("text").to_owned()
}

type Edit = fn(&mut Ask);

/// One row, one fault.
const ROWS: &[(&str, Edit, u16, &str)] = &[
    ("C1 no certificate", |a| a.certificate = false, 401, "invalid_client"),
    ("C1 no client_id", |a| a.form = a.form.replace("client_id", "x"), 400, "invalid_request"),
    ("C1 another client_id", |a| a.form = a.form.replace("solver", "other"), 401, "invalid_client"),
    ("C4 a client assertion, too", |a| a.form += "&client_assertion=x", 400, "invalid_request"),
    ("C4 an Authorization header, too", |a| a.extra.push(("authorization", "Basic eDp5")), 400, "invalid_request"),
    ("E3 a parameter twice", |a| a.form += "&grant_type=client_credentials", 400, "invalid_request"),
    ("E3 another content type", |a| a.kind = "application/json", 400, "invalid_request"),
    ("E3 over 64 KiB", |a| a.form += &format!("&x={}", "y".repeat(70_000)), 400, "invalid_request"),
    ("E3 malformed encoding", |a| a.form += "&x=%zz", 400, "invalid_request"),
    ("no grant type", |a| a.form = a.form.replace("grant_type", "x"), 400, "invalid_request"),
    ("G5 password grant", |a| a.form = a.form.replace("client_credentials", "password"), 400, "unsupported_grant_type"),
    (
        "G5 refresh grant",
        |a| a.form = a.form.replace("client_credentials", "refresh_token"),
        400,
        "unsupported_grant_type",
    ),
    ("T4 unknown resource", |a| a.form = a.form.replace("%2Fv1", "%2Fv9"), 400, "invalid_target"),
    ("T4 two resources", |a| a.form += "&resource=https%3A%2F%2Fx", 400, "invalid_target"),
    ("T4 scope beyond the entry", |a| a.form += "&scope=admin", 400, "invalid_scope"),
    ("T4 malformed scope", |a| a.form += "&scope=tot.run++tot.read", 400, "invalid_scope"),
    (
        "T4 unknown authorization details",
        |a| a.form += "&authorization_details=%5B%5D",
        400,
        "invalid_authorization_details",
    ),
    ("P1 no proof", |a| a.proofs = 0, 400, "invalid_dpop_proof"),
    ("P1 two proofs", |a| a.proofs = 2, 400, "invalid_dpop_proof"),
    ("P5 another method", |a| a.edit = |p| p.payload["htm"] = "GET".into(), 400, "invalid_dpop_proof"),
    ("P5 another URL", |a| a.edit = |p| p.payload["htu"] = "https://127.0.0.1/token".into(), 400, "invalid_dpop_proof"),
    ("P7 too old", |a| a.edit = |p| p.payload["iat"] = 1.into(), 400, "invalid_dpop_proof"),
    ("P9 a nonce that is not ours", |a| a.edit = |p| p.payload["nonce"] = "x".into(), 400, "use_dpop_nonce"),
    ("T2 another key than the certificate's", |a| a.edit = another_key, 400, "invalid_dpop_proof"),
];

fn another_key(proof: &mut HandMade) {
    let key = popgate::net::keys::P256Key::generate();
    proof.header["jwk"] = popgate::protocol::jwk::PublicKey::from_spki(key.spki()).expect("P-256").to_jwk();
    proof.key = key;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_token_request_has_its_own_standard_error() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let nonce = nonce(&service, &solver).await;
    let (status, document, headers) = ask(&service, &solver, Some(&nonce), &good(&service)).await;
    assert_eq!((status, document["token_type"].as_str()), (200, Some("DPoP")), "{document}");
    assert_eq!(headers["cache-control"], "no-store");
    for (name, edit, want_status, want_error) in ROWS {
        let mut request = good(&service);
        edit(&mut request);
        let (status, document, headers) = ask(&service, &solver, Some(&nonce), &request).await;
        assert_eq!((status, document["error"].as_str()), (*want_status, Some(*want_error)), "{name}: {document}");
        assert_eq!(headers["cache-control"], "no-store", "{name}");
        assert_eq!(headers.contains_key("www-authenticate"), status == 401, "E4 {name}");
        assert_eq!(headers.contains_key("dpop-nonce"), *want_error == "use_dpop_nonce", "P9 {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_t2_a_token_says_what_rfc_9068_and_7800_ask() {
    use josekit::jws::ES256;
    let service = Service::start().await;
    let solver = service.solver().await;
    let identity = solver.session.identity();
    let token = solver.token(&service.url("gateway", "/v1/runs/r1")).await;
    // An independent library reads it with the published key.
    let http = HttpClient::new(identity.tls(false).expect("TLS"));
    let get = async |path: &str| {
        let request = Request::builder().uri(service.url("token", path)).body(Bytes::new()).expect("builds");
        serde_json::from_slice::<Value>(http.fetch(request).await.expect("answers").body()).expect("JSON")
    };
    let jwks = get("/jwks.json").await;
    let jwk = josekit::jwk::Jwk::from_bytes(jwks["keys"][0].to_string()).expect("a JWK");
    let verifier = ES256.verifier_from_jwk(&jwk).expect("verifier");
    let (claims, header) = josekit::jwt::decode_with_verifier(token.expose(), &verifier).expect("verifies");
    assert_eq!(header.token_type(), Some("at+jwt"));
    assert_eq!(claims.issuer(), Some(service.addresses["token"].as_str()));
    assert_eq!(claims.subject(), Some(SOLVER));
    assert_eq!(claims.claim("client_id").and_then(Value::as_str), Some(SOLVER));
    assert_eq!(claims.audience(), Some(vec![service.url("gateway", "/v1").as_str()]));
    let cnf = claims.claim("cnf").expect("bound");
    assert_eq!(cnf["jkt"], identity.jkt().to_string());
    assert!(cnf.get("x5t#S256").is_none(), "only where the resource demands the certificate");
    let life = claims.expires_at().expect("exp").duration_since(claims.issued_at().expect("iat")).expect("ordered");
    assert!(life.as_secs() <= 300);
    let metadata = get("/.well-known/oauth-authorization-server").await;
    assert_eq!(metadata, get("/.well-known/openid-configuration").await);
    assert_eq!(metadata["issuer"], service.addresses["token"]);
    assert_eq!(metadata["response_types_supported"], serde_json::json!([]));
    assert_eq!(metadata["token_endpoint_auth_methods_supported"], serde_json::json!(["tls_client_auth"]));
    assert_eq!(metadata["tls_client_certificate_bound_access_tokens"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_none_asked_gives_the_entrys_operations_and_a_narrow_scope_bounds_the_gateway() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    let target = solver.session.target(&url).await.expect("discovers");
    let narrow = solver.session.mint(&target, Some("tot.run")).await.expect("mints");
    let proof = |token| solver.session.prove("GET", &url, Some(token));
    let authorization = format!("DPoP {}", narrow.expose());
    let first = proof(&narrow);
    solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &first)], false).await;
    let second = proof(&narrow);
    let answer = solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &second)], false).await;
    assert_eq!((answer.status, answer.problem().as_str()), (403, "insufficient-scope"), "{}", answer.text());
    assert!(answer.header("www-authenticate").contains("error=\"insufficient_scope\""));
    // A forbid is answered before the scope.
    let third = solver.session.prove("DELETE", &url, Some(&narrow));
    let answer = solver.raw("DELETE", &url, &[("authorization", &authorization), ("dpop", &third)], false).await;
    assert_eq!((answer.status, answer.json()["rule"].as_str()), (403, Some("runs-stay")));
}
