//! The grants: on whose behalf a token is asked for, and what bounds it besides the client's own registration.

mod exchange;

use serde_json::{Value, json};

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::refusal::{OauthError, Refusal};
use crate::domain::revocation::Subject as Stoppable;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::protocol::authorization_details::Detail;
use crate::store::statements::Tie;
use crate::token::client::{Client, Form};
use crate::token::endpoint::TokenPlane;
use crate::trust::TrustError;
use crate::trust::providers::{Receiver, Statement};

/// The grants that are offered, by their registered names.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::EnumString, strum::IntoStaticStr)]
pub enum Grant {
    /// RFC 6749 section 4.4.
    #[strum(serialize = "client_credentials")]
    ClientCredentials,
    /// RFC 8693.
    #[strum(serialize = "urn:ietf:params:oauth:grant-type:token-exchange")]
    TokenExchange,
    /// RFC 7523.
    #[strum(serialize = "urn:ietf:params:oauth:grant-type:jwt-bearer")]
    JwtBearer,
    /// RFC 7522.
    #[strum(serialize = "urn:ietf:params:oauth:grant-type:saml2-bearer")]
    SamlBearer,
}

/// What bounds a token that comes from another one (RFC 8693: never more than the input).
pub struct Bounds {
    /// The one audience, where the input has one.
    pub audience: Option<String>,
    /// Operation names.
    pub scope: Vec<String>,
    /// Exact operations; empty: all of the scope.
    pub details: Vec<Detail>,
    /// Whose grant the uses of details are counted in.
    pub grantee: Option<SpiffeId>,
}

/// A statement that whoever has it can use: remembered, so that only the first key that comes with it does.
pub struct Tied {
    /// What it is remembered by.
    pub digest: Sha256,
    /// Its end.
    pub until: Timestamp,
    /// Whether it is good once.
    pub once: bool,
}

/// On whose behalf, and how far.
pub struct Subject {
    /// `sub` of the token.
    pub sub: String,
    /// `act` of the token.
    pub act: Option<Value>,
    /// Groups that an identity provider's statement came to.
    pub groups: Vec<String>,
    /// The token ends no later.
    pub until: Timestamp,
    /// See [`Bounds`].
    pub bounds: Option<Bounds>,
    /// See [`Tied`].
    pub tied: Vec<Tied>,
    /// The provider that spoke, by its name here.
    pub provider: Option<String>,
    /// When the statement was made that the token will rest on.
    pub spoken_at: Option<Timestamp>,
    /// A person whose provider spoke of them, and when.
    pub confirmed: Option<(String, Timestamp)>,
}

impl Subject {
    /// The client itself.
    fn itself(client: &Client) -> Self {
        Self {
            sub: client.id.to_string(),
            act: None,
            groups: Vec::new(),
            until: client.until,
            bounds: None,
            tied: Vec::new(),
            provider: None,
            spoken_at: None,
            confirmed: None,
        }
    }

    /// A person or a job that a provider spoke of.
    fn stated(client: &Client, statement: Statement, now: Timestamp) -> Self {
        let person = statement.person().map(ToOwned::to_owned);
        let tied = statement.key.is_none().then_some(Tied {
            digest: statement.digest,
            until: statement.remembered.plus(std::time::Duration::from_secs(crate::protocol::jwt::LEEWAY * 2)),
            once: statement.one_use,
        });
        // One that does not say when it was made may be as old as anything.
        let spoken_at = statement.issued_at.unwrap_or(Timestamp::ZERO).min(now);
        Self {
            sub: person.clone().unwrap_or_else(|| client.id.to_string()),
            act: person.is_some().then(|| json!({"sub": client.id})),
            groups: statement.groups,
            until: statement.until.min(client.until),
            tied: tied.into_iter().collect(),
            spoken_at: person.is_some().then_some(spoken_at),
            confirmed: person.map(|p| (p, spoken_at)),
            provider: Some(statement.provider),
            bounds: None,
        }
    }
}

fn refused(error: OauthError, detail: impl Into<String>) -> Refusal {
    Refusal::new(400, "grant", detail).with_error(error)
}

/// The error of a statement that is not believed; the log tells why.
fn distrusted(error: TrustError, code: OauthError, what: &str) -> Refusal {
    match error {
        TrustError::Refused(why) => refused(
            code,
            format!("the {what} is not accepted here: is its issuer trusted, its audience the one that is configured, is it in force and made within a day, and does a mapping rule fit? the service's operator is told which, and can try it with `popgate trust test --grant`"),
        )
        .because(why),
        TrustError::Away(cause) => Refusal::unavailable("the identity provider's key set or certificate file", cause),
    }
}

impl TokenPlane {
    /// Reads the grant; nothing is spent or remembered yet.
    pub async fn subject(&self, client: &Client, form: &Form, jkt: Jkt) -> Result<(Grant, Subject), Refusal> {
        let now = self.stores.clock.now();
        let kind =
            form.get("grant_type").ok_or_else(|| refused(OauthError::InvalidRequest, "grant_type is missing"))?;
        let offered = self.grant_types();
        let grant = kind.parse().ok().filter(|grant: &Grant| offered.contains(&<&str>::from(grant)));
        let grant: Grant = grant.ok_or_else(|| {
            let detail = format!("the grant types offered here are: {}", offered.join(" "));
            refused(OauthError::UnsupportedGrantType, detail)
        })?;
        if let Some(forged) = ["act", "may_act"].iter().find(|name| form.contains_key(**name)) {
            let detail = format!("{forged} is what this server says of its callers, not they of themselves");
            return Err(refused(OauthError::InvalidRequest, detail));
        }
        let subject = match grant {
            Grant::ClientCredentials => Subject::itself(client),
            Grant::TokenExchange => self.exchanged(client, form, jkt).await?,
            Grant::JwtBearer => {
                let statement = self.providers.oidc(assertion(form)?, self.receiver(), now).await;
                let statement = statement.map_err(|e| distrusted(e, OauthError::InvalidGrant, "assertion"))?;
                named_key(&statement, jkt)?;
                exchange::may_act(statement.may_act.as_deref(), client)
                    .map_err(|refusal| refusal.with_error(OauthError::InvalidGrant))?;
                Subject::stated(client, statement, now)
            }
            Grant::SamlBearer => {
                let statement = self.providers.saml(assertion(form)?, self.receiver(), now);
                let statement = statement.map_err(|e| distrusted(e, OauthError::InvalidGrant, "assertion"))?;
                Subject::stated(client, statement, now)
            }
        };
        self.check_parties(client, &subject, now)?;
        Ok((grant, subject))
    }

    /// The grants that this configuration can serve.
    pub fn grant_types(&self) -> Vec<&'static str> {
        let (oidc, saml) = self.providers.offers();
        let offered = |grant: &Grant| match grant {
            Grant::JwtBearer => oidc,
            Grant::SamlBearer => saml,
            _ => true,
        };
        let all = [Grant::ClientCredentials, Grant::TokenExchange, Grant::JwtBearer, Grant::SamlBearer];
        all.into_iter().filter(offered).map(Into::into).collect()
    }

    fn receiver(&self) -> Receiver<'_> {
        Receiver { issuer: &self.issuer, endpoint: self.token_url.as_str() }
    }

    /// Nobody who is stopped is acted for, and nobody who is stopped acts.
    fn check_parties(&self, client: &Client, subject: &Subject, now: Timestamp) -> Result<(), Refusal> {
        let actors = crate::protocol::access_token::actors(subject.act.as_ref());
        let parties = std::iter::once(subject.sub.clone()).chain(actors);
        let parties: Vec<String> = parties.filter(|p| p != client.id.as_str()).collect();
        let own = Stoppable::workload(&client.entry);
        let own = Stoppable { groups: own.groups.iter().chain(&subject.groups).cloned().collect(), ..own };
        let registered = |id: &SpiffeId| self.stores.entries.get(id).filter(|e| !e.has_expired(now));
        let everybody = own.acting_for(parties, subject.spoken_at.unwrap_or(now), registered);
        let refuse = || refused(OauthError::InvalidGrant, "whoever is acted for is stopped, or not registered");
        let everybody = everybody.ok_or_else(refuse)?;
        match self.stores.revocations.watch().borrow().stops(&everybody, now) {
            Some(kind) => Err(refuse().because(kind)),
            None => Ok(()),
        }
    }

    /// Ties what anybody could use to the key that came with it (G6), and remembers whose provider spoke of them.
    pub async fn tie(&self, client: &Client, subject: &Subject, jkt: Jkt) -> Result<(), Refusal> {
        let now = self.stores.clock.now();
        let own = client.bearer.map(|(digest, until)| Tied { digest, until, once: false });
        for tied in own.iter().chain(&subject.tied) {
            let told = self.stores.statements.tie(tied.digest, jkt, tied.until, now).await?;
            if told == Tie::First || (told == Tie::Again && !tied.once) {
                continue;
            }
            let why = if tied.once { "it was used before, and is good once" } else { "it came with another key first" };
            return Err(refused(OauthError::InvalidGrant, format!("the assertion is spent: {why}")));
        }
        if let Some((person, at)) = &subject.confirmed {
            self.stores.statements.confirm(person, *at).await?;
        }
        Ok(())
    }

    /// A workload whose owner's provider must have spoken of them lately (G3).
    pub async fn check_owner(&self, client: &Client, subject: &Subject) -> Result<(), Refusal> {
        let owner = &client.entry.owner;
        let Some(age) = self.providers.owner_max_age(owner) else { return Ok(()) };
        let now = self.stores.clock.now();
        let fresh = |at: Timestamp| now.since(at) <= age;
        // The statement of this very request counts.
        let said = subject.confirmed.as_ref().is_some_and(|(person, at)| person == owner && fresh(*at));
        if said || self.stores.statements.confirmed(owner).await?.is_some_and(fresh) {
            return Ok(());
        }
        let detail = format!(
            "the identity provider of {owner}, who answers for this workload, has not spoken of them for {}: any statement of it will do",
            crate::domain::time::format_duration(age)
        );
        Err(refused(OauthError::UnauthorizedClient, detail))
    }
}

fn assertion(form: &Form) -> Result<&str, Refusal> {
    let given = form.get("assertion").filter(|a| !a.is_empty()).map(String::as_str);
    given.ok_or_else(|| refused(OauthError::InvalidRequest, "assertion is missing"))
}

/// A statement that names its key is good for that key alone.
fn named_key(statement: &Statement, jkt: Jkt) -> Result<(), Refusal> {
    match statement.key {
        Some(named) if named != jkt => {
            Err(refused(OauthError::InvalidGrant, "the assertion names another key than the proof's"))
        }
        _ => Ok(()),
    }
}
