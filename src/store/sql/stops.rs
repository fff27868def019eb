//! Revocations.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use tokio::sync::watch;

use crate::domain::revocation::{Revocation, RevocationSet};
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::revocations::{NewRevocation, Revocations};
use crate::store::sql::{SqliteLedger, away, corrupt, from_sql, returned, to_sql};

/// How long a stop that has ended is kept: clocks step back.
const ENDED: Duration = Duration::from_hours(1);

impl SqliteLedger {
    pub(super) async fn read_revocations(&self) -> Result<(), Unavailable> {
        let rows = Revocations::list(self).await?;
        // Not the highest row: those that ended are forgotten.
        let head: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'revocation'")
                .fetch_one(&self.pool)
                .await
                .map_err(away)?;
        self.revoked.send_replace(Arc::new(RevocationSet::new(head, &rows)));
        Ok(())
    }
}

#[async_trait]
impl Revocations for SqliteLedger {
    async fn add(&self, new: &NewRevocation, now: Timestamp) -> Result<Revocation, Unavailable> {
        let _changing = self.changing.lock().await;
        let ended = sqlx::query("DELETE FROM revocation WHERE until < ?").bind(to_sql(now.minus(ENDED)));
        ended.execute(&self.pool).await.map_err(away)?;
        let row = sqlx::query(
            "INSERT INTO revocation (kind, value, reason, by, at, until) VALUES (?, ?, ?, ?, ?, ?) RETURNING id, kind, value, reason, by, at, until",
        )
        .bind(new.kind.to_string())
        .bind(&new.value)
        .bind(&new.reason)
        .bind(&new.by)
        .bind(to_sql(now))
        .bind(new.until.map(to_sql));
        let row = returned(row, &self.pool).await?.ok_or_else(|| corrupt("an insert returned nothing"))?;
        self.read_revocations().await?;
        revocation(&row)
    }

    async fn lift(&self, id: i64, by: &str, now: Timestamp) -> Result<Option<Revocation>, Unavailable> {
        let _changing = self.changing.lock().await;
        let row = sqlx::query(
            "UPDATE revocation SET lifted_at = ?, lifted_by = ? WHERE id = ? AND lifted_at IS NULL RETURNING id, kind, value, reason, by, at, until",
        )
        .bind(to_sql(now))
        .bind(by)
        .bind(id);
        let row = returned(row, &self.pool).await?;
        self.read_revocations().await?;
        row.map(|r| revocation(&r)).transpose()
    }

    async fn list(&self) -> Result<Vec<Revocation>, Unavailable> {
        let rows = sqlx::query(
            "SELECT id, kind, value, reason, by, at, until FROM revocation WHERE lifted_at IS NULL ORDER BY id",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(away)?;
        rows.iter().map(revocation).collect()
    }

    fn watch(&self) -> watch::Receiver<Arc<RevocationSet>> {
        self.revoked.subscribe()
    }
}

fn revocation(row: &SqliteRow) -> Result<Revocation, Unavailable> {
    Ok(Revocation {
        id: row.get("id"),
        kind: row.get::<String, _>("kind").parse().map_err(corrupt)?,
        value: row.get("value"),
        reason: row.get("reason"),
        by: row.get("by"),
        at: from_sql(row.get("at")),
        until: row.get::<Option<i64>, _>("until").map(from_sql),
    })
}
