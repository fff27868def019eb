//! Join tokens and issued certificates.

use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::domain::digest::Sha256;
use crate::domain::key::Jkt;
use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::issued::{Issued, IssuedCertificate, Lineage, LiveCertificate, Of, Renewal};
use crate::store::join_tokens::{JoinSpend, JoinTokens, RETRY_WINDOW};
use crate::store::sql::{SqliteLedger, away, corrupt, from_sql, returned, to_sql};

#[async_trait]
impl JoinTokens for SqliteLedger {
    async fn create(&self, digest: Sha256, spiffe_id: &SpiffeId, expires_at: Timestamp) -> Result<(), Unavailable> {
        sqlx::query("INSERT INTO join_token (digest, spiffe_id, expires_at) VALUES (?, ?, ?)")
            .bind(digest.to_string())
            .bind(spiffe_id.as_str())
            .bind(to_sql(expires_at))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(away)
    }

    async fn identity(&self, digest: Sha256) -> Result<Option<SpiffeId>, Unavailable> {
        let query = sqlx::query("SELECT spiffe_id FROM join_token WHERE digest = ?").bind(digest.to_string());
        query.fetch_optional(&self.pool).await.map_err(away)?.map(|row| identity(&row)).transpose()
    }

    async fn void(&self, spiffe_id: &SpiffeId) -> Result<(), Unavailable> {
        let query = sqlx::query("DELETE FROM join_token WHERE spiffe_id = ?").bind(spiffe_id.as_str());
        query.execute(&self.pool).await.map(drop).map_err(away)
    }

    async fn spend(&self, digest: Sha256, csr: Sha256, now: Timestamp) -> Result<JoinSpend, Unavailable> {
        let spent = sqlx::query(
            "UPDATE join_token SET spent_at = ?1, spent_csr = ?2 WHERE digest = ?3 AND spent_at IS NULL AND expires_at > ?1 RETURNING spiffe_id",
        )
        .bind(to_sql(now))
        .bind(csr.to_string())
        .bind(digest.to_string());
        if let Some(row) = returned(spent, &self.pool).await? {
            return Ok(JoinSpend::First(identity(&row)?));
        }
        let row = sqlx::query("SELECT spiffe_id, spent_at, spent_csr FROM join_token WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(away)?;
        let Some(row) = row else { return Ok(JoinSpend::Refused("unknown")) };
        let Some(spent_at) = row.get::<Option<i64>, _>("spent_at") else { return Ok(JoinSpend::Refused("expired")) };
        let same = row.get::<Option<String>, _>("spent_csr") == Some(csr.to_string());
        if same && now.since(from_sql(spent_at)) <= RETRY_WINDOW {
            return Ok(JoinSpend::Again(identity(&row)?));
        }
        Ok(JoinSpend::Refused("spent"))
    }
}

fn identity(row: &SqliteRow) -> Result<SpiffeId, Unavailable> {
    row.get::<String, _>("spiffe_id").parse().map_err(corrupt)
}

/// The columns of a certificate, before what chooses it.
macro_rules! certificates {
    ($choice:literal) => {
        concat!(
            "SELECT serial, spiffe_id, jkt, not_after, attestation, der, issuer, first, attested_at, renewable, node FROM issued WHERE ",
            $choice
        )
    };
}

/// Columns of a live certificate, before what chooses it; the end is bound first.
macro_rules! live {
    ($choice:literal) => {
        concat!("SELECT serial, spiffe_id, jkt, not_after, issuer, node FROM issued WHERE not_after > ?1", $choice)
    };
}

#[async_trait]
impl Issued for SqliteLedger {
    async fn record(&self, certificate: &IssuedCertificate, now: Timestamp) -> Result<bool, Unavailable> {
        self.recorder.record(certificate, now).await
    }

    async fn withdraw(&self, serial: &str) -> Result<(), Unavailable> {
        let query = sqlx::query("DELETE FROM issued WHERE serial = ?").bind(serial);
        query.execute(&self.pool).await.map(drop).map_err(away)
    }

    async fn by_attestation(&self, attestation: Sha256, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable> {
        let query = sqlx::query(certificates!("jkt = ?2 AND attestation = ?1"))
            .bind(attestation.to_string())
            .bind(jkt.to_string());
        query.fetch_optional(&self.pool).await.map_err(away)?.map(|row| certificate(&row)).transpose()
    }

    async fn by_key(&self, spiffe_id: &SpiffeId, jkt: Jkt) -> Result<Option<IssuedCertificate>, Unavailable> {
        let query = sqlx::query(certificates!("jkt = ? AND spiffe_id = ? ORDER BY not_after DESC LIMIT 1"))
            .bind(jkt.to_string())
            .bind(spiffe_id.as_str());
        query.fetch_optional(&self.pool).await.map_err(away)?.map(|row| certificate(&row)).transpose()
    }

    async fn held_by_another(&self, jkt: Jkt, spiffe_id: &SpiffeId, now: Timestamp) -> Result<bool, Unavailable> {
        sqlx::query("SELECT 1 FROM issued WHERE jkt = ? AND spiffe_id <> ? AND not_after > ? LIMIT 1")
            .bind(jkt.to_string())
            .bind(spiffe_id.as_str())
            .bind(to_sql(now))
            .fetch_optional(&self.pool)
            .await
            .map(|row| row.is_some())
            .map_err(away)
    }

    async fn by_serial(&self, serial: &str) -> Result<Option<IssuedCertificate>, Unavailable> {
        let query = sqlx::query(certificates!("serial = ?")).bind(serial);
        query.fetch_optional(&self.pool).await.map_err(away)?.map(|row| certificate(&row)).transpose()
    }

    async fn live(&self, of: Of<'_>, now: Timestamp) -> Result<Vec<LiveCertificate>, Unavailable> {
        let (sql, values): (_, &[&str]) = match of {
            Of::Everybody => (live!(""), &[]),
            Of::Identity(id) => (live!(" AND spiffe_id = ?2"), &[id.as_str()]),
            Of::Node(id) => (live!(" AND (node = ?2 OR spiffe_id = ?2)"), &[id.as_str()]),
            Of::Lineage(id, first) => (live!(" AND spiffe_id = ?2 AND first = ?3"), &[id.as_str(), first]),
        };
        let query = values.iter().fold(sqlx::query(sql).bind(to_sql(now)), |query, value| query.bind(*value));
        query.fetch_all(&self.pool).await.map_err(away)?.iter().map(live_certificate).collect()
    }

    async fn prune(&self, before: Timestamp) -> Result<u64, Unavailable> {
        let gone = sqlx::query("DELETE FROM issued WHERE not_after < ?").bind(to_sql(before)).execute(&self.pool).await;
        Ok(gone.map_err(away)?.rows_affected())
    }

    async fn claim_renewal(&self, serial: &str, jkt: Jkt) -> Result<Renewal, Unavailable> {
        let claimed = sqlx::query("UPDATE issued SET renewed_with = ? WHERE serial = ? AND renewed_with IS NULL")
            .bind(jkt.to_string())
            .bind(serial)
            .execute(&self.pool)
            .await
            .map_err(away)?;
        if claimed.rows_affected() == 1 {
            return Ok(Renewal::First);
        }
        let row = sqlx::query("SELECT renewed_with FROM issued WHERE serial = ?")
            .bind(serial)
            .fetch_optional(&self.pool)
            .await
            .map_err(away)?
            .ok_or_else(|| corrupt("a certificate that is not in the ledger asks for renewal"))?;
        let same = row.get::<Option<String>, _>("renewed_with") == Some(jkt.to_string());
        Ok(if same { Renewal::Again } else { Renewal::Conflict })
    }
}

fn certificate(row: &SqliteRow) -> Result<IssuedCertificate, Unavailable> {
    let text = |name: &str| row.get::<String, _>(name);
    Ok(IssuedCertificate {
        serial: text("serial"),
        spiffe_id: identity(row)?,
        jkt: text("jkt").parse().map_err(corrupt)?,
        not_after: from_sql(row.get("not_after")),
        attestation_sha256: Sha256::from_hex(&text("attestation")).ok_or_else(|| corrupt("attestation"))?,
        der: row.get("der"),
        issuer: row.get("issuer"),
        lineage: Lineage {
            first: text("first"),
            attested_at: from_sql(row.get("attested_at")),
            renewable: row.get("renewable"),
            node: node(row)?,
        },
    })
}

fn live_certificate(row: &SqliteRow) -> Result<LiveCertificate, Unavailable> {
    Ok(LiveCertificate {
        serial: row.get("serial"),
        spiffe_id: identity(row)?,
        jkt: row.get::<String, _>("jkt").parse().map_err(corrupt)?,
        not_after: from_sql(row.get("not_after")),
        issuer_sha256: Sha256::of(row.get::<&[u8], _>("issuer")),
        node: node(row)?,
    })
}

fn node(row: &SqliteRow) -> Result<Option<SpiffeId>, Unavailable> {
    row.get::<Option<String>, _>("node").map(|n| n.parse().map_err(corrupt)).transpose()
}
