//! Hostile proofs, raw and signed by a real key over hostile JSON: no panic, and what is accepted is what was asked for.

#![no_main]

use std::sync::OnceLock;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use libfuzzer_sys::fuzz_target;
use popgate::domain::digest::Sha256;
use popgate::domain::proof::{Epoch, Role};
use popgate::domain::time::Timestamp;
use popgate::protocol::dpop::{self, Bound, Expected, ProofClaims, ProofError, ProofHeader, Unspent, Window};
use popgate::protocol::htu::Htu;
use popgate::protocol::nonce::NonceKey;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn key() -> &'static (EcdsaKeyPair, String) {
    static KEY: OnceLock<(EcdsaKeyPair, String)> = OnceLock::new();
    KEY.get_or_init(|| {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("generates");
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        let jwk = format!(r#"{{"kty":"EC","crv":"P-256","x":"{}","y":"{}"}}"#, B64.encode(x), B64.encode(y));
        (key, jwk)
    })
}

/// The input is a proof; or, after a zero byte, header and payload with a newline between, which are signed. `JWK` stands
/// for the key that signs.
fn proof(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?;
    let Some(signed) = text.strip_prefix('\0') else { return Some(text.to_owned()) };
    let (key, jwk) = key();
    let (header, payload) = signed.split_once('\n')?;
    let input = format!("{}.{}", B64.encode(header.replace("JWK", jwk)), B64.encode(payload));
    let signature = key.sign(&SystemRandom::new(), input.as_bytes()).expect("signs");
    Some(format!("{input}.{}", B64.encode(signature)))
}

fn check(proof: &str) -> Result<Unspent, ProofError> {
    let (nonces, uri) = (NonceKey::new(&[7; 32], false), Htu::parse("https://gw.example/v1/runs").expect("a URL"));
    let want = Expected {
        role: Role::Gateway,
        method: "POST",
        uri: &uri,
        token: Some(Bound { digest: Sha256::of(b"token"), jkt: None }),
        window: Window::default(),
        nonces: &nonces,
        epoch: Epoch { id: [0; 8], since: Timestamp::ZERO },
        nonce_required: false,
    };
    let parts = dpop::split(proof)?;
    let header = ProofHeader::parse(&parts)?;
    let claims = ProofClaims::parse(&parts)?;
    dpop::verify(&parts, &header, &claims, &want, NOW)
}

/// The target must reach the accepting path, or its assertions say nothing.
fn init() {
    let good = proof(include_bytes!("../seeds/proof/good")).expect("text");
    check(&good).expect("the good seed is accepted");
}

fuzz_target!(init: init(), |data: &[u8]| {
    let Some(proof) = proof(data) else { return };
    if let Ok(unspent) = check(&proof) {
        let spent = dpop::reread(&proof).expect("what was accepted reads back");
        assert_eq!(spent.jkt, unspent.jkt);
        assert_eq!(spent.htm, "POST");
        assert_eq!(spent.htu.path(), "/v1/runs");
        assert_eq!(spent.ath.as_deref(), Some(dpop::ath(Sha256::of(b"token")).as_str()));
        assert!(unspent.until > NOW, "a claim outlives the proof");
    }
});
