//! The ledger's schema by versions: each step runs once, in its own transaction with the version it leads to.

use sqlx::{Row as _, SqlitePool};

use crate::store::Unavailable;
use crate::store::sql::away;

/// Steps in order; a released one never changes.
const STEPS: [&str; 3] = [include_str!("schema.sql"), include_str!("schema2.sql"), include_str!("schema3.sql")];

/// Brings a ledger to this version; one of a newer version is refused.
pub(super) async fn migrate(pool: &SqlitePool) -> Result<(), Unavailable> {
    let row = sqlx::query("PRAGMA user_version").fetch_one(pool).await.map_err(away)?;
    let at = usize::try_from(row.get::<i64, _>(0)).unwrap_or(0);
    if at > STEPS.len() {
        let cause = format!("it has version {at}, and this popgate knows {}: use the newer one", STEPS.len());
        return Err(Unavailable::new("the ledger", cause));
    }
    for (version, step) in STEPS.iter().enumerate().skip(at) {
        let sql = format!("BEGIN; {step}; PRAGMA user_version = {}; COMMIT;", version + 1);
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.map_err(away)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::SqliteLedger;

    #[tokio::test]
    async fn a_ledger_of_the_first_version_is_brought_up_and_a_newer_one_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("ledger.db");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let pool = SqlitePool::connect_with(options).await.expect("opens");
        sqlx::raw_sql(STEPS[0]).execute(&pool).await.expect("makes the first version");
        let row = "INSERT INTO issued VALUES ('0a', 'spiffe://example.org/a', '', 5, '', x'', x'', NULL)";
        sqlx::raw_sql(row).execute(&pool).await.expect("a row of the first version");
        SqliteLedger::open(&file).await.expect("is brought up");
        SqliteLedger::open(&file).await.expect("and opens again");
        let row = sqlx::query("SELECT first FROM issued").fetch_one(&pool).await.expect("reads");
        assert_eq!(row.get::<String, _>(0), "0a", "an old certificate is the first of its lineage");
        sqlx::raw_sql("PRAGMA user_version = 99").execute(&pool).await.expect("sets");
        let refused = SqliteLedger::open(&file).await.err().expect("is refused");
        assert!(refused.cause.contains("version 99"), "{refused}");
    }
}
