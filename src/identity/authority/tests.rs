//! Profiles as another reader sees them: x509-parser here, webpki through the TLS tests.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;
use crate::protocol::csr;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = Authority::open(&dir.path().join("ca"), &domain(), NOW).expect("opens");
    (dir, authority)
}

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("legal")
}

fn issue(authority: &Authority, life: Duration) -> Made {
    let key = csr::verify(&P256Key::generate().csr().expect("makes")).expect("own CSR");
    let id = domain().workload("/ci/solver").expect("legal");
    authority.issue(&id, &key, &[], life, NOW).expect("issues")
}

#[test]
fn x1_x2_x3_a_leaf_has_one_uri_no_subject_explicit_ca_false_and_a_random_serial() {
    let (_dir, authority) = authority();
    let made = issue(&authority, Duration::from_hours(1));
    let (_, cert) = X509Certificate::from_der(&made.chain[0]).expect("DER");
    assert_eq!(cert.subject().iter().count(), 0);
    let san = cert.subject_alternative_name().expect("reads").expect("there");
    assert!(san.critical, "an empty subject makes the SAN critical");
    assert_eq!(san.value.general_names.len(), 1);
    let basic = cert.basic_constraints().expect("reads").expect("present");
    assert!(!basic.value.ca);
    let usage = cert.key_usage().expect("reads").expect("present");
    assert!(
        usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign() && !usage.value.crl_sign()
    );
    let extended = cert.extended_key_usage().expect("reads").expect("present").value;
    assert!(extended.server_auth && extended.client_auth);
    assert_eq!(cert.raw_serial().len(), 16);
    assert_eq!(cert.validity().not_before.timestamp(), 1_800_000_000 - 10);
    for oid in ["2.5.29.14", "2.5.29.35"] {
        assert!(cert.extensions().iter().any(|e| e.oid.to_id_string() == oid), "{oid}");
    }
}

#[test]
fn x2_no_leaf_outlives_its_issuer() {
    let (_dir, authority) = authority();
    let made = issue(&authority, Duration::from_hours(720));
    assert_eq!(made.svid.not_after, authority.status().issuing_not_after);
}

#[test]
fn x4_cas_carry_the_trust_domain_and_their_path_length() {
    let (_dir, authority) = authority();
    let made = issue(&authority, Duration::from_hours(1));
    for (der, path_length) in [(authority.root_der(), 1), (&made.chain[1][..], 0)] {
        let (_, cert) = X509Certificate::from_der(der).expect("DER");
        let basic = cert.basic_constraints().expect("reads").expect("present");
        assert!(basic.critical && basic.value.ca);
        assert_eq!(basic.value.path_len_constraint, Some(path_length));
        assert!(cert.subject().iter_common_name().next().is_some());
        assert_eq!(X509Svid::parse(der).expect_err("refused"), svid::SvidError::IsCa);
    }
}

#[test]
fn the_root_survives_a_restart_and_the_issuing_ca_is_new() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open = || Authority::open(&dir.path().join("ca"), &domain(), NOW).expect("opens");
    let (first, second) = (open(), open());
    assert_eq!(first.root_der(), second.root_der());
    assert_ne!(first.status().issuing_serial, second.status().issuing_serial);
    let other = TrustDomain::parse("other.org").expect("legal");
    assert!(matches!(Authority::open(&dir.path().join("ca"), &other, NOW), Err(AuthorityError::Root(..))));
}

#[test]
fn the_issuing_ca_is_replaced_at_half_its_life() {
    let (_dir, authority) = authority();
    let before = authority.status().issuing_serial;
    assert!(!authority.rotate_if_due(NOW.plus(Duration::from_secs(12 * 3600 - 1))).expect("works"));
    assert!(authority.rotate_if_due(NOW.plus(Duration::from_hours(12))).expect("works"));
    assert_ne!(authority.status().issuing_serial, before);
}

#[test]
fn x7_a_csr_counts_only_if_its_own_key_signed_it() {
    let good = P256Key::generate().csr().expect("makes");
    assert!(csr::verify(&good).is_ok());
    let mut forged = good.clone();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    assert!(csr::verify(&forged).is_err());
    let mut trailing = good.clone();
    trailing.push(0);
    assert_eq!(csr::verify(&trailing).err(), Some(csr::CsrError::Form));
    assert_eq!(csr::verify(&vec![0x30; 20_000]).err(), Some(csr::CsrError::Form));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("makes");
    let weak = CertificateParams::default().serialize_request(&p384).expect("makes");
    assert_eq!(csr::verify(weak.der()).err(), Some(csr::CsrError::Key));
}
