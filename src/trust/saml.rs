//! SAML 2.0 assertions as grants (RFC 7522 section 3): one signature, by the provider's own key, over exactly the assertion
//! that is read. The cryptography and the canonical form are a library's; which shapes are looked at is said in
//! [`crate::protocol::saml`].

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use saml_rs::crypto::{self, AssertionDecryptionOptions};

use crate::domain::digest::Sha256;
use crate::domain::people::is_person_id;
use crate::domain::time::Timestamp;
use crate::net::files;
use crate::protocol::saml::{self, Expected, SAML};
use crate::protocol::xml::Element;
use crate::trust::TrustError;
use crate::trust::config::SamlTrust;
use crate::trust::mapping::Facts;

const XENC: &str = "http://www.w3.org/2001/04/xmlenc#";
/// Content encryption that authenticates, and key transport without the old padding.
const ENCRYPTION: [&str; 5] = [
    "http://www.w3.org/2009/xmlenc11#aes128-gcm",
    "http://www.w3.org/2009/xmlenc11#aes192-gcm",
    "http://www.w3.org/2009/xmlenc11#aes256-gcm",
    "http://www.w3.org/2001/04/xmlenc#rsa-oaep-mgf1p",
    "http://www.w3.org/2009/xmlenc11#rsa-oaep",
];

/// One provider.
pub struct SamlProvider {
    entity_id: String,
    certificates: PathBuf,
    decryption_key: Option<PathBuf>,
    audience: Option<String>,
    person_attribute: Option<String>,
}

/// Where an assertion must be for.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    /// The token issuer's URL: the audience, unless another is configured.
    pub issuer: &'a str,
    /// The token endpoint's URL: the recipient (RFC 7522 section 3).
    pub endpoint: &'a str,
}

/// What an assertion says once it holds.
#[derive(Clone, Debug)]
pub struct Asserted {
    /// `issuer#subject`.
    pub person: String,
    /// Its attributes.
    pub facts: Facts,
    /// When it ends.
    pub until: Timestamp,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
    /// What it is remembered by: it is good once.
    pub digest: Sha256,
    /// Until when it might be shown again.
    pub remembered: Timestamp,
}

fn refuse<T>(why: impl Into<String>) -> Result<T, TrustError> {
    Err(TrustError::Refused(format!("the assertion: {}", why.into())))
}

impl SamlProvider {
    /// From its configuration; paths are below `base`.
    pub fn new(trust: &SamlTrust, base: &std::path::Path) -> Self {
        Self {
            entity_id: trust.entity_id.clone(),
            certificates: base.join(&trust.certificates_file),
            decryption_key: trust.decryption_key_file.as_ref().map(|f| base.join(f)),
            audience: trust.audience.clone(),
            person_attribute: trust.person_attribute.clone(),
        }
    }

    /// Verifies the `assertion` parameter of RFC 7522 section 2.1; none if it names another issuer.
    pub fn verify(
        &self,
        encoded: &str,
        receiver: Receiver<'_>,
        now: Timestamp,
    ) -> Result<Option<Asserted>, TrustError> {
        let Some(xml) = self.clear(encoded)? else { return Ok(None) };
        let assertion = Element::parse(&xml).or_else(refuse)?;
        if saml::issuer(&assertion).or_else(refuse)? != self.entity_id {
            return Ok(None);
        }
        let id = saml::one_signature(&assertion).or_else(refuse)?;
        self.check_signature(&xml)?;
        let audience = self.audience.as_deref().unwrap_or(receiver.issuer);
        let want = Expected { entity_id: &self.entity_id, audience, recipient: receiver.endpoint };
        let said = saml::read(&assertion, &want, now).or_else(refuse)?;
        let subject = match &self.person_attribute {
            None => said.name,
            Some(name) => match said.attributes.get(name).map(Vec::as_slice) {
                Some([one]) => one.clone(),
                _ => return refuse(format!("it has not exactly one {name}")),
            },
        };
        let person = format!("{}#{subject}", self.entity_id);
        if !is_person_id(&person) {
            return refuse("its subject has characters that no person's name here has");
        }
        Ok(Some(Asserted {
            person,
            facts: said.attributes,
            until: said.until,
            issued_at: said.issued_at,
            digest: Sha256::of_parts(&[b"saml\0", self.entity_id.as_bytes(), b"\0", id.as_bytes()]),
            remembered: said.shown_until,
        }))
    }

    /// Decodes, and decrypts what is encrypted to us; none if it is encrypted and we have no key.
    fn clear(&self, encoded: &str) -> Result<Option<String>, TrustError> {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(encoded).or_else(|_| BASE64_URL_SAFE.decode(encoded));
        let decoded = decoded.or_else(|_| refuse("it is not base64url without line breaks"))?;
        let xml = String::from_utf8(decoded).or_else(|_| refuse("it is not UTF-8"))?;
        let root = Element::parse(&xml).or_else(refuse)?;
        if !root.is(SAML, "EncryptedAssertion") {
            return Ok(Some(xml));
        }
        let Some(file) = &self.decryption_key else { return Ok(None) };
        let methods: Vec<&str> = root
            .walk()
            .into_iter()
            .filter(|e| e.is(XENC, "EncryptionMethod"))
            .map(|e| e.attribute("Algorithm").unwrap_or_default())
            .collect();
        if methods.is_empty() || !methods.iter().all(|m| ENCRYPTION.contains(m)) {
            return refuse("it is encrypted by an algorithm that is not accepted: AES-GCM with RSA-OAEP is");
        }
        let key = files::read_secret(file).map_err(|e| TrustError::Away(e.to_string()))?;
        let key = crypto::keys::load_private_key(&key, None).map_err(|e| TrustError::Away(e.to_string()))?;
        let options = AssertionDecryptionOptions::default();
        // The library looks for it inside a message.
        let body = xml.trim_start();
        let body = body.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map_or(body, |(_, rest)| rest);
        let message = format!("<Message>{body}</Message>");
        // One text for each failure: what was wrong inside is an oracle.
        match crypto::decrypt_assertion(&message, &key, options) {
            Ok((_, clear)) => Ok(Some(clear)),
            Err(_) => refuse("it does not decrypt"),
        }
    }

    fn check_signature(&self, xml: &str) -> Result<(), TrustError> {
        let pem = files::read(&self.certificates).map_err(|e| TrustError::Away(e.to_string()))?;
        let certificates: Vec<String> = pem
            .split_inclusive("-----END CERTIFICATE-----")
            .filter_map(|part| part.find("-----BEGIN CERTIFICATE-----").map(|at| part[at..].to_owned()))
            .collect();
        if certificates.is_empty() {
            return Err(TrustError::Away(format!("{} holds no certificate in PEM", self.certificates.display())));
        }
        match crypto::verify_signature(xml, &certificates) {
            // It must cover the element that is read, which is the whole document.
            Ok((true, Some(signed))) if signed.trim() == without_declaration(xml) => Ok(()),
            Ok((true, _)) => refuse("the signature covers something else"),
            Ok((false, _)) => refuse("the signature does not verify with the provider's certificates"),
            Err(error) => refuse(format!("the signature: {error}")),
        }
    }
}

fn without_declaration(xml: &str) -> &str {
    let xml = xml.trim();
    xml.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map_or(xml, |(_, rest)| rest.trim())
}

#[cfg(test)]
#[path = "saml/tests.rs"]
mod tests;
