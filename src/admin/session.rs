//! One transaction on either database, so that each statement is written once.

use futures_util::TryStreamExt;
#[cfg(feature = "postgres")]
use sqlx::Postgres;
#[cfg(feature = "sqlite")]
use sqlx::Sqlite;
use sqlx::Transaction;

use super::database::{Database, for_either};
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::sql::dialect::{Access, Dialect};
use crate::store::sql::row::Row;
use crate::store::sql::statements::constant;
use crate::store::sql::store::SqlStore;
use crate::store::sql::value::Value;

/// A transaction. Dropped, it is rolled back.
pub(super) enum Session {
    #[cfg(feature = "sqlite")]
    Sqlite(StoreTransaction<Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(StoreTransaction<Postgres>),
}

/// A transaction, and the store that it is on.
pub(super) struct StoreTransaction<DB: Dialect> {
    store: SqlStore<DB>,
    transaction: Transaction<'static, DB>,
}

impl Session {
    /// Begins to read: everything as of one moment.
    pub(super) async fn read(database: &Database) -> Result<Self, StoreError> {
        Self::begin(database, Access::Read).await
    }

    /// Begins to write.
    pub(super) async fn write(database: &Database) -> Result<Self, StoreError> {
        Self::begin(database, Access::Write).await
    }

    /// Waits for the maintenance lock: the transaction holds up nobody but those who wait for it too.
    #[cfg(feature = "redis")]
    pub(super) async fn maintain(database: &Database) -> Result<Self, StoreError> {
        let mut session = Self::begin(database, Access::Maintain).await?;
        session.lock_maintenance().await?;
        Ok(session)
    }

    async fn begin(database: &Database, access: Access) -> Result<Self, StoreError> {
        match database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(store) => StoreTransaction::new(store, access).await.map(Self::Sqlite),
            #[cfg(feature = "postgres")]
            Database::Postgres(store) => {
                StoreTransaction::new(store, access).await.map(Self::Postgres)
            }
        }
    }

    /// Waits for whoever else changes many rows, the schema or the secrets, until the end of the
    /// transaction.
    pub(super) async fn lock_maintenance(&mut self) -> Result<(), StoreError> {
        for_either!(self, Self<DB>(open) => DB::lock_maintenance(&mut open.transaction).await)
    }

    /// Returns what adds the parts of the extension that are missing, or of another version.
    pub(super) async fn missing_schema(&mut self) -> Result<Vec<&'static str>, StoreError> {
        for_either!(self, Self<DB>(open) => DB::missing_schema(&mut open.transaction).await)
    }

    /// Runs a statement, and returns how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let statement = constant(statement);
        for_either!(self, Self<DB>(open) => {
            DB::execute_on(&mut open.transaction, statement, values).await
        })
    }

    /// Adds a record, and its owner where owners are the store's to create.
    pub(super) async fn insert(&mut self, record: &KeyRecord) -> Result<(), StoreError> {
        for_either!(self, Self<DB>(open) => open.insert(record).await)
    }

    /// Hands every row of an answer to `take` as it arrives: no answer is held in memory.
    pub(super) async fn each<E: From<StoreError>>(
        &mut self,
        query: &str,
        values: &[Value<'_>],
        mut take: impl FnMut(&dyn Row) -> Result<(), E>,
    ) -> Result<(), E> {
        for_either!(self, Self<DB>(open) => {
            let arguments = DB::arguments(values)?;
            let mut rows = DB::stream(&mut open.transaction, constant(query), arguments);
            while let Some(row) = rows.try_next().await.map_err(DB::store_error)? {
                take(&row)?;
            }
        });
        Ok(())
    }

    /// Reads all rows of an answer that is short.
    pub(super) async fn rows<T>(
        &mut self,
        query: &str,
        values: &[Value<'_>],
        mut read: impl FnMut(&dyn Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = Vec::new();
        let take = |row: &dyn Row| read(row).map(|row| rows.push(row));
        self.each(query, values, take).await?;
        Ok(rows)
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        for_either!(self, Self<DB>(open) => {
            open.transaction.commit().await.map_err(DB::store_error)
        })
    }

    pub(super) async fn rollback(self) -> Result<(), StoreError> {
        for_either!(self, Self<DB>(open) => {
            open.transaction.rollback().await.map_err(DB::store_error)
        })
    }
}

impl<DB: Dialect> StoreTransaction<DB> {
    async fn new(store: &SqlStore<DB>, access: Access) -> Result<Self, StoreError> {
        let transaction = DB::pool(&store.connections).begin_with(DB::begin(access)).await;
        Ok(Self { store: store.clone(), transaction: transaction.map_err(DB::store_error)? })
    }

    async fn insert(&mut self, record: &KeyRecord) -> Result<(), StoreError> {
        let Self { store, transaction } = self;
        if !record.owner_active {
            // Before the store creates an active one.
            store.create_owner(transaction, &record.owner, false).await?;
        }
        store.insert_on(transaction, record).await
    }
}
