//! Everybody whose statements are grants, and what a statement comes to here.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::people::is_person_id;
use crate::domain::time::Timestamp;
use crate::net::fetch::FetchError;
use crate::protocol::claims::{numeric_date, text};
use crate::protocol::jws::Compact;
use crate::protocol::jwt::{LEEWAY, PLAIN, has_audience};
use crate::trust::TrustError;
use crate::trust::config::{MapRule, OidcTrust, Speaks, TrustConfig};
use crate::trust::issuer::TokenIssuer;
use crate::trust::mapping::{self, Facts, Tried};
use crate::trust::saml::{Receiver as SamlReceiver, SamlProvider};

/// What a provider states, verified and mapped.
#[derive(Clone, Debug)]
pub struct Statement {
    /// What the provider is called here.
    pub provider: String,
    /// Of whom it speaks.
    pub speaks: Speaks,
    /// `issuer#subject`; of a job, for the log alone.
    pub subject: String,
    /// Groups that the rules give.
    pub groups: Vec<String>,
    /// When it ends.
    pub until: Timestamp,
    /// When it was made.
    pub issued_at: Option<Timestamp>,
    /// What it is remembered by.
    pub digest: Sha256,
    /// Until when it might be shown again.
    pub remembered: Timestamp,
    /// Whether it is good once (SAML), or again for the key that came with it first.
    pub one_use: bool,
    /// The key that it names itself.
    pub key: Option<Jkt>,
    /// Who may act for its subject (RFC 8693 section 4.4).
    pub may_act: Option<String>,
}

impl Statement {
    /// The person it speaks of.
    pub fn person(&self) -> Option<&str> {
        (self.speaks == Speaks::People).then_some(self.subject.as_str())
    }
}

/// A statement as `trust test` explains it.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What the provider is called here.
    pub provider: String,
    /// What it states.
    pub facts: Facts,
    /// What became of each rule.
    pub tried: Vec<Tried>,
    /// What it comes to; none: no rule fits.
    pub statement: Option<Statement>,
}

impl Explained {
    /// The statement, if it is believed.
    pub fn believed(self, now: Timestamp) -> Result<Statement, TrustError> {
        let none = || TrustError::Refused(format!("no mapping rule of {} fits it", self.provider));
        let statement = self.statement.ok_or_else(none)?;
        if statement.remembered > now.plus(LONGEST_STATEMENT) {
            return Err(TrustError::Refused("it ends more than a day from now".into()));
        }
        // An ended session stops what was said before, for as long as that could be said again: so its life is bounded, too.
        let life = Duration::from_secs(LEEWAY) + LONGEST_STATEMENT;
        match statement.issued_at {
            Some(made) if statement.remembered > made.plus(life) => {
                return Err(TrustError::Refused("it is good for more than a day".into()));
            }
            None if statement.speaks == Speaks::People => {
                return Err(TrustError::Refused("it does not say when it was made".into()));
            }
            _ => {}
        }
        Ok(statement)
    }
}

/// Longest life of a statement: what ends a session is kept as long.
pub const LONGEST_STATEMENT: Duration = Duration::from_hours(24);

/// Where a statement must be for.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    /// The token issuer's URL.
    pub issuer: &'a str,
    /// The token endpoint's URL.
    pub endpoint: &'a str,
}

struct Oidc {
    trust: OidcTrust,
    speaks: Speaks,
    issuer: TokenIssuer,
}

struct Saml {
    name: String,
    rules: Vec<MapRule>,
    provider: SamlProvider,
}

/// All of them.
#[derive(Default)]
pub struct Providers {
    oidc: Vec<Oidc>,
    saml: Vec<Saml>,
    owners: Vec<(String, Duration)>,
}

impl Providers {
    /// From the configuration; nothing is fetched before it is needed.
    pub fn new(config: &TrustConfig, base: &Path) -> Result<Self, FetchError> {
        let mut all = Self::default();
        for trust in &config.oidc {
            all.owners.extend(trust.owner_max_age.as_ref().map(|age| (trust.issuer.clone(), age.0)));
            if let Some(speaks) = trust.grants {
                let issuer = TokenIssuer::new(&trust.issuer, &trust.keys, base)?;
                all.oidc.push(Oidc { trust: trust.clone(), speaks, issuer });
            }
        }
        for trust in &config.saml {
            all.owners.extend(trust.owner_max_age.as_ref().map(|age| (trust.entity_id.clone(), age.0)));
            let (name, rules) = (trust.name.clone(), trust.rules.clone());
            all.saml.push(Saml { name, rules, provider: SamlProvider::new(trust, base) });
        }
        Ok(all)
    }

    /// Whether any provider's tokens are grants, and whether any assertions are.
    pub fn offers(&self) -> (bool, bool) {
        (!self.oidc.is_empty(), !self.saml.is_empty())
    }

    /// How fresh the word of a person's provider must be for the person's workloads to get tokens; none: it is not asked.
    pub fn owner_max_age(&self, person: &str) -> Option<Duration> {
        let issuer = person.split_once('#')?.0;
        self.owners.iter().find(|(known, _)| known == issuer).map(|(_, age)| *age)
    }

    /// What an OIDC token states.
    pub async fn oidc(&self, token: &str, receiver: Receiver<'_>, now: Timestamp) -> Result<Statement, TrustError> {
        self.explain_oidc(token, receiver, now).await?.believed(now)
    }

    /// What a SAML assertion states.
    pub fn saml(&self, assertion: &str, receiver: Receiver<'_>, now: Timestamp) -> Result<Statement, TrustError> {
        self.explain_saml(assertion, receiver, now)?.believed(now)
    }

    /// The same with everything on the way to it.
    pub async fn explain_oidc(
        &self,
        token: &str,
        receiver: Receiver<'_>,
        now: Timestamp,
    ) -> Result<Explained, TrustError> {
        let mut last = TrustError::Refused("its issuer is none whose tokens are grants here".into());
        for oidc in &self.oidc {
            match oidc.read(token, receiver, now).await {
                Ok(Some(explained)) => return Ok(explained),
                Ok(None) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// See [`Self::explain_oidc`].
    pub fn explain_saml(
        &self,
        assertion: &str,
        receiver: Receiver<'_>,
        now: Timestamp,
    ) -> Result<Explained, TrustError> {
        let mut last = TrustError::Refused("its issuer is no SAML provider that is trusted here".into());
        for saml in &self.saml {
            let at = SamlReceiver { issuer: receiver.issuer, endpoint: receiver.endpoint };
            match saml.provider.verify(assertion, at, now) {
                Ok(None) => {}
                Err(error) => last = error,
                Ok(Some(asserted)) => {
                    let (groups, tried) = mapping::map(&saml.rules, &asserted.facts);
                    let statement = groups.map(|groups| Statement {
                        provider: saml.name.clone(),
                        speaks: Speaks::People,
                        subject: asserted.person.clone(),
                        groups,
                        until: asserted.until,
                        issued_at: asserted.issued_at,
                        digest: asserted.digest,
                        remembered: asserted.remembered,
                        one_use: true,
                        key: None,
                        may_act: None,
                    });
                    return Ok(Explained { provider: saml.name.clone(), facts: asserted.facts, tried, statement });
                }
            }
        }
        Err(last)
    }
}

impl Oidc {
    async fn read(&self, token: &str, receiver: Receiver<'_>, now: Timestamp) -> Result<Option<Explained>, TrustError> {
        let token = self.issuer.open(token)?;
        let audience = self.trust.grant_audience.as_deref().unwrap_or(receiver.issuer);
        let key = named_key(&token, audience);
        let keyed = key.map(|k| format!("{audience}#{k}"));
        let audiences: Vec<&str> = std::iter::once(audience).chain(keyed.as_deref()).collect();
        let Some(claims) = self.issuer.verify(&token, &audiences, &PLAIN, now).await? else { return Ok(None) };
        authorized_party(&claims, audience)?;
        let subject = text(&claims, &self.trust.person_claim).unwrap_or_default();
        let subject = format!("{}#{subject}", self.issuer.name());
        if self.speaks == Speaks::People && !is_person_id(&subject) {
            return Err(TrustError::Refused(format!("{} names no person", self.trust.person_claim)));
        }
        let facts = mapping::facts(&claims);
        let (groups, tried) = mapping::map(&self.trust.rules, &facts);
        let signed = Compact::split(&token)?;
        let may_act = claims.get("may_act").and_then(|m| m.get("sub")).and_then(Value::as_str);
        let statement = groups.map(|groups| Statement {
            provider: self.trust.name.clone(),
            speaks: self.speaks,
            subject,
            groups,
            until: numeric_date(&claims, "exp").unwrap_or(now),
            remembered: numeric_date(&claims, "exp").unwrap_or(now),
            issued_at: numeric_date(&claims, "iat"),
            digest: signed.statement(),
            one_use: false,
            key,
            may_act: may_act.map(ToOwned::to_owned),
        });
        Ok(Some(Explained { provider: self.trust.name.clone(), facts, tried, statement }))
    }
}

/// The key that an audience `AUDIENCE#THUMBPRINT` names: so a job ties its token to its key before anybody sees it.
fn named_key(token: &str, audience: &str) -> Option<Jkt> {
    let claims = Compact::split(token).and_then(|c| c.payload_object()).ok()?;
    let one = |value: &Value| value.as_str()?.strip_prefix(audience)?.strip_prefix('#')?.parse().ok();
    match claims.get("aud")? {
        Value::Array(many) => many.iter().find_map(one),
        value => one(value),
    }
}

/// OpenID Connect Core section 3.1.3.7: a token for several names the one that asked for it.
fn authorized_party(claims: &Map<String, Value>, audience: &str) -> Result<(), TrustError> {
    let several = claims.get("aud").and_then(Value::as_array).is_some_and(|a| a.len() > 1);
    match (text(claims, "azp"), several) {
        (Some(azp), _) if azp == audience => Ok(()),
        (Some(_), _) => Err(TrustError::Refused("azp is another party: the token was given to somebody else".into())),
        (None, true) if has_audience(claims, audience) => {
            Err(TrustError::Refused("it has several audiences and no azp".into()))
        }
        (None, _) => Ok(()),
    }
}
