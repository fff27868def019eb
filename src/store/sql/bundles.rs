//! Bundles of federated trust domains.

use async_trait::async_trait;
use sqlx::Row as _;
use tokio::sync::watch;

use crate::domain::spiffe_id::TrustDomain;
use crate::store::Unavailable;
use crate::store::bundles::{Bundles, ForeignBundle};
use crate::store::sql::{SqliteLedger, away, corrupt, from_sql, to_sql};

impl SqliteLedger {
    pub(super) async fn read_bundles(&self) -> Result<(), Unavailable> {
        let rows =
            sqlx::query("SELECT trust_domain, document, source, read_at FROM bundle").fetch_all(&self.pool).await;
        let bundle = |row: &sqlx::sqlite::SqliteRow| {
            let trust_domain = TrustDomain::parse(&row.get::<String, _>("trust_domain")).map_err(corrupt)?;
            let (document, source, read_at) = (row.get("document"), row.get("source"), from_sql(row.get("read_at")));
            Ok((trust_domain.to_string(), ForeignBundle { trust_domain, document, source, read_at }))
        };
        let bundles = rows.map_err(away)?.iter().map(bundle).collect::<Result<_, Unavailable>>()?;
        self.replace(|held| held.bundles = bundles);
        self.bundle_changes.send_modify(|n| *n += 1);
        Ok(())
    }
}

#[async_trait]
impl Bundles for SqliteLedger {
    fn list(&self) -> Vec<ForeignBundle> {
        self.held().bundles.values().cloned().collect()
    }

    async fn put(&self, bundle: &ForeignBundle) -> Result<(), Unavailable> {
        let _changing = self.changing.lock().await;
        sqlx::query("INSERT OR REPLACE INTO bundle (trust_domain, document, source, read_at) VALUES (?, ?, ?, ?)")
            .bind(bundle.trust_domain.as_str())
            .bind(&bundle.document)
            .bind(&bundle.source)
            .bind(to_sql(bundle.read_at))
            .execute(&self.pool)
            .await
            .map_err(away)?;
        self.read_bundles().await
    }

    async fn delete(&self, trust_domain: &TrustDomain) -> Result<bool, Unavailable> {
        let _changing = self.changing.lock().await;
        let gone = sqlx::query("DELETE FROM bundle WHERE trust_domain = ?").bind(trust_domain.as_str());
        let gone = gone.execute(&self.pool).await.map_err(away)?;
        self.read_bundles().await?;
        Ok(gone.rows_affected() > 0)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.bundle_changes.subscribe()
    }
}
