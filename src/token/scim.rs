//! SCIM 2.0 (RFC 7643, RFC 7644), as far as deprovisioning needs it: users, and what stops when one is no longer active.

use serde_json::{Map, Value, json};

use crate::domain::digest::Sha256;
use crate::domain::people::is_person_id;
use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationKind;
use crate::protocol::scim::{self, USER, deactivates, folded, is_active, patched, truth};
use crate::store::entropy;
use crate::store::revocations::NewRevocation;
use crate::store::scim_users::ScimUser;
use crate::token::endpoint::TokenPlane;
use crate::trust::config::ScimTrust;

const ERROR: &str = "urn:ietf:params:scim:api:messages:2.0:Error";
const LIST: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";
/// Longest user: patches add to it.
const MAX_USER: usize = 64 * 1024;
/// Most users of one answer.
const PAGE: usize = 200;

/// A refusal of RFC 7644 section 3.12.
#[derive(Clone, Debug)]
pub struct ScimError {
    /// HTTP status.
    pub status: u16,
    kind: Option<&'static str>,
    detail: String,
}

impl ScimError {
    /// The document.
    pub fn document(&self) -> Value {
        let mut document = json!({"schemas": [ERROR], "status": self.status.to_string(), "detail": self.detail});
        if let Some(kind) = self.kind {
            document["scimType"] = kind.into();
        }
        document
    }
}

fn bad(kind: &'static str, detail: impl Into<String>) -> ScimError {
    ScimError { status: 400, kind: Some(kind), detail: detail.into() }
}

fn not_found() -> ScimError {
    ScimError { status: 404, kind: None, detail: "no such user".into() }
}

impl From<Refusal> for ScimError {
    fn from(refusal: Refusal) -> Self {
        Self { status: refusal.status, kind: None, detail: refusal.detail }
    }
}

impl From<scim::Fault> for ScimError {
    fn from(fault: scim::Fault) -> Self {
        bad(fault.kind, fault.detail)
    }
}

impl From<crate::store::Unavailable> for ScimError {
    fn from(error: crate::store::Unavailable) -> Self {
        Refusal::from(error).into()
    }
}

type Answer = Result<(u16, Value), ScimError>;

impl TokenPlane {
    /// The SCIM client of a bearer token.
    pub fn scim_client(&self, bearer: Option<&str>) -> Result<&ScimTrust, ScimError> {
        let digest = bearer.map(|b| Sha256::of(b.as_bytes()).to_string());
        let client = self.scim.iter().find(|s| Some(&s.token_sha256) == digest.as_ref());
        client.ok_or(ScimError { status: 401, kind: None, detail: "the bearer token is no SCIM client's".into() })
    }

    /// `GET /Users`, by the filters that provisioning asks for.
    pub async fn scim_list(&self, client: &ScimTrust, query: &Map<String, Value>) -> Answer {
        let text = |name: &str| query.get(name).and_then(Value::as_str);
        let wanted = text("filter").map(scim::filter).transpose()?;
        let mut users = self.stores.scim_users.list(&client.name).await?;
        if let Some((attribute, value)) = wanted {
            users.retain(|u| match attribute {
                "username" => u.user_name.to_lowercase() == value.to_lowercase(),
                "externalid" => u.external_id.as_deref() == Some(&value),
                _ => u.id == value,
            });
        }
        let number = |name: &str, default: usize| text(name).and_then(|n| n.parse().ok()).unwrap_or(default);
        let start = number("startIndex", 1).max(1);
        let page: Vec<Value> =
            users.iter().skip(start - 1).take(number("count", PAGE).min(PAGE)).map(|u| u.body.clone()).collect();
        Ok((
            200,
            json!({"schemas": [LIST], "totalResults": users.len(), "startIndex": start, "itemsPerPage": page.len(), "Resources": page}),
        ))
    }

    /// `GET /Users/{id}`.
    pub async fn scim_get(&self, client: &ScimTrust, id: &str) -> Answer {
        let user = self.stores.scim_users.get(&client.name, id).await?.ok_or_else(not_found)?;
        Ok((200, user.body))
    }

    /// `POST /Users`.
    pub async fn scim_create(&self, client: &ScimTrust, resource: Value) -> Answer {
        let user = self.scim_user(client, entropy::random_id(), folded(resource)?)?;
        let person = person(client, &user)?;
        // Whether or not such a user is known already, the person is gone.
        if !is_active(&user.body) {
            self.scim_tell(client, &person, false).await?;
        }
        if !self.stores.scim_users.create(&user).await? {
            let detail = "another user has this userName".into();
            return Err(ScimError { status: 409, kind: Some("uniqueness"), detail });
        }
        self.scim_tell(client, &person, is_active(&user.body)).await?;
        Ok((201, user.body))
    }

    /// `PUT /Users/{id}`.
    pub async fn scim_replace(&self, client: &ScimTrust, id: &str, resource: Value) -> Answer {
        let before = self.stores.scim_users.get(&client.name, id).await?.ok_or_else(not_found)?;
        let person = person(client, &before)?;
        let resource = folded(resource)?;
        // The stop comes first: whatever else is wrong with the request, the person is gone.
        let gone = !is_active(&resource);
        if gone {
            self.scim_tell(client, &person, false).await?;
        }
        let changed = self.scim_user(client, id.to_owned(), resource);
        self.scim_changed(client, before, changed, gone).await
    }

    /// `PATCH /Users/{id}` (RFC 7644 section 3.5.2).
    pub async fn scim_patch(&self, client: &ScimTrust, id: &str, patch: &Value) -> Answer {
        let before = self.stores.scim_users.get(&client.name, id).await?.ok_or_else(not_found)?;
        let person = person(client, &before)?;
        let operations = patch.get("Operations").and_then(Value::as_array);
        let operations = operations.ok_or_else(|| bad("invalidSyntax", "Operations is missing"))?;
        let gone = operations.iter().any(deactivates);
        if gone {
            self.scim_tell(client, &person, false).await?;
        }
        let mut resource = before.body.clone();
        let done = operations.iter().try_for_each(|operation| patched(&mut resource, operation));
        let changed = done.map_err(ScimError::from).and_then(|()| self.scim_user(client, id.to_owned(), resource));
        self.scim_changed(client, before, changed, gone).await
    }

    /// Keeps a change. Of a refused one it keeps that its user is gone, which is in force, and says so.
    async fn scim_changed(
        &self,
        client: &ScimTrust,
        mut before: ScimUser,
        changed: Result<ScimUser, ScimError>,
        gone: bool,
    ) -> Answer {
        let person = person(client, &before)?;
        let kept = match changed {
            Ok(user) => self.scim_keep(client, &person, user).await,
            Err(error) => Err(error),
        };
        match kept {
            Err(error) if gone && error.status < 500 => {
                before.body["active"] = false.into();
                self.stores.scim_users.replace(&before).await?;
                let why = &error.detail;
                let detail = format!("the user is deactivated and stopped; the rest was not carried out: {why}");
                Err(ScimError { detail, ..error })
            }
            kept => kept,
        }
    }

    /// A checked user of this service.
    fn scim_user(&self, client: &ScimTrust, id: String, resource: Value) -> Result<ScimUser, ScimError> {
        let mut user = user(client, id, resource)?;
        let location = format!("{}/scim/v2/Users/{}", self.issuer, user.id);
        user.body["meta"] = json!({"resourceType": "User", "location": location});
        Ok(user)
    }

    /// `DELETE /Users/{id}`.
    pub async fn scim_delete(&self, client: &ScimTrust, id: &str) -> Answer {
        let user = self.stores.scim_users.get(&client.name, id).await?.ok_or_else(not_found)?;
        self.scim_tell(client, &person(client, &user)?, false).await?;
        self.stores.scim_users.delete(&client.name, id).await?;
        Ok((204, Value::Null))
    }

    async fn scim_keep(&self, client: &ScimTrust, before: &str, user: ScimUser) -> Answer {
        if person(client, &user)? != before {
            let detail = format!("{} names the person, and does not change", client.person_attribute);
            return Err(bad("mutability", detail));
        }
        if !self.stores.scim_users.replace(&user).await? {
            let detail = "another user has this userName".into();
            return Err(ScimError { status: 409, kind: Some("uniqueness"), detail });
        }
        self.scim_tell(client, before, is_active(&user.body)).await?;
        Ok((200, user.body))
    }

    /// A person who is active was spoken of; one who is not is stopped, and stays so: lifting is a person's act.
    async fn scim_tell(&self, client: &ScimTrust, person: &str, active: bool) -> Result<(), ScimError> {
        if active {
            return Ok(self.stores.statements.confirm(person, self.stores.clock.now()).await?);
        }
        let (reason, by) = ("deprovisioned by SCIM".to_owned(), format!("scim:{}", client.name));
        let (kind, value) = (RevocationKind::Person, person.to_owned());
        Ok(self.stop_once(NewRevocation { kind, value, reason, by, until: None }).await?)
    }
}

/// Checks a resource and gives it its identifier; what is a credential is not kept.
fn user(client: &ScimTrust, id: String, resource: Value) -> Result<ScimUser, ScimError> {
    let Value::Object(mut members) = resource else { return Err(bad("invalidSyntax", "a user is a JSON object")) };
    members.remove("password");
    let text = |name: &str| members.get(name).and_then(Value::as_str).filter(|t| !t.is_empty()).map(ToOwned::to_owned);
    let user_name = text("userName").ok_or_else(|| bad("invalidValue", "userName is missing"))?;
    let external_id = text("externalId");
    if members.get("active").is_some_and(|a| truth(a).is_none()) {
        return Err(bad("invalidValue", "active is true or false"));
    }
    let active = is_active(&Value::Object(members.clone()));
    members.insert("active".into(), active.into());
    members.insert("id".into(), id.clone().into());
    members.insert("schemas".into(), json!([USER]));
    if Value::Object(members.clone()).to_string().len() > MAX_USER {
        return Err(bad("tooMany", "a user is at most 64 KiB of JSON"));
    }
    let user = ScimUser { provider: client.name.clone(), id, user_name, external_id, body: Value::Object(members) };
    person(client, &user)?;
    Ok(user)
}

fn person(client: &ScimTrust, user: &ScimUser) -> Result<String, ScimError> {
    let named = if client.person_attribute == "userName" {
        user.body["userName"].as_str().map(ToOwned::to_owned)
    } else {
        user.external_id.clone()
    };
    let person = format!("{}#{}", client.issuer, named.unwrap_or_default());
    if is_person_id(&person) {
        return Ok(person);
    }
    Err(bad("invalidValue", format!("{} is missing, or no person's name", client.person_attribute)))
}

/// `GET /ServiceProviderConfig` (RFC 7643 section 5).
pub fn service_provider_config() -> Value {
    let no = json!({"supported": false});
    json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": true},
        "bulk": {"supported": false, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": true, "maxResults": PAGE},
        "changePassword": no, "sort": no, "etag": no,
        "authenticationSchemes": [{"type": "oauthbearertoken", "name": "Bearer token", "description": "a token whose SHA-256 is in the configuration"}],
    })
}

/// `GET /ResourceTypes` (RFC 7643 section 6).
pub fn resource_types() -> Value {
    let user = json!({
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
        "id": "User", "name": "User", "endpoint": "/Users", "schema": USER,
    });
    json!({"schemas": [LIST], "totalResults": 1, "startIndex": 1, "itemsPerPage": 1, "Resources": [user]})
}
