use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};
use saml_rs::crypto::{construct_saml_signature, keys::load_private_key};

use super::*;

const ENTITY: &str = "https://idp.example.org/metadata";
const ISSUER: &str = "https://popgate.example";
const ENDPOINT: &str = "https://popgate.example/token";
const NOW: Timestamp = Timestamp::from_unix(1_800_000_000);
const BEARER: &str = "urn:oasis:names:tc:SAML:2.0:cm:bearer";
const RSA_SHA256: &str = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256";

struct Idp {
    key: String,
    certificate: String,
}

impl Idp {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("makes");
        let certificate = CertificateParams::new(vec![]).expect("makes").self_signed(&key).expect("signs").pem();
        Self { key: key.serialize_pem(), certificate }
    }

    fn sign(&self, xml: &str) -> String {
        self.sign_with(xml, &[])
    }

    fn sign_with(&self, xml: &str, transforms: &[String]) -> String {
        let key = load_private_key(&self.key, None).expect("a key");
        construct_saml_signature(xml, false, &key, &self.certificate, RSA_SHA256, transforms, None).expect("signs")
    }
}

fn at(seconds: i64) -> String {
    Timestamp::from_unix(NOW.unix().checked_add_signed(seconds).expect("a time")).rfc3339()
}

/// A good assertion, not yet signed.
fn assertion(id: &str, name: &str) -> String {
    format!(
        r#"<saml:Assertion xmlns:saml="{SAML}" ID="{id}" Version="2.0" IssueInstant="{now}"><saml:Issuer>{ENTITY}</saml:Issuer><saml:Subject><saml:NameID>{name}</saml:NameID><saml:SubjectConfirmation Method="{BEARER}"><saml:SubjectConfirmationData Recipient="{ENDPOINT}" NotOnOrAfter="{end}"/></saml:SubjectConfirmation></saml:Subject><saml:Conditions NotBefore="{begin}" NotOnOrAfter="{end}"><saml:AudienceRestriction><saml:Audience>{ISSUER}</saml:Audience></saml:AudienceRestriction></saml:Conditions><saml:AttributeStatement><saml:Attribute Name="department"><saml:AttributeValue>eng</saml:AttributeValue><saml:AttributeValue>ops</saml:AttributeValue></saml:Attribute></saml:AttributeStatement></saml:Assertion>"#,
        now = at(0),
        begin = at(-5),
        end = at(300),
    )
}

fn check(idp: &Idp, xml: &str) -> Result<Option<Asserted>, TrustError> {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("idp.pem"), &idp.certificate).expect("writes");
    let trust: SamlTrust = toml::from_str(&format!(
        "name = \"staff\"\nentity_id = \"{ENTITY}\"\ncertificates_file = \"idp.pem\"\n[[map]]\ngroups = [\"g\"]\n"
    ))
    .expect("a section");
    let provider = SamlProvider::new(&trust, dir.path());
    provider.verify(&BASE64_URL_SAFE_NO_PAD.encode(xml), Receiver { issuer: ISSUER, endpoint: ENDPOINT }, NOW)
}

fn refused(idp: &Idp, xml: &str, what: &str) {
    match check(idp, xml) {
        Err(TrustError::Refused(_)) | Ok(None) => {}
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn g4_a_signed_assertion_for_us_names_its_person_and_attributes() {
    let idp = Idp::new();
    let signed = idp.sign(&assertion("_a1", "bob"));
    let read = check(&idp, &signed).expect("holds").expect("its provider");
    assert_eq!(read.person, format!("{ENTITY}#bob"));
    assert_eq!(read.facts["department"], ["eng", "ops"]);
    assert_eq!(read.until.unix(), NOW.unix() + 300);
    let declared = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{signed}\n");
    assert!(check(&idp, &declared).expect("holds").is_some(), "a declaration and line ends around it change nothing");
}

#[test]
fn g4_what_is_not_signed_by_the_provider_over_the_assertion_is_refused() {
    let (idp, other) = (Idp::new(), Idp::new());
    let plain = assertion("_a1", "bob");
    refused(&idp, &plain, "unsigned");
    refused(&idp, &other.sign(&plain), "another's key");
    let signed = idp.sign(&plain);
    refused(&idp, &signed.replace(">bob<", ">admin<"), "a changed subject");
    refused(&idp, &signed.replace(">eng<", ">security<"), "a changed attribute");
    refused(&idp, &signed.replace("_a1", "_a2"), "another ID");
    let at = signed.find("<ds:SignatureValue>").expect("signed") + "<ds:SignatureValue>".len();
    let mut broken = signed.clone();
    let flipped = if broken.as_bytes()[at] == b'A' { "B" } else { "A" };
    broken.replace_range(at..=at, flipped);
    refused(&idp, &broken, "a changed signature");
    let exclusive = "http://www.w3.org/2001/10/xml-exc-c14n#".to_owned();
    refused(&idp, &idp.sign_with(&plain, &[exclusive]), "one transform");
    let commented = [
        "http://www.w3.org/2000/09/xmldsig#enveloped-signature",
        "http://www.w3.org/2001/10/xml-exc-c14n#WithComments",
    ];
    refused(&idp, &idp.sign_with(&plain, &commented.map(Into::into)), "comments that count");
}

/// The eight wrappings of "On Breaking SAML", as messages and with the forged assertion itself as the root.
#[test]
fn g4_the_eight_signature_wrappings_are_refused() {
    let idp = Idp::new();
    let signed = idp.sign(&assertion("_a1", "bob"));
    let (from, to) = (signed.find("<ds:Signature").expect("signed"), signed.find("</ds:Signature>").expect("signed"));
    let signature = &signed[from..to + "</ds:Signature>".len()];
    let bare = signed.replace(signature, "");
    let evil = assertion("_evil", "admin");
    let inside = |outer: &str, inner: &str| outer.replacen("</saml:Issuer>", &format!("</saml:Issuer>{inner}"), 1);
    let ended = |outer: &str, inner: &str| outer.replacen("</saml:Assertion>", &format!("{inner}</saml:Assertion>"), 1);
    let within = |inner: &str| signature.replacen("</ds:Signature>", &format!("{inner}</ds:Signature>"), 1);
    let object = |inner: &str| within(&format!("<ds:Object>{inner}</ds:Object>"));
    let extensions = |inner: &str| format!("<samlp:Extensions>{inner}</samlp:Extensions>");
    let message = |inner: &str| {
        format!(
            r#"<samlp:Response xmlns:samlp="urn:oasis:names:tc:SAML:2.0:protocol" xmlns:saml="{SAML}" ID="_r">{inner}</samlp:Response>"#
        )
    };
    let rows = [
        ("XSW1", message(&format!("{evil}{}", object(&bare)))),
        ("XSW2", message(&format!("{}{evil}", object(&bare)))),
        ("XSW3", message(&format!("{evil}{signed}"))),
        ("XSW4", message(&ended(&evil, &signed))),
        ("XSW5", message(&format!("{}{bare}", inside(&evil, signature)))),
        ("XSW6", message(&inside(&evil, &within(&bare)))),
        ("XSW7", message(&format!("{}{signed}", extensions(&evil)))),
        ("XSW8", message(&format!("{}{signed}", inside(&evil, &object(&bare))))),
        ("XSW4, the forged one as the root", ended(&evil, &signed)),
        ("XSW4, nested before its issuer", evil.replacen("<saml:Issuer>", &format!("{signed}<saml:Issuer>"), 1)),
        ("XSW5, the forged one as the root", ended(&inside(&evil, signature), &bare)),
        ("XSW6, the forged one as the root", inside(&evil, &within(&bare))),
        ("XSW8, the forged one as the root", inside(&evil, &object(&bare))),
        ("the signature of another assertion", inside(&evil, signature)),
        ("the same ID twice", ended(&inside(&assertion("_a1", "admin"), signature), &bare)),
        ("the same ID as the root's", inside(&assertion("_a1", "admin"), signature)),
        ("in Advice", ended(&evil, &format!("<saml:Advice>{signed}</saml:Advice>"))),
        ("a message around it", message(&signed)),
        ("two signatures", inside(&signed, signature)),
    ];
    for (what, xml) in &rows {
        refused(&idp, xml, what);
    }
}

#[test]
fn g4_texts_with_two_readings_are_refused_though_they_are_signed() {
    let idp = Idp::new();
    let signed = idp.sign(&assertion("_a1", "admin@corp.example.evil.example"));
    for (what, with) in [
        ("admin@corp.example.evil.example", "admin@corp.example<!-- -->.evil.example"),
        ("admin@corp.example.evil.example", "<![CDATA[admin@corp.example]]>.evil.example"),
        ("admin@corp.example.evil.example", "admin@corp.example<?x y?>.evil.example"),
    ] {
        refused(&idp, &signed.replacen(what, with, 1), with);
    }
    let bomb = format!("<!DOCTYPE a [<!ENTITY b \"{}\"><!ENTITY c \"&b;&b;\">]>{signed}", "x".repeat(1000));
    refused(&idp, &bomb, "entities");
    refused(&idp, &format!("<!DOCTYPE a SYSTEM \"file:///etc/passwd\">{signed}"), "an external entity");
}

#[test]
fn g4_audience_recipient_times_and_conditions_are_held_to() {
    let idp = Idp::new();
    let good = assertion("_a1", "bob");
    let rows: &[(&str, String, String)] = &[
        ("another audience", format!("<saml:Audience>{ISSUER}"), "<saml:Audience>https://other.example".into()),
        ("no audience", format!("<saml:AudienceRestriction><saml:Audience>{ISSUER}</saml:Audience></saml:AudienceRestriction>"), String::new()),
        ("a second restriction without us", "</saml:AudienceRestriction>".into(), "</saml:AudienceRestriction><saml:AudienceRestriction><saml:Audience>https://other.example</saml:Audience></saml:AudienceRestriction>".into()),
        ("an unknown condition", "</saml:AudienceRestriction>".into(), "</saml:AudienceRestriction><saml:Condition/>".into()),
        ("another recipient", ENDPOINT.into(), "https://other.example/token".into()),
        ("no recipient", format!(" Recipient=\"{ENDPOINT}\""), String::new()),
        ("a request that we never made", " Recipient=".into(), " InResponseTo=\"_q\" Recipient=".into()),
        ("no confirmation", format!("Method=\"{BEARER}\""), "Method=\"urn:oasis:names:tc:SAML:2.0:cm:sender-vouches\"".into()),
        ("expired", at(300), at(-61)),
        ("not valid yet", at(-5), at(61)),
        ("a time that is none", at(300), "tomorrow".into()),
        ("no end", format!(" NotOnOrAfter=\"{}\"/>", at(300)), "/>".into()),
        ("no conditions' end", format!(" NotOnOrAfter=\"{}\"><saml:Aud", at(300)), "><saml:Aud".into()),
        ("version 1", "Version=\"2.0\"".into(), "Version=\"1.1\"".into()),
        ("another issuer", format!("<saml:Issuer>{ENTITY}"), "<saml:Issuer>https://other.example".into()),
        ("two subjects' names", "<saml:NameID>".into(), "<saml:NameID>eve</saml:NameID><saml:NameID>".into()),
        ("an encrypted name", "saml:NameID".into(), "saml:EncryptedID".into()),
        ("a name with a line end", ">bob<".into(), ">bob&#10;<".into()),
        ("a name with a #", ">bob<".into(), ">a#b<".into()),
        ("an empty name", ">bob<".into(), "><".into()),
        ("a statement that is not known", "<saml:AttributeStatement>".into(), "<saml:AuthzDecisionStatement/><saml:AttributeStatement>".into()),
        ("a part of its own", "<saml:AttributeStatement>".into(), "<x xmlns=\"urn:x\"/><saml:AttributeStatement>".into()),
        ("an encrypted attribute", "<saml:Attribute Name".into(), "<saml:EncryptedAttribute/><saml:Attribute Name".into()),
        ("a subject's part", "<saml:SubjectConfirmation ".into(), "<saml:BaseID/><saml:SubjectConfirmation ".into()),
        ("a name of who alone may present it", "<saml:SubjectConfirmationData ".into(), "<saml:NameID>other</saml:NameID><saml:SubjectConfirmationData ".into()),
        ("an address from which alone it may come", "<saml:SubjectConfirmationData ".into(), "<saml:SubjectConfirmationData Address=\"192.0.2.1\" ".into()),
        ("a name of another domain", "<saml:NameID>".into(), "<saml:NameID NameQualifier=\"https://other.example\">".into()),
        ("a name for another service", "<saml:NameID>".into(), "<saml:NameID SPNameQualifier=\"https://other.example\">".into()),
        ("a hidden namespace", "<saml:AttributeStatement>".into(), format!("<x:AttributeStatement xmlns:x=\"{}\"><x:Attribute Name=\"a\"/></x:AttributeStatement><saml:AttributeStatement>", SAML.replace("tion", "ti&#111;n"))),
        ("an ended session", "<saml:AttributeStatement>".into(), format!("<saml:AuthnStatement SessionNotOnOrAfter=\"{}\"/><saml:AttributeStatement>", at(-1))),
    ];
    assert!(check(&idp, &idp.sign(&good)).expect("holds").is_some());
    let own = good
        .replace("<saml:NameID>", &format!("<saml:NameID NameQualifier=\"{ENTITY}\" SPNameQualifier=\"{ISSUER}\">"));
    assert!(check(&idp, &idp.sign(&own)).expect("holds").is_some(), "a name of its own for us");
    for (what, from, to) in rows {
        assert!(good.contains(from.as_str()), "{what}");
        refused(&idp, &idp.sign(&good.replace(from.as_str(), to)), what);
    }
}

#[test]
fn g4_encrypted_assertions_are_read_with_our_key_alone_and_old_encryption_is_refused() {
    let idp = Idp::new();
    let ours = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("makes");
    let certificate = CertificateParams::new(vec![]).expect("makes").self_signed(&ours).expect("signs").pem();
    let signed = idp.sign(&assertion("_a1", "bob"));
    let encrypt = |algorithm: &str| {
        let message = format!("<Message>{signed}</Message>");
        let oaep = "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p";
        let xml = crypto::encrypt_assertion(&message, &certificate, algorithm, oaep, "saml").expect("encrypts");
        xml.trim_start_matches("<Message>").trim_end_matches("</Message>").to_owned()
    };
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("idp.pem"), &idp.certificate).expect("writes");
    std::fs::write(dir.path().join("our.key"), ours.serialize_pem()).expect("writes");
    let section = |key: &str| {
        format!(
            "name = \"staff\"\nentity_id = \"{ENTITY}\"\ncertificates_file = \"idp.pem\"\n{key}[[map]]\ngroups = [\"g\"]\n"
        )
    };
    let read = |xml: &str, key: &str| {
        let trust: SamlTrust = toml::from_str(&section(key)).expect("a section");
        let receiver = Receiver { issuer: ISSUER, endpoint: ENDPOINT };
        SamlProvider::new(&trust, dir.path()).verify(&BASE64_URL_SAFE_NO_PAD.encode(xml), receiver, NOW)
    };
    let key = "decryption_key_file = \"our.key\"\n";
    let gcm = encrypt("http://www.w3.org/2009/xmlenc11#aes256-gcm");
    let asserted = read(&gcm, key).expect("holds").expect("its provider");
    assert_eq!(asserted.person, format!("{ENTITY}#bob"));
    assert!(read(&gcm, "").expect("not an error").is_none(), "without a key it is nobody's");
    let cbc = encrypt("http://www.w3.org/2001/04/xmlenc#aes256-cbc");
    assert!(read(&cbc, key).is_err(), "encryption that does not authenticate");
    let mut broken = gcm.clone();
    let at = broken.rfind("</xenc:CipherValue>").expect("encrypted") - 6;
    broken.replace_range(at..=at, if broken.as_bytes()[at] == b'A' { "B" } else { "A" });
    assert!(read(&broken, key).is_err(), "a changed text");
}
