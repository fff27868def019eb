//! Issued certificates in groups: whoever waits for a commit shares it with who came meanwhile.

use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};

use crate::domain::spiffe_id::SpiffeId;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::issued::IssuedCertificate;
use crate::store::sql::{PART, away, to_sql};

/// Certificates that share a commit at most.
const GROUP: usize = 256;

/// A certificate to be kept, and who waits for it.
pub(super) struct Recording {
    certificate: IssuedCertificate,
    now: Timestamp,
    done: oneshot::Sender<Result<bool, Unavailable>>,
}

/// Hands certificates to the one task that writes them.
pub(super) struct Recorder(mpsc::Sender<Recording>);

impl Recorder {
    /// Starts the task; it ends with the recorder.
    pub(super) fn start(pool: SqlitePool) -> Self {
        let (sender, mut waiting) = mpsc::channel(GROUP);
        tokio::spawn(async move {
            let mut group = Vec::with_capacity(GROUP);
            while waiting.recv_many(&mut group, GROUP).await > 0 {
                write(&pool, &mut group).await;
            }
        });
        Self(sender)
    }

    /// Keeps a certificate: true once it is durable, false if its key is another identity's.
    pub(super) async fn record(&self, certificate: &IssuedCertificate, now: Timestamp) -> Result<bool, Unavailable> {
        let gone = |_| Unavailable::new(PART, "its writer has ended");
        let (done, told) = oneshot::channel();
        let recording = Recording { certificate: certificate.clone(), now, done };
        self.0.send(recording).await.map_err(|_| Unavailable::new(PART, "its writer has ended"))?;
        told.await.map_err(gone)?
    }
}

/// One transaction for all: each hears of its own row, and of a commit that failed.
async fn write(pool: &SqlitePool, group: &mut Vec<Recording>) {
    let kept = insert(pool, group).await;
    for (i, recording) in group.drain(..).enumerate() {
        // Who no longer waits has gone.
        let _ = recording.done.send(kept.as_ref().map(|kept| kept[i]).map_err(Clone::clone));
    }
}

async fn insert(pool: &SqlitePool, group: &[Recording]) -> Result<Vec<bool>, Unavailable> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(away)?;
    let mut kept = Vec::with_capacity(group.len());
    for Recording { certificate, now, .. } in group {
        let done = sqlx::query(
            "INSERT INTO issued (serial, spiffe_id, jkt, not_after, attestation, der, issuer, first, attested_at, renewable, node) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11 WHERE NOT EXISTS (SELECT 1 FROM issued WHERE jkt = ?3 AND spiffe_id <> ?2 AND not_after > ?12)",
        )
        .bind(&certificate.serial)
        .bind(certificate.spiffe_id.as_str())
        .bind(certificate.jkt.to_string())
        .bind(to_sql(certificate.not_after))
        .bind(certificate.attestation_sha256.to_string())
        .bind(&certificate.der)
        .bind(&certificate.issuer)
        .bind(&certificate.lineage.first)
        .bind(to_sql(certificate.lineage.attested_at))
        .bind(certificate.lineage.renewable)
        .bind(certificate.lineage.node.as_ref().map(SpiffeId::as_str))
        .bind(to_sql(*now))
        .execute(&mut *transaction)
        .await
        .map_err(away)?;
        kept.push(done.rows_affected() == 1);
    }
    transaction.commit().await.map_err(away)?;
    Ok(kept)
}
