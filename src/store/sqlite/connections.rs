//! The connections of a store, and the file that they have open.

use std::time::Duration;

use sqlx::Sqlite;
use sqlx::Transaction;
use sqlx::sqlite::SqlitePool;

use super::error::store_error;
use super::file::OpenedFile;
use crate::error::StoreError;

/// How long a call waits for a lock or for a connection before the store is unavailable: a request
/// waits behind it.
pub(super) const WAIT_LIMIT: Duration = Duration::from_secs(2);

/// The connections of a store. Clones share them.
#[derive(Clone)]
pub(crate) struct SqliteConnections {
    pub(super) pool: SqlitePool,
    pub(super) file: OpenedFile,
}

/// Begins a transaction that writes: there is one at a time.
pub(super) const BEGIN_WRITE: &str = "BEGIN IMMEDIATE";

/// Begins a transaction that writes.
pub(super) async fn begin_write(
    pool: &SqlitePool,
) -> Result<Transaction<'static, Sqlite>, StoreError> {
    pool.begin_with(BEGIN_WRITE).await.map_err(store_error)
}
