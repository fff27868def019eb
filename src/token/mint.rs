//! What a token may say: audience, scope and life, each bounded by the entry and the certificate.

use std::collections::BTreeMap;

use crate::domain::people::{Entry, operation_matches};
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::time::Timestamp;
use crate::protocol::access_token::Claims;
use crate::store::entropy;
use crate::token::client::Client;

/// A resource that tokens can be minted for.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Its absolute URL, the audience.
    pub url: String,
    /// Whether the connection must present the certificate, so that tokens carry `x5t#S256`.
    pub certificate: bool,
    /// Names of its operations.
    pub operations: Vec<String>,
}

/// The resource a request names (RFC 8707), or the first one there is.
pub fn resource<'a>(resources: &'a [Resource], asked: &[String]) -> Result<&'a Resource, Refusal> {
    let refuse = |detail: String| Refusal::new(400, "resource", detail).with_error(OauthError::InvalidTarget);
    match asked {
        [] => resources.first().ok_or_else(|| refuse("no resource is configured".into())),
        [one] => resources.iter().find(|r| r.url == *one).ok_or_else(|| {
            let known: Vec<&str> = resources.iter().map(|r| r.url.as_str()).collect();
            refuse(format!("resource is not one of: {}", known.join(" ")))
        }),
        _ => Err(refuse("one token is for one resource; ask for each on its own".into())),
    }
}

/// The scope that is granted: what was asked, if the entry covers all of it; if nothing was asked, all that the entry
/// allows at this resource.
pub fn scope(entry: &Entry, resource: &Resource, asked: Option<&str>) -> Result<String, Refusal> {
    let refuse = |detail: String| Refusal::new(400, "scope", detail).with_error(OauthError::InvalidScope);
    let Some(asked) = asked.filter(|s| !s.is_empty()) else {
        let here = |bound: &&String| resource.operations.iter().any(|o| operation_matches(bound, o));
        let granted: Vec<&str> = entry.operations.iter().filter(here).map(String::as_str).collect();
        if granted.is_empty() {
            return Err(refuse("the registration entry allows no operation of this resource".into()));
        }
        return Ok(granted.join(" "));
    };
    let names: Vec<&str> = asked.split(' ').collect();
    // RFC 6749 section 3.3: scope tokens are of printable characters less `"` and `\`.
    let legal = |n: &&str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    if !names.iter().all(legal) {
        return Err(refuse("scope is malformed".into()));
    }
    let bounded = |name: &&&str| entry.operations.iter().any(|bound| operation_matches(bound, name));
    if let Some(beyond) = names.iter().find(|n| !bounded(n)) {
        return Err(refuse(format!("the registration entry does not allow {beyond}")));
    }
    Ok(names.join(" "))
}

/// The claims of a token for an authenticated client.
pub fn claims(
    issuer: &str,
    client: &Client,
    resource: &Resource,
    scope: String,
    ttl: std::time::Duration,
    jkt: crate::domain::key::Jkt,
    now: Timestamp,
) -> Claims {
    Claims {
        iss: issuer.to_owned(),
        sub: client.svid.spiffe_id.clone(),
        aud: resource.url.clone(),
        iat: now,
        exp: now.plus(ttl).min(client.svid.not_after),
        jti: entropy::random_id(),
        scope,
        jkt,
        svid_serial: client.svid.serial.clone(),
        x5t_s256: resource.certificate.then_some(client.svid.sha256),
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

    #[test]
    fn t4_the_entry_bounds_the_scope() {
        let tot = entry(&["tot.*", "prompt.put", "mail.*"]);
        let here = Resource {
            url: "https://gw/v1".into(),
            certificate: false,
            operations: ["tot.run", "tot.read", "prompt.put"].map(Into::into).to_vec(),
        };
        let scope = |entry: &Entry, asked| scope(entry, &here, asked);
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
    fn t4_unknown_and_double_resources_are_invalid_target() {
        let known = [Resource { url: "https://gw/v1".into(), certificate: false, operations: vec![] }];
        assert!(resource(&known, &[]).is_ok());
        assert!(resource(&known, &["https://gw/v1".into()]).is_ok());
        for asked in [
            vec!["https://gw/v2".into()],
            vec!["https://gw/v1".into(), "https://gw/v1".into()],
            vec!["https://gw/v1/".into()],
        ] {
            assert_eq!(resource(&known, &asked).expect_err("refused").error, Some(OauthError::InvalidTarget));
        }
    }
}
