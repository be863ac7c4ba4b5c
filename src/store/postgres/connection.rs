//! Leases of connections, and what an error of the database means.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgPool, Postgres};
use tokio::time::timeout;

use crate::error::StoreError;

/// A connection from the pool. Unless its work [ended](Self::end), it is closed and not returned: an
/// answer may still be on its way to whoever had it next.
pub(super) struct Lease {
    pub(super) connection: PoolConnection<Postgres>,
    ended: bool,
}

impl Lease {
    pub(super) async fn from(pool: &PgPool) -> Result<Self, StoreError> {
        let connection = pool.acquire().await.map_err(unavailable)?;
        Ok(Self { connection, ended: false })
    }

    pub(super) fn end(mut self) {
        self.ended = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.ended {
            self.connection.close_on_drop();
        }
    }
}

/// Gives up `work` after `patience`.
pub(super) async fn limited<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let answer = timeout(patience, work).await;
    answer.unwrap_or_else(|elapsed| Err(StoreError::Unavailable(elapsed.into())))
}

/// What a failure of sqlx means to a caller. PostgreSQL's codes:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
pub(super) fn unavailable(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|database| database.code()).as_deref() {
        // unique_violation
        Some("23505") => StoreError::Conflict,
        // read_only_sql_transaction, insufficient_privilege
        Some("25006" | "42501") => StoreError::ReadOnly(error.into()),
        // data_corrupted, index_corrupted
        Some("XX001" | "XX002") => StoreError::Corrupt(error.into()),
        _ => StoreError::Unavailable(error.into()),
    }
}
