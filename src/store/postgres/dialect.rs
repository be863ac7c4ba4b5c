//! What is particular to PostgreSQL in the statements of a store, and in how they are run.

use std::time::SystemTime;

use futures_util::stream::BoxStream;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::{Arguments, Decode, Row as _, SqlStr, Type};

use super::connections::{Connections, Lease};
use super::error::{is_broken, store_error};
use super::schema;
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

impl Dialect for Postgres {
    const STORE: &'static str = "postgres";
    const SELECT_COLUMNS: SqlStr = SqlStr::from_static(
        "SELECT attname::text FROM pg_attribute \
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    );
    const OLDEST: &'static str = "-infinity";
    const ID_IN_BYTE_ORDER: &'static str = "k.id COLLATE \"C\"";
    const LOCK_ROW: &'static str = "FOR UPDATE OF k";
    /// An arbitrary number: the ASCII codes of `lxk_`.
    const LOCK_MAINTENANCE: Option<SqlStr> =
        Some(SqlStr::from_static("SELECT pg_advisory_xact_lock(1819831135)"));

    type Connections = Connections;

    fn pool(connections: &Connections) -> &PgPool {
        connections.pool()
    }

    fn begin(access: Access) -> &'static str {
        // The time limit of a store is that of a request; a whole table takes longer. Whoever waits for a
        // lock keeps everybody waiting who comes after.
        match access {
            Access::Read => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0"
            }
            Access::Write => {
                "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = 0"
            }
            #[cfg(feature = "redis")]
            Access::Maintain => {
                "BEGIN; SET LOCAL lock_timeout = '1min'; SET LOCAL statement_timeout = 0"
            }
        }
    }

    fn store_error(error: sqlx::Error) -> StoreError {
        store_error(error)
    }

    fn bind(arguments: &mut PgArguments, value: &Value<'_>) -> Result<(), StoreError> {
        let bound = match value {
            Value::Text(text) => Arguments::add(arguments, text.as_deref()),
            Value::Flag(flag) => Arguments::add(arguments, *flag),
            Value::Count(count) => Arguments::add(arguments, count.cast_signed()),
            Value::Time(column, time) => {
                let time = time.map(|time| Timestamp::new(column, time)).transpose()?;
                Arguments::add(arguments, time)
            }
        };
        bound.map_err(StoreError::Unavailable)
    }

    /// Runs the query once more where the connection turns out to have broken, as all do that nobody used
    /// while the server restarted.
    async fn fetch(
        connections: &Connections,
        query: SqlStr,
        values: &[Value<'_>],
    ) -> Result<Vec<PgRow>, StoreError> {
        let query =
            || Ok::<_, StoreError>(sqlx::query_with(query.clone(), Self::arguments(values)?));
        let work = async {
            let mut lease = connections.lease().await?;
            let mut rows = query()?.fetch_all(&mut *lease).await;
            if is_broken(&rows) {
                drop(lease); // first, so that there is room for another
                lease = connections.lease_tested().await?;
                rows = query()?.fetch_all(&mut *lease).await;
            }
            lease.end_after(&rows);
            rows.map_err(store_error)
        };
        connections.with_time_limit(work).await
    }

    async fn execute(
        connections: &Connections,
        statement: SqlStr,
        arguments: PgArguments,
    ) -> Result<u64, StoreError> {
        let query = sqlx::query_with(statement, arguments);
        connections.write(|lease| lease.execute(query)).await
    }

    async fn write<T: Send + 'static>(
        connections: &Connections,
        work: impl FnOnce(&mut PgConnection) -> Answer<'_, T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let transaction = |mut lease: Lease| async move {
            let mut transaction = lease.begin_write().await?;
            let done = work(&mut transaction).await?;
            transaction.commit().await.map_err(store_error)?;
            lease.end();
            Ok(done)
        };
        connections.write(transaction).await
    }

    async fn record_usage(
        connections: &Connections,
        schema: &Schema,
        zone: &TimeZone,
        batch: &[Usage],
    ) -> Result<(), StoreError> {
        let format = if schema.has_extra_columns() {
            format!(
                ", hash_format = CASE b.hash_format WHEN '{}' THEN b.hash_format \
                 ELSE coalesce(k.hash_format, b.hash_format) END",
                HashFormat::HmacSha256
            )
        } else {
            String::new()
        };
        // In order of id, so that instances that write the same rows do not deadlock. Of several uses of a
        // key the least format: HMAC-SHA-256, if it is among them.
        let update = constant(format!(
            "WITH batch AS (SELECT id, max(at) AS at, min(hash_format) AS hash_format \
             FROM unnest($1::varchar[], $2::timestamp[], $3::varchar[]) AS batch (id, at, hash_format) \
             GROUP BY id), \
             locked AS (SELECT id FROM api_keys WHERE id IN (SELECT id FROM batch) ORDER BY id FOR UPDATE) \
             UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, b.at){format} \
             FROM batch b JOIN locked l ON l.id = b.id WHERE k.id = b.id"
        ));
        let ids: Vec<_> = batch.iter().map(|usage| usage.id.to_string()).collect();
        let times =
            batch.iter().map(|usage| Timestamp::new("last_used_at", zone.to_local(usage.at)));
        let times = times.collect::<Result<Vec<_>, _>>()?;
        let formats: Vec<_> = batch.iter().map(|usage| usage.format.as_str()).collect();
        let update = sqlx::query(update).bind(ids).bind(times).bind(formats);
        connections.write(|lease| lease.execute(update)).await.map(drop)
    }

    fn missing_schema(connection: &mut PgConnection) -> Answer<'_, Vec<&'static str>> {
        Box::pin(schema::missing(connection))
    }

    fn stream(
        connection: &mut PgConnection,
        query: SqlStr,
        arguments: PgArguments,
    ) -> BoxStream<'_, sqlx::Result<PgRow>> {
        sqlx::query_with(query, arguments).fetch(connection)
    }

    async fn run(
        connection: &mut PgConnection,
        statement: SqlStr,
        arguments: PgArguments,
    ) -> sqlx::Result<u64> {
        let done = sqlx::query_with(statement, arguments).execute(connection).await?;
        Ok(done.rows_affected())
    }
}

impl Row for PgRow {
    fn text(&self, index: usize) -> Result<Option<&str>, StoreError> {
        read(self, index)
    }

    fn flag(&self, index: usize) -> Result<Option<bool>, StoreError> {
        read(self, index)
    }

    fn count(&self, index: usize) -> Result<u64, StoreError> {
        Ok(read::<Option<i64>>(self, index)?.unwrap_or_default().unsigned_abs())
    }

    fn time(&self, index: usize) -> Result<Option<SystemTime>, StoreError> {
        Ok(read::<Option<Timestamp>>(self, index)?.map(Timestamp::to_time))
    }
}

fn read<'r, T>(row: &'r PgRow, index: usize) -> Result<T, StoreError>
where
    T: Decode<'r, Postgres> + Type<Postgres>,
{
    row.try_get(index).map_err(store_error)
}
