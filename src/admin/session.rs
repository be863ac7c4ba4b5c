//! One transaction on either database, so that each statement is written once.

use std::time::SystemTime;

use futures_util::TryStreamExt;
use sqlx::Row as _;

use super::database::Database;
use crate::error::StoreError;
use crate::record::KeyRecord;
#[cfg(feature = "postgres")]
use crate::store::postgres::{self, row::Timestamp};
use crate::store::sql::constant;
#[cfg(feature = "sqlite")]
use crate::store::sqlite::{self, timestamp};
use crate::time_zone::TimeZone;

/// A value to be bound.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Text(&'a str),
    /// For columns of local times: what [`TimeZone`] makes of a time.
    Time(SystemTime),
    OptionalTime(Option<SystemTime>),
    Count(u64),
}

/// A transaction. Dropped, it is rolled back.
pub(super) enum Session {
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::Transaction<'static, sqlx::Postgres>),
}

/// A row of an answer.
pub(super) enum Row {
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::sqlite::SqliteRow),
    #[cfg(feature = "postgres")]
    Postgres(sqlx::postgres::PgRow),
}

#[cfg(feature = "sqlite")]
macro_rules! sqlite_query {
    ($statement:expr, $values:expr) => {{
        let mut query = sqlx::query::<sqlx::Sqlite>(constant($statement));
        for value in $values {
            query = match *value {
                Value::Text(text) => query.bind(text),
                Value::Time(time) => query.bind(timestamp::to_text("a date", time)?),
                Value::OptionalTime(time) => {
                    query.bind(timestamp::to_text_optional("a date", time)?)
                }
                Value::Count(count) => query.bind(count.cast_signed()),
            };
        }
        query
    }};
}

#[cfg(feature = "postgres")]
macro_rules! postgres_query {
    ($statement:expr, $values:expr) => {{
        let mut query = sqlx::query::<sqlx::Postgres>(constant($statement));
        for value in $values {
            query = match *value {
                Value::Text(text) => query.bind(text),
                Value::Time(time) => query.bind(Timestamp::new("a date", time)?),
                Value::OptionalTime(time) => query.bind(Timestamp::optional("a date", time)?),
                Value::Count(count) => query.bind(count.cast_signed()),
            };
        }
        query
    }};
}

impl Session {
    /// Begins to read: everything as of one moment.
    pub(super) async fn read(database: &Database) -> Result<Self, StoreError> {
        match database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(store) => {
                let transaction = store.pool.begin().await.map_err(sqlite::unavailable)?;
                Ok(Self::Sqlite(transaction))
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(store) => {
                let isolation = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY";
                Self::on_postgres(store, isolation).await
            }
        }
    }

    /// Begins to write.
    pub(super) async fn write(database: &Database) -> Result<Self, StoreError> {
        match database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(store) => {
                let transaction = store.pool.begin_with("BEGIN IMMEDIATE").await;
                Ok(Self::Sqlite(transaction.map_err(sqlite::unavailable)?))
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(store) => {
                // Behind a lock that one waits for, everybody waits who comes after.
                Self::on_postgres(store, "SET LOCAL lock_timeout = '2s'").await
            }
        }
    }

    /// Waits for the turn of this transaction: it holds up nobody but those who wait for theirs.
    #[cfg(feature = "redis")]
    pub(super) async fn turn(database: &Database) -> Result<Self, StoreError> {
        let mut session = match database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(_) => Self::write(database).await?,
            #[cfg(feature = "postgres")]
            Database::Postgres(store) => {
                Self::on_postgres(store, "SET LOCAL lock_timeout = '1min'").await?
            }
        };
        session.take_turns().await?;
        Ok(session)
    }

    #[cfg(feature = "postgres")]
    async fn on_postgres(
        store: &crate::store::PostgresStore,
        first: &'static str,
    ) -> Result<Self, StoreError> {
        let pool = store.connections.pool();
        let mut transaction = pool.begin().await.map_err(postgres::connection::unavailable)?;
        // The limit of a store is that of a request; a whole table takes longer.
        for statement in [first, "SET LOCAL statement_timeout = 0"] {
            let set = sqlx::raw_sql(statement).execute(&mut *transaction).await;
            set.map_err(postgres::connection::unavailable)?;
        }
        Ok(Self::Postgres(transaction))
    }

    /// Waits for whoever else changes many rows, the schema or the secrets, until the end of the
    /// transaction.
    pub(super) async fn take_turns(&mut self) -> Result<(), StoreError> {
        match self {
            // There is one writer at a time.
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => Ok(()),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => postgres::schema::take_turns(transaction).await,
        }
    }

    /// Runs a statement, and returns how many rows it changed.
    pub(super) async fn execute(
        &mut self,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(transaction) => {
                let done = sqlite_query!(statement, values).execute(&mut **transaction).await;
                Ok(done.map_err(sqlite::unavailable)?.rows_affected())
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => {
                let done = postgres_query!(statement, values).execute(&mut **transaction).await;
                Ok(done.map_err(postgres::connection::unavailable)?.rows_affected())
            }
        }
    }

    /// Hands every row of an answer to `take` as it arrives: no answer is held in memory.
    pub(super) async fn each<E: From<StoreError>>(
        &mut self,
        statement: &str,
        values: &[Value<'_>],
        mut take: impl FnMut(Row) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(transaction) => {
                let mut rows = sqlite_query!(statement, values).fetch(&mut **transaction);
                while let Some(row) = rows.try_next().await.map_err(sqlite::unavailable)? {
                    take(Row::Sqlite(row))?;
                }
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => {
                let mut rows = postgres_query!(statement, values).fetch(&mut **transaction);
                let unavailable = postgres::connection::unavailable;
                while let Some(row) = rows.try_next().await.map_err(unavailable)? {
                    take(Row::Postgres(row))?;
                }
            }
        }
        Ok(())
    }

    /// Returns all rows of an answer that is short.
    pub(super) async fn rows(
        &mut self,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        self.each(statement, values, |row| {
            rows.push(row);
            Ok::<_, StoreError>(())
        })
        .await?;
        Ok(rows)
    }

    /// Returns the one row of an answer that has one.
    pub(super) async fn row(
        &mut self,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<Row, StoreError> {
        let first = self.rows(statement, values).await?.into_iter().next();
        first.ok_or_else(|| StoreError::Unavailable(sqlx::Error::RowNotFound.into()))
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(transaction) => transaction.commit().await.map_err(sqlite::unavailable),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => {
                transaction.commit().await.map_err(postgres::connection::unavailable)
            }
        }
    }

    pub(super) async fn rollback(self) -> Result<(), StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(transaction) => transaction.rollback().await.map_err(sqlite::unavailable),
            #[cfg(feature = "postgres")]
            Self::Postgres(transaction) => {
                transaction.rollback().await.map_err(postgres::connection::unavailable)
            }
        }
    }
}

impl Row {
    /// Returns the record, where the query began as [`Statements`](crate::store::sql::Statements) has it.
    pub(super) fn record(&self, zone: &TimeZone) -> Result<KeyRecord, StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(row) => sqlite::row::read_record(row, zone),
            #[cfg(feature = "postgres")]
            Self::Postgres(row) => postgres::row::read_record(row, zone),
        }
    }

    pub(super) fn optional_text(&self, index: usize) -> Result<Option<String>, StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(row) => row.try_get(index).map_err(sqlite::unavailable),
            #[cfg(feature = "postgres")]
            Self::Postgres(row) => row.try_get(index).map_err(postgres::connection::unavailable),
        }
    }

    pub(super) fn text(&self, index: usize) -> Result<String, StoreError> {
        Ok(self.optional_text(index)?.unwrap_or_default())
    }

    /// Returns the time. From columns of local times it takes a [`TimeZone`] to make a time of it.
    pub(super) fn time(&self, index: usize) -> Result<Option<SystemTime>, StoreError> {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => {
                Ok(self.optional_text(index)?.as_deref().and_then(timestamp::from_text))
            }
            #[cfg(feature = "postgres")]
            Self::Postgres(row) => {
                let time: Option<Timestamp> =
                    row.try_get(index).map_err(postgres::connection::unavailable)?;
                Ok(time.map(Timestamp::to_time))
            }
        }
    }

    pub(super) fn count(&self, index: usize) -> Result<u64, StoreError> {
        let count: i64 = match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(row) => row.try_get(index).map_err(sqlite::unavailable)?,
            #[cfg(feature = "postgres")]
            Self::Postgres(row) => row.try_get(index).map_err(postgres::connection::unavailable)?,
        };
        Ok(count.unsigned_abs())
    }
}
