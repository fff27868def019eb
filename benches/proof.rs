//! What a proof check costs beside the one signature that it cannot do without.

use criterion::{Criterion, criterion_group, criterion_main};
use popgate::domain::proof::{Epoch, Role};
use popgate::domain::time::Timestamp;
use popgate::net::keys::P256Key;
use popgate::protocol::dpop::{self, Expected, ProofClaims, ProofHeader, Window};
use popgate::protocol::htu::Htu;
use popgate::protocol::jwk::PublicKey;
use popgate::protocol::jws::SigningKey;
use popgate::protocol::nonce::NonceKey;

const URL: &str = "https://gw.example/v1/runs";
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn proofs(c: &mut Criterion) {
    let private = P256Key::generate();
    let public = PublicKey::from_spki(private.spki()).expect("P-256");
    let message = b"a message of about the length of a proof's signing input".repeat(8);
    let signature = private.sign(&message);
    let key = SigningKey::new(public.clone(), move |m| private.sign(m));
    let request =
        dpop::Request { method: "POST", url: URL, token: None, nonce: None, jti: "jti-1", now: NOW, body: None };
    let proof = dpop::prove(&request, &key);
    let (nonces, uri) = (NonceKey::new(&[7; 32], false), Htu::parse(URL).expect("a URL"));
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
    let parts = dpop::split(&proof).expect("three segments");
    let known = ProofHeader::parse(&parts).expect("a header");
    c.bench_function("bare ES256 verification", |b| b.iter(|| assert!(public.verifies(&message, &signature))));
    c.bench_function("proof with a known header", |b| {
        b.iter(|| {
            let claims = ProofClaims::parse(&parts).expect("claims");
            dpop::verify(&parts, &known, &claims, &want, NOW).expect("holds")
        });
    });
    c.bench_function("proof with a new header", |b| {
        b.iter(|| {
            let header = ProofHeader::parse(&parts).expect("a header");
            let claims = ProofClaims::parse(&parts).expect("claims");
            dpop::verify(&parts, &header, &claims, &want, NOW).expect("holds")
        });
    });
}

criterion_group!(benches, proofs);
criterion_main!(benches);
