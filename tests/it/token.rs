//! What a token says, and how far it reaches: E1, T1, T2, T4.

use bytes::Bytes;
use http::Request;
use popgate::client::http::HttpClient;
use serde_json::Value;

use crate::world::{SOLVER, Service};

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
    assert_eq!(
        metadata["token_endpoint_auth_methods_supported"],
        serde_json::json!(["tls_client_auth", "private_key_jwt"])
    );
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
