//! What is particular to SQLite in the statements of a store, and in how they are run.

use std::time::SystemTime;

use futures_util::stream::BoxStream;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Arguments, Decode, Row as _, SqlStr, Type};

use super::connections::{BEGIN_WRITE, SqliteConnections, begin_write};
use super::error::store_error;
use super::schema;
use super::timestamp::{from_text, to_text};
use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::store::Usage;
use crate::store::sql::dialect::{Access, Answer, Dialect};
use crate::store::sql::row::Row;
use crate::store::sql::schema::Schema;
use crate::store::sql::statements::constant;
use crate::store::sql::timestamp::Timestamp;
use crate::store::sql::value::Value;
use crate::time_zone::TimeZone;

impl Dialect for Sqlite {
    const STORE: &'static str = "sqlite";
    const SELECT_COLUMNS: SqlStr = SqlStr::from_static("SELECT name FROM pragma_table_info($1)");
    const OLDEST: &'static str = "";
    const ID_IN_BYTE_ORDER: &'static str = "k.id";
    const LOCK_ROW: &'static str = "";
    const LOCK_MAINTENANCE: Option<SqlStr> = None;

    type Connections = SqliteConnections;

    fn pool(connections: &SqliteConnections) -> &SqlitePool {
        &connections.pool
    }

    fn begin(access: Access) -> &'static str {
        if matches!(access, Access::Read) { "BEGIN" } else { BEGIN_WRITE }
    }

    fn store_error(error: sqlx::Error) -> StoreError {
        store_error(error)
    }

    fn bind(arguments: &mut SqliteArguments, value: &Value<'_>) -> Result<(), StoreError> {
        let bound = match value {
            Value::Text(text) => Arguments::add(arguments, text.as_deref()),
            Value::Flag(flag) => Arguments::add(arguments, *flag),
            Value::Count(count) => Arguments::add(arguments, count.cast_signed()),
            Value::Time(column, time) => {
                let time = time.map(|time| Timestamp::new(column, time)).transpose()?;
                Arguments::add(arguments, time.map(to_text))
            }
        };
        bound.map_err(StoreError::Unavailable)
    }

    async fn fetch(
        connections: &SqliteConnections,
        query: SqlStr,
        values: &[Value<'_>],
    ) -> Result<Vec<SqliteRow>, StoreError> {
        connections.file.require_current()?;
        let query = sqlx::query_with(query, Self::arguments(values)?);
        query.fetch_all(&connections.pool).await.map_err(store_error)
    }

    async fn execute(
        connections: &SqliteConnections,
        statement: SqlStr,
        arguments: SqliteArguments,
    ) -> Result<u64, StoreError> {
        connections.file.require_current()?;
        let query = sqlx::query_with(statement, arguments);
        Ok(query.execute(&connections.pool).await.map_err(store_error)?.rows_affected())
    }

    async fn write<T: Send + 'static>(
        connections: &SqliteConnections,
        work: impl FnOnce(&mut SqliteConnection) -> Answer<'_, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        connections.file.require_current()?;
        let mut transaction = begin_write(&connections.pool).await?;
        let done = work(&mut transaction).await?;
        transaction.commit().await.map_err(store_error)?;
        Ok(done)
    }

    async fn record_usage(
        connections: &SqliteConnections,
        schema: &Schema,
        zone: &TimeZone,
        batch: &[Usage],
    ) -> Result<(), StoreError> {
        connections.file.require_current()?;
        let update = if schema.has_extra_columns() {
            constant(format!(
                "UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, ''), $2), hash_format = \
                 CASE $3 WHEN '{}' THEN $3 ELSE coalesce(hash_format, $3) END WHERE id = $1",
                HashFormat::HmacSha256
            ))
        } else {
            SqlStr::from_static(
                "UPDATE api_keys SET last_used_at = $2 \
                 WHERE id = $1 AND coalesce(last_used_at, '') < $2",
            )
        };
        let mut transaction = begin_write(&connections.pool).await?;
        for Usage { id, at, format } in batch {
            let at = Value::Time("last_used_at", Some(zone.to_local(*at)));
            let values = [id.into(), at, (*format).into()];
            Self::execute_on(&mut transaction, update.clone(), &values).await?;
        }
        transaction.commit().await.map_err(store_error)
    }

    fn missing_schema(connection: &mut SqliteConnection) -> Answer<'_, Vec<&'static str>> {
        Box::pin(schema::missing(connection))
    }

    fn stream(
        connection: &mut SqliteConnection,
        query: SqlStr,
        arguments: SqliteArguments,
    ) -> BoxStream<'_, sqlx::Result<SqliteRow>> {
        sqlx::query_with(query, arguments).fetch(connection)
    }

    async fn run(
        connection: &mut SqliteConnection,
        statement: SqlStr,
        arguments: SqliteArguments,
    ) -> sqlx::Result<u64> {
        let done = sqlx::query_with(statement, arguments).execute(connection).await?;
        Ok(done.rows_affected())
    }
}

impl Row for SqliteRow {
    fn text(&self, index: usize) -> Result<Option<&str>, StoreError> {
        read(self, index)
    }

    /// Reads a boolean as SQLAlchemy writes it.
    fn flag(&self, index: usize) -> Result<Option<bool>, StoreError> {
        match read(self, index)? {
            None => Ok(None),
            Some(0_i64) => Ok(Some(false)),
            Some(1) => Ok(Some(true)),
            Some(_) => Err(StoreError::Unavailable("a boolean is neither 0 nor 1".into())),
        }
    }

    fn count(&self, index: usize) -> Result<u64, StoreError> {
        Ok(read::<Option<i64>>(self, index)?.unwrap_or_default().unsigned_abs())
    }

    fn time(&self, index: usize) -> Result<Option<SystemTime>, StoreError> {
        let Some(text) = self.text(index)? else { return Ok(None) };
        let time =
            from_text(text).ok_or_else(|| StoreError::Unavailable("a time is none".into()))?;
        Ok(Some(time.to_time()))
    }
}

fn read<'r, T>(row: &'r SqliteRow, index: usize) -> Result<T, StoreError>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
{
    row.try_get(index).map_err(store_error)
}
