//! What is told about tokens and people after they were minted and registered: introspection, revocation, security events,
//! SCIM; and who may ask from where and how often (E2, E3, E5).

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use popgate::client::http::HttpClient;
use serde_json::{Value, json};

use crate::agent::{wait, wait_for};
use crate::asking::{Asking, Told, now};
use crate::grants::{JWT_BEARER, OTHER, Sts, jwt_svid};
use crate::world::{Client, SOLVER, Service, stderr};

const NARROW: &str = "spiffe://example.org/ci/narrow";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";

/// One request to the token listener, without a certificate.
async fn plain(
    service: &Service,
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Told {
    let http = HttpClient::new(client.session.identity().tls(false).expect("TLS"));
    let mut request = Request::builder().method(method).uri(service.url("token", path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = http.fetch(request.body(Bytes::from(body.to_owned())).expect("builds")).await.expect("answers");
    Told::of(&response)
}

fn about(service: &Service, path: &'static str, caller: &str, token: &str) -> Asking {
    let mut ask = Asking::new(service, caller);
    ask.path = path;
    ask.proofs = 0;
    ask.form = vec![("client_id".into(), caller.into()), ("token".into(), token.into())];
    ask
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_a_resource_server_alone_is_told_of_tokens_for_it_and_a_client_revokes_its_own() {
    let sts = Sts::start().await;
    let (solver, server) = (sts.service.solver().await, sts.service.workload(NARROW).await);
    let other = sts.service.workload(OTHER).await;
    let own = Asking::new(&sts.service, SOLVER).with("scope", "tot.read").send(&sts.service, &solver).await;
    let raw = Asking::new(&sts.service, SOLVER).with("resource", sts.service.url("gateway", "/raw"));
    let raw = raw.send(&sts.service, &solver).await;
    let told = about(&sts.service, "/introspect", NARROW, own.token()).send(&sts.service, &server).await;
    let claims = own.claims();
    let want = json!({
        "active": true, "scope": "tot.read", "client_id": SOLVER, "sub": SOLVER, "aud": claims["aud"], "iss": claims["iss"],
        "exp": claims["exp"], "iat": claims["iat"], "jti": claims["jti"], "token_type": "DPoP", "cnf": claims["cnf"],
    });
    assert_eq!((told.status, &told.json), (200, &want));
    let inactive = json!({"active": false});
    for (what, caller, client, token) in [
        ("another workload", OTHER, &other, own.token()),
        ("the client itself", SOLVER, &solver, own.token()),
        ("a token for another resource", NARROW, &server, raw.token()),
        ("no token", NARROW, &server, "x.y.z"),
        ("a token with another signature", NARROW, &server, &own.token()[..own.token().len() - 4]),
    ] {
        let told = about(&sts.service, "/introspect", caller, token).send(&sts.service, client).await;
        assert_eq!((told.status, &told.json), (200, &inactive), "{what}");
    }
    // Signed for the caller, on request (RFC 9701).
    let mut ask = about(&sts.service, "/introspect", NARROW, own.token());
    ask.headers.push(("accept", "application/token-introspection+jwt".into()));
    let signed = ask.send(&sts.service, &server).await;
    assert_eq!(signed.headers["content-type"], "application/token-introspection+jwt");
    let jwks = plain(&sts.service, &solver, "GET", "/jwks.json", &[], "").await.json;
    let kid =
        popgate::protocol::jws::Compact::split(&signed.text).and_then(|c| c.header_object()).expect("a JWS")["kid"]
            .clone();
    let key = jwks["keys"].as_array().expect("keys").iter().find(|k| k["kid"] == kid).expect("published").to_string();
    let verifier =
        josekit::jws::ES256.verifier_from_jwk(&josekit::jwk::Jwk::from_bytes(key).expect("a JWK")).expect("ES256");
    let (payload, header) = josekit::jwt::decode_with_verifier(&signed.text, &verifier).expect("verifies");
    assert_eq!(header.token_type(), Some("token-introspection+jwt"));
    assert_eq!((payload.issuer(), payload.audience()), (Some(sts.issuer().as_str()), Some(vec![NARROW])));
    assert_eq!(payload.claim("token_introspection"), Some(&want));
    assert!(payload.subject().is_none() && payload.expires_at().is_none(), "RFC 9701 section 5");
    // RFC 7009: its own client revokes it, twice if it likes; what is no token is no error.
    for token in [own.token(), own.token(), "x"] {
        let told = about(&sts.service, "/revoke", SOLVER, token).send(&sts.service, &solver).await;
        assert_eq!(told.status, 200, "{}", told.text);
    }
    let told = about(&sts.service, "/introspect", NARROW, own.token()).send(&sts.service, &server).await;
    assert_eq!(told.json, inactive);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", own.token()).await.0, 401);
    assert_eq!(stops(&sts.service).await.len(), 1, "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2_a_jwt_svid_asks_for_tokens_alone() {
    let sts = Sts::start().await;
    let host = crate::host::Host::start(&sts.service, "build-1").await;
    crate::host::register(&sts.service, "spiffe://example.org/web", &host.node, &[&crate::host::own_user()]).await;
    let client = spiffe::WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    wait(|| async { client.fetch_x509_svid().await.is_ok() }, "an identity").await;
    let solver = sts.service.solver().await;
    for path in ["/introspect", "/revoke"] {
        let mut ask = about(&sts.service, path, "spiffe://example.org/web", "x");
        ask.certificate = false;
        ask.set("client_assertion_type", crate::grants::CLIENT_SPIFFE);
        ask.set("client_assertion", jwt_svid(&host, &sts.issuer()).await);
        let refused = ask.send(&sts.service, &solver).await;
        assert_eq!((refused.status, refused.error()), (401, "invalid_client"), "{}", refused.text);
    }
}

async fn stops(service: &Service) -> Vec<Value> {
    let list = service.admin(Method::GET, "/v1/revocations", None).await.expect("lists");
    list.as_array().expect("a list").clone()
}

fn event(sts: &Sts, kind: &str, sub: &str) -> Value {
    json!({
        "iss": sts.people_url, "aud": sts.issuer(), "iat": now(), "jti": popgate::store::entropy::random_id(),
        "sub_id": {"format": "iss_sub", "iss": sts.people_url, "sub": sub}, "events": {kind: {}},
    })
}

async fn push(sts: &Sts, client: &Client, token: &str) -> Told {
    let headers = [("content-type", "application/secevent+jwt"), ("authorization", "Bearer push-token")];
    plain(&sts.service, client, "POST", "/ssf/events", &headers, token).await
}

/// A workload of a person of the people's issuer.
async fn owned(sts: &Sts, sub: &str) -> Client {
    let entry = json!({"entry": [{"spiffe_id": OTHER, "owner": format!("{}#{sub}", sts.people_url), "groups": ["solvers"], "operations": ["tot.*"]}]});
    sts.service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    sts.service.workload(OTHER).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pushed_event_that_a_person_is_gone_stops_every_workload_of_theirs_once() {
    let sts = Sts::start().await;
    let (solver, other) = (sts.service.solver().await, owned(&sts, "carol").await);
    let token = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await.token().to_owned();
    assert_eq!(sts.call(&other, "GET", "/v1/runs/r1", &token).await.0, 200);
    let gone = sts.people.typed("secevent+jwt", &event(&sts, &format!("{RISC}account-disabled"), "carol"));
    for _ in 0..2 {
        let told = push(&sts, &other, &gone).await;
        assert_eq!((told.status, told.text.as_str()), (202, ""), "RFC 8935 section 2.2");
    }
    let stopped = stops(&sts.service).await;
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!((&stopped[0]["kind"], &stopped[0]["by"]), (&json!("person"), &json!("event:corp")));
    assert_eq!(sts.call(&other, "GET", "/v1/runs/r1", &token).await.0, 401);
    let refused = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await;
    assert_eq!((refused.status, refused.error()), (401, "invalid_client"), "{}", refused.text);
    assert_eq!(Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await.status, 200, "somebody else's");
    let verified = sts.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_session_ends_what_was_begun_on_it_and_a_new_word_begins_anew() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let statement = sts.people.token(&sts.person("jane"));
    let ask = |statement: &str| sts.ask(SOLVER, JWT_BEARER, &[("assertion", statement)]);
    let before = ask(&statement).send(&sts.service, &solver).await;
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", before.token()).await.0, 200);
    let ended = sts.people.typed("secevent+jwt", &event(&sts, &format!("{CAEP}session-revoked"), "jane"));
    assert_eq!(push(&sts, &solver, &ended).await.status, 202);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", before.token()).await.0, 401, "what was minted");
    let refused = ask(&statement).send(&sts.service, &solver).await;
    assert_eq!((refused.status, refused.error()), (400, "invalid_grant"), "the old word: {}", refused.text);
    let again = wait_for(
        || async {
            let told = ask(&sts.people.token(&sts.person("jane"))).send(&sts.service, &solver).await;
            (told.status == 200).then(|| told.token().to_owned())
        },
        "a token on a new word",
    )
    .await;
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &again).await.0, 200);
    assert_eq!(Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await.status, 200, "the workload itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_push_has_its_own_error_and_stops_nobody() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let kind = format!("{RISC}account-disabled");
    let good = event(&sts, &kind, "carol");
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        sts.people.typed("secevent+jwt", &claims)
    };
    let rows = [
        ("another audience", changed("aud", "https://other.example".into()), "invalid_audience"),
        ("another issuer", changed("iss", "https://other.example".into()), "invalid_issuer"),
        ("a stranger's key", crate::issuer::IssuerKey::rsa("p1").typed("secevent+jwt", &good), "invalid_key"),
        ("an unknown key", crate::issuer::IssuerKey::rsa("p9").typed("secevent+jwt", &good), "invalid_key"),
        ("a token of another type", sts.people.typed("JWT", &good), "invalid_request"),
        ("no JWT", "x".into(), "invalid_request"),
        ("no jti", changed("jti", Value::Null), "invalid_request"),
        ("from the future", changed("iat", (now() + 600).into()), "invalid_request"),
        ("no events", changed("events", json!({})), "invalid_request"),
        ("no subject", changed("sub_id", Value::Null), "invalid_request"),
        (
            "a subject by email",
            changed("sub_id", json!({"format": "email", "email": "carol@example.org"})),
            "invalid_request",
        ),
        (
            "a person of another issuer",
            changed("sub_id", json!({"format": "iss_sub", "iss": "https://idp.example.org", "sub": "bob"})),
            "invalid_request",
        ),
    ];
    for (what, token, error) in rows {
        let told = push(&sts, &solver, &token).await;
        assert_eq!((told.status, told.json["err"].as_str()), (400, Some(error)), "{what}: {}", told.text);
        assert!(told.json["description"].is_string(), "{what}");
    }
    let token = sts.people.typed("secevent+jwt", &good);
    let typed = ("content-type", "application/secevent+jwt");
    for (what, headers, want) in [
        ("no token of the receiver's", vec![typed], (401, "authentication_failed")),
        ("another", vec![typed, ("authorization", "Bearer other")], (401, "authentication_failed")),
        (
            "another content type",
            vec![("content-type", "application/jwt"), ("authorization", "Bearer push-token")],
            (400, "invalid_request"),
        ),
    ] {
        let told = plain(&sts.service, &solver, "POST", "/ssf/events", &headers, &token).await;
        assert_eq!((told.status, told.json["err"].as_str().unwrap_or_default()), want, "{what}: {}", told.text);
        assert_eq!(told.headers.contains_key("www-authenticate"), told.status == 401, "{what}");
    }
    assert!(stops(&sts.service).await.is_empty());
    // What asks for nothing here is taken, and does nothing.
    let verification = "https://schemas.openid.net/secevent/ssf/event-type/verification";
    let harmless = sts.people.typed("secevent+jwt", &event(&sts, verification, "carol"));
    assert_eq!(push(&sts, &solver, &harmless).await.status, 202);
    assert!(stops(&sts.service).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn polled_events_are_acknowledged_once_done_and_refused_ones_are_named() {
    let events = "events = { poll_url = \"{people}/poll\", poll_token_file = \"push\" }";
    let sts = Sts::start_with(events, "").await;
    let other = owned(&sts, "carol").await;
    let token = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await.token().to_owned();
    let gone = event(&sts, &format!("{RISC}account-purged"), "carol");
    let misread = event(&sts, &format!("{RISC}account-purged"), "no name");
    let jti = |claims: &Value| claims["jti"].as_str().expect("a jti").to_owned();
    let waiting = [&gone, &misread].map(|claims| (jti(claims), Value::from(sts.people.typed("secevent+jwt", claims))));
    let waiting = Arc::new(Mutex::new(serde_json::Map::from_iter(waiting)));
    let asked = Arc::new(Mutex::new(Vec::<(HeaderMap, Value)>::new()));
    let (sets, log, keys) = (waiting.clone(), asked.clone(), sts.people.set());
    let discovery = json!({"issuer": sts.people_url, "jwks_uri": format!("{}/keys", sts.people_url)}).to_string();
    sts.webs[0].on_request(move |method, path, headers, body| {
        if (method, path) != (&Method::POST, "/poll") {
            return (200, if path == "/keys" { keys.clone() } else { discovery.clone() });
        }
        let body: Value = serde_json::from_slice(body).expect("JSON");
        let mut sets = sets.lock().expect("no panic");
        body["ack"].as_array().into_iter().flatten().for_each(|jti| drop(sets.remove(jti.as_str().expect("text"))));
        body["setErrs"].as_object().into_iter().flatten().for_each(|(jti, _)| drop(sets.remove(jti)));
        log.lock().expect("no panic").push((headers.clone(), body));
        (200, json!({"sets": *sets, "moreAvailable": false}).to_string())
    });
    wait(|| async { waiting.lock().expect("no panic").is_empty() }, "the acknowledgement").await;
    assert_eq!(sts.call(&other, "GET", "/v1/runs/r1", &token).await.0, 401);
    assert_eq!(stops(&sts.service).await.len(), 1);
    let asked = asked.lock().expect("no panic");
    assert_eq!(asked[0].0["authorization"], "Bearer push-token");
    let acknowledged: Vec<&Value> = asked.iter().flat_map(|(_, b)| b["ack"].as_array().expect("a list")).collect();
    assert_eq!(acknowledged, [&gone["jti"]]);
    let refused = asked.iter().find_map(|(_, b)| b["setErrs"].get(jti(&misread))).expect("named");
    assert_eq!(refused["err"], "invalid_request");
}

async fn scim(sts: &Sts, client: &Client, method: &str, path: &str, body: &Value) -> Told {
    let headers = [("authorization", "Bearer scim-token"), ("content-type", "application/scim+json")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    plain(&sts.service, client, method, &format!("/scim/v2{path}"), &headers, &body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deprovisioned_person_is_stopped_with_every_workload_of_theirs() {
    const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
    let user = |name: &str| json!({"schemas": [USER], "userName": name, "externalId": name, "active": true, "password": "hunter2"});
    let patch = |operation: Value| json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [operation]});
    type Way = (&'static str, fn(&Value) -> (&'static str, Value));
    let ways: [Way; 4] = [
        ("a patch of one attribute", |p| ("PATCH", p.clone())),
        ("a patch without a path", |_| {
            ("PATCH", json!({"Operations": [{"op": "Replace", "value": {"active": "False"}}]}))
        }),
        ("a replacement", |_| ("PUT", json!({"userName": "bob", "externalId": "bob", "Active": false}))),
        ("a deletion", |_| ("DELETE", Value::Null)),
    ];
    for (what, way) in ways {
        let sts = Sts::start().await;
        let solver = sts.service.solver().await;
        let token = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await.token().to_owned();
        let created = scim(&sts, &solver, "POST", "/Users", &user("bob")).await;
        assert_eq!((created.status, &created.json["active"]), (201, &json!(true)), "{}", created.text);
        assert!(!created.text.contains("hunter2"), "a credential is not kept");
        assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &token).await.0, 200);
        let id = created.json["id"].as_str().expect("an id").to_owned();
        let (method, body) = way(&patch(json!({"op": "replace", "path": "active", "value": false})));
        let told = scim(&sts, &solver, method, &format!("/Users/{id}"), &body).await;
        assert!([200, 204].contains(&told.status), "{what}: {} {}", told.status, told.text);
        assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &token).await.0, 401, "{what}");
        let stopped = stops(&sts.service).await;
        assert_eq!((stopped.len(), &stopped[0]["by"]), (1, &json!("scim:directory")), "{what}");
        // Active again is a claim; the stop is lifted by a person.
        if method == "PATCH" {
            let back = patch(json!({"op": "replace", "path": "active", "value": true}));
            assert_eq!(scim(&sts, &solver, "PATCH", &format!("/Users/{id}"), &back).await.status, 200);
            assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &token).await.0, 401, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scim_clients_find_users_and_are_told_what_is_wrong() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let user = |name: &str| json!({"userName": name, "externalId": name});
    let created = scim(&sts, &solver, "POST", "/Users", &user("dana")).await;
    assert_eq!(created.headers["content-type"], "application/scim+json");
    assert_eq!(
        created.json["meta"]["location"].as_str(),
        created.headers["location"].to_str().ok(),
        "RFC 7644 section 3.3"
    );
    let id = created.json["id"].as_str().expect("an id").to_owned();
    scim(&sts, &solver, "POST", "/Users", &user("erin")).await;
    let listed = scim(&sts, &solver, "GET", "/Users?filter=userName%20eq%20%22DANA%22", &Value::Null).await;
    assert_eq!((&listed.json["totalResults"], &listed.json["Resources"][0]["id"]), (&json!(1), &json!(id)));
    scim(&sts, &solver, "POST", "/Users", &json!({"userName": "Ärne", "externalId": "arne"})).await;
    let listed = scim(&sts, &solver, "GET", "/Users?filter=userName%20eq%20%22%C3%84RNE%22", &Value::Null).await;
    assert_eq!(listed.json["totalResults"], 1, "names have no case in any script");
    let all = scim(&sts, &solver, "GET", "/Users?count=1&startIndex=2", &Value::Null).await;
    assert_eq!((&all.json["totalResults"], &all.json["itemsPerPage"]), (&json!(3), &json!(1)));
    assert_eq!(scim(&sts, &solver, "GET", &format!("/Users/{id}"), &Value::Null).await.json["userName"], "dana");
    for path in ["/ServiceProviderConfig", "/ResourceTypes"] {
        assert_eq!(scim(&sts, &solver, "GET", path, &Value::Null).await.status, 200, "{path}");
    }
    let at = format!("/Users/{id}");
    let operation = |op: Value| json!({"Operations": [op]});
    let rows: [(&str, &str, &str, Value, u16, &str); 11] = [
        ("the same userName again", "POST", "/Users", user("dana"), 409, "uniqueness"),
        ("no userName", "POST", "/Users", json!({"externalId": "x"}), 400, "invalidValue"),
        ("no name of a person", "POST", "/Users", json!({"userName": "x"}), 400, "invalidValue"),
        ("no object", "POST", "/Users", json!([]), 400, "invalidSyntax"),
        (
            "an attribute twice",
            "POST",
            "/Users",
            json!({"userName": "x", "externalId": "x", "active": true, "Active": true}),
            400,
            "invalidSyntax",
        ),
        (
            "active that is neither",
            "PUT",
            &at,
            json!({"userName": "dana", "externalId": "dana", "active": "maybe"}),
            400,
            "invalidValue",
        ),
        ("another person", "PUT", &at, user("frank"), 400, "mutability"),
        ("no operations", "PATCH", &at, json!({}), 400, "invalidSyntax"),
        (
            "an unknown operation",
            "PATCH",
            &at,
            operation(json!({"op": "move", "path": "active", "value": true})),
            400,
            "invalidSyntax",
        ),
        (
            "a path that is not understood",
            "PATCH",
            &at,
            operation(json!({"op": "replace", "path": "emails[type eq \"work\"].value", "value": "x"})),
            400,
            "invalidPath",
        ),
        (
            "a filter that is not understood",
            "GET",
            "/Users?filter=userName%20co%20%22d%22",
            Value::Null,
            400,
            "invalidFilter",
        ),
    ];
    for (what, method, path, body, status, kind) in rows {
        let told = scim(&sts, &solver, method, path, &body).await;
        assert_eq!((told.status, told.json["scimType"].as_str()), (status, Some(kind)), "{what}: {}", told.text);
        assert_eq!(told.json["status"], status.to_string(), "{what}");
    }
    assert_eq!(scim(&sts, &solver, "GET", "/Users/none", &Value::Null).await.status, 404);
    assert_eq!(scim(&sts, &solver, "DELETE", "/Users/none", &Value::Null).await.status, 404);
    for headers in [vec![], vec![("authorization", "Bearer other")], vec![("authorization", "Basic scim-token")]] {
        let told = plain(&sts.service, &solver, "GET", "/scim/v2/Users", &headers, "").await;
        assert_eq!((told.status, &told.headers["www-authenticate"]), (401, &"Bearer".parse().expect("a value")));
    }
    assert!(stops(&sts.service).await.is_empty());
    let elsewhere = scim(&sts, &solver, "GET", "/Groups", &Value::Null).await;
    assert_eq!((elsewhere.status, &elsewhere.json["status"]), (404, &json!("404")), "{}", elsewhere.text);
    // A deactivation is carried out whatever else is wrong, and the answer says so.
    let both =
        json!({"Operations": [{"op": "replace", "path": "active", "value": false}, {"op": "move", "path": "x"}]});
    let told = scim(&sts, &solver, "PATCH", &at, &both).await;
    assert_eq!(told.status, 400, "{}", told.text);
    assert!(told.text.contains("deactivated and stopped"), "{}", told.text);
    assert_eq!(stops(&sts.service).await.len(), 1);
    assert_eq!(scim(&sts, &solver, "GET", &at, &Value::Null).await.json["active"], false);
    let erin = scim(&sts, &solver, "GET", "/Users?filter=userName%20eq%20%22erin%22", &Value::Null).await;
    let at = format!("/Users/{}", erin.json["Resources"][0]["id"].as_str().expect("an id"));
    let renamed = json!({"userName": "dana", "externalId": "erin", "active": false});
    let told = scim(&sts, &solver, "PUT", &at, &renamed).await;
    assert_eq!((told.status, told.json["scimType"].as_str()), (409, Some("uniqueness")), "{}", told.text);
    assert!(told.text.contains("deactivated and stopped"), "{}", told.text);
    assert_eq!(stops(&sts.service).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ended_session_is_no_shortcut_for_the_next_one() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let jane = format!("{}#jane", sts.people_url);
    let stop = json!({"kind": "session", "value": jane, "reason": "by hand, without an end"});
    sts.service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    let again = wait_for(
        || async {
            let statement = sts.people.token(&sts.person("jane"));
            let told = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &statement)]).send(&sts.service, &solver).await;
            (told.status == 200).then(|| told.token().to_owned())
        },
        "a token on a new word",
    )
    .await;
    let ended = sts.people.typed("secevent+jwt", &event(&sts, &format!("{CAEP}session-revoked"), "jane"));
    assert_eq!(push(&sts, &solver, &ended).await.status, 202);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &again).await.0, 401, "what was begun since ends, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e3_pages_of_configured_origins_may_ask_and_no_others() {
    let sts = Sts::start_with("", "cors_origins = [\"https://app.example.org\"]\n").await;
    let solver = sts.service.solver().await;
    let at = async |method: &str, origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        plain(&sts.service, &solver, method, "/token", &headers, "").await
    };
    let preflight = at("OPTIONS", "https://app.example.org").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.headers["access-control-allow-origin"], "https://app.example.org");
    assert_eq!(preflight.headers["access-control-allow-headers"], "DPoP, Content-Type");
    let asked = at("POST", "https://app.example.org").await;
    assert_eq!(asked.headers["access-control-expose-headers"], "DPoP-Nonce, WWW-Authenticate");
    assert!(!asked.headers.contains_key("access-control-allow-credentials"));
    for method in ["OPTIONS", "POST"] {
        let told = at(method, "https://other.example").await;
        assert!(!told.headers.keys().any(|h| h.as_str().starts_with("access-control-")), "{method}");
    }
    let closed = Sts::start().await;
    let solver = closed.service.solver().await;
    let headers = [("origin", "https://app.example.org")];
    let told = plain(&closed.service, &solver, "GET", "/jwks.json", &headers, "").await;
    assert!(!told.headers.keys().any(|h| h.as_str().starts_with("access-control-")), "off unless configured");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_a_flood_in_a_clients_name_costs_its_source_and_a_clients_own_costs_the_client() {
    let sts = Arc::new(Sts::start_with("", "client_rate = 1\nsource_rate = 0\n").await);
    let (solver, other) = (sts.service.solver().await, sts.service.workload(OTHER).await);
    let mut nameless = Asking::new(&sts.service, SOLVER);
    nameless.certificate = false;
    for _ in 0..20 {
        assert_eq!(nameless.send(&sts.service, &solver).await.error(), "invalid_client");
    }
    let racers = (0..20).map(|_| {
        let (sts, solver) = (sts.clone(), solver.clone());
        tokio::spawn(async move { Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await })
    });
    let mut limited = 0;
    for racer in racers.collect::<Vec<_>>() {
        let told = racer.await.expect("ends");
        if told.status == 429 {
            assert_eq!(told.error(), "temporarily_unavailable", "{}", told.text);
            assert!(told.headers.contains_key("retry-after"));
            limited += 1;
        }
    }
    assert!(limited > 0);
    // Another client is not in it: its first request gets past the limit, to whatever comes next.
    assert_ne!(Asking::new(&sts.service, OTHER).once(&sts.service, other.session.identity(), None).await.status, 429);
    let few = Sts::start_with("", "source_rate = 1\n").await;
    let solver = few.service.solver().await;
    let mut limited = 0;
    for _ in 0..20 {
        limited += usize::from(plain(&few.service, &solver, "POST", "/token", &[], "").await.status == 429);
    }
    assert!(limited > 0, "before anything else is looked at");
}
