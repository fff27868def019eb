//! `[[trust.oidc]]`, `[[trust.kubernetes]]`, `[[trust.x509]]`, `[[trust.saml]]`, `[[trust.scim]]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::domain::digest::Sha256;
use crate::domain::time::Span;

/// Whom attestation and the token endpoint trust.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrustConfig {
    /// Issuers of OIDC tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oidc: Vec<OidcTrust>,
    /// Clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kubernetes: Vec<KubernetesTrust>,
    /// CAs of machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub x509: Vec<X509Trust>,
    /// SAML identity providers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub saml: Vec<SamlTrust>,
    /// SCIM clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scim: Vec<ScimTrust>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeySource {
    /// URL of the JWK Set; none: what the issuer's discovery document names.
    pub url: Option<String>,
    /// A file with the JWK Set, re-read on change.
    pub file: Option<PathBuf>,
    /// CA certificates, PEM, for the issuer's TLS; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Our private key, a JWK, for tokens that the issuer encrypts to us.
    pub decryption_key_file: Option<PathBuf>,
}

/// An issuer of OIDC tokens: to CI jobs, which attest by them, or to people, whose statements are grants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OidcTrust {
    /// Type of its selectors: `github:repository:acme/site`.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `aud`; by default the trust domain's own SPIFFE ID.
    #[serde(default)]
    pub audience: Option<String>,
    /// Claims that become selectors; none: those that GitHub and GitLab sign.
    #[serde(default)]
    pub claims: Vec<String>,
    /// Its keys.
    #[serde(default)]
    pub keys: KeySource,
    /// Selectors that a node must have, all of them; none: its tokens are for workloads alone.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Whether its tokens are grants at the token endpoint, and of whom they speak; none: they attest alone.
    #[serde(default)]
    pub grants: Option<Speaks>,
    /// `aud` of such tokens; by default the token issuer's URL.
    #[serde(default)]
    pub grant_audience: Option<String>,
    /// The claim that names the person.
    #[serde(default = "sub")]
    pub person_claim: String,
    /// What its claims come to. A token that no rule fits is refused.
    #[serde(default, rename = "map", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<MapRule>,
    /// Workloads whose owner is of this issuer get tokens only if it spoke of the owner no longer ago than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_max_age: Option<Span>,
    /// Whether, and how, it tells of people that are gone (Shared Signals).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<EventsConfig>,
}

fn sub() -> String {
    "sub".into()
}

/// Of whom a provider's tokens speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// Of people: the token's subject is the person.
    People,
    /// Of jobs: the subject stays the workload, with the groups that the rules give.
    Jobs,
}

/// One rule: if each of `claims` fits, the subject has `groups`, and one for each value of the claim `each`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MapRule {
    /// Claims or attributes with the values of which one must be there; `*` at the end stands for the rest.
    pub claims: BTreeMap<String, Values>,
    /// Groups that the rule gives.
    pub groups: Vec<String>,
    /// A claim each of whose values is a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub each: Option<String>,
    /// What such a group's name begins with, so that nobody elsewhere names ours.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

/// One value or several.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Values {
    /// The one.
    One(String),
    /// Any of them.
    Any(Vec<String>),
}

impl Values {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(one) => std::slice::from_ref(one).iter(),
            Self::Any(any) => any.iter(),
        }
    }
}

/// Security event tokens (RFC 8417) of a provider, pushed (RFC 8935) or polled (RFC 8936).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// `aud` of its events; by default the token issuer's URL.
    pub audience: Option<String>,
    /// A file with the bearer token that its pushes carry; none: the event's signature is enough.
    pub push_token_file: Option<PathBuf>,
    /// Where events are fetched from.
    pub poll_url: Option<String>,
    /// A file with the bearer token for that.
    pub poll_token_file: Option<PathBuf>,
}

/// A SAML 2.0 identity provider, whose assertions are grants (RFC 7522).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamlTrust {
    /// What it is called here.
    pub name: String,
    /// `Issuer` of its assertions.
    pub entity_id: String,
    /// Its signing certificates, PEM; re-read on change.
    pub certificates_file: PathBuf,
    /// The audience of its assertions; by default the token issuer's URL.
    #[serde(default)]
    pub audience: Option<String>,
    /// Our private key, PKCS#8 PEM, for encrypted assertions.
    #[serde(default)]
    pub decryption_key_file: Option<PathBuf>,
    /// The attribute that names the person; none: the NameID.
    #[serde(default)]
    pub person_attribute: Option<String>,
    /// What its attributes come to. An assertion that no rule fits is refused.
    #[serde(default, rename = "map")]
    pub rules: Vec<MapRule>,
    /// See [`OidcTrust::owner_max_age`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_max_age: Option<Span>,
}

/// A SCIM client: it tells of people that are gone (RFC 7644).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScimTrust {
    /// What it is called here.
    pub name: String,
    /// SHA-256 of its bearer token, lower-case hex.
    pub token_sha256: String,
    /// The issuer of the people it tells of: `issuer#ATTRIBUTE` is the person.
    pub issuer: String,
    /// `externalId` or `userName`.
    #[serde(default = "external_id")]
    pub person_attribute: String,
}

fn external_id() -> String {
    "externalId".into()
}

/// A Kubernetes cluster whose projected service account tokens attest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesTrust {
    /// Type of its selectors, `prod:ns:web`, and first segment of its nodes' names.
    pub name: String,
    /// `iss`.
    pub issuer: String,
    /// `aud`; by default the trust domain's own SPIFFE ID.
    #[serde(default)]
    pub audience: Option<String>,
    /// Its keys.
    #[serde(default)]
    pub keys: KeySource,
    /// Selectors that a node must have, all of them; none: its tokens are for workloads alone.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// Also asks the API server, which knows of deleted pods.
    #[serde(default)]
    pub token_review: Option<TokenReview>,
}

/// Where TokenReview is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenReview {
    /// `https://API-SERVER/apis/authentication.k8s.io/v1/tokenreviews`
    pub url: String,
    /// The token that may ask.
    pub token_file: PathBuf,
}

/// A CA whose certificates machines have already.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X509Trust {
    /// Type of its selectors, `fleet:cn:db-1`, and first segment of its nodes' names.
    pub name: String,
    /// The CA, PEM.
    pub ca_file: PathBuf,
}

impl TrustConfig {
    /// Refuses names that could be mistaken; gives what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let oidc = self.oidc.iter().map(|t| &t.name);
        let others = self.saml.iter().map(|t| &t.name).chain(self.scim.iter().map(|t| &t.name));
        let machines = self.kubernetes.iter().map(|t| &t.name).chain(self.x509.iter().map(|t| &t.name));
        let names: Vec<&String> = oidc.chain(machines).chain(others).collect();
        for (i, name) in names.iter().enumerate() {
            let sound = !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && !["unix", "systemd"].contains(&name.as_str());
            if !sound || names[..i].contains(name) {
                return Err(format!(
                    "trust: the name {name:?} is the type of selectors: unique, of a-z, 0-9 and _, neither unix nor systemd"
                ));
            }
        }
        for trust in &self.oidc {
            check_rules(&trust.name, &trust.rules, trust.grants)?;
        }
        self.saml.iter().try_for_each(|trust| check_rules(&trust.name, &trust.rules, Some(Speaks::People)))?;
        for trust in &self.scim {
            if Sha256::from_hex(&trust.token_sha256).is_none() {
                return Err(format!(
                    "trust.scim {:?}: token_sha256 is the SHA-256 of its token in lower-case hex",
                    trust.name
                ));
            }
            if !["externalId", "userName"].contains(&trust.person_attribute.as_str()) {
                return Err(format!("trust.scim {:?}: person_attribute is externalId or userName", trust.name));
            }
        }
        Ok(())
    }
}

impl TrustConfig {
    /// Files that are named and cannot be read: what needs them is refused until they can.
    pub fn missing(&self, base: &Path) -> Vec<String> {
        let mut named: Vec<(&str, &Option<PathBuf>)> = Vec::new();
        for trust in &self.oidc {
            let keys = [&trust.keys.file, &trust.keys.ca_file, &trust.keys.decryption_key_file];
            named.extend(keys.map(|file| (trust.name.as_str(), file)));
            let events = trust.events.iter().flat_map(|e| [&e.push_token_file, &e.poll_token_file]);
            named.extend(events.map(|file| (trust.name.as_str(), file)));
        }
        let certificates: Vec<(&str, Option<PathBuf>)> =
            self.saml.iter().map(|t| (t.name.as_str(), Some(t.certificates_file.clone()))).collect();
        named.extend(certificates.iter().map(|(name, file)| (*name, file)));
        named.extend(self.saml.iter().map(|t| (t.name.as_str(), &t.decryption_key_file)));
        let unreadable = |(name, file): (&str, &Option<PathBuf>)| {
            let path = base.join(file.as_ref()?);
            let error = std::fs::File::open(&path).err()?;
            Some(format!("trust {name:?}: {} cannot be read ({error}); what needs it is refused", path.display()))
        };
        named.into_iter().filter_map(unreadable).collect()
    }
}

/// Names that can be given to somebody else, and the claims that cannot (GitHub's and GitLab's).
const RENAMED: [(&str, &[&str]); 8] = [
    ("repository", &["repository_id"]),
    ("repository_owner", &["repository_owner_id"]),
    ("project_path", &["project_id"]),
    ("namespace_path", &["namespace_id"]),
    ("workflow_ref", &LASTING),
    ("job_workflow_ref", &LASTING),
    ("ci_config_ref_uri", &LASTING),
    ("job_project_path", &LASTING),
];
/// Claims of other platforms that say whose a job is.
const OWNERS: [&str; 5] =
    ["enterprise_id", "organization_id", "workspace_id", "account_id", "oidc.circleci.com/project-id"];
const LASTING: [&str; 4] = ["repository_id", "repository_owner_id", "project_id", "namespace_id"];

fn check_rules(name: &str, rules: &[MapRule], speaks: Option<Speaks>) -> Result<(), String> {
    let needed = speaks.is_some();
    if needed && rules.is_empty() {
        return Err(format!("trust {name:?} has no `map` rule, so nothing it says would be accepted: add one"));
    }
    if !needed && !rules.is_empty() {
        return Err(format!("trust {name:?} has `map` rules and no `grants`, so they would never be read"));
    }
    for rule in rules {
        let exact = |v: &Values| v.iter().all(|v| !v.ends_with('*'));
        let whose = |(claim, values): (&String, &Values)| {
            LASTING.contains(&claim.as_str()) || OWNERS.contains(&claim.as_str()) || (claim == "sub" && exact(values))
        };
        if speaks == Some(Speaks::Jobs) && !rule.claims.iter().any(whose) {
            return Err(format!(
                "trust {name:?}: a rule that does not name whose job it is fits everybody's: name one of {}, {}, or a whole sub",
                LASTING.join(", "),
                OWNERS.join(", ")
            ));
        }
        let paths = |v: &String| v.starts_with("repo:") || v.starts_with("project_path:");
        let by_path = rule.claims.get("sub").is_some_and(|v| v.iter().any(paths));
        let by_path = by_path.then_some(("sub", LASTING.as_slice()));
        for (renamed, lasting) in RENAMED.into_iter().filter(|(r, _)| rule.claims.contains_key(*r)).chain(by_path) {
            if !lasting.iter().any(|l| rule.claims.contains_key(*l)) {
                return Err(format!(
                    "trust {name:?}: a rule names {renamed}, which can be given to somebody else: name {} with it",
                    lasting.join(" or ")
                ));
            }
        }
        let starts = |l: &&&str| rule.claims.get(**l).is_some_and(|v| v.iter().any(|v| v.ends_with('*')));
        if let Some(started) = LASTING.iter().find(starts) {
            return Err(format!(
                "trust {name:?}: {started} is a number, of which a part with `*` is somebody else's too"
            ));
        }
        if rule.each.is_some() && rule.prefix.is_empty() {
            return Err(format!(
                "trust {name:?}: `each` lets the provider name groups: give them a `prefix`, or it could name any group here"
            ));
        }
        let starred = |v: &String| v.trim_end_matches('*').contains('*') || v.ends_with("**");
        if rule.claims.values().flat_map(Values::iter).any(starred) {
            return Err(format!("trust {name:?}: a value has a `*` that is not its last character"));
        }
        if rule.groups.iter().any(String::is_empty) {
            return Err(format!("trust {name:?}: a rule gives a group without a name"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(grants: &str, rule: &str) -> Result<(), String> {
        let text = format!("[[oidc]]\nname = \"forge\"\nissuer = \"https://i\"\n{grants}\n[[oidc.map]]\n{rule}\n");
        toml::from_str::<TrustConfig>(&text).expect("a section").check()
    }

    #[test]
    fn g3_rules_that_somebody_else_could_come_to_fit_are_refused() {
        let jobs = "grants = \"jobs\"";
        let groups = "groups = [\"g\"]";
        for claims in [
            "",
            "claims = {}",
            "claims = { ref = \"refs/heads/main\" }",
            "claims = { run_id = \"7\", workflow = \"deploy\" }",
            "claims = { sub = \"team:*\" }",
            "claims = { repository = \"acme/site\" }",
            "claims = { repository = \"acme/site\", repository_owner_id = \"1\" }",
            "claims = { repository_owner = \"acme\" }",
            "claims = { project_path = \"acme/site\" }",
            "claims = { namespace_path = \"acme\" }",
            "claims = { sub = \"repo:acme/site:*\" }",
            "claims = { sub = [\"x\", \"project_path:acme/site:*\"] }",
            "claims = { job_workflow_ref = \"acme/site/.github/workflows/x.yml@*\" }",
            "claims = { repository_id = \"7*\" }",
            "claims = { repository_id = \"74\", ref = \"refs/*/main\" }",
            "claims = { repository_id = \"74\" }\neach = \"environment\"",
        ] {
            assert!(check(jobs, &format!("{claims}\n{groups}")).is_err(), "{claims}");
        }
        for claims in [
            "claims = { repository_id = \"74\", repository = \"acme/*\" }",
            "claims = { project_id = \"7\", project_path = \"acme/site\" }",
            "claims = { sub = \"repo:acme/site:*\", repository_id = \"74\" }",
            "claims = { organization_id = \"o-1\", pipeline = \"deploy\" }",
            "claims = { sub = \"organization:acme:pipeline:deploy\" }",
            "claims = { repository_id = \"74\" }\neach = \"environment\"\nprefix = \"env:\"",
        ] {
            check(jobs, &format!("{claims}\n{groups}")).unwrap_or_else(|e| panic!("{claims}: {e}"));
        }
        assert!(check("", groups).is_err(), "rules that nothing reads");
        assert!(check("grants = \"people\"", "groups = [\"\"]").is_err(), "a group without a name");
        assert!(check("grants = \"people\"", groups).is_ok());
    }
}
