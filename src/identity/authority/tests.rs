//! Profiles as another reader sees them: x509-parser here, webpki through the TLS tests, OpenSSL and a linter outside.

use x509_parser::prelude::{FromDer as _, X509Certificate};

use rcgen::{CertificateParams, Issuer};
use rustls::pki_types::CertificateDer;

use super::keys::FileKeys;
use super::*;
use crate::protocol::csr;

const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const DAY: Duration = Duration::from_hours(24);

fn policy() -> Policy {
    Policy {
        issuing_life: DAY,
        jwt_life: DAY,
        longest_jwt: Duration::from_hours(1),
        upstream: false,
        downstream: false,
    }
}

fn open(dir: &Path, domain: &TrustDomain, policy: Policy, now: Timestamp) -> Result<Authority, AuthorityError> {
    let keys = FileKeys::new(&dir.join("ca"), None).expect("a key store");
    Authority::open(&dir.join("ca"), domain, Box::new(keys), policy, now)
}

fn authority_with(policy: Policy) -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = open(dir.path(), &domain(), policy, NOW).expect("opens");
    (dir, authority)
}

fn authority() -> (tempfile::TempDir, Authority) {
    authority_with(policy())
}

fn domain() -> TrustDomain {
    TrustDomain::parse("example.org").expect("legal")
}

fn issue_at(authority: &Authority, dns: &[String], life: Duration, now: Timestamp) -> Made {
    let key = csr::verify(&P256Key::generate().csr().expect("makes")).expect("own CSR");
    let id = domain().workload("/ci/solver").expect("legal");
    authority.issue(&id, &key, dns, life, now).expect("issues")
}

fn issue(authority: &Authority, life: Duration) -> Made {
    issue_at(authority, &[], life, NOW)
}

fn find(authority: &Authority, kind: AuthorityKind, state: AuthorityState) -> Option<Record> {
    authority.list().into_iter().find(|r| r.kind == kind && r.state == state)
}

/// Whether a chain leads to one of the roots, as webpki sees it.
fn leads(chain: &[Vec<u8>], roots: &[Vec<u8>], now: Timestamp) -> bool {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|d| CertificateDer::from(d.as_slice())).collect();
    crate::net::tls::verify_chain(&chain, roots, now).is_ok()
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
fn x1_dns_names_are_those_of_the_entry_beside_the_one_uri() {
    let (_dir, authority) = authority();
    let made = issue_at(&authority, &["solver.internal".into(), "127.0.0.1".into()], DAY, NOW);
    let (_, cert) = X509Certificate::from_der(&made.chain[0]).expect("DER");
    let san = cert.subject_alternative_name().expect("reads").expect("there");
    let names: Vec<String> = san.value.general_names.iter().map(|n| format!("{n:?}")).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(made.svid.spiffe_id.path(), "/ci/solver");
}

#[test]
fn x2_l3_no_leaf_outlives_its_issuer_and_a_cut_life_is_marked() {
    let (_dir, authority) = authority();
    let made = issue(&authority, Duration::from_hours(720));
    let issuing = find(&authority, AuthorityKind::Issuing, AuthorityState::Active).expect("one signs");
    assert_eq!(made.svid.not_after, issuing.not_after);
    assert!(made.cut);
    assert!(!issue(&authority, Duration::from_hours(1)).cut);
}

#[test]
fn x3_x4_cas_carry_the_trust_domain_and_their_path_length_and_no_name_constraints() {
    for (downstream, issuing_length) in [(false, 0), (true, 1)] {
        let (_dir, authority) = authority_with(Policy { downstream, ..policy() });
        let made = issue(&authority, Duration::from_hours(1));
        for (der, path_length) in [(&authority.bundle().roots[0], 2), (&made.chain[1], issuing_length)] {
            let (_, cert) = X509Certificate::from_der(der).expect("DER");
            let basic = cert.basic_constraints().expect("reads").expect("present");
            assert!(basic.critical && basic.value.ca);
            assert_eq!(basic.value.path_len_constraint, Some(path_length));
            let usage = cert.key_usage().expect("reads").expect("present");
            assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
            assert!(cert.subject().iter_common_name().next().is_some());
            assert!(svid::is_ca_of(der, "spiffe://example.org"));
            assert!(cert.extensions().iter().all(|e| e.oid.to_id_string() != "2.5.29.30"), "name constraints");
            assert_eq!(X509Svid::parse(der).expect_err("refused"), svid::SvidError::IsCa);
        }
        let issued = svid::key_identifiers(&made.chain[1]).and_then(|ids| ids.subject);
        let named = svid::key_identifiers(&made.chain[0]).and_then(|ids| ids.authority);
        assert!(issued.is_some() && issued == named, "the leaf names its issuer's key");
    }
}

#[test]
fn l1_authorities_survive_a_restart_and_another_domains_are_refused() {
    let dir = tempfile::tempdir().expect("tempdir");
    let open_as = |domain: &TrustDomain| open(dir.path(), domain, policy(), NOW);
    let (first, second) = (open_as(&domain()).expect("opens"), open_as(&domain()).expect("opens"));
    assert_eq!(first.bundle(), second.bundle());
    let ids = |a: &Authority| a.list().into_iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&second));
    let other = TrustDomain::parse("other.org").expect("legal");
    assert!(matches!(open_as(&other), Err(AuthorityError::Unreadable(..))));
    let file = dir.path().join("ca/authorities.json");
    let text = std::fs::read(&file).expect("reads");
    std::fs::write(&file, "{").expect("writes");
    assert!(matches!(open_as(&domain()), Err(AuthorityError::Unreadable(..))));
    std::fs::remove_file(&file).expect("removes");
    assert!(matches!(open_as(&domain()), Err(AuthorityError::Lost(..))), "no new root in silence");
    std::fs::write(&file, text).expect("writes");
    let root = find(&first, AuthorityKind::Root, AuthorityState::Active).expect("one signs").id;
    std::fs::remove_file(dir.path().join(format!("ca/{root}.key"))).expect("removes");
    assert!(matches!(open_as(&domain()), Err(AuthorityError::Key(_))), "told at the start, not when it is to sign");
}

#[test]
fn l1_the_timer_prepares_at_half_a_life_and_activates_at_five_sixths() {
    let (_dir, authority) = authority();
    let active = || find(&authority, AuthorityKind::Issuing, AuthorityState::Active).expect("one signs").id;
    let first = active();
    assert!(authority.tick(NOW.plus(DAY / 2).minus(Duration::from_secs(1))).expect("ticks").is_empty());
    let sequence = authority.bundle().sequence;
    authority.tick(NOW.plus(DAY / 2)).expect("ticks");
    assert!(find(&authority, AuthorityKind::Issuing, AuthorityState::Prepared).is_some());
    assert_eq!(authority.bundle().jwt_keys.len(), 2, "a prepared key is published before it signs");
    assert!(authority.bundle().sequence > sequence);
    assert_eq!(active(), first);
    authority.tick(NOW.plus(DAY / 6 * 5)).expect("ticks");
    assert_ne!(active(), first);
    let old = issue(&authority, Duration::from_hours(1));
    assert_ne!(old.issuer_key_id, first);
    authority.tick(NOW.plus(DAY)).expect("ticks");
    assert!(authority.list().iter().all(|r| r.id != first), "what has ended is forgotten");
}

#[test]
fn l1_a_service_that_was_away_for_long_starts_with_a_fresh_issuing_ca() {
    let dir = tempfile::tempdir().expect("tempdir");
    drop(open(dir.path(), &domain(), policy(), NOW).expect("opens"));
    let later = NOW.plus(DAY * 9);
    let authority = open(dir.path(), &domain(), policy(), later).expect("opens");
    let made = issue_at(&authority, &[], Duration::from_hours(1), later);
    assert!(leads(&made.chain, &authority.bundle().roots, later));
}

#[test]
fn l2_a_new_root_is_trusted_before_it_signs_and_the_old_one_while_what_it_signed_lives() {
    let (_dir, authority) = authority();
    let (old_bundle, old_pin) = (authority.bundle(), authority.pin());
    let before = issue(&authority, Duration::from_hours(1));
    authority.prepare(AuthorityKind::Root, NOW).expect("prepares");
    assert_eq!(authority.bundle().roots.len(), 2);
    assert_eq!(authority.pin(), old_pin, "the prepared root signs nothing");
    authority.activate(AuthorityKind::Root, NOW).expect("activates");
    let after = issue(&authority, Duration::from_hours(1));
    let roots = &authority.bundle().roots;
    assert!(leads(&before.chain, roots, NOW) && leads(&after.chain, roots, NOW));
    assert!(!leads(&after.chain, &old_bundle.roots, NOW));
    // A server shows a way to the old root, too: for pins and for peers that have not looked since.
    let server = authority.issue_server(&P256Key::generate(), &[], NOW).expect("issues");
    assert!(leads(&server.chain, roots, NOW) && leads(&server.chain, &old_bundle.roots, NOW));
    assert!(server.chain.iter().any(|der| svid::spki_sha256(der) == Some(old_pin)));
    assert_ne!(authority.pin(), old_pin);
    let later = NOW.plus(DAY * 2);
    authority.tick(NOW.plus(DAY / 2)).expect("ticks");
    authority.tick(NOW.plus(DAY / 6 * 5)).expect("ticks");
    authority.tick(later).expect("ticks");
    authority.tick(later.plus(DAY)).expect("ticks");
    assert_eq!(authority.bundle().roots.len(), 1, "the old root goes with the last that it signed");
}

#[test]
fn l2_taint_is_told_and_a_revoked_issuer_is_known_by_its_leaves() {
    let (_dir, authority) = authority();
    let before = issue(&authority, Duration::from_hours(1));
    let first = before.issuer_key_id.clone();
    assert!(authority.revoke(&first, NOW).is_err(), "it signs");
    authority.prepare(AuthorityKind::Issuing, NOW).expect("prepares");
    authority.activate(AuthorityKind::Issuing, NOW).expect("activates");
    authority.taint(&first[..12], NOW).expect("taints");
    assert_eq!(authority.tainted(), std::slice::from_ref(&first));
    let trusted = |made: &Made| authority.check_path(&made.svid.spiffe_id, &[&made.chain[1]]).is_ok();
    assert!(trusted(&before));
    authority.revoke(&first, NOW).expect("revokes");
    assert!(!trusted(&before) && trusted(&issue(&authority, Duration::from_hours(1))));
    let lists = authority.revocation_lists(&[], 7, NOW).expect("makes");
    let root_list = lists.last().expect("the root's comes last");
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(root_list).expect("DER");
    let serial = svid::serial(&before.chain[1]).expect("reads");
    assert!(list.iter_revoked_certificates().any(|c| hex::encode(c.raw_serial()) == serial));
}

#[test]
fn l2_many_turns_in_a_row_leave_short_ways_to_the_root() {
    let (_dir, authority) = authority();
    let first = authority.bundle();
    for _ in 0..12 {
        authority.prepare(AuthorityKind::Root, NOW).expect("prepares");
        authority.activate(AuthorityKind::Root, NOW).expect("activates");
    }
    // A verifier tries ways within a budget; here it has every root there was, and one that has looked never since.
    let server = authority.issue_server(&P256Key::generate(), &[], NOW).expect("issues");
    assert!(leads(&server.chain, &authority.bundle().roots, NOW) && leads(&server.chain, &first.roots, NOW));
    let made = issue(&authority, DAY / 24);
    assert!(leads(&made.chain, &authority.bundle().roots, NOW));
}

#[test]
fn l2_a_new_root_comes_while_an_issuing_ca_waits() {
    let (_dir, authority) = authority();
    let waiting = authority.prepare(AuthorityKind::Issuing, NOW).expect("prepares").id;
    authority.prepare(AuthorityKind::Root, NOW).expect("prepares");
    let done = authority.activate(AuthorityKind::Root, NOW).expect("activates");
    assert_eq!(done.iter().map(|c| c.kind).collect::<Vec<_>>(), [AuthorityKind::Root, AuthorityKind::Issuing]);
    let was = authority.list().into_iter().find(|r| r.id == waiting).expect("remembered");
    assert_eq!(was.state, AuthorityState::Revoked, "it was made under the root that retired");
    assert!(leads(&issue(&authority, DAY / 24).chain, &authority.bundle().roots, NOW));
}

#[test]
fn x4_a_downstream_ca_names_none_of_our_own_identities_and_can_be_revoked() {
    let (_dir, authority) = authority_with(Policy { downstream: true, ..policy() });
    let below_key = P256Key::generate();
    let public = PublicKey::from_spki(below_key.spki()).expect("P-256");
    let chain = authority.issue_ca(&public, DAY, NOW).expect("issues");
    let change = authority.keep_downstream(&chain[0], NOW).expect("keeps");
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(chain[0].clone()), below_key.rcgen()).expect("reads");
    let leaf_of = |path: &str| {
        let id = domain().workload(path).expect("legal");
        let params = certificates::leaf(&id, &[], NOW, NOW.plus(DAY / 24)).expect("makes");
        let der = params.signed_by(&P256Key::generate().rcgen(), &issuer).expect("signs").der().to_vec();
        (id, std::iter::once(der).chain(chain.iter().cloned()).collect::<Vec<_>>())
    };
    let check = |(id, chain): &(SpiffeId, Vec<Vec<u8>>)| {
        let cas: Vec<&[u8]> = chain[1..].iter().map(Vec::as_slice).collect();
        authority.check_path(id, &cas).is_ok()
    };
    let (workload, server) = (leaf_of("/ci/solver"), leaf_of("/popgate/server"));
    assert!(leads(&workload.1, &authority.bundle().roots, NOW), "peers accept what it issues");
    assert!(check(&workload) && !check(&server));
    authority.revoke(&change.id, NOW).expect("revokes what is active, for it is not ours");
    assert!(!check(&workload));
    let list = authority.revocation_lists(&[], 1, NOW).expect("makes").remove(0);
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&list).expect("DER");
    assert_eq!(list.iter_revoked_certificates().count(), 1);
}

#[test]
fn l1_what_was_prepared_and_has_ended_is_not_activated() {
    let dir = tempfile::tempdir().expect("tempdir");
    let first = open(dir.path(), &domain(), policy(), NOW).expect("opens");
    first.prepare(AuthorityKind::Issuing, NOW).expect("prepares");
    first.prepare(AuthorityKind::JwtSvid, NOW).expect("prepares");
    drop(first);
    let later = NOW.plus(DAY * 3);
    let authority = open(dir.path(), &domain(), policy(), later).expect("opens");
    assert!(leads(&issue_at(&authority, &[], DAY / 24, later).chain, &authority.bundle().roots, later));
    assert!(authority.jwt_signer().is_some());
}

#[test]
fn l4_a_failed_write_changes_nothing() {
    let (dir, authority) = authority();
    let file = dir.path().join("ca/authorities.json");
    std::fs::remove_file(&file).expect("removes");
    std::fs::create_dir(&file).expect("a directory is in its way");
    let (bundle, ids) = (authority.bundle(), authority.list().len());
    assert!(authority.prepare(AuthorityKind::JwtSvid, NOW).is_err());
    assert_eq!((authority.bundle(), authority.list().len()), (bundle, ids));
    let keys = std::fs::read_dir(dir.path().join("ca")).expect("lists");
    let keys = keys.filter(|e| e.as_ref().is_ok_and(|e| e.path().extension().is_some_and(|x| x == "key"))).count();
    assert_eq!(keys, ids, "no key of nobody's is left");
}

#[test]
fn l4_an_upstream_ca_signs_the_issuing_ca_by_its_request() {
    let (_dir, authority) = authority_with(Policy { upstream: true, ..policy() });
    let id = domain().workload("/ci/solver").expect("legal");
    let key = csr::verify(&P256Key::generate().csr().expect("makes")).expect("own CSR");
    let refused = authority.issue(&id, &key, &[], DAY, NOW).err().expect("nothing signs yet");
    assert!(refused.to_string().contains("ca csr"), "{refused}");
    let request = authority.upstream_csr(NOW).expect("makes");
    let key_of = |request: &[u8]| csr::verify(request).map(|k| k.jkt());
    let again = authority.upstream_csr(NOW).expect("makes");
    assert_eq!(key_of(&again), key_of(&request), "asked twice, it is for the same key");
    // The upstream CA takes the request's names and its own rules.
    let root_key = rcgen::KeyPair::generate().expect("makes");
    let mut root = CertificateParams::new(vec![]).expect("makes");
    root.distinguished_name.push(rcgen::DnType::CommonName, "Corporate Root");
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    (root.not_before, root.not_after) = (certificates::date(NOW.minus(DAY)), certificates::date(NOW.plus(DAY * 900)));
    let root_der = root.self_signed(&root_key).expect("signs").der().to_vec();
    let upstream = Issuer::new(root, root_key);
    let sign = |path_san: bool| {
        let der = rustls::pki_types::CertificateSigningRequestDer::from(request.clone());
        let mut params = rcgen::CertificateSigningRequestParams::from_der(&der).expect("a request");
        (params.params.not_before, params.params.not_after) =
            (certificates::date(NOW.minus(DAY)), certificates::date(NOW.plus(DAY * 30)));
        if !path_san {
            params.params.subject_alt_names.clear();
        }
        params.signed_by(&upstream).expect("signs").der().to_vec()
    };
    let install = |chain: &[Vec<u8>]| authority.install(chain, NOW);
    assert!(install(&[sign(true)]).is_err(), "without the root");
    assert!(install(&[sign(false), root_der.clone()]).is_err(), "without the trust domain's ID");
    assert!(install(&[root_der.clone(), root_der.clone()]).is_err(), "another key");
    install(&[sign(true), root_der.clone()]).expect("installs");
    assert_eq!(authority.pin(), svid::spki_sha256(&root_der).expect("reads"));
    let made = authority.issue(&id, &key, &[], Duration::from_hours(1), NOW).expect("issues");
    assert_eq!(authority.bundle().roots, [root_der]);
    assert!(leads(&made.chain, &authority.bundle().roots, NOW));
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
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("makes");
    let weak = CertificateParams::default().serialize_request(&p384).expect("makes");
    assert_eq!(csr::verify(weak.der()).err(), Some(csr::CsrError::Key));
}
