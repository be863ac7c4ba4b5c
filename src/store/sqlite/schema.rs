//! The tables: found where they are, created in an empty database, extended on request.

use std::time::{Duration, Instant};

use sqlx::sqlite::SqliteConnection;
use sqlx::{Sqlite, SqlitePool};
use tokio::time::sleep;

use super::connections::{WAIT_LIMIT, begin_write};
use super::error::store_error;
use super::file::make_private;
use super::triggers::{REPORTS, Report};
use crate::error::StoreError;
use crate::store::sql::detect;
use crate::store::sql::schema::{
    CHANGE, CURRENT_SINCE, EXTRA_COLUMNS, OWN_TABLES, SECRETS, Schema,
};

/// Adds a column of the extension each. No row is rewritten.
const EXTEND: [&str; EXTRA_COLUMNS.len()] = [
    "ALTER TABLE api_keys ADD COLUMN revoked_at DATETIME",
    "ALTER TABLE api_keys ADD COLUMN revoked_reason VARCHAR",
    "ALTER TABLE api_keys ADD COLUMN hash_format VARCHAR",
];

/// For a table of secrets that an earlier version made.
const ADD_CURRENT_SINCE: &str =
    "ALTER TABLE lexikon_auth_secrets ADD COLUMN current_since DATETIME";

/// The same tables as the lexikon service's, as far as this crate needs them, extension included.
const CREATE: [&str; 4] = [
    "CREATE TABLE users (id VARCHAR NOT NULL PRIMARY KEY, is_active BOOLEAN)",
    "CREATE TABLE api_keys (
        id VARCHAR NOT NULL PRIMARY KEY,
        user_id VARCHAR NOT NULL REFERENCES users (id),
        key_hash VARCHAR NOT NULL,
        name VARCHAR NOT NULL,
        scopes VARCHAR NOT NULL,
        is_active BOOLEAN,
        last_used_at DATETIME,
        created_at DATETIME DEFAULT CURRENT_TIMESTAMP,
        expires_at DATETIME,
        revoked_at DATETIME,
        revoked_reason VARCHAR,
        hash_format VARCHAR
    )",
    "CREATE UNIQUE INDEX ix_api_keys_key_hash ON api_keys (key_hash)",
    "CREATE INDEX ix_api_keys_user_id ON api_keys (user_id, created_at)",
];

/// How long to wait before another attempt.
const RETRY: Duration = Duration::from_millis(10);

/// Finds out which schema a database has, and creates one where it has none.
pub(super) async fn detect_or_create(pool: &SqlitePool) -> Result<Schema, StoreError> {
    let mut connection = pool.acquire().await.map_err(store_error)?;
    if !is_empty(&mut connection).await? {
        return detect::schema::<Sqlite>(&mut connection).await;
    }
    make_private(pool.connect_options().get_filename());
    // Readers and a writer side by side. Only here: the mode of a database that is in use is its
    // owner's choice. Not possible inside a transaction.
    let given_up = Instant::now() + WAIT_LIMIT;
    loop {
        let set = sqlx::query("PRAGMA journal_mode = WAL").execute(&mut *connection).await;
        match set.map_err(store_error) {
            Ok(_) => break,
            // Where another process does the same, SQLite does not wait for it.
            Err(StoreError::Unavailable(_)) if Instant::now() < given_up => sleep(RETRY).await,
            Err(error) => return Err(error),
        }
    }
    drop(connection);
    let mut transaction = begin_write(pool).await?;
    // Another process may have been faster.
    if is_empty(&mut transaction).await? {
        run(&mut transaction, &CREATE).await?;
        let missing = missing(&mut transaction).await?;
        run(&mut transaction, &missing).await?;
    }
    let schema = detect::schema::<Sqlite>(&mut transaction).await?;
    transaction.commit().await.map_err(store_error)?;
    Ok(schema)
}

/// Adds the parts of the extension that are missing.
pub(super) async fn extend(pool: &SqlitePool) -> Result<Schema, StoreError> {
    let mut connection = pool.acquire().await.map_err(store_error)?;
    if missing(&mut connection).await?.is_empty() {
        // Not what was there when the store was opened: another process may have added it since.
        return detect::schema::<Sqlite>(&mut connection).await;
    }
    drop(connection);
    let mut transaction = begin_write(pool).await?;
    let missing = missing(&mut transaction).await?;
    run(&mut transaction, &missing).await?;
    let schema = detect::schema::<Sqlite>(&mut transaction).await?;
    transaction.commit().await.map_err(store_error)?;
    Ok(schema)
}

async fn run(
    connection: &mut SqliteConnection,
    statements: &[&'static str],
) -> Result<(), StoreError> {
    for statement in statements {
        sqlx::query(*statement).execute(&mut *connection).await.map_err(store_error)?;
    }
    Ok(())
}

/// Returns what adds the parts of the extension that are missing, or of another version.
pub(super) async fn missing(
    connection: &mut SqliteConnection,
) -> Result<Vec<&'static str>, StoreError> {
    let schema = detect::schema::<Sqlite>(connection).await?;
    let mut statements = Vec::new();
    for (column, statement) in EXTRA_COLUMNS.into_iter().zip(EXTEND) {
        if !schema.has("api_keys", column) {
            statements.push(statement);
        }
    }
    if schema.has_table(SECRETS) && !schema.has(SECRETS, CURRENT_SINCE) {
        statements.push(ADD_CURRENT_SINCE);
    }
    let missing = OWN_TABLES.into_iter().filter(|(table, _)| !schema.has_table(table));
    statements.extend(missing.map(|(_, create)| create));
    let present = parts(connection).await?;
    for (Report { add_column, parts }, table) in REPORTS.into_iter().zip(["api_keys", "users"]) {
        if !schema.has(table, CHANGE) {
            statements.push(add_column);
        }
        for part in parts {
            match present.iter().find(|(name, _)| name == part.name) {
                Some((_, statement)) if statement == part.create => {}
                Some(_) => statements.extend([part.drop, part.create]),
                None => statements.push(part.create),
            }
        }
    }
    Ok(statements)
}

/// Returns whether changes are reported, in the way of this version.
pub(super) async fn reports_changes(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let present = parts(connection).await?;
    let mut parts = REPORTS.iter().flat_map(|report| &report.parts);
    Ok(parts.all(|part| present.iter().any(|(_, statement)| statement == part.create)))
}

/// Returns the indexes and triggers of this crate: their names, and the statements that created them.
async fn parts(connection: &mut SqliteConnection) -> Result<Vec<(String, String)>, StoreError> {
    let query = sqlx::query_as(
        "SELECT name, sql FROM sqlite_master \
         WHERE type IN ('index', 'trigger') AND name GLOB 'lexikon_auth_*'",
    );
    query.fetch_all(connection).await.map_err(store_error)
}

async fn is_empty(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)");
    query.fetch_one(connection).await.map_err(store_error)
}
