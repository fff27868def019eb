//! Approvals.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tokio::sync::watch;

use crate::domain::approval::{Approval, ApprovalState};
use crate::domain::digest::Sha256;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::approvals::{Approvals, Asked, QUOTA, Step};
use crate::store::sql::{SqliteLedger, away, corrupt, to_sql};

fn approval(row: &SqliteRow) -> Result<Approval, Unavailable> {
    serde_json::from_str(&row.get::<String, _>("body")).map_err(corrupt)
}

fn body(approval: &Approval) -> String {
    serde_json::to_string(approval).expect("approvals have string keys and finite numbers only")
}

impl SqliteLedger {
    fn announce(&self) {
        self.approval_changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// The open approval of a request, for repeats to fold into.
    async fn open_by_digest(&self, digest: Sha256) -> Result<Option<Approval>, Unavailable> {
        let row = sqlx::query("SELECT body FROM approval WHERE request_sha256 = ? AND state IN ('pending', 'approved') ORDER BY created_at DESC LIMIT 1")
            .bind(digest.to_string())
            .fetch_optional(&self.pool)
            .await;
        row.map_err(away)?.map(|r| approval(&r)).transpose()
    }
}

#[async_trait]
impl Approvals for SqliteLedger {
    async fn ask(&self, new: &Approval, now: Timestamp) -> Result<Asked, Unavailable> {
        let _changing = self.changing.lock().await;
        if let Some(open) = self.open_by_digest(new.request_sha256).await?.filter(|a| a.expires_at > now) {
            return Ok(Asked::Folded(open));
        }
        let waiting: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM approval WHERE requester = ? AND state = 'pending' AND expires_at > ?",
        )
        .bind(new.requester.as_str())
        .bind(to_sql(now))
        .fetch_one(&self.pool)
        .await
        .map_err(away)?;
        if usize::try_from(waiting).unwrap_or(usize::MAX) >= QUOTA {
            return Ok(Asked::QuotaReached);
        }
        sqlx::query(
            "INSERT INTO approval (id, state, version, request_sha256, requester, created_at, expires_at, body) VALUES (?, ?, 1, ?, ?, ?, ?, ?)",
        )
        .bind(&new.id)
        .bind(new.state.to_string())
        .bind(new.request_sha256.to_string())
        .bind(new.requester.as_str())
        .bind(to_sql(new.created_at))
        .bind(to_sql(new.expires_at))
        .bind(body(new))
        .execute(&self.pool)
        .await
        .map_err(away)?;
        self.announce();
        Ok(Asked::New(new.clone()))
    }

    async fn get(&self, id: &str) -> Result<Option<Approval>, Unavailable> {
        let row = sqlx::query("SELECT body FROM approval WHERE id = ?").bind(id).fetch_optional(&self.pool).await;
        row.map_err(away)?.map(|r| approval(&r)).transpose()
    }

    async fn list(&self, open: bool) -> Result<Vec<Approval>, Unavailable> {
        let query = if open {
            sqlx::query("SELECT body FROM approval WHERE state IN ('pending', 'approved') ORDER BY created_at DESC")
        } else {
            sqlx::query("SELECT body FROM approval ORDER BY created_at DESC LIMIT 1000")
        };
        query.fetch_all(&self.pool).await.map_err(away)?.iter().map(approval).collect()
    }

    async fn step(&self, id: &str, step: &Step) -> Result<Option<Approval>, Unavailable> {
        debug_assert!(step.from.may_become(step.to), "{} to {}", step.from, step.to);
        let Some(mut changed) = self.get(id).await?.filter(|a| a.state == step.from) else { return Ok(None) };
        let version = changed.version;
        changed.state = step.to;
        changed.version += 1;
        changed.expires_at = step.expires_at;
        if let Some((person, proved_by, reason)) = step.decided.clone() {
            changed.decided_by = Some(person);
            changed.proved_by = Some(proved_by);
            changed.reason = Some(reason);
        }
        let won = sqlx::query(
            "UPDATE approval SET state = ?, version = ?, expires_at = ?, body = ? WHERE id = ? AND version = ?",
        )
        .bind(changed.state.to_string())
        .bind(changed.version)
        .bind(to_sql(changed.expires_at))
        .bind(body(&changed))
        .bind(id)
        .bind(version)
        .execute(&self.pool)
        .await
        .map_err(away)?;
        if won.rows_affected() == 0 {
            return Ok(None);
        }
        self.announce();
        Ok(Some(changed))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.approval_changes.subscribe()
    }
}

impl SqliteLedger {
    /// Approvals that were being carried out when the service died: nobody can say whether they happened.
    pub async fn settle_interrupted(&self, now: Timestamp) -> Result<Vec<Approval>, Unavailable> {
        let rows = sqlx::query("SELECT body FROM approval WHERE state = 'executing'")
            .fetch_all(&self.pool)
            .await
            .map_err(away)?;
        let mut settled = Vec::new();
        for row in &rows {
            let step =
                Step { from: ApprovalState::Executing, to: ApprovalState::Unknown, expires_at: now, decided: None };
            settled.extend(self.step(&approval(row)?.id, &step).await?);
        }
        Ok(settled)
    }
}
