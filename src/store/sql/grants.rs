//! Statements that were used, uses that were taken, and people as SCIM clients tell of them.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::scim_users::{ScimUser, ScimUsers};
use crate::store::sql::{SqliteLedger, away, corrupt, from_sql, returned, to_sql};
use crate::store::statements::{Statements, Tie};
use crate::store::uses::Uses;

#[async_trait]
impl Statements for SqliteLedger {
    async fn tie(&self, digest: Sha256, jkt: Jkt, until: Timestamp, now: Timestamp) -> Result<Tie, Unavailable> {
        let gone = sqlx::query("DELETE FROM statement WHERE until < ?").bind(to_sql(now));
        gone.execute(&self.pool).await.map_err(away)?;
        let first = sqlx::query("INSERT INTO statement (digest, jkt, until) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(digest.to_string())
            .bind(jkt.to_string())
            .bind(to_sql(until))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        if first.rows_affected() == 1 {
            return Ok(Tie::First);
        }
        let held = sqlx::query("SELECT jkt FROM statement WHERE digest = ?").bind(digest.to_string());
        let held = held.fetch_optional(&self.pool).await.map_err(away)?;
        let same = held.is_some_and(|row| row.get::<String, _>("jkt") == jkt.to_string());
        Ok(if same { Tie::Again } else { Tie::Another })
    }

    async fn known(&self, digest: Sha256, now: Timestamp) -> Result<bool, Unavailable> {
        let query = sqlx::query("SELECT 1 FROM statement WHERE digest = ? AND until > ?");
        let row = query.bind(digest.to_string()).bind(to_sql(now)).fetch_optional(&self.pool).await;
        Ok(row.map_err(away)?.is_some())
    }

    async fn confirm(&self, person: &str, at: Timestamp) -> Result<(), Unavailable> {
        sqlx::query(
            "INSERT INTO confirmed (person, at) VALUES (?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
        )
        .bind(person)
        .bind(to_sql(at))
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(away)
    }

    async fn confirmed(&self, person: &str) -> Result<Option<Timestamp>, Unavailable> {
        let query = sqlx::query("SELECT at FROM confirmed WHERE person = ?").bind(person);
        Ok(query.fetch_optional(&self.pool).await.map_err(away)?.map(|row| from_sql(row.get("at"))))
    }
}

#[async_trait]
impl Uses for SqliteLedger {
    async fn take(&self, grant: Sha256, spiffe_id: &SpiffeId, most: u32) -> Result<bool, Unavailable> {
        let taken = sqlx::query(
            "INSERT INTO uses (grant_id, spiffe_id, used) VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET used = used + 1 WHERE used < ?3 RETURNING used",
        )
        .bind(grant.to_string())
        .bind(spiffe_id.as_str())
        .bind(i64::from(most));
        Ok(returned(taken, &self.pool).await?.is_some())
    }

    async fn forget(&self, spiffe_id: &SpiffeId) -> Result<(), Unavailable> {
        let query = sqlx::query("DELETE FROM uses WHERE spiffe_id = ?").bind(spiffe_id.as_str());
        query.execute(&self.pool).await.map(drop).map_err(away)
    }
}

#[async_trait]
impl ScimUsers for SqliteLedger {
    async fn list(&self, provider: &str) -> Result<Vec<ScimUser>, Unavailable> {
        let query = sqlx::query(
            "SELECT provider, id, user_name, external_id, body FROM scim_user WHERE provider = ? ORDER BY user_name",
        );
        query.bind(provider).fetch_all(&self.pool).await.map_err(away)?.iter().map(user).collect()
    }

    async fn get(&self, provider: &str, id: &str) -> Result<Option<ScimUser>, Unavailable> {
        let query = sqlx::query(
            "SELECT provider, id, user_name, external_id, body FROM scim_user WHERE provider = ? AND id = ?",
        );
        let row = query.bind(provider).bind(id).fetch_optional(&self.pool).await.map_err(away)?;
        row.map(|row| user(&row)).transpose()
    }

    async fn create(&self, new: &ScimUser) -> Result<bool, Unavailable> {
        let done = sqlx::query(
            "INSERT INTO scim_user (provider, id, user_name, external_id, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&new.provider)
        .bind(&new.id)
        .bind(new.user_name.to_lowercase())
        .bind(&new.external_id)
        .bind(new.body.to_string())
        .execute(&self.pool)
        .await
        .map_err(away)?;
        Ok(done.rows_affected() == 1)
    }

    async fn replace(&self, new: &ScimUser) -> Result<bool, Unavailable> {
        let done = sqlx::query(
            "UPDATE OR IGNORE scim_user SET user_name = ?, external_id = ?, body = ? WHERE provider = ? AND id = ?",
        )
        .bind(new.user_name.to_lowercase())
        .bind(&new.external_id)
        .bind(new.body.to_string())
        .bind(&new.provider)
        .bind(&new.id)
        .execute(&self.pool)
        .await
        .map_err(away)?;
        Ok(done.rows_affected() == 1)
    }

    async fn delete(&self, provider: &str, id: &str) -> Result<(), Unavailable> {
        let query = sqlx::query("DELETE FROM scim_user WHERE provider = ? AND id = ?").bind(provider).bind(id);
        query.execute(&self.pool).await.map(drop).map_err(away)
    }
}

fn user(row: &SqliteRow) -> Result<ScimUser, Unavailable> {
    Ok(ScimUser {
        provider: row.get("provider"),
        id: row.get("id"),
        user_name: row.get("user_name"),
        external_id: row.get("external_id"),
        body: serde_json::from_str(&row.get::<String, _>("body")).map_err(corrupt)?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn ledger() -> (tempfile::TempDir, Arc<SqliteLedger>) {
        let dir = tempfile::tempdir().expect("tempdir");
        let ledger = SqliteLedger::open(&dir.path().join("l.db")).await.expect("opens");
        (dir, Arc::new(ledger))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t5_of_racing_takers_as_many_get_a_use_as_there_are() {
        let (_dir, ledger) = ledger().await;
        let id: SpiffeId = "spiffe://example.org/a".parse().expect("legal");
        let grant = Sha256::of(b"g");
        let racers = (0..20).map(|_| {
            let (ledger, id) = (ledger.clone(), id.clone());
            tokio::spawn(async move { ledger.take(grant, &id, 3).await.expect("answers") })
        });
        let mut taken = 0;
        for racer in racers.collect::<Vec<_>>() {
            taken += usize::from(racer.await.expect("ends"));
        }
        assert_eq!(taken, 3);
        assert!(!ledger.take(grant, &id, 3).await.expect("answers"), "never given back");
        assert!(ledger.take(grant, &id, 4).await.expect("answers"), "the count is of all uses");
        ledger.forget(&id).await.expect("forgets");
        assert!(ledger.take(grant, &id, 1).await.expect("answers"));
    }

    #[tokio::test]
    async fn g6_a_statement_is_tied_to_the_key_that_came_with_it_first() {
        let (_dir, ledger) = ledger().await;
        let (one, two, digest) = (Jkt([1; 32]), Jkt([2; 32]), Sha256::of(b"s"));
        let at = Timestamp::from_unix;
        assert_eq!(ledger.tie(digest, one, at(100), at(10)).await.expect("answers"), Tie::First);
        assert_eq!(ledger.tie(digest, one, at(100), at(20)).await.expect("answers"), Tie::Again);
        assert_eq!(ledger.tie(digest, two, at(100), at(99)).await.expect("answers"), Tie::Another);
        assert_eq!(ledger.tie(digest, two, at(300), at(101)).await.expect("answers"), Tie::First, "it ended");
    }
}
