//! Hostile certificate signing requests: no panic, and what is accepted is signed by a key that reads back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use popgate::protocol::csr;
use popgate::protocol::jwk::PublicKey;

/// The target must reach the accepting path, or its assertions say nothing.
fn init() {
    csr::verify(include_bytes!("../seeds/csr/p256")).expect("the P-256 seed is accepted");
    csr::verify(include_bytes!("../seeds/csr/ed25519")).expect("the Ed25519 seed is accepted");
}

fuzz_target!(init: init(), |der: &[u8]| {
    if let Ok(key) = csr::verify(der) {
        let jwk = key.to_jwk();
        let again = PublicKey::from_jwk(jwk.as_object().expect("a JWK is an object")).expect("an accepted key reads back");
        assert_eq!(again.jkt(), key.jkt());
        // One more byte is another document.
        assert!(csr::verify(&[der, &[0]].concat()).is_err());
    }
});
