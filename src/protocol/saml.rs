//! The shapes of SAML 2.0 assertions that are looked at as grants (RFC 7522 section 3), so narrow that there is nothing to
//! wrap. Whether the signature verifies is not this module's business.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::time::Timestamp;
use crate::protocol::jwt::LEEWAY;
use crate::protocol::xml::Element;

/// Namespace of assertions.
pub const SAML: &str = "urn:oasis:names:tc:SAML:2.0:assertion";
const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
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

/// Where an assertion must be from and for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The provider.
    pub entity_id: &'a str,
    /// The audience.
    pub audience: &'a str,
    /// The token endpoint's URL.
    pub recipient: &'a str,
}

/// What an assertion says, if it is for us and in force.
#[derive(Clone, Debug)]
pub struct Said {
    /// The subject's NameID.
    pub name: String,
    /// Attributes with their values.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// When what it says ends.
    pub until: Timestamp,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
    /// Until when it might be shown again.
    pub shown_until: Timestamp,
}

/// The issuer of one SAML 2.0 assertion.
pub fn issuer(assertion: &Element) -> Result<&str, String> {
    if !assertion.is(SAML, "Assertion") || assertion.attribute("Version") != Some("2.0") {
        return Err("it is not one SAML 2.0 Assertion".into());
    }
    Ok(assertion.only(SAML, "Issuer").and_then(Element::plain).map(str::trim).unwrap_or_default())
}

/// Reads an assertion whose signature verified.
pub fn read(assertion: &Element, want: &Expected<'_>, now: Timestamp) -> Result<Said, String> {
    known_parts(assertion)?;
    unqualified(assertion, want)?;
    let shown_until = conditions(assertion, want.audience, now)?;
    let session = session_end(assertion, now)?;
    let (name, confirmed) = subject(assertion, want.recipient, now)?;
    Ok(Said {
        name,
        attributes: attributes(assertion)?,
        until: shown_until.min(session).min(confirmed),
        issued_at: assertion.attribute("IssueInstant").and_then(Timestamp::parse_rfc3339),
        shown_until,
    })
}

/// A qualified name is another name (SAML core section 2.2.2): two people may share it unqualified.
fn unqualified(assertion: &Element, want: &Expected<'_>) -> Result<(), String> {
    let name = assertion.only(SAML, "Subject").and_then(|s| s.only(SAML, "NameID"));
    let name = name.ok_or("its Subject has not exactly one NameID")?;
    let expected = [("NameQualifier", want.entity_id), ("SPNameQualifier", want.audience)];
    let other = expected.into_iter().find(|(q, own)| name.attribute(q).is_some_and(|v| v != *own));
    other.map_or(Ok(()), |(qualifier, _)| Err(format!("its NameID has another {qualifier}")))
}

/// The shape of the one signature: a child of the assertion, with one reference, to the assertion's own ID, which is unique.
pub fn one_signature(assertion: &Element) -> Result<String, String> {
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
            "Subject" => {
                only(part, &[(SAML, "NameID"), (SAML, "SubjectConfirmation")])?;
                // A name inside says who alone may present it, an address from where: neither is known here.
                for confirmation in part.all(SAML, "SubjectConfirmation") {
                    only(confirmation, &[(SAML, "SubjectConfirmationData")])?;
                    for data in &confirmation.children {
                        only(data, &[])?;
                        if data.attribute("Address").is_some() {
                            return Err("its confirmation is for one address".into());
                        }
                    }
                }
            }
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
    let late = now.minus(Duration::from_secs(LEEWAY));
    let end = time(conditions, "NotOnOrAfter")?.ok_or("Conditions has no NotOnOrAfter")?;
    if end <= late {
        return Err("it has expired".into());
    }
    if time(conditions, "NotBefore")?.is_some_and(|t| t > now.plus(Duration::from_secs(LEEWAY))) {
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
    if end <= now.minus(Duration::from_secs(LEEWAY)) {
        return Err("its confirmation has expired".into());
    }
    Ok(end)
}

fn attributes(assertion: &Element) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut facts = BTreeMap::<String, Vec<String>>::new();
    for attribute in assertion.all(SAML, "AttributeStatement").flat_map(|s| s.all(SAML, "Attribute")) {
        let name = attribute.attribute("Name").ok_or("an attribute has no Name")?;
        let values = facts.entry(name.to_owned()).or_default();
        values.extend(attribute.all(SAML, "AttributeValue").filter_map(|v| v.plain().map(ToOwned::to_owned)));
    }
    Ok(facts)
}
