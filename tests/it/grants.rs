//! Tokens on whose word: client authentication, the grants, exact operations with their uses, and the seed story.

use std::sync::Arc;

use http::Method;
use popgate::domain::secret::AccessToken;
use popgate::net::keys::P256Key;
use serde_json::{Value, json};

use crate::asking::{Asking, Told, client_assertion, details, now};
use crate::issuer::{IssuerKey, issuer};
use crate::saml_idp::{ENTITY, SamlIdp};
use crate::web::Web;
use crate::world::{Client, SOLVER, Service, popgate, registrations, run, stderr, stdout};

pub const OTHER: &str = "spiffe://example.org/ai/other";
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
pub const SAML_BEARER: &str = "urn:ietf:params:oauth:grant-type:saml2-bearer";
pub const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const CLIENT_JWT: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
pub const CLIENT_SPIFFE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe";

/// A service that believes an issuer of people's tokens, one of jobs', and a SAML provider.
pub struct Sts {
    pub service: Service,
    pub people: IssuerKey,
    pub people_url: String,
    pub jobs: IssuerKey,
    pub jobs_url: String,
    pub saml: SamlIdp,
    pub webs: [Web; 2],
}

impl Sts {
    pub async fn start() -> Self {
        Self::start_with("", "jwt_svid_clients = true\n").await
    }

    /// Starts with further keys of the people's issuer and of `[token]`.
    pub async fn start_with(corp: &str, token: &str) -> Self {
        let (people, jobs, saml) = (IssuerKey::rsa("p1"), IssuerKey::ec("j1"), SamlIdp::new());
        let webs = [issuer(&people).await, issuer(&jobs).await];
        let events = if corp.contains("events") { "" } else { "events = { push_token_file = \"push\" }\n" };
        let corp = corp.replace("{people}", &webs[0].url);
        let extra = format!(
            r#"
[[trust.oidc]]
name = "corp"
issuer = "{}"
keys = {{ ca_file = "people-ca.pem" }}
grants = "people"
{events}{corp}
[[trust.oidc.map]]
each = "groups"
prefix = "corp:"
[[trust.oidc]]
name = "forge"
issuer = "{}"
keys = {{ ca_file = "jobs-ca.pem" }}
grants = "jobs"
[[trust.oidc.map]]
claims = {{ repository_id = "74", ref = ["refs/heads/main", "refs/tags/*"] }}
groups = ["deployers"]
[[trust.saml]]
name = "staff"
entity_id = "{ENTITY}"
certificates_file = "idp.pem"
[[trust.saml.map]]
claims = {{ department = "eng" }}
groups = ["engineers"]
[[trust.scim]]
name = "directory"
token_sha256 = "{}"
issuer = "https://idp.example.org"
"#,
            webs[0].url,
            webs[1].url,
            popgate::domain::digest::Sha256::of(b"scim-token"),
        );
        let files = [
            ("people-ca.pem", webs[0].ca.as_str()),
            ("jobs-ca.pem", webs[1].ca.as_str()),
            ("idp.pem", saml.certificate.as_str()),
            ("push", "push-token\n"),
        ];
        let service = Service::start_domain("example.org", &extra, &format!("@token{token}"), &files).await;
        service.admin(Method::POST, "/v1/import", Some(registrations())).await.expect("imports");
        let urls = webs.each_ref().map(|w| w.url.clone());
        let [people_url, jobs_url] = urls;
        Self { service, people, people_url, jobs, jobs_url, saml, webs }
    }

    pub fn issuer(&self) -> String {
        self.service.addresses["token"].clone()
    }

    pub fn person(&self, sub: &str) -> Value {
        json!({"iss": self.people_url, "aud": self.issuer(), "sub": sub, "iat": now(), "exp": now() + 300, "groups": ["dev"], "jti": popgate::store::entropy::random_id()})
    }

    pub fn job(&self) -> Value {
        json!({"iss": self.jobs_url, "aud": self.issuer(), "sub": "repo:acme/site:ref:refs/heads/main", "iat": now(), "exp": now() + 300,
            "repository_id": "74", "repository": "acme/site", "ref": "refs/heads/main", "event_name": "push", "jti": popgate::store::entropy::random_id()})
    }

    /// A request of a workload by a grant, with more parameters.
    pub fn ask(&self, id: &str, grant: &str, pairs: &[(&str, &str)]) -> Asking {
        let mut asking = Asking::new(&self.service, id);
        asking.set("grant_type", grant);
        for (name, value) in pairs {
            asking.set(name, *value);
        }
        asking
    }

    /// A proved call through the gateway with a token.
    pub async fn call(&self, client: &Client, method: &str, path: &str, token: &str) -> (u16, String) {
        let url = self.service.url("gateway", path);
        let token = AccessToken::new(token.to_owned());
        let authorization = format!("DPoP {}", token.expose());
        for _ in 0..2 {
            let proof = client.session.prove(method, &url, Some(&token));
            let answer = client.raw(method, &url, &[("authorization", &authorization), ("dpop", &proof)], false).await;
            if answer.header("dpop-nonce").is_empty() {
                return (answer.status, answer.problem());
            }
        }
        panic!("the gateway asks for nonces without end");
    }
}

fn minted(told: &Told) -> Value {
    assert_eq!(told.status, 200, "{}", told.text);
    assert_eq!(told.json["token_type"], "DPoP");
    told.claims()
}

/// A JWT-SVID of a workload for this issuer, by its agent.
pub async fn jwt_svid(host: &crate::host::Host, audience: &str) -> String {
    let client = spiffe::WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    client.fetch_jwt_svid([audience], None).await.expect("a token").token().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c2_a_workload_proves_its_certificates_key_by_a_jwt_once() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let ask = |assertion: &str| {
        let mut ask = Asking::new(&sts.service, SOLVER)
            .with("client_assertion_type", CLIENT_JWT)
            .with("client_assertion", assertion);
        ask.certificate = false;
        ask
    };
    let assertion = client_assertion(&sts.service, solver.session.identity(), |_, _| ());
    let claims = minted(&ask(&assertion).send(&sts.service, &solver).await);
    assert_eq!((claims["sub"].as_str(), claims["client_id"].as_str()), (Some(SOLVER), Some(SOLVER)));
    assert_eq!(claims["cnf"]["jkt"], solver.session.identity().jkt().to_string());
    let again = ask(&assertion).send(&sts.service, &solver).await;
    assert_eq!((again.status, again.error()), (401, "invalid_client"), "its jti counts once");
    // Without kid the certificates in force are tried, and without client_id the assertion says who it is.
    let plain = client_assertion(&sts.service, solver.session.identity(), |h, _| {
        h.as_object_mut().expect("object").remove("kid");
    });
    let mut without = ask(&plain);
    without.unset("client_id");
    minted(&without.send(&sts.service, &solver).await);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", &tok(&sts, &solver).await).await.0, 200);
    let verified = sts.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}

async fn tok(sts: &Sts, client: &Client) -> String {
    let assertion = client_assertion(&sts.service, client.session.identity(), |_, _| ());
    let mut ask =
        Asking::new(&sts.service, SOLVER).with("client_assertion_type", CLIENT_JWT).with("client_assertion", assertion);
    ask.certificate = false;
    ask.send(&sts.service, client).await.token().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c3_g6_a_jwt_svid_authenticates_and_is_tied_to_the_first_key() {
    let sts = Sts::start().await;
    let host = crate::host::Host::start(&sts.service, "build-1").await;
    let web = "spiffe://example.org/web";
    let entry = json!({"spiffe_id": web, "owner": crate::world::BOB, "parent": host.node, "selectors": [crate::host::own_user()], "operations": ["tot.*"], "groups": ["solvers"], "other_keys": true});
    sts.service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    let client = spiffe::WorkloadApiClient::connect_to(host.endpoint()).await.expect("connects");
    crate::agent::wait(|| async { client.fetch_x509_svid().await.is_ok() }, "an identity").await;
    let svid = jwt_svid(&host, &sts.issuer()).await;
    let bearer = sts.service.solver().await;
    let key = |key: &P256Key| {
        let pkcs8 = key.pkcs8().to_vec();
        Box::new(move |proof: &mut crate::world::HandMade| {
            let key = P256Key::from_pkcs8(&pkcs8).expect("a key");
            proof.header["jwk"] = popgate::protocol::jwk::PublicKey::from_spki(key.spki()).expect("P-256").to_jwk();
            proof.key = key;
        })
    };
    let ask = |own: &P256Key| {
        let mut ask =
            Asking::new(&sts.service, web).with("client_assertion_type", CLIENT_SPIFFE).with("client_assertion", &svid);
        ask.certificate = false;
        ask.edit = key(own);
        ask
    };
    let (first, second) = (P256Key::generate(), P256Key::generate());
    let claims = minted(&ask(&first).send(&sts.service, &bearer).await);
    assert_eq!(claims["sub"], web);
    assert!(claims.get("svid_serial").is_none());
    minted(&ask(&first).send(&sts.service, &bearer).await);
    let stolen = ask(&second).send(&sts.service, &bearer).await;
    assert_eq!((stolen.status, stolen.error()), (400, "invalid_grant"), "{}", stolen.text);
    // One for another audience, or for two, is not for us.
    for audience in [json!(["https://other"]), json!([sts.issuer(), "https://other"])] {
        let audiences: Vec<String> = serde_json::from_value(audience).expect("texts");
        let svid = client.fetch_jwt_svid(&audiences, None).await.expect("a token").token().to_owned();
        let mut other = ask(&P256Key::generate());
        other.set("client_assertion", svid);
        let refused = other.send(&sts.service, &bearer).await;
        assert_eq!((refused.status, refused.error()), (401, "invalid_client"), "{}", refused.text);
    }
    let verified = sts.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_g3_a_persons_assertion_gives_a_token_for_the_person_with_the_workload_as_actor() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let statement = sts.people.token(&sts.person("jane"));
    let asked = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &statement)]);
    let claims = minted(&asked.send(&sts.service, &solver).await);
    let jane = format!("{}#jane", sts.people_url);
    assert_eq!(claims["sub"], jane);
    assert_eq!(claims["client_id"], SOLVER);
    assert_eq!(claims["act"], json!({"sub": SOLVER}));
    assert_eq!(claims["groups"], json!(["corp:dev"]));
    // The same key may use the statement again, another may not (G6).
    let told = asked.send(&sts.service, &solver).await;
    minted(&told);
    let other = sts.service.workload(OTHER).await;
    let stolen = sts.ask(OTHER, JWT_BEARER, &[("assertion", &statement)]).send(&sts.service, &other).await;
    assert_eq!((stolen.status, stolen.error()), (400, "invalid_grant"), "{}", stolen.text);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", told.token()).await.0, 200);
    // A person who is stopped is acted for no more, and what was minted stops.
    let stop = json!({"kind": "person", "value": jane, "reason": "left"});
    sts.service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", told.token()).await.0, 401);
    let fresh = sts.people.token(&sts.person("jane"));
    let refused = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &fresh)]).send(&sts.service, &solver).await;
    assert_eq!((refused.status, refused.error()), (400, "invalid_grant"), "{}", refused.text);
    let verified = sts.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_g6_a_jobs_token_gives_its_groups_and_may_name_its_key() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let ask = |claims: &Value| sts.ask(SOLVER, JWT_BEARER, &[("assertion", &sts.jobs.token(claims))]);
    let claims = minted(&ask(&sts.job()).send(&sts.service, &solver).await);
    assert_eq!((claims["sub"].as_str(), claims.get("act")), (Some(SOLVER), None), "a job is no person");
    assert_eq!(claims["groups"], json!(["deployers"]));
    let jkt = solver.session.identity().jkt().to_string();
    let mut keyed = sts.job();
    keyed["aud"] = format!("{}#{jkt}", sts.issuer()).into();
    minted(&ask(&keyed).send(&sts.service, &solver).await);
    let other = sts.service.workload(OTHER).await;
    let mut stolen = ask(&keyed);
    stolen.set("client_id", OTHER);
    let refused = stolen.send(&sts.service, &other).await;
    assert_eq!((refused.status, refused.error()), (400, "invalid_grant"), "it names its key: {}", refused.text);
    let mut proposed = sts.job();
    proposed["event_name"] = "pull_request".into();
    let refused = ask(&proposed).send(&sts.service, &solver).await;
    assert_eq!((refused.status, refused.error()), (400, "invalid_grant"), "a proposed change: {}", refused.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g4_a_saml_assertion_is_a_grant_once() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let assertion = sts.saml.assertion(&sts.issuer(), "jane", |xml| xml);
    let asked = sts.ask(SOLVER, SAML_BEARER, &[("assertion", &assertion)]);
    let claims = minted(&asked.send(&sts.service, &solver).await);
    assert_eq!(claims["sub"], format!("{ENTITY}#jane"));
    assert_eq!((&claims["act"], &claims["groups"]), (&json!({"sub": SOLVER}), &json!(["engineers"])));
    let again = asked.send(&sts.service, &solver).await;
    assert_eq!((again.status, again.error()), (400, "invalid_grant"), "{}", again.text);
    assert!(again.text.contains("once"), "{}", again.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_exchanged_tokens_say_who_acts_and_never_widen() {
    let sts = Sts::start().await;
    let (solver, other) = (sts.service.solver().await, sts.service.workload(OTHER).await);
    // Another workload's bound token is worth nothing without its key.
    let own = Asking::new(&sts.service, SOLVER).with("scope", "tot.read tot.run").send(&sts.service, &solver).await;
    let exchange = |id: &str, token: &str| {
        sts.ask(id, EXCHANGE, &[("subject_token", token), ("subject_token_type", ACCESS_TOKEN)])
    };
    let stolen = exchange(OTHER, own.token()).send(&sts.service, &other).await;
    assert_eq!((stolen.status, stolen.error()), (400, "invalid_request"), "{}", stolen.text);
    // Its own holder narrows it, and acts for nobody.
    let narrowed = exchange(SOLVER, own.token()).with("scope", "tot.read").send(&sts.service, &solver).await;
    let claims = minted(&narrowed);
    assert_eq!(narrowed.json["issued_token_type"], ACCESS_TOKEN);
    assert_eq!((claims["scope"].as_str(), claims.get("act")), (Some("tot.read"), None));
    assert!(claims["exp"].as_u64() <= own.claims()["exp"].as_u64(), "no longer than its input");
    let wider = exchange(SOLVER, narrowed.token()).with("scope", "tot.run").send(&sts.service, &solver).await;
    assert_eq!((wider.status, wider.error()), (400, "invalid_scope"), "{}", wider.text);
    let elsewhere = exchange(SOLVER, own.token())
        .with("resource", sts.service.url("gateway", "/raw"))
        .send(&sts.service, &solver)
        .await;
    assert_eq!((elsewhere.status, elsewhere.error()), (400, "invalid_target"), "{}", elsewhere.text);
    // Where its entry names who may act for it, that workload may, and the token is that workload's.
    let entry = json!({"entry": [{"spiffe_id": SOLVER, "owner": crate::world::BOB, "groups": ["solvers"], "operations": ["tot.*", "raw.*"], "may_act": OTHER}]});
    sts.service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    let lent = Asking::new(&sts.service, SOLVER).with("scope", "tot.read").send(&sts.service, &solver).await;
    assert_eq!(lent.claims()["may_act"], json!({"sub": OTHER}));
    let told = exchange(OTHER, lent.token()).send(&sts.service, &other).await;
    let claims = minted(&told);
    assert_eq!((claims["sub"].as_str(), claims["client_id"].as_str()), (Some(SOLVER), Some(OTHER)));
    assert_eq!((&claims["act"], claims["scope"].as_str()), (&json!({"sub": OTHER}), Some("tot.read")));
    assert_eq!(claims["cnf"]["jkt"], other.session.identity().jkt().to_string(), "bound to the caller");
    assert_eq!(sts.call(&other, "GET", "/v1/runs/r1", told.token()).await.0, 200);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", told.token()).await.0, 401, "its subject does not hold it");
    // Who is acted for is stopped: so is the actor.
    let stop = json!({"kind": "spiffe-id", "value": SOLVER, "reason": "test"});
    sts.service.admin(Method::POST, "/v1/revocations", Some(stop)).await.expect("stops");
    assert_eq!(sts.call(&other, "GET", "/v1/runs/r1", told.token()).await.0, 401);
    let after = exchange(OTHER, lent.token()).send(&sts.service, &other).await;
    assert_eq!((after.status, after.error()), (400, "invalid_request"), "{}", after.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_a_persons_token_is_exchanged_and_actors_nest_with_the_current_one_outermost() {
    let sts = Sts::start().await;
    let entry = json!({"entry": [{"spiffe_id": SOLVER, "owner": crate::world::BOB, "groups": ["solvers"], "operations": ["tot.*"], "may_act": OTHER}]});
    sts.service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    let (solver, other) = (sts.service.solver().await, sts.service.workload(OTHER).await);
    let statement = sts.people.token(&sts.person("jane"));
    let id_token = "urn:ietf:params:oauth:token-type:id_token";
    let asked = sts.ask(SOLVER, EXCHANGE, &[("subject_token", &statement), ("subject_token_type", id_token)]);
    let first = asked.send(&sts.service, &solver).await;
    let jane = format!("{}#jane", sts.people_url);
    assert_eq!(
        (minted(&first)["sub"].as_str(), &first.claims()["act"]),
        (Some(jane.as_str()), &json!({"sub": SOLVER}))
    );
    let second = sts
        .ask(OTHER, EXCHANGE, &[("subject_token", first.token()), ("subject_token_type", ACCESS_TOKEN)])
        .send(&sts.service, &other)
        .await;
    let claims = minted(&second);
    assert_eq!(claims["sub"], jane);
    assert_eq!(claims["act"], json!({"sub": OTHER, "act": {"sub": SOLVER}}));
    assert_eq!(claims["groups"], json!(["corp:dev"]));
    // An actor token is the caller's own or nobody's.
    let own = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await;
    let fresh = sts.people.token(&sts.person("jane"));
    let with = |actor: &str| {
        sts.ask(
            OTHER,
            EXCHANGE,
            &[
                ("subject_token", fresh.as_str()),
                ("subject_token_type", id_token),
                ("actor_token", actor),
                ("actor_token_type", ACCESS_TOKEN),
            ],
        )
    };
    let foreign = with(first.token()).send(&sts.service, &other).await;
    assert_eq!((foreign.status, foreign.error()), (400, "invalid_request"), "{}", foreign.text);
    minted(&with(own.token()).send(&sts.service, &other).await);
    // may_act of a provider is obeyed.
    let mut named = sts.person("jane");
    named["may_act"] = json!({"sub": SOLVER});
    let named = sts.people.token(&named);
    let ask = sts.ask(OTHER, EXCHANGE, &[("subject_token", &named), ("subject_token_type", id_token)]);
    let refused = ask.send(&sts.service, &other).await;
    assert_eq!((refused.status, refused.error()), (400, "invalid_request"), "{}", refused.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t4_t5_a_token_for_exact_operations_is_good_for_them_and_for_as_many_uses() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let ask = |text: String| Asking::new(&sts.service, SOLVER).with("authorization_details", text);
    let run = details(&["tot.read"], Some("/runs/r1"), Some(2));
    let first = ask(run.clone()).send(&sts.service, &solver).await;
    let granted = &first.json["authorization_details"];
    assert_eq!(granted, &serde_json::from_str::<Value>(&run).expect("JSON"), "what is granted is echoed");
    assert_eq!(first.json["scope"], "tot.read");
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r2", first.token()).await, (403, "insufficient-details".into()));
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", first.token()).await.0, 200);
    // Minted again it shares the count, however many are asked for: what was used stays used.
    let again = ask(run).send(&sts.service, &solver).await;
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1/tree", again.token()).await.0, 200);
    for token in [again.token(), first.token()] {
        assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", token).await, (403, "uses-spent".into()));
    }
    // Exchanged it does, too.
    let exchanged = sts
        .ask(SOLVER, EXCHANGE, &[("subject_token", again.token()), ("subject_token_type", ACCESS_TOKEN)])
        .send(&sts.service, &solver)
        .await;
    assert_eq!(minted(&exchanged)["authorization_details"][0]["uses"], 2);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", exchanged.token()).await, (403, "uses-spent".into()));
    // Another object is another grant, and one that policy forbids takes no use.
    let once = ask(details(&["tot.*"], Some("/runs/r3"), Some(1))).send(&sts.service, &solver).await;
    assert_eq!(sts.call(&solver, "DELETE", "/v1/runs/r3", once.token()).await, (403, "policy".into()));
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r3", once.token()).await.0, 200);
    assert_eq!(sts.call(&solver, "GET", "/v1/runs/r3", once.token()).await, (403, "uses-spent".into()));
    assert_eq!(sts.service.upstream.count(), 3);
    let verified = sts.service.verify().await;
    assert!(verified.status.success(), "{}", stderr(&verified));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t5_of_twenty_racing_requests_as_many_pass_as_there_are_uses() {
    let sts = Arc::new(Sts::start().await);
    let solver = sts.service.solver().await;
    let told = Asking::new(&sts.service, SOLVER)
        .with("authorization_details", details(&["tot.read"], None, Some(3)))
        .send(&sts.service, &solver)
        .await;
    let token = told.token().to_owned();
    sts.call(&solver, "GET", "/v1/runs/warm", &token).await;
    let racers: Vec<_> = (0..20)
        .map(|i| {
            let (sts, solver, token) = (sts.clone(), solver.clone(), token.clone());
            tokio::spawn(async move { sts.call(&solver, "GET", &format!("/v1/runs/r{i}"), &token).await.0 })
        })
        .collect();
    let mut passed = 0;
    for racer in racers {
        passed += usize::from(racer.await.expect("ends") == 200);
    }
    assert_eq!((passed, sts.service.upstream.count()), (2, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t6_minting_is_decided_by_policy_with_the_providers_groups() {
    let sts = Sts::start().await;
    let solver = sts.service.solver().await;
    let policies = std::fs::read_to_string(sts.service.base().join("p.cedar")).expect("reads");
    let stricter = policies.replace(
        r#"@id("may-ask") permit (principal, action == Action::"token.mint", resource);"#,
        r#"@id("by-deployers") permit (principal in Group::"deployers", action == Action::"token.mint", resource);
@id("never-delete") @fix("ask for less") forbid (principal, action == Action::"token.mint", resource) when { context.scope.contains("tot.delete") };"#,
    );
    assert_ne!(policies, stricter);
    std::fs::write(sts.service.base().join("p.cedar"), stricter).expect("writes");
    sts.service.signal(nix::sys::signal::Signal::SIGHUP);
    let plain = Asking::new(&sts.service, SOLVER);
    crate::agent::wait(
        || async { plain.send(&sts.service, &solver).await.error() == "unauthorized_client" },
        "the new policy",
    )
    .await;
    let job = |scope: &str| {
        let mut ask = sts.ask(SOLVER, JWT_BEARER, &[("assertion", &sts.jobs.token(&sts.job()))]);
        ask.set("scope", scope);
        ask
    };
    minted(&job("tot.read").send(&sts.service, &solver).await);
    let refused = job("tot.delete").send(&sts.service, &solver).await;
    assert_eq!((refused.status, refused.error()), (400, "unauthorized_client"));
    assert!(refused.text.contains("never-delete") && refused.text.contains("ask for less"), "{}", refused.text);
}

/// The seed story: a contractor's CI job lives by its provider's identity token alone, and stops with the contractor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_a_ci_job_gets_certificate_and_token_by_its_identity_token_alone_and_stops_with_its_owner() {
    let sts = Sts::start().await;
    let entry = json!({"spiffe_id": "spiffe://example.org/ci/site", "owner": crate::world::BOB, "selectors": ["forge:repository_id:74"], "operations": ["tot.*"], "groups": ["solvers"]});
    sts.service.admin(Method::POST, "/v1/entries", Some(entry)).await.expect("registers");
    let status = sts.service.admin(Method::GET, "/v1/status", None).await.expect("status");
    let pin = status["ca"]["pin"].as_str().expect("a pin").to_owned();
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("job-token");
    let job = |file: &std::path::Path| {
        let mut claims = sts.job();
        claims["aud"] = "spiffe://example.org".into();
        std::fs::write(file, sts.jobs.token(&claims)).expect("writes");
        popgate()
            .args([
                "call",
                "--fail",
                "--pin",
                &pin,
                "--server",
                &sts.service.addresses["identity"],
                "--oidc-token-file",
            ])
            .arg(file)
            .arg(sts.service.url("gateway", "/v1/runs/r1"))
            .output()
            .expect("runs")
    };
    let before = job(&file);
    assert!(before.status.success(), "{}", stderr(&before));
    assert_eq!(sts.service.upstream.count(), 1);
    let offboard = run(&["offboard", crate::world::BOB, "--data-dir", sts.service.data.to_str().expect("UTF-8")]);
    assert!(offboard.status.success(), "{}", stderr(&offboard));
    let after = job(&file);
    assert_eq!((after.status.code(), sts.service.upstream.count()), (Some(1), 1), "{}", stdout(&after));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g3_a_workload_may_need_a_fresh_word_of_its_owners_provider() {
    let sts = Sts::start_with("owner_max_age = \"1h\"", "").await;
    let owner = format!("{}#carol", sts.people_url);
    let entry =
        json!({"entry": [{"spiffe_id": OTHER, "owner": owner, "groups": ["solvers"], "operations": ["tot.*"]}]});
    sts.service.admin(Method::POST, "/v1/import", Some(entry)).await.expect("imports");
    let (other, solver) = (sts.service.workload(OTHER).await, sts.service.solver().await);
    let refused = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await;
    assert_eq!((refused.status, refused.error()), (400, "unauthorized_client"), "{}", refused.text);
    // Whoever brings the owner's statement: the provider spoke of them.
    let statement = sts.people.token(&sts.person("carol"));
    minted(&sts.ask(SOLVER, JWT_BEARER, &[("assertion", &statement)]).send(&sts.service, &solver).await);
    minted(&Asking::new(&sts.service, OTHER).send(&sts.service, &other).await);
    minted(&Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_test_explains_what_a_statement_comes_to() {
    let sts = Sts::start().await;
    let config = sts.service.base().join("popgate.toml");
    let test = |token: &str, extra: &[&str]| {
        let file = sts.service.base().join("statement");
        std::fs::write(&file, token).expect("writes");
        let mut args = vec!["trust", "test", "--grant", "--config", config.to_str().expect("UTF-8"), "--json"];
        args.extend([
            "--token-service",
            &sts.service.addresses["token"],
            "--token-file",
            file.to_str().expect("UTF-8"),
        ]);
        args.extend(extra);
        run(&args)
    };
    let good = test(&sts.jobs.token(&sts.job()), &[]);
    let told: Value = serde_json::from_str(&stdout(&good)).unwrap_or_else(|_| panic!("{}", stderr(&good)));
    assert_eq!((told["provider"].as_str(), &told["groups"]), (Some("forge"), &json!(["deployers"])));
    assert_eq!(told["rules"][0]["fits"], true);
    let mut proposed = sts.job();
    proposed["event_name"] = "pull_request".into();
    let refused = test(&sts.jobs.token(&proposed), &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stdout(&refused).contains("proposed change"), "{}{}", stdout(&refused), stderr(&refused));
    let person = test(&sts.people.token(&sts.person("jane")), &[]);
    let told: Value = serde_json::from_str(&stdout(&person)).unwrap_or_else(|_| panic!("{}", stderr(&person)));
    assert_eq!(told["person"], format!("{}#jane", sts.people_url));
    let mut expired = sts.person("jane");
    expired["exp"] = (now() - 100).into();
    let refused = test(&sts.people.token(&expired), &[]);
    assert!(stderr(&refused).contains("expired"), "{}", stderr(&refused));
    let saml = test(&sts.saml.assertion(&sts.issuer(), "jane", |x| x), &["--method", "saml"]);
    let told: Value = serde_json::from_str(&stdout(&saml)).unwrap_or_else(|_| panic!("{}", stderr(&saml)));
    assert_eq!(told["groups"], json!(["engineers"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_keys_rotate_with_overlap_and_no_call_notices() {
    let sts = Sts::start_with("", "key_life = \"1s\"\n").await;
    let solver = sts.service.solver().await;
    let first = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await.token().to_owned();
    let kid = |token: &str| header(token)["kid"].as_str().expect("a kid").to_owned();
    let set = async || {
        let http = popgate::client::http::HttpClient::new(solver.session.identity().tls(false).expect("TLS"));
        let request = http::Request::builder().uri(sts.service.url("token", "/jwks.json")).body(bytes::Bytes::new());
        let told = http.fetch(request.expect("builds")).await.expect("answers");
        let set: Value = serde_json::from_slice(told.body()).expect("JSON");
        set["keys"]
            .as_array()
            .expect("keys")
            .iter()
            .map(|k| k["kid"].as_str().expect("a kid").to_owned())
            .collect::<Vec<_>>()
    };
    let published = set().await;
    let next = crate::agent::wait_for(
        || async {
            let told = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await;
            (kid(told.token()) != kid(&first)).then(|| told.token().to_owned())
        },
        "another key",
    )
    .await;
    assert!(published.contains(&kid(&next)), "the next key was published before it signed");
    assert!(set().await.contains(&kid(&first)), "the last one stays while its tokens live");
    for token in [&first, &next] {
        assert_eq!(sts.call(&solver, "GET", "/v1/runs/r1", token).await.0, 200);
    }
}

fn header(token: &str) -> Value {
    use base64::Engine as _;
    let text = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().expect("a header"));
    serde_json::from_slice(&text.expect("base64url")).expect("JSON")
}
