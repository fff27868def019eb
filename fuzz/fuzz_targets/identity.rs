//! Hostile identities: SPIFFE IDs, selectors, templates, certificates, bundles and JWT-SVIDs. No panic; what is accepted
//! reads back as itself.

#![no_main]

use base64::Engine as _;
use libfuzzer_sys::fuzz_target;
use popgate::domain::id_template::IdTemplate;
use popgate::domain::selector::Selector;
use popgate::domain::spiffe_id::{SpiffeId, TrustDomain};
use popgate::domain::time::Timestamp;
use popgate::protocol::bundle::TrustBundle;
use popgate::protocol::svid::{self, X509Svid};
use popgate::protocol::{ecdsa_der, jwt_svid};

const BUNDLE: &[u8] = include_bytes!("../seeds/identity/bundle");
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("legal")
}

/// The target must reach the accepting paths, or its assertions say nothing.
fn init() {
    X509Svid::parse(include_bytes!("../seeds/identity/svid")).expect("the certificate is accepted");
    let bundle = TrustBundle::parse(domain(), BUNDLE).expect("the bundle is accepted");
    assert!(!bundle.roots.is_empty() && !bundle.jwt_keys.is_empty());
    let token = std::str::from_utf8(include_bytes!("../seeds/identity/jwt")).expect("text");
    jwt_svid::verify(token.trim(), "me", |_| Some(&bundle), NOW).expect("the JWT-SVID is accepted");
}

fuzz_target!(init: init(), |bytes: &[u8]| {
    if let Ok(svid) = X509Svid::parse(bytes) {
        assert!(!svid::is_ca(bytes), "a CA is no leaf");
        assert_eq!(svid.spiffe_id.as_str().parse::<SpiffeId>().as_ref(), Ok(&svid.spiffe_id));
    }
    let _ = (svid::key_identifiers(bytes), svid::subject_facts(bytes), svid::revoked_serials(bytes));
    if let Some(all) = svid::split_concatenated(bytes) {
        assert_eq!(all.concat(), bytes, "nothing is lost between certificates");
    }
    if let Some(fixed) = ecdsa_der::to_fixed(bytes) {
        let again = ecdsa_der::from_fixed(&fixed).expect("64 bytes");
        assert_eq!(ecdsa_der::to_fixed(&again), Some(fixed));
    }
    if let Ok(bundle) = TrustBundle::parse(domain(), bytes) {
        let again = TrustBundle::parse(domain(), bundle.to_jwks().to_string().as_bytes()).expect("our own form");
        assert_eq!((again.roots, again.jwt_keys.len()), (bundle.roots, bundle.jwt_keys.len()));
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.as_str().parse::<SpiffeId>().as_ref(), Ok(&id));
        assert!(!id.as_str().contains("//a") || id.as_str().starts_with("spiffe://a"));
    }
    if let Ok(selector) = text.parse::<Selector>() {
        assert_eq!(selector.as_str(), text);
    }
    if let Ok(template) = IdTemplate::parse(text) {
        assert_eq!(template.as_str(), text);
        assert!(template.expand(&Default::default()).is_err(), "no field has a value of its own");
    }
    let bundle = TrustBundle::parse(domain(), BUNDLE).expect("checked");
    if let Ok(svid) = jwt_svid::verify(text, "me", |_| Some(&bundle), NOW) {
        // Nobody here can sign, so only the seed passes.
        assert_eq!(svid.spiffe_id.as_str(), "spiffe://example.org/a");
        let payload = text.split('.').nth(1).expect("three parts");
        assert!(base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(payload).is_ok());
    }
});
