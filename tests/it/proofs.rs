//! P1 to P11 at the gateway: one row, one fault; the same request without it passes.

use serde_json::{Value, json};

use crate::world::{HandMade, Service, key_of};

type Edit = fn(&mut HandMade);

/// Each row changes one thing of a proof that would otherwise pass.
const ROWS: &[(&str, Edit, &str)] = &[
    ("P2 typ jwt", |p| p.header["typ"] = "jwt".into(), "invalid_dpop_proof"),
    ("P2 no typ", |p| remove(&mut p.header, "typ"), "invalid_dpop_proof"),
    ("P2 alg none", |p| p.header["alg"] = "none".into(), "invalid_dpop_proof"),
    ("P2 alg HS256", |p| p.header["alg"] = "HS256".into(), "invalid_dpop_proof"),
    ("P2 alg of another key type", |p| p.header["alg"] = "EdDSA".into(), "invalid_dpop_proof"),
    ("P2 alg RS256", |p| p.header["alg"] = "RS256".into(), "invalid_dpop_proof"),
    ("P3 private member", |p| p.header["jwk"]["d"] = "AA".into(), "invalid_dpop_proof"),
    ("P3 symmetric member", |p| p.header["jwk"]["k"] = "AA".into(), "invalid_dpop_proof"),
    ("P3 no jwk", |p| remove(&mut p.header, "jwk"), "invalid_dpop_proof"),
    ("P3 jwk as a string", |p| p.header["jwk"] = "x".into(), "invalid_dpop_proof"),
    ("P3 point not on the curve", |p| p.header["jwk"]["x"] = p.header["jwk"]["y"].clone(), "invalid_dpop_proof"),
    ("P3 crit", |p| p.header["crit"] = json!(["exp"]), "invalid_dpop_proof"),
    ("P3 b64", |p| p.header["b64"] = json!(false), "invalid_dpop_proof"),
    ("P4 iat a string", |p| p.payload["iat"] = "1".into(), "invalid_dpop_proof"),
    ("P4 iat negative", |p| p.payload["iat"] = json!(-1), "invalid_dpop_proof"),
    ("P4 iat beyond any date", |p| p.payload["iat"] = json!(1e18), "invalid_dpop_proof"),
    ("P4 no iat", |p| remove(&mut p.payload, "iat"), "invalid_dpop_proof"),
    ("P4 no jti", |p| remove(&mut p.payload, "jti"), "invalid_dpop_proof"),
    ("P4 jti empty", |p| p.payload["jti"] = "".into(), "invalid_dpop_proof"),
    ("P4 jti a number", |p| p.payload["jti"] = json!(7), "invalid_dpop_proof"),
    ("P4 jti of 257 bytes", |p| p.payload["jti"] = "j".repeat(257).into(), "invalid_dpop_proof"),
    ("P4 jti with a control character", |p| p.payload["jti"] = "a\u{7}".into(), "invalid_dpop_proof"),
    ("P5 htm in lower case", |p| p.payload["htm"] = "get".into(), "invalid_dpop_proof"),
    ("P5 another method", |p| p.payload["htm"] = "POST".into(), "invalid_dpop_proof"),
    ("P5 no htm", |p| remove(&mut p.payload, "htm"), "invalid_dpop_proof"),
    ("P5 another path", |p| append(p, "x"), "invalid_dpop_proof"),
    ("P5 a trailing slash", |p| append(p, "/"), "invalid_dpop_proof"),
    ("P5 another host", |p| p.payload["htu"] = "https://evil.example/v1/runs/r1".into(), "invalid_dpop_proof"),
    (
        "P5 another scheme",
        |p| p.payload["htu"] = text(&p.payload["htu"]).replace("https", "http").into(),
        "invalid_dpop_proof",
    ),
    (
        "P5 user information",
        |p| p.payload["htu"] = text(&p.payload["htu"]).replace("https://", "https://u@").into(),
        "invalid_dpop_proof",
    ),
    ("P5 a leading space", |p| p.payload["htu"] = format!(" {}", text(&p.payload["htu"])).into(), "invalid_dpop_proof"),
    ("P5 a backslash", |p| append(p, "\\x"), "invalid_dpop_proof"),
    ("P5 relative", |p| p.payload["htu"] = "/v1/runs/r1".into(), "invalid_dpop_proof"),
    ("P5 an array", |p| p.payload["htu"] = json!([p.payload["htu"]]), "invalid_dpop_proof"),
    ("P7 61 s old", |p| shift(p, -62), "invalid_dpop_proof"),
    ("P7 11 s ahead", |p| shift(p, 13), "invalid_dpop_proof"),
    ("P9 a forged nonce", |p| p.payload["nonce"] = "bm9uY2U".into(), "use_dpop_nonce"),
    ("P9 a nonce that is a number", |p| p.payload["nonce"] = json!(1), "invalid_dpop_proof"),
    ("P10 no ath", |p| remove(&mut p.payload, "ath"), "invalid_dpop_proof"),
    (
        "P10 ath of another token",
        |p| p.payload["ath"] = "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo".into(),
        "invalid_dpop_proof",
    ),
];

/// Rows that edit the signed text instead.
const TEXT_ROWS: &[(&str, fn(String) -> String)] = &[
    ("P1 empty", |_| String::new()),
    ("P1 one segment", |t| t.split('.').next().unwrap_or_default().to_owned()),
    ("P1 four segments", |t| format!("{t}.x")),
    ("P1 five segments, as a JWE", |t| format!("{t}.x.y")),
    ("P1 padded base64", |t| format!("{t}=")),
    ("P1 two joined by a comma", |t| format!("{t}, {t}")),
    ("P1 a non-canonical base64 tail", flip_tail),
    ("P1 the signature of another text", |t| {
        t.rsplit_once('.').map(|(a, s)| format!("{a}.{}", s.chars().rev().collect::<String>())).unwrap_or_default()
    }),
    ("P1 over 8 KiB", |t| format!("{}{t}", "A".repeat(9000))),
];

fn flip_tail(text: String) -> String {
    let last = text.chars().last().expect("not empty");
    let next = char::from(u8::try_from(last).expect("ASCII") ^ 1);
    format!("{}{next}", &text[..text.len() - 1])
}

fn remove(object: &mut Value, name: &str) {
    object.as_object_mut().expect("object").remove(name);
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

fn append(proof: &mut HandMade, tail: &str) {
    proof.payload["htu"] = format!("{}{tail}", text(&proof.payload["htu"])).into();
}

fn shift(proof: &mut HandMade, seconds: i64) {
    proof.payload["iat"] = json!(proof.payload["iat"].as_i64().expect("a number") + seconds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_proof_is_refused_by_name_and_never_forwarded() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    let nonce = learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let authorization = format!("DPoP {}", token.expose());
    let good = || {
        let mut proof = HandMade::new(key_of(solver.session.identity()), "GET", &url, Some(&token));
        proof.payload["nonce"] = nonce.clone().into();
        proof
    };
    let send =
        async |proof: &str| solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", proof)], false).await;
    assert_eq!(send(&good().sign()).await.status, 200, "the untouched proof passes");
    let passed = service.upstream.count();
    for (name, edit, error) in ROWS {
        let mut proof = good();
        edit(&mut proof);
        let answer = send(&proof.sign()).await;
        assert_eq!((answer.status, answer.error()), (401, *error), "{name}: {}", answer.text());
        assert_eq!(
            answer.headers.get_all("dpop-nonce").iter().count(),
            usize::from(*error == "use_dpop_nonce"),
            "{name}"
        );
        assert_eq!(answer.header("cache-control"), "no-store", "{name}");
        assert!(answer.header("www-authenticate").starts_with("DPoP "), "{name}");
    }
    for (name, edit) in TEXT_ROWS {
        let answer = send(&edit(good().sign())).await;
        assert_eq!((answer.status, answer.error()), (401, "invalid_dpop_proof"), "{name}: {}", answer.text());
    }
    assert_eq!(service.upstream.count(), passed, "nothing of it reached upstream");
}

/// What is legal and looks odd. Each row is a proof of its own, and each reaches upstream once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_standards_allow_passes() {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
    use p256::elliptic_curve::PrimeField as _;
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r~1");
    let nonce = learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let authorization = format!("dpop {}", token.expose());
    let rows: [(&str, fn(&mut HandMade)); 9] = [
        ("P3 pointers to other keys are not followed", |p| {
            for member in ["jku", "x5u"] {
                p.header[member] = "http://127.0.0.1:1/keys".into();
            }
            p.header["x5c"] = json!(["AAAA"]);
        }),
        ("P3 further members of the key", |p| p.header["jwk"]["kid"] = "k".into()),
        ("P4 further claims", |p| p.payload["x"] = json!({"a": [1, null]})),
        ("P4 a fraction, which is floored", |p| {
            p.payload["iat"] = json!(p.payload["iat"].as_f64().expect("a number") + 0.9);
        }),
        ("P5 query and fragment", |p| append(p, "?a=1#b")),
        ("P5 the case of scheme and host", |p| {
            p.payload["htu"] = text(&p.payload["htu"]).replacen("https://", "HTTPS://", 1).into();
        }),
        ("P5 an unreserved character encoded", |p| {
            p.payload["htu"] = text(&p.payload["htu"]).replace('~', "%7e").into();
        }),
        ("P7 the edge of the past", |p| shift(p, -55)),
        ("P7 the edge of the future", |p| shift(p, 8)),
    ];
    for (n, (name, edit)) in rows.into_iter().enumerate() {
        let mut proof = HandMade::new(key_of(solver.session.identity()), "GET", &url, Some(&token));
        proof.payload["nonce"] = nonce.clone().into();
        edit(&mut proof);
        let headers = [
            ("authorization", authorization.as_str()),
            ("dpop", &proof.sign()),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-proto", "http"),
        ];
        let answer = solver.raw("GET", &url, &headers, false).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert_eq!(service.upstream.count(), n + 1, "{name}");
    }
    // P13, and the log: of a token's two signatures only the minted one is a token.
    let (signed, signature) = token.expose().rsplit_once('.').expect("three parts");
    let mut bytes = B64.decode(signature).expect("base64url");
    let s = p256::Scalar::from_repr(p256::FieldBytes::try_from(&bytes[32..]).expect("32 bytes")).expect("in range");
    bytes[32..].copy_from_slice(&(-s).to_repr());
    let other = popgate::domain::secret::AccessToken::new(format!("{signed}.{}", B64.encode(bytes)));
    let mut proof = HandMade::new(key_of(solver.session.identity()), "GET", &url, Some(&other));
    proof.payload["nonce"] = nonce.clone().into();
    let credential = format!("DPoP {}", other.expose());
    let answer = solver.raw("GET", &url, &[("authorization", &credential), ("dpop", &proof.sign())], false).await;
    assert_eq!((answer.status, answer.error()), (401, "invalid_token"), "a text that nobody minted");
    // P8: another signature over the same claims is the same proof.
    let mut twice = HandMade::new(key_of(solver.session.identity()), "GET", &url, Some(&token));
    twice.payload["nonce"] = nonce.into();
    let (first, second) = (twice.sign(), twice.sign());
    assert_ne!(first, second, "ECDSA draws anew");
    let send = async |proof: &str| {
        solver.raw("GET", &url, &[("authorization", authorization.as_str()), ("dpop", proof)], false).await
    };
    assert_eq!(send(&first).await.status, 200);
    let again = send(&second).await;
    assert_eq!((again.status, again.error()), (401, "invalid_dpop_proof"));
    assert!(again.header("www-authenticate").contains("used before"), "P13 names the check");
    assert!(!again.text().contains(&second), "P13 echoes nothing of the proof");
}

/// P9: by route, by workload, or for the whole token service.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p9_a_nonce_can_be_demanded() {
    let service = Service::start_with("[replay]\nstore = \"memory\"\n").await;
    let careful = json!({"entry": [
        {"spiffe_id": "spiffe://example.org/ci/careful", "owner": crate::world::BOB, "groups": ["solvers"], "operations": ["tot.*"], "nonce_required": true},
    ]});
    service.admin(http::Method::POST, "/v1/import", Some(careful)).await.expect("imports");
    let (solver, careful) = (service.solver().await, service.workload("spiffe://example.org/ci/careful").await);
    let url = service.url("gateway", "/v1/runs/r1");
    // Until the store has been whole for the window, everybody needs one; then it is the entry's to say.
    let bare = async |client: &crate::world::Client| {
        let token = client.token(&url).await;
        let mut proof = HandMade::new(key_of(client.session.identity()), "GET", &url, Some(&token));
        proof.payload["iat"] = json!(proof.payload["iat"].as_i64().expect("a number") + 9);
        let authorization = format!("DPoP {}", token.expose());
        client.raw("GET", &url, &[("authorization", authorization.as_str()), ("dpop", &proof.sign())], false).await
    };
    let waited = async {
        while bare(&solver).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), waited).await.expect("nonces are not demanded for ever");
    let refused = bare(&careful).await;
    assert_eq!((refused.status, refused.error()), (401, "use_dpop_nonce"));
    assert_eq!(refused.headers.get_all("dpop-nonce").iter().count(), 1);
    assert_eq!(careful.get(&url).await.status, 200, "the client library answers the challenge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_json_and_repeated_headers_are_held_against_the_sender() {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    let nonce = learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let authorization = format!("DPoP {}", token.expose());
    let key = || key_of(solver.session.identity());
    let raw_payload = |edit: fn(String) -> String| {
        let mut proof = HandMade::new(key(), "GET", &url, Some(&token));
        proof.payload["nonce"] = nonce.clone().into();
        let input = format!("{}.{}", B64.encode(proof.header.to_string()), B64.encode(edit(proof.payload.to_string())));
        format!("{input}.{}", B64.encode(proof.key.sign(input.as_bytes())))
    };
    let rows: [(&str, fn(String) -> String); 5] = [
        ("P4 duplicate member", |t| t.replacen('{', "{\"htm\":\"GET\",", 1)),
        ("P4 byte order mark", |t| format!("\u{feff}{t}")),
        ("P4 trailing data", |t| format!("{t}{{}}")),
        ("P4 nesting bomb", |t| t.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(500), "]".repeat(500)), 1)),
        ("P4 an array", |t| format!("[{t}]")),
    ];
    for (name, edit) in rows {
        let proof = raw_payload(edit);
        let answer = solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], false).await;
        assert_eq!((answer.status, answer.error()), (401, "invalid_dpop_proof"), "{name}");
    }
    let (one, two) = (raw_payload(|t| t), raw_payload(|t| t));
    let answer =
        solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &one), ("dpop", &two)], false).await;
    assert_eq!((answer.status, answer.error()), (401, "invalid_dpop_proof"), "P1 two header lines");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_every_other_way_to_carry_a_token_is_refused() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let prove = || solver.session.prove("GET", &url, Some(&token));
    let dpop = format!("DPoP {}", token.expose());
    let lower = format!("dpop {}", token.expose());
    let bearer = format!("Bearer {}", token.expose());
    let rows: &[(&str, Vec<(&'static str, &str)>, u16, &str)] = &[
        ("no credentials", vec![], 401, ""),
        ("bearer", vec![("authorization", &bearer)], 401, "invalid_token"),
        ("two credentials", vec![("authorization", &dpop), ("authorization", &bearer)], 400, ""),
        ("basic", vec![("authorization", "Basic eDp5")], 401, "invalid_token"),
        ("no token", vec![("authorization", "DPoP")], 401, "invalid_token"),
        ("no proof", vec![("authorization", &dpop)], 401, "invalid_dpop_proof"),
    ];
    for (name, headers, status, error) in rows {
        let proof = prove();
        let mut headers = headers.clone();
        if *name != "no proof" {
            headers.push(("dpop", &proof));
        }
        let answer = solver.raw("GET", &url, &headers, false).await;
        assert_eq!((answer.status, answer.error()), (*status, *error), "{name}");
    }
    let proof = prove();
    let in_query = format!("{url}?access_token={}", token.expose());
    assert_eq!(solver.raw("GET", &in_query, &[("dpop", &proof)], false).await.status, 400, "token in the query");
    let spelt = format!("{url}?a=1&%61ccess_token=x");
    assert_eq!(solver.get(&spelt).await.status, 400, "however it is spelt");
    assert_eq!(solver.get(&format!("{url}?access=1&x=%zz")).await.status, 200, "another parameter is no token");
    let proof = prove();
    assert_eq!(
        solver.raw("GET", &url, &[("authorization", &lower), ("dpop", &proof)], false).await.status,
        200,
        "the scheme has no case"
    );
    let bare = solver.raw("GET", &url, &[], false).await;
    assert!(!bare.header("www-authenticate").contains("error="), "without credentials there is no error code");
    assert!(bare.header("www-authenticate").contains("resource_metadata="));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_key_that_is_not_the_tokens_is_invalid_token() {
    let service = Service::start().await;
    let (solver, other) = (service.solver().await, service.workload("spiffe://example.org/ai/other").await);
    let url = service.url("gateway", "/v1/runs/r1");
    learn_nonce(&service, &other, &url).await;
    let token = solver.token(&url).await;
    let proof = other.session.prove("GET", &url, Some(&token));
    let answer = other
        .raw("GET", &url, &[("authorization", &format!("DPoP {}", token.expose())), ("dpop", &proof)], false)
        .await;
    assert_eq!((answer.status, answer.error()), (401, "invalid_token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_the_claim_comes_after_all_other_checks() {
    let service = Service::start().await;
    let solver = service.solver().await;
    let url = service.url("gateway", "/v1/runs/r1");
    learn_nonce(&service, &solver, &url).await;
    let token = solver.token(&url).await;
    let proof = solver.session.prove("GET", &url, Some(&token));
    let authorization = format!("DPoP {}", token.expose());
    // A thief who sends the proof with a wrong token, or to another path, does not spend it.
    let wrong = solver.raw("GET", &url, &[("authorization", "DPoP x.y.z"), ("dpop", &proof)], false).await;
    assert_eq!(wrong.status, 401);
    let elsewhere = service.url("gateway", "/v1/runs/r2");
    assert_eq!(
        solver.raw("GET", &elsewhere, &[("authorization", &authorization), ("dpop", &proof)], false).await.status,
        401
    );
    assert_eq!(
        solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], false).await.status,
        200
    );
    let again = solver.raw("GET", &url, &[("authorization", &authorization), ("dpop", &proof)], false).await;
    assert_eq!((again.status, again.error()), (401, "invalid_dpop_proof"));
}

/// After a start each proof needs a nonce; a good call learns it.
pub async fn learn_nonce(service: &Service, client: &crate::world::Client, url: &str) -> String {
    let token = client.token(url).await;
    let proof = HandMade::new(key_of(client.session.identity()), "GET", url, Some(&token)).sign();
    let answer = client
        .raw("GET", url, &[("authorization", &format!("DPoP {}", token.expose())), ("dpop", &proof)], false)
        .await;
    assert_eq!(
        (answer.status, answer.error()),
        (401, "use_dpop_nonce"),
        "the service has just started: {}",
        service.data.display()
    );
    answer.header("dpop-nonce").to_owned()
}

/// P2: Ed25519 under RFC 8037's name and under RFC 9864's, and under no other key's.
#[test]
fn p2_ed25519_is_accepted_under_both_its_names() {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
    use popgate::domain::proof::{Epoch, Role};
    use popgate::domain::time::Timestamp;
    use popgate::protocol::dpop::{self, Expected, ProofClaims, ProofError, ProofHeader, Window};
    use popgate::protocol::htu::Htu;
    use popgate::protocol::nonce::NonceKey;
    let (now, key) = (Timestamp::from_unix(1_800_000_000), Ed25519KeyPair::generate().expect("generates"));
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": B64.encode(key.public_key().as_ref())});
    let (nonces, uri) = (NonceKey::new(&[7; 32], false), Htu::parse("https://as.example/token").expect("a URL"));
    let check = |alg: &str| {
        let header = json!({"typ": "dpop+jwt", "alg": alg, "jwk": jwk}).to_string();
        let payload = json!({"jti": "1", "htm": "POST", "htu": uri.as_str(), "iat": now.unix()}).to_string();
        let input = format!("{}.{}", B64.encode(header), B64.encode(payload));
        let proof = format!("{input}.{}", B64.encode(key.sign(input.as_bytes())));
        let want = Expected {
            role: Role::Token,
            method: "POST",
            uri: &uri,
            token: None,
            window: Window::default(),
            nonces: &nonces,
            epoch: Epoch { id: [0; 8], since: Timestamp::ZERO },
            nonce_required: false,
        };
        let parts = dpop::split(&proof)?;
        let header = ProofHeader::parse(&parts)?;
        dpop::verify(&parts, &header, &ProofClaims::parse(&parts)?, &want, now).map(drop)
    };
    assert_eq!((check("EdDSA"), check("Ed25519")), (Ok(()), Ok(())));
    assert_eq!(check("ES256"), Err(ProofError::Algorithm), "another key's algorithm");
}
