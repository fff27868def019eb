//! SAML 2.0 assertions as grants (RFC 7522 section 3): one signature, by the provider's own key, over exactly the assertion
//! that is read. The cryptography and the canonical form are a library's; which shapes are looked at is said here, so
//! narrowly that there is nothing to wrap.

use std::path::PathBuf;

use base64::Engine as _;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use saml_rs::crypto::{self, AssertionDecryptionOptions};

use crate::domain::digest::Sha256;
use crate::domain::people::is_person_id;
use crate::domain::time::Timestamp;
use crate::net::files;
use crate::trust::TrustError;
use crate::trust::config::SamlTrust;
use crate::trust::issuer::LEEWAY;
use crate::trust::mapping::Facts;
use crate::trust::saml_xml::Element;

const SAML: &str = "urn:oasis:names:tc:SAML:2.0:assertion";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const XENC: &str = "http://www.w3.org/2001/04/xmlenc#";
const BEARER: &str = "urn:oasis:names:tc:SAML:2.0:cm:bearer";
/// Transforms that leave what is signed as it is read.
const TRANSFORMS: [&str; 2] =
    ["http://www.w3.org/2000/09/xmldsig#enveloped-signature", "http://www.w3.org/2001/10/xml-exc-c14n#"];
const SIGNATURES: [&str; 6] = [
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha384",
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha512",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384",
    "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512",
];
const DIGESTS: [&str; 3] = [
    "http://www.w3.org/2001/04/xmlenc#sha256",
    "http://www.w3.org/2001/04/xmldsig-more#sha384",
    "http://www.w3.org/2001/04/xmlenc#sha512",
];
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
        if !assertion.is(SAML, "Assertion") || assertion.attribute("Version") != Some("2.0") {
            return refuse("it is not one SAML 2.0 Assertion");
        }
        let issuer = assertion.only(SAML, "Issuer").and_then(Element::plain).map(str::trim);
        if issuer != Some(&self.entity_id) {
            return Ok(None);
        }
        let id = one_signature(&assertion).or_else(refuse)?;
        self.check_signature(&xml)?;
        known_parts(&assertion).or_else(refuse)?;
        let audience = self.audience.as_deref().unwrap_or(receiver.issuer);
        self.unqualified(&assertion, audience).or_else(refuse)?;
        let remembered = conditions(&assertion, audience, now).or_else(refuse)?;
        let until = remembered.min(session_end(&assertion, now).or_else(refuse)?);
        let (name_id, confirmed) = subject(&assertion, receiver.endpoint, now).or_else(refuse)?;
        let facts = attributes(&assertion).or_else(refuse)?;
        let subject = match &self.person_attribute {
            None => name_id,
            Some(name) => match facts.get(name).map(Vec::as_slice) {
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
            facts,
            until: until.min(confirmed),
            issued_at: assertion.attribute("IssueInstant").and_then(Timestamp::parse_rfc3339),
            digest: Sha256::of_parts(&[b"saml\0", self.entity_id.as_bytes(), b"\0", id.as_bytes()]),
            remembered,
        }))
    }

    /// A qualified name is another name (SAML core section 2.2.2): two people may share it unqualified.
    fn unqualified(&self, assertion: &Element, audience: &str) -> Result<(), String> {
        let name = assertion.only(SAML, "Subject").and_then(|s| s.only(SAML, "NameID"));
        let name = name.ok_or("its Subject has not exactly one NameID")?;
        let expected = [("NameQualifier", self.entity_id.as_str()), ("SPNameQualifier", audience)];
        let other = expected.into_iter().find(|(q, own)| name.attribute(q).is_some_and(|v| v != *own));
        other.map_or(Ok(()), |(qualifier, _)| Err(format!("its NameID has another {qualifier}")))
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

/// The shape of the one signature: a child of the assertion, with one reference, to the assertion's own ID, which is unique.
fn one_signature(assertion: &Element) -> Result<String, String> {
    let all = assertion.walk();
    let id = assertion.attribute("ID").filter(|id| !id.is_empty()).ok_or("it has no ID")?;
    let names = ["ID", "Id", "id", "AssertionID", "{http://www.w3.org/XML/1998/namespace}id"];
    let ids: Vec<&str> = all.iter().flat_map(|e| names.iter().filter_map(|name| e.attribute(name))).collect();
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    if unique.len() != ids.len() {
        return Err("an ID occurs twice".into());
    }
    if all.iter().filter(|e| e.name == "Signature").count() != 1 {
        return Err("it has not exactly one signature".into());
    }
    let holders = ["Assertion", "EncryptedAssertion", "Response", "Advice", "Object"];
    if all.iter().skip(1).any(|e| holders.contains(&e.name.as_str())) {
        return Err("something is wrapped in it".into());
    }
    let signature = assertion.only(DSIG, "Signature").ok_or("its signature is not its own child")?;
    let info = signature.only(DSIG, "SignedInfo").ok_or("its signature has no SignedInfo")?;
    let reference = info.only(DSIG, "Reference").ok_or("its signature has not exactly one reference")?;
    if reference.attribute("URI").and_then(|uri| uri.strip_prefix('#')) != Some(id) {
        return Err("its signature refers to something else".into());
    }
    let algorithm = |element: &Element, name: &str| {
        element.only(DSIG, name).and_then(|e| e.attribute("Algorithm")).unwrap_or_default().to_owned()
    };
    if !SIGNATURES.contains(&algorithm(info, "SignatureMethod").as_str()) {
        return Err("its signature's algorithm is not accepted".into());
    }
    if algorithm(info, "CanonicalizationMethod") != TRANSFORMS[1] {
        return Err("its signature's canonicalisation is not accepted".into());
    }
    if !DIGESTS.contains(&algorithm(reference, "DigestMethod").as_str()) {
        return Err("its digest's algorithm is not accepted".into());
    }
    let transforms = reference.only(DSIG, "Transforms").ok_or("its signature has no transforms")?;
    let known =
        |t: &Element| t.is(DSIG, "Transform") && t.attribute("Algorithm").is_some_and(|a| TRANSFORMS.contains(&a));
    if transforms.children.len() != 2 || !transforms.children.iter().all(known) {
        return Err("its signature's transforms are not accepted".into());
    }
    Ok(id.to_owned())
}

/// What is read is understood whole: a part that is not known could limit what another says.
fn known_parts(assertion: &Element) -> Result<(), String> {
    let only = |element: &Element, known: &[(&str, &str)]| {
        let odd = element.children.iter().find(|c| !known.iter().any(|(namespace, name)| c.is(namespace, name)));
        odd.map_or(Ok(()), |odd| Err(format!("its {} has a part that is not understood: {}", element.name, odd.name)))
    };
    let parts = ["Issuer", "Subject", "Conditions", "AuthnStatement", "AttributeStatement"].map(|name| (SAML, name));
    only(assertion, &[parts.as_slice(), &[(DSIG, "Signature")]].concat())?;
    for part in &assertion.children {
        match part.name.as_str() {
            "Subject" => only(part, &[(SAML, "NameID"), (SAML, "SubjectConfirmation")])?,
            "AttributeStatement" => {
                only(part, &[(SAML, "Attribute")])?;
                part.children.iter().try_for_each(|a| only(a, &[(SAML, "AttributeValue")]))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn time(element: &Element, name: &str) -> Result<Option<Timestamp>, String> {
    let parse = |text: &str| Timestamp::parse_rfc3339(text).ok_or_else(|| format!("{name} is not a time in UTC"));
    element.attribute(name).map(parse).transpose()
}

/// `Conditions` (SAML core section 2.5.1); gives its end.
fn conditions(assertion: &Element, audience: &str, now: Timestamp) -> Result<Timestamp, String> {
    let conditions = assertion.only(SAML, "Conditions").ok_or("it has no Conditions")?;
    let late = now.minus(std::time::Duration::from_secs(LEEWAY));
    let end = time(conditions, "NotOnOrAfter")?.ok_or("Conditions has no NotOnOrAfter")?;
    if end <= late {
        return Err("it has expired".into());
    }
    if time(conditions, "NotBefore")?.is_some_and(|t| t > now.plus(std::time::Duration::from_secs(LEEWAY))) {
        return Err("it is not valid yet".into());
    }
    let known = ["AudienceRestriction", "OneTimeUse", "ProxyRestriction"];
    if conditions.children.iter().any(|c| c.namespace != SAML || !known.contains(&c.name.as_str())) {
        return Err("it has a condition that is not understood".into());
    }
    let mut restrictions = conditions.all(SAML, "AudienceRestriction").peekable();
    if restrictions.peek().is_none() {
        return Err("it names no audience".into());
    }
    let ours = |r: &Element| r.all(SAML, "Audience").any(|a| a.plain().map(str::trim) == Some(audience));
    if restrictions.all(ours) { Ok(end) } else { Err("its audience is another".into()) }
}

/// The earliest end of a session that it tells of.
fn session_end(assertion: &Element, now: Timestamp) -> Result<Timestamp, String> {
    let mut until = Timestamp::from_unix(Timestamp::MAX_SECONDS);
    for statement in assertion.all(SAML, "AuthnStatement") {
        if let Some(end) = time(statement, "SessionNotOnOrAfter")? {
            until = until.min(end);
        }
    }
    if until <= now { Err("the session it tells of has ended".into()) } else { Ok(until) }
}

/// `Subject` with a bearer confirmation for us (RFC 7522 section 3, 5); gives the NameID and the confirmation's end.
fn subject(assertion: &Element, recipient: &str, now: Timestamp) -> Result<(String, Timestamp), String> {
    let subject = assertion.only(SAML, "Subject").ok_or("it has not exactly one Subject")?;
    let name = subject.only(SAML, "NameID").and_then(Element::plain).ok_or("its Subject has not exactly one NameID")?;
    let mut why = "it has no bearer confirmation".to_owned();
    for confirmation in subject.all(SAML, "SubjectConfirmation").filter(|c| c.attribute("Method") == Some(BEARER)) {
        match confirmed(confirmation, recipient, now) {
            Ok(end) => return Ok((name.to_owned(), end)),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn confirmed(confirmation: &Element, recipient: &str, now: Timestamp) -> Result<Timestamp, String> {
    let data = confirmation.only(SAML, "SubjectConfirmationData").ok_or("its confirmation has no data")?;
    if data.attribute("Recipient") != Some(recipient) {
        return Err("its recipient is another".into());
    }
    if data.attribute("InResponseTo").is_some() {
        return Err("it answers a request that we never made".into());
    }
    if time(data, "NotBefore")?.is_some_and(|t| t > now) {
        return Err("its confirmation is not valid yet".into());
    }
    let end = time(data, "NotOnOrAfter")?.ok_or("its confirmation has no NotOnOrAfter")?;
    if end <= now.minus(std::time::Duration::from_secs(LEEWAY)) {
        return Err("its confirmation has expired".into());
    }
    Ok(end)
}

fn attributes(assertion: &Element) -> Result<Facts, String> {
    let mut facts = Facts::new();
    for attribute in assertion.all(SAML, "AttributeStatement").flat_map(|s| s.all(SAML, "Attribute")) {
        let name = attribute.attribute("Name").ok_or("an attribute has no Name")?;
        let values = facts.entry(name.to_owned()).or_default();
        values.extend(attribute.all(SAML, "AttributeValue").filter_map(|v| v.plain().map(ToOwned::to_owned)));
    }
    Ok(facts)
}

#[cfg(test)]
#[path = "saml/tests.rs"]
mod tests;
