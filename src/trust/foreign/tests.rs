#![expect(deprecated, reason = "old encryption is made here to see it refused")]

use josekit::jwe::{self, ECDH_ES, ECDH_ES_A256KW, JweEncrypter, JweHeader, RSA_OAEP, RSA_OAEP_256, RSA1_5};
use josekit::jwk::alg::ec::EcCurve;
use josekit::jwk::alg::ed::EdCurve;
use josekit::jws::{self, JwsHeader, JwsSigner};
use serde_json::json;

use super::*;
use crate::protocol::jwt::PLAIN;

fn set(keys: &[(&str, &Jwk)]) -> Value {
    let public = |(kid, jwk): &(&str, &Jwk)| {
        let mut public = jwk.to_public_key().expect("public");
        public.set_key_id(*kid);
        json!(public)
    };
    json!({"keys": keys.iter().map(public).collect::<Vec<_>>()})
}

fn signed(signer: &dyn JwsSigner, kid: Option<&str>, typ: &str) -> String {
    let mut header = JwsHeader::new();
    header.set_token_type(typ);
    if let Some(kid) = kid {
        header.set_key_id(kid);
    }
    jws::serialize_compact(br#"{"sub":"jane"}"#, &header, signer).expect("signs")
}

#[test]
fn g3_signatures_of_other_issuers_algorithms_verify_with_their_own_keys_alone() {
    let k256 = Jwk::generate_ec_key(EcCurve::Secp256k1).expect("makes");
    let ed25519 = Jwk::generate_ed_key(EdCurve::Ed25519).expect("makes");
    let ed448 = Jwk::generate_ed_key(EdCurve::Ed448).expect("makes");
    let other = Jwk::generate_ec_key(EcCurve::Secp256k1).expect("makes");
    let all = set(&[("k", &k256), ("e", &ed25519), ("f", &ed448)]);
    let k256_signer = ES256K.signer_from_jwk(&k256).expect("signs");
    let signers: [(&str, &dyn JwsSigner); 3] = [
        ("k", &k256_signer),
        ("e", &EdDSA.signer_from_jwk(&ed25519).expect("signs")),
        ("f", &EdDSA.signer_from_jwk(&ed448).expect("signs")),
    ];
    for (kid, signer) in signers {
        let token = signed(signer, Some(kid), "JWT");
        assert_eq!(verify(&token, &all, &PLAIN).expect("verifies")["sub"], "jane", "{kid}");
        assert!(verify(&signed(signer, None, "JWT"), &all, &PLAIN).is_ok(), "{kid}: without kid each is tried");
        assert_eq!(verify(&token, &json!({"keys": []}), &PLAIN), Err(JwtError::UnknownKey), "{kid}");
        assert!(verify(&signed(signer, Some("x"), "JWT"), &all, &PLAIN).is_err(), "{kid}: a key that is not there");
        assert!(verify(&signed(signer, Some(kid), "at+jwt"), &all, &PLAIN).is_err(), "{kid}: another type");
        let (text, _) = token.rsplit_once('.').expect("a JWS");
        assert!(verify(&format!("{text}.AAAA"), &all, &PLAIN).is_err(), "{kid}: another signature");
    }
    let token = signed(&k256_signer, Some("k"), "JWT");
    assert!(verify(&token, &set(&[("k", &other)]), &PLAIN).is_err(), "another key under the same name");
    let mut told = set(&[("k", &k256)]);
    told["keys"][0]["d"] = "AA".into();
    assert!(verify(&token, &told, &PLAIN).is_err(), "a private key is none to verify with");
    let mut told = set(&[("k", &k256)]);
    told["keys"][0]["use"] = "enc".into();
    assert!(verify(&token, &told, &PLAIN).is_err(), "a key for something else");
    let mut told = set(&[("k", &k256)]);
    told["keys"][0]["alg"] = "ES256".into();
    assert!(verify(&token, &told, &PLAIN).is_err(), "a key for another algorithm");
    assert!(!has_key(&json!({"kty": "oct", "k": "AA"})) && has_key(&told["keys"][0]));
}

fn encrypted(encrypter: &dyn JweEncrypter, enc: &str, more: &[(&str, Value)]) -> String {
    let mut header = JweHeader::new();
    header.set_content_encryption(enc);
    for (name, value) in more {
        header.set_claim(name, Some(value.clone())).expect("a member");
    }
    jwe::serialize_compact(b"a.b.c", &header, encrypter).expect("encrypts")
}

#[test]
fn g3_tokens_encrypted_to_us_are_read_with_our_key_and_old_encryption_is_refused() {
    let rsa = Jwk::generate_rsa_key(2048).expect("makes");
    let ec = Jwk::generate_ec_key(EcCurve::P256).expect("makes");
    let (rsa_text, ec_text) = (json!(rsa).to_string(), json!(ec).to_string());
    let (rsa_public, ec_public) = (rsa.to_public_key().expect("public"), ec.to_public_key().expect("public"));
    let oaep = RSA_OAEP_256.encrypter_from_jwk(&rsa_public).expect("encrypts");
    for enc in CONTENT {
        assert_eq!(decrypt(&encrypted(&oaep, enc, &[]), &rsa_text).expect("reads"), "a.b.c", "{enc}");
    }
    let older = RSA_OAEP.encrypter_from_jwk(&rsa_public).expect("encrypts");
    assert!(decrypt(&encrypted(&older, "A256GCM", &[]), &rsa_text).is_ok());
    for encrypter in [
        Box::new(ECDH_ES.encrypter_from_jwk(&ec_public).expect("encrypts")) as Box<dyn JweEncrypter>,
        Box::new(ECDH_ES_A256KW.encrypter_from_jwk(&ec_public).expect("encrypts")),
    ] {
        assert!(decrypt(&encrypted(&*encrypter, "A256GCM", &[]), &ec_text).is_ok());
    }
    let good = encrypted(&oaep, "A256GCM", &[]);
    assert!(is_encrypted(&good) && !is_encrypted("a.b.c"));
    let another = json!(Jwk::generate_rsa_key(2048).expect("makes")).to_string();
    let mut changed = good.clone();
    let at = changed.rfind('.').expect("a JWE") - 5;
    changed.replace_range(at..=at, if good.as_bytes()[at] == b'A' { "B" } else { "A" });
    let weak = encrypted(&RSA1_5.encrypter_from_jwk(&rsa_public).expect("encrypts"), "A256GCM", &[]);
    let zipped = encrypted(&oaep, "A256GCM", &[("zip", json!("DEF"))]);
    for (what, token, key) in [
        ("another's key", &good, &another),
        ("a key of another kind", &good, &ec_text),
        ("a changed text", &changed, &rsa_text),
        ("RSA1_5", &weak, &rsa_text),
        ("a compressed one", &zipped, &rsa_text),
        ("no JWE", &"a.b.c.d.e".to_owned(), &rsa_text),
    ] {
        assert!(matches!(decrypt(token, key), Err(TrustError::Refused(_))), "{what}");
    }
    assert!(matches!(decrypt(&good, "x"), Err(TrustError::Away(_))), "a key file that holds none");
}
