//! Every way to ask for a token wrongly: one fault a row, with its exact status and error. `docs/refusals.md` is this table.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use popgate::net::keys::P256Key;
use popgate::protocol::jwk::PublicKey;
use serde_json::{Value, json};

use crate::asking::{Asking, Told, client_assertion, sign};
use crate::documented::{self, Page};
use crate::grants::{CLIENT_JWT, CLIENT_SPIFFE, OTHER, Sts};
use crate::statements;
use crate::world::{Client, HandMade, SOLVER};

/// What is wrong, the request, and what must come.
pub struct Row {
    pub area: &'static str,
    pub fault: String,
    pub ask: Asking,
    pub want: (u16, &'static str),
}

/// Rows of one area.
pub struct Area<'a> {
    pub sts: &'a Sts,
    pub name: &'static str,
    pub rows: Vec<Row>,
}

impl<'a> Area<'a> {
    pub fn new(sts: &'a Sts, name: &'static str) -> Self {
        Self { sts, name, rows: Vec::new() }
    }

    /// A row of a good request, spoilt.
    pub fn row(&mut self, fault: &str, want: (u16, &'static str), spoil: impl FnOnce(&mut Asking)) {
        let mut ask = Asking::new(&self.sts.service, SOLVER);
        spoil(&mut ask);
        self.rows.push(Row { area: self.name, fault: fault.to_owned(), ask, want });
    }

    fn proof(&mut self, fault: &str, edit: impl Fn(&mut HandMade) + Send + Sync + 'static) {
        self.row(fault, (400, "invalid_dpop_proof"), |ask| ask.edit = Box::new(edit));
    }
}

const CLIENT: (u16, &str) = (401, "invalid_client");
const REQUEST: (u16, &str) = (400, "invalid_request");

fn clients<'a>(sts: &'a Sts, solver: &Client) -> Area<'a> {
    let mut area = Area::new(sts, "client");
    let identity = solver.session.identity();
    area.row("no certificate and no assertion", CLIENT, |a| a.certificate = false);
    area.row("no client_id", REQUEST, |a| {
        a.unset("client_id");
    });
    area.row("another client_id", CLIENT, |a| {
        a.set("client_id", OTHER);
    });
    area.row("a client_id in another case", CLIENT, |a| {
        a.set("client_id", SOLVER.replace("solver", "Solver"));
    });
    area.row("an assertion without its type", REQUEST, |a| {
        a.set("client_assertion", "x");
    });
    area.row("an assertion's type without it", REQUEST, |a| {
        a.set("client_assertion_type", CLIENT_JWT);
    });
    area.row("certificate and Authorization header", REQUEST, |a| {
        a.headers.push(("authorization", "Basic eDp5".into()));
    });
    area.row("certificate and client_secret", REQUEST, |a| {
        a.set("client_secret", "x");
    });
    area.row("a secret alone", CLIENT, |a| {
        a.certificate = false;
        a.set("client_secret", "x");
    });
    let own = |edit: &dyn Fn(&mut Value, &mut Value)| client_assertion(&sts.service, identity, |h, p| edit(h, p));
    let good = own(&|_, _| ());
    area.row("certificate and assertion", REQUEST, |a| {
        a.set("client_assertion_type", CLIENT_JWT).set("client_assertion", good.clone());
    });
    let asserted = |a: &mut Asking, text: String| {
        a.certificate = false;
        a.set("client_assertion_type", CLIENT_JWT).set("client_assertion", text);
    };
    let issuer = sts.issuer();
    let member = |name: &'static str, value: Value| own(&move |_, p| p[name] = value.clone());
    let header = |name: &'static str, value: Value| own(&move |h, _| h[name] = value.clone());
    let without = |name: &'static str| own(&move |_, p| drop(p.as_object_mut().expect("an object").remove(name)));
    let now = crate::asking::now();
    let stranger = P256Key::generate();
    let claims = json!({"iss": SOLVER, "sub": SOLVER, "aud": issuer, "jti": "j", "exp": now + 60});
    let faults = [
        ("an assertion whose iss is another", member("iss", OTHER.into())),
        ("an assertion whose sub is no SPIFFE ID", member("sub", "solver".into())),
        ("an assertion of nobody that is registered", {
            let nobody = "spiffe://example.org/nobody";
            own(&|_, p| (p["iss"], p["sub"]) = (nobody.into(), nobody.into()))
        }),
        ("an assertion for the token endpoint's URL", member("aud", format!("{issuer}/token").into())),
        ("an assertion for a list with this issuer alone", member("aud", json!([issuer]))),
        ("an assertion for this issuer and another", member("aud", json!([issuer, "https://other.example"]))),
        ("an assertion for nobody", without("aud")),
        ("an assertion without exp", without("exp")),
        ("an expired assertion", member("exp", (now - 1).into())),
        ("an assertion for a year", member("exp", (now + 31_536_000).into())),
        ("an assertion whose exp is a text", member("exp", (now + 60).to_string().into())),
        ("an assertion that begins later", member("nbf", (now + 60).into())),
        ("an assertion whose iat is a text", member("iat", "now".into())),
        ("an assertion without jti", without("jti")),
        ("an assertion with an empty jti", member("jti", "".into())),
        ("an assertion with a jti of 257 bytes", member("jti", "j".repeat(257).into())),
        ("an assertion whose jti is a number", member("jti", 7.into())),
        ("an assertion of type at+jwt", header("typ", "at+jwt".into())),
        ("an assertion of type dpop+jwt", header("typ", "dpop+jwt".into())),
        ("an assertion with an unknown crit", header("crit", json!(["x"]))),
        ("an assertion by alg none", header("alg", "none".into())),
        ("an assertion by HS256", header("alg", "HS256".into())),
        ("an assertion by EdDSA with an EC key", header("alg", "EdDSA".into())),
        ("an assertion by a stranger's key", sign(&json!({"alg": "ES256", "typ": "JWT"}), &claims, &stranger)),
        ("an assertion that is no JWT", "x".into()),
        ("an assertion of four parts", format!("{good}.x")),
        ("an assertion without its signature", format!("{}.", good.rsplit_once('.').expect("a JWS").0)),
        ("an assertion over 16 KiB", member("x", "y".repeat(20_000).into())),
    ];
    for (fault, text) in faults {
        area.row(fault, CLIENT, |a| asserted(a, text));
    }
    area.row("an assertion and another's client_id", CLIENT, |a| {
        asserted(a, own(&|_, _| ()));
        a.set("client_id", OTHER);
    });
    area.row("an assertion of an unknown type", CLIENT, |a| {
        asserted(a, own(&|_, _| ()));
        a.set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:saml2-bearer");
    });
    area.row("a JWT-SVID that is no JWT", CLIENT, |a| {
        asserted(a, "x.y.z".into());
        a.set("client_assertion_type", CLIENT_SPIFFE);
    });
    area.row("a JWT-SVID by the workload's own key", CLIENT, |a| {
        asserted(a, own(&|_, _| ()));
        a.set("client_assertion_type", CLIENT_SPIFFE);
    });
    area
}

fn proofs(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "proof");
    area.row("no proof", (400, "invalid_dpop_proof"), |a| a.proofs = 0);
    area.row("two proofs", (400, "invalid_dpop_proof"), |a| a.proofs = 2);
    area.row("a nonce that is not ours", (400, "use_dpop_nonce"), |a| {
        a.edit = Box::new(|p| p.payload["nonce"] = "x".into());
    });
    area.row("a header that is no proof", (400, "invalid_dpop_proof"), |a| {
        a.proofs = 0;
        a.headers.push(("dpop", "x".into()));
    });
    area.proof("another type", |p| p.header["typ"] = "JWT".into());
    area.proof("no type", |p| drop(p.header.as_object_mut().expect("an object").remove("typ")));
    area.proof("alg none", |p| p.header["alg"] = "none".into());
    area.proof("alg HS256", |p| p.header["alg"] = "HS256".into());
    area.proof("no key", |p| drop(p.header.as_object_mut().expect("an object").remove("jwk")));
    area.proof("a private key", |p| p.header["jwk"]["d"] = "AA".into());
    area.proof("a key that is not on its curve", |p| p.header["jwk"]["x"] = B64.encode([1; 32]).into());
    area.proof("an unknown crit", |p| p.header["crit"] = json!(["x"]));
    area.proof("another method", |p| p.payload["htm"] = "GET".into());
    area.proof("a method in small letters", |p| p.payload["htm"] = "post".into());
    area.proof("another URL", |p| p.payload["htu"] = "https://127.0.0.1/token".into());
    area.proof("a URL with a slash more", |p| {
        p.payload["htu"] = format!("{}/", p.payload["htu"].as_str().expect("text")).into();
    });
    area.proof("a relative URL", |p| p.payload["htu"] = "/token".into());
    area.proof("too old", |p| p.payload["iat"] = (crate::asking::now() - 70).into());
    area.proof("from the future", |p| p.payload["iat"] = (crate::asking::now() + 20).into());
    area.proof("an iat that is a text", |p| p.payload["iat"] = "now".into());
    area.proof("no jti", |p| drop(p.payload.as_object_mut().expect("an object").remove("jti")));
    area.proof("a jti of 257 bytes", |p| p.payload["jti"] = "j".repeat(257).into());
    area.proof("signed by another key", |p| p.key = P256Key::generate());
    area.proof("another key than the certificate's", |p| {
        let key = P256Key::generate();
        p.header["jwk"] = PublicKey::from_spki(key.spki()).expect("P-256").to_jwk();
        p.key = key;
    });
    area
}

fn forms(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "form");
    area.row("JSON", REQUEST, |a| a.kind = "application/json");
    area.row("no content type that is known", REQUEST, |a| a.kind = "text/plain");
    area.row("a parameter twice", REQUEST, |a| a.form.push(("grant_type".into(), "client_credentials".into())));
    area.row("over 64 KiB", REQUEST, |a| {
        a.set("x", "y".repeat(70_000));
    });
    area.row("malformed percent-encoding", REQUEST, |a| a.body = Some("grant_type=client_credentials&x=%zz".into()));
    area.row("bytes that are no UTF-8", REQUEST, |a| a.body = Some("grant_type=client_credentials&x=%ff".into()));
    area.row("nothing", REQUEST, |a| a.body = Some(String::new()));
    area.row("no grant_type", REQUEST, |a| {
        a.unset("grant_type");
    });
    for grant in ["password", "refresh_token", "authorization_code", "implicit", "x"] {
        let fault = format!("the grant type {grant}");
        area.row(&fault, (400, "unsupported_grant_type"), |a| {
            a.set("grant_type", grant);
        });
    }
    area.row("act in the request", REQUEST, |a| {
        a.set("act", "{}");
    });
    area.row("may_act in the request", REQUEST, |a| {
        a.set("may_act", "{}");
    });
    area
}

fn targets(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "target and scope");
    let (target, scope) = ((400, "invalid_target"), (400, "invalid_scope"));
    let here = sts.service.url("gateway", "/v1");
    area.row("an unknown resource", target, |a| {
        a.set("resource", "https://other.example");
    });
    area.row("a resource with a slash more", target, |a| {
        a.set("resource", format!("{here}/"));
    });
    area.row("the same resource twice", target, |a| a.form.push(("resource".into(), here.clone())));
    area.row("two resources", target, |a| a.form.push(("resource".into(), "https://other.example".into())));
    area.row("an audience beside another resource", target, |a| {
        a.set("audience", "https://other.example");
    });
    area.row("a scope beyond the entry", scope, |a| {
        a.set("scope", "admin");
    });
    area.row("a scope with one beyond the entry", scope, |a| {
        a.set("scope", "tot.read admin");
    });
    area.row("every scope", scope, |a| {
        a.set("scope", "*");
    });
    area.row("two spaces between scopes", scope, |a| {
        a.set("scope", "tot.read  tot.run");
    });
    area.row("a scope with a quote", scope, |a| {
        a.set("scope", "tot.read\"");
    });
    area.row("a scope with a line end", scope, |a| {
        a.set("scope", "tot.read\n");
    });
    area
}

fn details(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "authorization details");
    let one = |fields: &str| format!(r#"[{{"type":"popgate_operation",{fields}}}]"#);
    let faults = [
        ("no JSON", "x".to_owned()),
        ("an object", "{}".into()),
        ("none", "[]".into()),
        ("a text", r#"["popgate_operation"]"#.into()),
        ("no type", r#"[{"actions":["tot.read"]}]"#.into()),
        ("another type", r#"[{"type":"payment_initiation","actions":["tot.read"]}]"#.into()),
        ("an unknown field", one(r#""actions":["tot.read"],"amount":7"#)),
        ("a member twice", one(r#""actions":["tot.read"],"actions":["tot.run"]"#)),
        ("no actions", one(r#""identifier":"/runs/r1""#)),
        ("an empty list of actions", one(r#""actions":[]"#)),
        ("an action beyond the entry", one(r#""actions":["admin"]"#)),
        ("a star in the middle", one(r#""actions":["tot.*.x"]"#)),
        ("no operation of the resource", one(r#""actions":["tot.unknown"]"#)),
        ("an action of another resource", one(r#""actions":["raw.get"]"#)),
        ("another location", one(r#""actions":["tot.read"],"locations":["https://other.example"]"#)),
        ("an identifier that is no path", one(r#""actions":["tot.read"],"identifier":"r1""#)),
        ("an identifier that climbs", one(r#""actions":["tot.read"],"identifier":"/runs/../keys""#)),
        ("no uses", one(r#""actions":["tot.read"],"uses":0"#)),
        ("fewer uses than none", one(r#""actions":["tot.read"],"uses":-1"#)),
        ("half a use", one(r#""actions":["tot.read"],"uses":0.5"#)),
        ("more uses than can be counted", one(r#""actions":["tot.read"],"uses":4294967296"#)),
        ("one that the scope asked for does not cover", one(r#""actions":["tot.read"]"#)),
        (
            "seventeen of them",
            format!("[{}]", vec![r#"{"type":"popgate_operation","actions":["tot.read"]}"#; 17].join(",")),
        ),
    ];
    for (fault, text) in faults {
        area.row(fault, (400, "invalid_authorization_details"), |a| {
            a.set("authorization_details", text);
            if fault.contains("scope") {
                a.set("scope", "tot.run");
            }
        });
    }
    area
}

fn endpoints(sts: &Sts, own: &str, others: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, path) in [("introspection", "/introspect"), ("revocation", "/revoke")] {
        let mut area = Area::new(sts, name);
        let with = |a: &mut Asking, token: &str| {
            a.path = path;
            a.proofs = 0;
            a.set("token", token);
        };
        area.row("no token", REQUEST, |a| with(a, ""));
        area.row("no client", CLIENT, |a| {
            with(a, own);
            a.certificate = false;
        });
        area.row("another client_id", CLIENT, |a| {
            with(a, own);
            a.set("client_id", OTHER);
        });
        area.row("JSON", REQUEST, |a| {
            with(a, own);
            a.kind = "application/json";
        });
        area.row("a parameter twice", REQUEST, |a| {
            with(a, own);
            a.form.push(("token".into(), own.into()));
        });
        rows.extend(area.rows);
    }
    let mut area = Area::new(sts, "revocation");
    area.row("another client's token", (400, "unauthorized_client"), |a| {
        a.path = "/revoke";
        a.proofs = 0;
        a.set("token", others);
    });
    rows.extend(area.rows);
    rows
}

/// What every refusal has, whatever it is for.
fn manners(row: &Row, told: &Told) {
    let name = format!("{}: {}", row.area, row.fault);
    let text = |header: &str| told.headers.get(header).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    assert_eq!(text("cache-control"), "no-store", "{name}");
    assert_eq!(text("content-type"), "application/json", "{name}");
    assert_eq!(text("www-authenticate").starts_with("DPoP "), told.status == 401, "E4 {name}");
    assert_eq!(told.headers.contains_key("dpop-nonce"), told.error() == "use_dpop_nonce", "P9 {name}");
    let description = told.json["error_description"].as_str().expect("a description");
    assert!(!description.is_empty() && description.is_ascii() && !description.contains(['"', '\\']), "{name}");
    // Nothing of what was sent comes back but names that the caller proved (E4, P13).
    let secrets = ["client_assertion", "assertion", "subject_token", "actor_token", "client_secret", "token"];
    for (parameter, value) in row.ask.form.iter().filter(|(p, v)| secrets.contains(&p.as_str()) && v.len() > 16) {
        assert!(!told.text.contains(&value[..16]), "{name} echoes {parameter}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_token_request_has_its_own_standard_error() {
    let sts = Sts::start().await;
    let (solver, other) = (sts.service.solver().await, sts.service.workload(OTHER).await);
    let good = Asking::new(&sts.service, SOLVER).send(&sts.service, &solver).await;
    assert_eq!((good.status, good.headers["cache-control"].as_bytes()), (200, &b"no-store"[..]), "{}", good.text);
    assert!(good.json.get("refresh_token").is_none(), "G5");
    let others = Asking::new(&sts.service, OTHER).send(&sts.service, &other).await;
    let (own, others) = (good.token(), others.token());
    let mut rows = clients(&sts, &solver).rows;
    for area in [proofs(&sts), forms(&sts), targets(&sts), details(&sts)] {
        rows.extend(area.rows);
    }
    rows.extend(statements::rows(&sts, own, others));
    rows.extend(endpoints(&sts, own, others));
    assert!(rows.len() >= 120, "{}", rows.len());
    let mut table = vec![["what is asked", "what is wrong", "status", "error"].map(ToOwned::to_owned)];
    let mut other_answers = Vec::new();
    for row in &rows {
        let told = row.ask.send(&sts.service, &solver).await;
        if (told.status, told.error()) != row.want {
            other_answers.push(format!("{}: {}: {} {}", row.area, row.fault, told.status, told.text));
            continue;
        }
        manners(row, &told);
        table.push([row.area.into(), row.fault.clone(), row.want.0.to_string(), row.want.1.into()]);
    }
    assert!(other_answers.is_empty(), "{}", other_answers.join("\n"));
    documented::compare(Page::Refusals, &table);
}
