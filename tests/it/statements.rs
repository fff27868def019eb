//! Statements of others that are not believed: the rows of the table in `refusals` about assertions and exchanged tokens.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use serde_json::{Value, json};

use crate::asking::{details, now};
use crate::grants::{ACCESS_TOKEN, EXCHANGE, JWT_BEARER, OTHER, SAML_BEARER, Sts};
use crate::issuer::IssuerKey;
use crate::refusals::{Area, Row};
use crate::saml_idp::SamlIdp;

const GRANT: (u16, &str) = (400, "invalid_grant");
const REQUEST: (u16, &str) = (400, "invalid_request");
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const SAML2: &str = "urn:ietf:params:oauth:token-type:saml2";

pub fn rows(sts: &Sts, own: &str, others: &str) -> Vec<Row> {
    let mut rows = people(sts).rows;
    for area in [jobs(sts), saml(sts), exchange(sts, own, others)] {
        rows.extend(area.rows);
    }
    rows
}

/// A text with a header of one's own and whatever signature.
fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}.AAAA", B64.encode(header.to_string()), B64.encode(claims.to_string()))
}

fn people(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "OIDC assertion");
    let jane = || sts.person("jane");
    let member = |name: &str, value: Value| {
        let mut claims = jane();
        claims[name] = value;
        sts.people.token(&claims)
    };
    let without = |name: &str| {
        let mut claims = jane();
        claims.as_object_mut().expect("an object").remove(name);
        sts.people.token(&claims)
    };
    let good = sts.people.token(&jane());
    let (signed, signature) = good.rsplit_once('.').expect("a JWS");
    let mut flipped = B64.decode(signature).expect("base64url");
    flipped[9] ^= 1;
    let mut stranger = IssuerKey::rsa("p1");
    let forged = stranger.token(&jane());
    stranger = IssuerKey::rsa("unknown");
    let twice = {
        let text = jane().to_string().replace("\"sub\":\"jane\"", "\"sub\":\"jane\",\"sub\":\"admin\"");
        format!("{}.{}.{signature}", good.split('.').next().expect("a header"), B64.encode(text))
    };
    let mut encrypted = unsigned(&json!({"alg": "RSA-OAEP-256", "enc": "A256GCM"}), &jane());
    encrypted.push_str(".AAAA.AAAA");
    for (fault, text) in [
        ("no JWT", "x".to_owned()),
        ("four parts", format!("{good}.x")),
        ("no signature", format!("{signed}.")),
        ("a changed signature", format!("{signed}.{}", B64.encode(&flipped))),
        ("another key under the issuer's name of it", forged),
        ("a key that the issuer has not published", stranger.token(&jane())),
        ("the key of another trusted issuer", sts.jobs.token(&jane())),
        ("alg none", unsigned(&json!({"alg": "none"}), &jane())),
        ("alg HS256", unsigned(&json!({"alg": "HS256", "kid": "p1"}), &jane())),
        ("an unknown crit", unsigned(&json!({"alg": "RS256", "kid": "p1", "crit": ["x"]}), &jane())),
        ("a claim twice", twice),
        ("encrypted to nobody here", encrypted),
        ("over 16 KiB", member("x", "y".repeat(20_000).into())),
        ("an issuer that is not trusted", member("iss", "https://other.example".into())),
        ("no issuer", without("iss")),
        ("for another audience", member("aud", "https://other.example".into())),
        ("for the token endpoint's URL", member("aud", format!("{}/token", sts.issuer()).into())),
        ("for no audience", without("aud")),
        ("for two audiences and no azp", member("aud", json!([sts.issuer(), "https://other.example"]))),
        ("given to another party", member("azp", "https://other.example".into())),
        ("expired", member("exp", (now() - 100).into())),
        ("without exp", without("exp")),
        ("an exp that is a text", member("exp", (now() + 60).to_string().into())),
        ("for longer than a day", member("exp", (now() + 100_000).into())),
        ("good for more than a day", member("iat", (now() - 200_000).into())),
        ("one that does not say when it was made", without("iat")),
        ("not valid yet", member("nbf", (now() + 100).into())),
        ("without sub", without("sub")),
        ("a sub with a space", member("sub", "jane doe".into())),
        ("a sub with the separator of names", member("sub", "x#jane".into())),
        ("may_act of another", member("may_act", json!({"sub": OTHER}))),
        ("type at+jwt", sts.people.typed("at+jwt", &jane())),
        ("type secevent+jwt", sts.people.typed("secevent+jwt", &jane())),
        ("type dpop+jwt", sts.people.typed("dpop+jwt", &jane())),
    ] {
        area.row(fault, GRANT, |a| {
            a.set("grant_type", JWT_BEARER).set("assertion", text);
        });
    }
    area.row("none", REQUEST, |a| {
        a.set("grant_type", JWT_BEARER);
    });
    area.row("an empty one", REQUEST, |a| {
        a.set("grant_type", JWT_BEARER).set("assertion", "");
    });
    area
}

fn jobs(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "CI job's token");
    let keyed = format!("{}#{}", sts.issuer(), "A".repeat(43));
    for (fault, name, value) in [
        ("another repository", "repository_id", json!("75")),
        ("another repository under the same name", "repository_id", json!("740")),
        ("another branch", "ref", json!("refs/heads/feature")),
        ("the ref of a proposed change", "ref", json!("refs/pull/7/merge")),
        ("a pull request", "event_name", json!("pull_request")),
        ("a pull request with the target's rights", "event_name", json!("pull_request_target")),
        ("a run that another run started", "event_name", json!("workflow_run")),
        ("a merge request", "pipeline_source", json!("merge_request_event")),
        ("another key than the proof's", "aud", json!(keyed)),
    ] {
        let mut claims = sts.job();
        claims[name] = value;
        let token = sts.jobs.token(&claims);
        area.row(fault, GRANT, |a| {
            a.set("grant_type", JWT_BEARER).set("assertion", token);
        });
    }
    let mut claims = sts.job();
    claims.as_object_mut().expect("an object").remove("repository_id");
    let token = sts.jobs.token(&claims);
    area.row("no repository_id", GRANT, |a| {
        a.set("grant_type", JWT_BEARER).set("assertion", token);
    });
    area
}

fn saml(sts: &Sts) -> Area<'_> {
    let mut area = Area::new(sts, "SAML assertion");
    let issuer = sts.issuer();
    let changed = |from: &str, to: &str| {
        sts.saml.assertion(&issuer, "jane", |xml| {
            assert!(xml.contains(from), "{from}");
            xml.replace(from, to)
        })
    };
    let signed = sts.saml.signed(&issuer, "jane", |xml| xml);
    let after = |from: &str, to: &str| {
        assert!(signed.contains(from), "{from}");
        B64.encode(signed.replacen(from, to, 1))
    };
    let (at, end) = (signed.find("<ds:Signature").expect("signed"), signed.find("</ds:Signature>").expect("signed"));
    let bare = format!("{}{}", &signed[..at], &signed[end + "</ds:Signature>".len()..]);
    let message =
        format!("<samlp:Response xmlns:samlp=\"urn:oasis:names:tc:SAML:2.0:protocol\">{signed}</samlp:Response>");
    let recipient = format!("Recipient=\"{issuer}/token\"");
    for (fault, text) in [
        ("no base64url", "<x/>".to_owned()),
        ("base64 with line ends", format!("{}\n", B64.encode(&signed))),
        ("no XML", B64.encode("x")),
        ("unsigned", B64.encode(&bare)),
        ("signed by a stranger", SamlIdp::new().assertion(&issuer, "jane", |xml| xml)),
        ("a name that was changed after signing", after(">jane<", ">admin<")),
        ("a comment within the name", after(">jane<", ">jane<!-- -->admin<")),
        ("a CDATA section", after(">jane<", "><![CDATA[jane]]><")),
        ("a document type with entities", B64.encode(format!("<!DOCTYPE a [<!ENTITY b \"c\">]>{signed}"))),
        ("a whole response", B64.encode(message)),
        ("wrapped in a forged one", after("<saml:Subject>", &format!("{signed}<saml:Subject>"))),
        ("for another audience", changed(&format!("<saml:Audience>{issuer}"), "<saml:Audience>https://other.example")),
        ("for another recipient", changed(&recipient, "Recipient=\"https://other.example/token\"")),
        ("for no recipient", changed(&recipient, "")),
        (
            "in answer to a request that was never made",
            changed(&recipient, &format!("InResponseTo=\"_x\" {recipient}")),
        ),
        ("of an issuer that is not trusted", changed("<saml:Issuer>https://saml", "<saml:Issuer>https://other")),
        (
            "with a condition that is not understood",
            changed("</saml:AudienceRestriction>", "</saml:AudienceRestriction><saml:Condition/>"),
        ),
        ("an attribute that no rule fits", changed(">eng<", ">sales<")),
        ("of SAML 1.1", changed("Version=\"2.0\"", "Version=\"1.1\"")),
        (
            "encrypted, without a key here",
            B64.encode("<saml:EncryptedAssertion xmlns:saml=\"urn:oasis:names:tc:SAML:2.0:assertion\"/>"),
        ),
    ] {
        area.row(fault, GRANT, |a| {
            a.set("grant_type", SAML_BEARER).set("assertion", text);
        });
    }
    area.row("none", REQUEST, |a| {
        a.set("grant_type", SAML_BEARER);
    });
    area
}

fn exchange<'a>(sts: &'a Sts, own: &str, others: &str) -> Area<'a> {
    let mut area = Area::new(sts, "token exchange");
    let (signed, _) = own.rsplit_once('.').expect("a JWS");
    let jane = sts.people.token(&sts.person("jane"));
    let subject =
        |token: &str, kind: &str| vec![("subject_token", token.to_owned()), ("subject_token_type", kind.to_owned())];
    let with = |mut pairs: Vec<(&'static str, String)>, more: &[(&'static str, &str)]| {
        pairs.extend(more.iter().map(|(n, v)| (*n, (*v).to_owned())));
        pairs
    };
    let mine = || subject(own, ACCESS_TOKEN);
    let actor = |token: &str, kind: &str| with(mine(), &[("actor_token", token), ("actor_token_type", kind)]);
    let beyond = details(&["tot.read"], None, None).replace("tot.read", "raw.get");
    let rows = [
        ("no subject_token", REQUEST, vec![("subject_token_type", ACCESS_TOKEN.to_owned())]),
        ("no subject_token_type", REQUEST, vec![("subject_token", own.to_owned())]),
        ("an unknown subject_token_type", REQUEST, subject(own, "x")),
        ("a refresh token as the subject", REQUEST, subject(own, "urn:ietf:params:oauth:token-type:refresh_token")),
        ("a subject_token that is no token", REQUEST, subject("x", ACCESS_TOKEN)),
        ("a subject_token without its signature", REQUEST, subject(&format!("{signed}.AAAA"), ACCESS_TOKEN)),
        ("a subject_token bound to another key", REQUEST, subject(others, ACCESS_TOKEN)),
        ("a person's token as an access token", REQUEST, subject(&jane, ACCESS_TOKEN)),
        ("an access token as an ID token", REQUEST, subject(own, ID_TOKEN)),
        ("a JWT of nobody trusted", REQUEST, subject("x.y.z", JWT)),
        ("a SAML assertion that is none", REQUEST, subject("x", SAML2)),
        ("an ID token asked for", REQUEST, with(mine(), &[("requested_token_type", ID_TOKEN)])),
        ("an actor_token without its type", REQUEST, with(mine(), &[("actor_token", own)])),
        ("an actor_token's type without it", REQUEST, with(mine(), &[("actor_token_type", ACCESS_TOKEN)])),
        ("another's actor_token", REQUEST, actor(others, ACCESS_TOKEN)),
        ("an actor_token that is none", REQUEST, actor("x", ACCESS_TOKEN)),
        ("an actor_token of an unknown type", REQUEST, actor(own, SAML2)),
        ("a scope beyond the subject_token's", (400, "invalid_scope"), with(mine(), &[("scope", "raw.get")])),
        (
            "a resource that is not the subject_token's",
            (400, "invalid_target"),
            with(mine(), &[("resource", &sts.service.url("gateway", "/raw"))]),
        ),
        (
            "details beyond the subject_token's",
            (400, "invalid_authorization_details"),
            with(mine(), &[("authorization_details", &beyond)]),
        ),
    ];
    for (fault, want, pairs) in rows {
        area.row(fault, want, |a| {
            a.set("grant_type", EXCHANGE);
            for (name, value) in pairs {
                a.set(name, value);
            }
        });
    }
    area
}
