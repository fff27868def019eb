//! A SAML identity provider of the tests' own.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use popgate::domain::time::{Clock as _, Timestamp};
use popgate::store::clock::SystemClock;
use popgate::store::entropy::random_id;
use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256};
use saml_rs::crypto::construct_saml_signature;
use saml_rs::crypto::keys::load_private_key;

pub const ENTITY: &str = "https://saml.example.org/metadata";

pub struct SamlIdp {
    key: String,
    pub certificate: String,
}

impl SamlIdp {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).expect("makes");
        let certificate = CertificateParams::new(vec![]).expect("makes").self_signed(&key).expect("signs").pem();
        Self { key: key.serialize_pem(), certificate }
    }

    /// An assertion of a person for a token service, changed before it is signed, as its parameter is.
    pub fn assertion(&self, issuer: &str, name: &str, edit: impl FnOnce(String) -> String) -> String {
        B64.encode(self.signed(issuer, name, edit))
    }

    pub fn signed(&self, issuer: &str, name: &str, edit: impl FnOnce(String) -> String) -> String {
        let at = |seconds: u64| Timestamp::from_unix(SystemClock.now().unix() + seconds).rfc3339();
        let xml = edit(format!(
            r#"<saml:Assertion xmlns:saml="urn:oasis:names:tc:SAML:2.0:assertion" ID="_{id}" Version="2.0" IssueInstant="{now}"><saml:Issuer>{ENTITY}</saml:Issuer><saml:Subject><saml:NameID>{name}</saml:NameID><saml:SubjectConfirmation Method="urn:oasis:names:tc:SAML:2.0:cm:bearer"><saml:SubjectConfirmationData Recipient="{issuer}/token" NotOnOrAfter="{end}"/></saml:SubjectConfirmation></saml:Subject><saml:Conditions NotOnOrAfter="{end}"><saml:AudienceRestriction><saml:Audience>{issuer}</saml:Audience></saml:AudienceRestriction></saml:Conditions><saml:AttributeStatement><saml:Attribute Name="department"><saml:AttributeValue>eng</saml:AttributeValue></saml:Attribute></saml:AttributeStatement></saml:Assertion>"#,
            id = random_id().replace(['/', '+', '='], "x"),
            now = at(0),
            end = at(300),
        ));
        let key = load_private_key(&self.key, None).expect("a key");
        let algorithm = "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256";
        construct_saml_signature(&xml, false, &key, &self.certificate, algorithm, &[], None).expect("signs")
    }
}
