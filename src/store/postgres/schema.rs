//! The tables: recognised where they are, created in an empty schema, extended on request.

use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgPool};

use super::connection::{Lease, limited, unavailable};
use crate::error::StoreError;
use crate::store::sql::Schema;

/// The same tables as the lexikon service's, as far as this crate needs them, extension included.
const CREATE: &str = "
    CREATE TABLE users (id varchar PRIMARY KEY, is_active boolean);
    CREATE TABLE api_keys (
        id varchar PRIMARY KEY,
        user_id varchar NOT NULL REFERENCES users (id),
        key_hash varchar NOT NULL,
        name varchar NOT NULL,
        scopes varchar NOT NULL,
        is_active boolean,
        last_used_at timestamp,
        created_at timestamp,
        expires_at timestamp,
        revoked_at timestamp,
        revoked_reason varchar,
        hash_format varchar
    );
    CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash);
    CREATE INDEX ix_api_keys_user_id ON api_keys (user_id, created_at);
";

/// Adds the columns of the extension, in one change of the catalogue.
const EXTEND: &str = "
    SET LOCAL lock_timeout = '500ms';
    ALTER TABLE api_keys
        ADD COLUMN IF NOT EXISTS revoked_at timestamp,
        ADD COLUMN IF NOT EXISTS revoked_reason varchar,
        ADD COLUMN IF NOT EXISTS hash_format varchar;
";

/// Lets one instance at a time create the tables. An arbitrary number: the ASCII codes of `lxk_`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(1819831135)";

/// Finds out which schema a database has, and creates one where it has none.
pub(super) async fn recognise_or_create(
    pool: &PgPool,
    patience: Duration,
) -> Result<Schema, StoreError> {
    limited(patience, async {
        let mut lease = Lease::from(pool).await?;
        if !is_empty(&mut lease.connection).await? {
            let schema = recognise(&mut lease.connection).await;
            lease.end();
            return schema;
        }
        let mut transaction = lease.connection.begin().await.map_err(unavailable)?;
        sqlx::query(LOCK).execute(&mut *transaction).await.map_err(unavailable)?;
        // Another instance may have been faster.
        if is_empty(&mut transaction).await? {
            sqlx::raw_sql(CREATE).execute(&mut *transaction).await.map_err(unavailable)?;
        }
        let schema = recognise(&mut transaction).await?;
        transaction.commit().await.map_err(unavailable)?;
        lease.end();
        Ok(schema)
    })
    .await
}

/// Adds the columns of the extension that are missing.
pub(super) async fn extend(
    pool: &PgPool,
    patience: Duration,
    schema: Schema,
) -> Result<Schema, StoreError> {
    if schema.has_details {
        return Ok(schema);
    }
    limited(patience, async {
        let mut lease = Lease::from(pool).await?;
        let mut transaction = lease.connection.begin().await.map_err(unavailable)?;
        sqlx::raw_sql(EXTEND).execute(&mut *transaction).await.map_err(unavailable)?;
        transaction.commit().await.map_err(unavailable)?;
        lease.end();
        Ok(Schema { has_details: true, ..schema })
    })
    .await
}

async fn recognise(connection: &mut PgConnection) -> Result<Schema, StoreError> {
    let api_keys = columns(connection, "api_keys").await?;
    let users = columns(connection, "users").await?;
    Schema::recognise(&api_keys, &users)
}

async fn columns(connection: &mut PgConnection, table: &str) -> Result<Vec<String>, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT attname::text FROM pg_attribute \
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
    );
    query.bind(table).fetch_all(connection).await.map_err(unavailable)
}

/// Whether the schema that tables are created in holds none.
async fn is_empty(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT to_regclass('api_keys') IS NULL AND NOT EXISTS (SELECT 1 FROM pg_class \
         WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm'))",
    );
    query.fetch_one(connection).await.map_err(unavailable)
}
