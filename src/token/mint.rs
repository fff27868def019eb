//! What a token may say: audience, scope, details and life, each bounded by the entry, the grant and the certificate.

use std::collections::BTreeMap;

use crate::domain::key::Jkt;
use crate::domain::people::{Entry, operation_matches};
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::access_token::Claims;
use crate::protocol::authorization_details::{self, Detail};
use crate::store::entropy;
use crate::token::client::{Client, Form};
use crate::token::grants::{Bounds, Subject};

/// A resource that tokens can be minted for.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its absolute URL, the audience.
    pub url: String,
    /// Whether the connection must present the certificate, so that tokens carry `x5t#S256`.
    pub certificate: bool,
    /// Names of its operations.
    pub operations: Vec<String>,
    /// Resource servers that may ask about its tokens.
    pub introspect: Vec<SpiffeId>,
}

/// What is granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Granted {
    /// Operation names.
    pub scope: Vec<String>,
    /// Exact operations.
    pub details: Vec<Detail>,
}

/// The resource a request names (RFC 8707), or the one that its grant is for, or the first there is.
pub fn resource<'a>(
    resources: &'a [Resource],
    asked: &[String],
    bounds: Option<&Bounds>,
) -> Result<&'a Resource, Refusal> {
    let refuse = |detail: String| Refusal::new(400, "resource", detail).with_error(OauthError::InvalidTarget);
    let bound = bounds.and_then(|b| b.audience.as_ref());
    match (asked, bound) {
        ([one], Some(bound)) if one != bound => {
            Err(refuse("the token that is exchanged is for another resource".into()))
        }
        ([], None) => resources.first().ok_or_else(|| refuse("no resource is configured".into())),
        ([one], _) | ([], Some(one)) => resources.iter().find(|r| r.url == *one).ok_or_else(|| {
            let known: Vec<&str> = resources.iter().map(|r| r.url.as_str()).collect();
            refuse(format!("resource is not one of: {}", known.join(" ")))
        }),
        _ => Err(refuse("one token is for one resource; ask for each on its own".into())),
    }
}

/// The scope and details that are granted: what was asked, if entry and grant cover all of it; if nothing was asked, all
/// that they allow at this resource.
pub fn granted(entry: &Entry, resource: &Resource, bounds: Option<&Bounds>, form: &Form) -> Result<Granted, Refusal> {
    let refuse = |detail: String| Refusal::new(400, "scope", detail).with_error(OauthError::InvalidScope);
    let details = details(entry, resource, bounds, form)?;
    let allowed = |name: &str| {
        let covers = |list: &[String]| list.iter().any(|bound| operation_matches(bound, name));
        covers(&entry.operations) && bounds.is_none_or(|b| covers(&b.scope))
    };
    let asked = form.get("scope").map(String::as_str).filter(|s| !s.is_empty());
    let Some(asked) = asked else {
        if !details.is_empty() && form.contains_key("authorization_details") {
            return Ok(Granted { scope: authorization_details::actions(&details), details });
        }
        let offered = bounds.map_or(&entry.operations, |b| &b.scope);
        let here = |bound: &&String| resource.operations.iter().any(|o| operation_matches(bound, o));
        // Of two patterns the narrower one is what both allow.
        let narrower = entry.operations.iter().filter(|o| bounds.is_some() && allowed(o));
        let mut scope: Vec<String> =
            offered.iter().filter(|n| allowed(n)).chain(narrower).filter(here).cloned().collect();
        let mut seen = std::collections::BTreeSet::new();
        scope.retain(|name| seen.insert(name.clone()));
        if scope.is_empty() {
            return Err(refuse("the registration entry, or the grant, allows no operation of this resource".into()));
        }
        return Ok(Granted { scope, details });
    };
    let names: Vec<&str> = asked.split(' ').collect();
    let within = |action: &&String| names.iter().any(|name| operation_matches(name, action));
    if let Some(beyond) = details.iter().flat_map(|d| &d.actions).find(|a| !within(a)) {
        let detail = format!("authorization_details has {beyond}, which the scope asked for does not cover");
        return Err(Refusal::new(400, "details", detail).with_error(OauthError::InvalidAuthorizationDetails));
    }
    // RFC 6749 section 3.3: scope tokens are of printable characters less `"` and `\`.
    let legal = |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if !names.iter().all(legal) {
        return Err(refuse("scope is malformed".into()));
    }
    if let Some(beyond) = names.iter().find(|n| !allowed(n)) {
        return Err(refuse(format!("the registration entry, or the grant, does not allow {beyond}")));
    }
    Ok(Granted { scope: names.into_iter().map(ToOwned::to_owned).collect(), details })
}

/// The details that are granted. None asked of a grant that has some: those, or the exchange would widen it.
fn details(entry: &Entry, resource: &Resource, bounds: Option<&Bounds>, form: &Form) -> Result<Vec<Detail>, Refusal> {
    let refuse =
        |detail: String| Refusal::new(400, "details", detail).with_error(OauthError::InvalidAuthorizationDetails);
    let inherited = bounds.map(|b| b.details.as_slice()).unwrap_or_default();
    let Some(text) = form.get("authorization_details") else { return Ok(inherited.to_vec()) };
    let asked = authorization_details::parse(text, &resource.url).map_err(|e| refuse(e.to_string()))?;
    for action in asked.iter().flat_map(|d| &d.actions) {
        let scoped = bounds.is_none_or(|b| b.scope.iter().any(|s| operation_matches(s, action)));
        if !entry.covers(action) || !scoped {
            return Err(refuse(format!("the registration entry, or the grant, does not allow {action}")));
        }
        if !resource.operations.iter().any(|o| operation_matches(action, o)) {
            return Err(refuse(format!("{action} is no operation of this resource")));
        }
    }
    if !inherited.is_empty() && !authorization_details::all_within(&asked, inherited) {
        let detail =
            "they reach beyond those of the token that is exchanged; of one with uses, actions and object stay, too";
        return Err(refuse(detail.into()));
    }
    Ok(asked)
}

/// What the claims of a token are made from.
pub struct Minting<'a> {
    /// Issuer URL.
    pub issuer: &'a str,
    /// Who gets it.
    pub client: &'a Client,
    /// On whose behalf.
    pub subject: &'a Subject,
    /// For what.
    pub resource: &'a Resource,
    /// How far.
    pub granted: Granted,
    /// Longest life.
    pub ttl: std::time::Duration,
    /// The key that must prove each use.
    pub jkt: Jkt,
    /// Now.
    pub now: Timestamp,
}

/// The claims of a token.
pub fn claims(minting: Minting<'_>) -> Claims {
    let Minting { issuer, client, subject, resource, granted, ttl, jkt, now } = minting;
    let certificate = client.certificate.as_ref();
    let grantee = subject.bounds.as_ref().and_then(|b| b.grantee.clone()).filter(|g| *g != client.id);
    Claims {
        iss: issuer.to_owned(),
        sub: subject.sub.clone(),
        client_id: client.id.clone(),
        aud: resource.url.clone(),
        iat: now,
        exp: now.plus(ttl).min(client.until).min(subject.until),
        jti: entropy::random_id(),
        scope: granted.scope.join(" "),
        jkt,
        svid_serial: certificate.map(|c| c.serial.clone()),
        x5t_s256: certificate.filter(|_| resource.certificate).map(|c| c.sha256),
        grantee: grantee.filter(|_| !granted.details.is_empty()),
        details: granted.details,
        act: subject.act.clone(),
        may_act: client.entry.may_act.as_ref().map(ToString::to_string),
        groups: subject.groups.clone(),
        auth_time: subject.spoken_at,
    }
}

/// A form's parameters, each once but `resource`, whose repetition has its own error.
pub fn single(form: BTreeMap<String, Vec<String>>) -> Result<(BTreeMap<String, String>, Vec<String>), Refusal> {
    let mut resources = Vec::new();
    let mut once = BTreeMap::new();
    for (name, mut values) in form {
        if name == "resource" {
            resources = values;
        } else if values.len() == 1 {
            once.insert(name, values.remove(0));
        } else {
            return Err(Refusal::new(400, "request", "a parameter occurs twice (RFC 6749 section 3.2)")
                .with_error(OauthError::InvalidRequest));
        }
    }
    // RFC 8693 section 2.1: the audience by another name; what it names here is the resource.
    match (once.remove("audience"), resources.as_slice()) {
        (Some(audience), []) => resources.push(audience),
        (Some(audience), [one]) if audience == *one => {}
        (None, _) => {}
        _ => {
            return Err(Refusal::new(400, "resource", "audience and resource name different things")
                .with_error(OauthError::InvalidTarget));
        }
    }
    Ok((once, resources))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::people::Seconds;

    fn entry(operations: &[&str]) -> Entry {
        Entry {
            operations: operations.iter().map(|o| (*o).to_owned()).collect(),
            ..Entry::new("spiffe://example.org/a".parse().expect("legal"), "i#s".into(), Seconds(3600))
        }
    }

    fn here() -> Resource {
        Resource {
            url: "https://gw/v1".into(),
            certificate: false,
            operations: ["tot.run", "tot.read", "prompt.put"].map(Into::into).to_vec(),
            introspect: vec![],
        }
    }

    fn form(pairs: &[(&str, &str)]) -> Form {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    fn bounds(scope: &[&str], details: Vec<Detail>) -> Bounds {
        let scope = scope.iter().map(|s| (*s).to_owned()).collect();
        Bounds { audience: Some("https://gw/v1".into()), scope, details, grantee: None }
    }

    #[test]
    fn t4_the_entry_bounds_the_scope() {
        let tot = entry(&["tot.*", "prompt.put", "mail.*"]);
        let scope = |entry: &Entry, asked: Option<&str>| {
            let form = asked.map_or_else(Form::new, |a| form(&[("scope", a)]));
            granted(entry, &here(), None, &form).map(|g| g.scope.join(" "))
        };
        assert_eq!(scope(&tot, None).expect("all of here"), "tot.* prompt.put");
        let nothing = scope(&entry(&["mail.*"]), None).expect_err("nothing of here");
        assert_eq!(nothing.error, Some(OauthError::InvalidScope));
        assert_eq!(scope(&tot, Some("tot.run")).expect("narrower"), "tot.run");
        assert_eq!(scope(&tot, Some("tot.*")).expect("the bound itself"), "tot.*");
        for beyond in ["admin", "*", "tot", "prompt.*", "tot.run admin", "a\"b", "tot.run  tot.read"] {
            assert_eq!(scope(&tot, Some(beyond)).expect_err(beyond).error, Some(OauthError::InvalidScope));
        }
    }

    #[test]
    fn t4_details_lie_within_the_entry_and_give_the_scope_where_none_is_asked() {
        let tot = entry(&["tot.*"]);
        let ask = |action: &str| {
            let text = format!(r#"[{{"type":"popgate_operation","actions":["{action}"],"uses":1}}]"#);
            granted(&tot, &here(), None, &form(&[("authorization_details", &text)]))
        };
        let one = ask("tot.run").expect("allowed");
        assert_eq!((one.scope.as_slice(), one.details.len()), (["tot.run".to_owned()].as_slice(), 1));
        for beyond in ["prompt.put", "*", "tot.unknown"] {
            let refused = ask(beyond).expect_err(beyond);
            assert_eq!(refused.error, Some(OauthError::InvalidAuthorizationDetails), "{beyond}");
        }
    }

    #[test]
    fn g2_an_exchanged_token_is_for_no_more_than_its_input() {
        let (tot, here) = (entry(&["tot.*", "prompt.put"]), here());
        let narrow = bounds(&["tot.run", "prompt.*"], Vec::new());
        let scope = |asked: &[(&str, &str)]| granted(&tot, &here, Some(&narrow), &form(asked)).map(|g| g.scope);
        assert_eq!(scope(&[]).expect("what both allow"), ["tot.run", "prompt.put"]);
        let wide = bounds(&["*"], Vec::new());
        let both = granted(&entry(&["tot.run", "mail.*"]), &here, Some(&wide), &form(&[])).expect("allowed");
        assert_eq!(both.scope, ["tot.run"], "the narrower of two patterns");
        assert_eq!(scope(&[("scope", "prompt.put")]).expect("both allow it"), ["prompt.put"]);
        assert!(scope(&[("scope", "tot.read")]).is_err());
        let exact = authorization_details::parse(
            r#"[{"type":"popgate_operation","actions":["tot.run"],"uses":1}]"#,
            "https://gw/v1",
        );
        let counted = bounds(&["tot.run"], exact.expect("reads"));
        let kept = granted(&tot, &here, Some(&counted), &form(&[])).expect("allowed");
        assert_eq!(kept.details, counted.details, "details stay where none are asked");
        let other = [Resource { url: "https://gw/v2".into(), ..here.clone() }, here.clone()];
        assert_eq!(resource(&other, &[], Some(&narrow)).expect("its own").url, "https://gw/v1");
        let beyond = resource(&other, &["https://gw/v2".into()], Some(&narrow)).expect_err("another");
        assert_eq!(beyond.error, Some(OauthError::InvalidTarget));
    }

    #[test]
    fn t4_unknown_and_double_resources_are_invalid_target() {
        let known = [Resource { operations: vec![], ..here() }];
        assert!(resource(&known, &[], None).is_ok());
        assert!(resource(&known, &["https://gw/v1".into()], None).is_ok());
        for asked in [
            vec!["https://gw/v2".into()],
            vec!["https://gw/v1".into(), "https://gw/v1".into()],
            vec!["https://gw/v1/".into()],
        ] {
            assert_eq!(resource(&known, &asked, None).expect_err("refused").error, Some(OauthError::InvalidTarget));
        }
    }
}
