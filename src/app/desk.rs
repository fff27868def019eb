//! The administrator's desk for authorities, and the timer that rotates them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::console::authorities::{AuthorityAction, AuthorityDesk};
use crate::domain::leaf::{Event, Staged};
use crate::domain::refusal::Refusal;
use crate::domain::revocation::RevocationKind;
use crate::identity::authority::state::{AuthorityKind, Der, Record};
use crate::identity::authority::{Authority, AuthorityError, Change};
use crate::net::fetch::pem_certificates;
use crate::net::files;
use crate::store::issued::Of;
use crate::store::revocations::NewRevocation;
use crate::store::{Stores, Unavailable};

/// See [`AuthorityDesk`].
pub(super) struct Desk {
    pub(super) authority: Arc<Authority>,
    pub(super) stores: Stores,
}

/// Entries of the log for changes of authorities.
pub(super) fn staged(stores: &Stores, change: &Change) -> Staged {
    Staged::plain(
        stores.clock.now(),
        Event::Authority {
            role: change.kind.to_string(),
            key_id: change.id.clone(),
            certificate_sha256: change.certificate_sha256,
            not_after: Some(change.not_after),
            state: Some(change.state.to_string()),
        },
    )
}

fn kind(text: &str) -> Result<AuthorityKind, Refusal> {
    use strum::VariantNames as _;
    let names = || AuthorityKind::VARIANTS.join(", ");
    text.parse().map_err(|_| Refusal::new(400, "input", format!("kind {text:?} is not one of: {}", names())))
}

fn refusal(error: AuthorityError) -> Refusal {
    match error {
        AuthorityError::State(_) | AuthorityError::Upstream(_) | AuthorityError::NoIssuer(_) => {
            Refusal::new(409, "authority", error.to_string())
        }
        AuthorityError::Chain(_) => Refusal::new(400, "authority", error.to_string()),
        other => Refusal::unavailable("the certificate authority", other),
    }
}

fn shown(record: &Record) -> Value {
    json!({
        "kind": record.kind,
        "id": record.id,
        "state": record.state,
        "created_at": record.created_at.rfc3339(),
        "not_after": record.not_after.rfc3339(),
        "under": record.root,
        "certificate": record.chain.first().map(|c: &Der| files::pem(&c.bytes())),
    })
}

impl Desk {
    /// Stops the live certificates of a CA that is trusted no more: on open connections, and with the tokens they got.
    async fn stop_signed_by(&self, change: &Change) -> Result<(), Refusal> {
        let now = self.stores.clock.now();
        for live in self.stores.issued.live(Of::Everybody, now).await? {
            if Some(live.issuer_sha256) != change.certificate_sha256 {
                continue;
            }
            let new = NewRevocation {
                kind: RevocationKind::Serial,
                value: live.serial,
                reason: "its issuing CA was revoked".into(),
                by: format!("{}/popgate/identity", self.authority.trust_domain().id()),
                until: Some(live.not_after),
            };
            self.stores.log_stop(&self.stores.revocations.add(&new, now).await?).await.map_err(recorded)?;
        }
        Ok(())
    }
}

#[async_trait]
impl AuthorityDesk for Desk {
    fn list(&self) -> Value {
        self.authority.list().iter().map(shown).collect()
    }

    async fn act(&self, action: AuthorityAction) -> Result<Value, Refusal> {
        let now = self.stores.clock.now();
        let authority = &self.authority;
        let done = match &action {
            AuthorityAction::Prepare { kind: k } => authority.prepare(kind(k)?, now).map(|c| vec![c]),
            AuthorityAction::Activate { kind: k } => authority.activate(kind(k)?, now),
            AuthorityAction::Taint { id } => authority.taint(id, now).map(|c| vec![c]),
            AuthorityAction::Revoke { id } => authority.revoke(id, now).map(|c| vec![c]),
            AuthorityAction::Csr {} => {
                let csr = authority.upstream_csr(now).map_err(refusal)?;
                return Ok(json!({"csr": files::pem_block("CERTIFICATE REQUEST", &csr)}));
            }
            AuthorityAction::Install { chain } => {
                let chain = pem_certificates(chain)
                    .ok_or_else(|| Refusal::new(400, "authority", "the chain is not certificates in PEM"))?;
                authority.install(&chain, now)
            }
        };
        let done = done.map_err(refusal)?;
        if let (AuthorityAction::Revoke { .. }, Some(change)) = (&action, done.first()) {
            self.stop_signed_by(change).await?;
        }
        for change in &done {
            self.stores.evidence.append(staged(&self.stores, change)).await.map_err(recorded)?;
        }
        Ok(json!({"changes": done}))
    }
}

/// The change is in force already.
fn recorded(error: Unavailable) -> Refusal {
    let detail = format!("the change is in force, but {} did not take its record; see the service's log", error.part);
    Refusal { retry_after: Some(1), ..Refusal::new(503, "unrecorded", detail) }.because(error)
}

/// How often the timer looks: often against the shortest life.
pub(super) fn pace(issuing_life: Duration, jwt_life: Duration) -> Duration {
    (issuing_life.min(jwt_life) / 48).clamp(Duration::from_millis(250), Duration::from_mins(1))
}
