//! What is not the same in all databases.

use std::future::Future;

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::{Pool, SqlStr};

use super::row::Row;
use super::schema::Schema;
use super::value::Value;
use crate::error::StoreError;
use crate::store::Usage;
use crate::time_zone::TimeZone;

/// What a transaction does that may take longer than a request waits.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    /// It reads, everything as of one moment.
    Read,
    /// It writes, and soon gives up a lock that somebody else has.
    Write,
    /// It waits for the [maintenance lock](Dialect::LOCK_MAINTENANCE) for a minute.
    #[cfg(feature = "redis")]
    Maintain,
}

/// The answer to what runs on a connection.
pub(crate) type Answer<'c, T> = BoxFuture<'c, Result<T, StoreError>>;

/// A database, and what has to be done or said differently there.
///
/// Statements number their places `$1`, `$2` and so on. Both databases pass over a value that a statement
/// has no place for.
pub(crate) trait Dialect: sqlx::Database<Row: Row> {
    /// The name of a store in metrics.
    const STORE: &'static str;
    /// A query for the names of the columns of the table `$1`: no rows where there is no such table.
    const SELECT_COLUMNS: SqlStr;
    /// A value of `created_at` before every other, for rows that have none.
    const OLDEST: &'static str;
    /// The column `k.id` in the order of its bytes, whatever the collation.
    const ID_IN_BYTE_ORDER: &'static str;
    /// What locks the row that a query finds.
    const LOCK_ROW: &'static str;
    /// What waits for whoever else changes many rows, the schema or the secrets, until the end of the
    /// transaction. `None` where there is one transaction at a time that writes.
    const LOCK_MAINTENANCE: Option<SqlStr>;

    /// A pool of connections. Clones share it.
    type Connections: Clone + Send + Sync + 'static;

    fn pool(connections: &Self::Connections) -> &Pool<Self>;

    /// Returns what a transaction begins with.
    fn begin(access: Access) -> &'static str;

    /// Returns what an error of sqlx means to a caller.
    fn store_error(error: sqlx::Error) -> StoreError;

    /// Binds a value.
    fn bind(arguments: &mut Self::Arguments, value: &Value<'_>) -> Result<(), StoreError>;

    /// Runs a query, which changes nothing, in one round trip.
    fn fetch(
        connections: &Self::Connections,
        query: SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<Self::Row>, StoreError>> + Send;

    /// Runs a statement that writes, and returns how many rows it changed.
    fn execute(
        connections: &Self::Connections,
        statement: SqlStr,
        arguments: Self::Arguments,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Runs a transaction that writes. An error rolls it back.
    fn write<T: Send + 'static>(
        connections: &Self::Connections,
        work: impl FnOnce(&mut Self::Connection) -> Answer<'_, T> + Send + 'static,
    ) -> impl Future<Output = Result<T, StoreError>> + Send;

    /// Records uses of keys, all of them in one transaction.
    fn record_usage(
        connections: &Self::Connections,
        schema: &Schema,
        zone: &TimeZone,
        batch: &[Usage],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns what adds the parts of the extension that are missing, or of another version.
    fn missing_schema(connection: &mut Self::Connection) -> Answer<'_, Vec<&'static str>>;

    /// Streams the rows of a query.
    fn stream(
        connection: &mut Self::Connection,
        query: SqlStr,
        arguments: Self::Arguments,
    ) -> BoxStream<'_, sqlx::Result<Self::Row>>;

    /// Runs a statement, and returns how many rows it changed.
    fn run(
        connection: &mut Self::Connection,
        statement: SqlStr,
        arguments: Self::Arguments,
    ) -> impl Future<Output = sqlx::Result<u64>> + Send;

    /// Binds all values of a statement.
    fn arguments(values: &[Value<'_>]) -> Result<Self::Arguments, StoreError> {
        let mut arguments = Self::Arguments::default();
        values.iter().try_for_each(|value| Self::bind(&mut arguments, value))?;
        Ok(arguments)
    }

    /// Runs a query on a connection.
    fn fetch_on<'c>(
        connection: &'c mut Self::Connection,
        query: SqlStr,
        values: &[Value<'_>],
    ) -> Answer<'c, Vec<Self::Row>> {
        let arguments = Self::arguments(values);
        Box::pin(async move {
            let rows = Self::stream(connection, query, arguments?).try_collect().await;
            rows.map_err(Self::store_error)
        })
    }

    /// Runs a statement on a connection, and returns how many rows it changed.
    fn execute_on<'c>(
        connection: &'c mut Self::Connection,
        statement: SqlStr,
        values: &[Value<'_>],
    ) -> Answer<'c, u64> {
        let arguments = Self::arguments(values);
        Box::pin(async move {
            Self::run(connection, statement, arguments?).await.map_err(Self::store_error)
        })
    }

    /// Waits for the [maintenance lock](Self::LOCK_MAINTENANCE).
    fn lock_maintenance(connection: &mut Self::Connection) -> Answer<'_, ()> {
        Box::pin(async move {
            match Self::LOCK_MAINTENANCE {
                Some(lock) => Self::execute_on(connection, lock, &[]).await.map(drop),
                None => Ok(()),
            }
        })
    }
}
