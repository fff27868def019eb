//! The ledger in SQL. SQLite, in WAL mode with `synchronous=FULL`, serves one replica.

mod approvals;
mod bundles;
mod enrolment;
mod grants;
mod migrate;
mod nodes;
mod recorder;
mod registry;
mod stops;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Sqlite, SqlitePool};
use tokio::sync::watch;

use crate::domain::node::Node;
use crate::domain::people::Person;
use crate::domain::registry::Registry;
use crate::domain::revocation::RevocationSet;
use crate::domain::time::Timestamp;
use crate::store::Unavailable;
use crate::store::bundles::ForeignBundle;
use crate::store::keys::PublishedKey;
use crate::store::sql::recorder::Recorder;

const PART: &str = "the ledger";

/// Rows that every request reads, held in memory and replaced after each change.
#[derive(Default)]
struct Held {
    registry: Registry,
    people: BTreeMap<String, Person>,
    nodes: BTreeMap<String, Node>,
    bundles: BTreeMap<String, ForeignBundle>,
    keys: Vec<PublishedKey>,
}

/// The ledger of a single replica.
pub struct SqliteLedger {
    recorder: Recorder,
    pool: SqlitePool,
    held: RwLock<Held>,
    /// Held over each change and the reading that follows it, so that no older reading replaces a newer one.
    changing: tokio::sync::Mutex<()>,
    revoked: watch::Sender<Arc<RevocationSet>>,
    approval_changes: watch::Sender<u64>,
    entry_changes: watch::Sender<u64>,
    bundle_changes: watch::Sender<u64>,
}

impl SqliteLedger {
    /// Opens or creates the ledger file and reads what is held in memory.
    pub async fn open(file: &Path) -> Result<Self, Unavailable> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.map_err(away)?;
        migrate::migrate(&pool).await?;
        let ledger = Self {
            recorder: Recorder::start(pool.clone()),
            pool,
            held: RwLock::default(),
            changing: tokio::sync::Mutex::default(),
            revoked: watch::channel(Arc::default()).0,
            approval_changes: watch::channel(0).0,
            entry_changes: watch::channel(0).0,
            bundle_changes: watch::channel(0).0,
        };
        ledger.read_entries().await?;
        ledger.read_templates().await?;
        ledger.read_people().await?;
        ledger.read_nodes().await?;
        ledger.read_bundles().await?;
        ledger.read_keys().await?;
        ledger.read_revocations().await?;
        Ok(ledger)
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Finishes writing and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

fn away(error: sqlx::Error) -> Unavailable {
    Unavailable::new(PART, error)
}

/// Runs a change to its end and gives the row that it returns. A statement that is left after its first row commits when it
/// is dropped, and then nobody hears that the commit failed.
async fn returned(
    query: Query<'_, Sqlite, SqliteArguments>,
    pool: &SqlitePool,
) -> Result<Option<SqliteRow>, Unavailable> {
    Ok(query.fetch_all(pool).await.map_err(away)?.pop())
}

fn corrupt(what: impl std::fmt::Display) -> Unavailable {
    Unavailable::new(PART, format!("a row cannot be read: {what}"))
}

fn to_sql(at: Timestamp) -> i64 {
    i64::try_from(at.millis()).unwrap_or(i64::MAX)
}

fn from_sql(at: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(at).unwrap_or(0))
}
