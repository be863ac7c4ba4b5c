//! The tables: recognised where they are, created in an empty database, extended on request.

use std::time::{Duration, Instant};

use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnection;
use tokio::time::sleep;

use super::triggers::{REPORTS, Report};
use super::{PATIENCE, make_private, unavailable};
use crate::error::StoreError;
use crate::store::sql::{
    CACHES, CHANGE, CREATE_TABLES, CURRENT_SINCE, DEPRECATIONS, DETAILS, POLICIES, SECRETS,
    SETTINGS,
};
use crate::store::sql::{Schema, Tables};

/// Adds a column of the extension each. No row is rewritten.
const EXTEND: [&str; DETAILS.len()] = [
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
pub(super) async fn recognise_or_create(pool: &SqlitePool) -> Result<Schema, StoreError> {
    let mut connection = pool.acquire().await.map_err(unavailable)?;
    if !is_empty(&mut connection).await? {
        return recognise(&mut connection).await;
    }
    make_private(pool.connect_options().get_filename());
    // Readers and a writer side by side. Only here: the mode of a database that is in use is its
    // owner's choice. Not possible inside a transaction.
    let given_up = Instant::now() + PATIENCE;
    loop {
        let set = sqlx::query("PRAGMA journal_mode = WAL").execute(&mut *connection).await;
        match set.map_err(unavailable) {
            Ok(_) => break,
            // Where another process does the same, SQLite does not wait for it.
            Err(StoreError::Unavailable(_)) if Instant::now() < given_up => sleep(RETRY).await,
            Err(error) => return Err(error),
        }
    }
    drop(connection);
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
    // Another process may have been faster.
    if is_empty(&mut transaction).await? {
        for statement in CREATE.into_iter().chain(CREATE_TABLES) {
            sqlx::query(statement).execute(&mut *transaction).await.map_err(unavailable)?;
        }
        for statement in missing(&mut transaction).await? {
            sqlx::query(statement).execute(&mut *transaction).await.map_err(unavailable)?;
        }
    }
    let schema = recognise(&mut transaction).await?;
    transaction.commit().await.map_err(unavailable)?;
    Ok(schema)
}

/// Adds the parts of the extension that are missing.
pub(super) async fn extend(pool: &SqlitePool) -> Result<Schema, StoreError> {
    let mut connection = pool.acquire().await.map_err(unavailable)?;
    if missing(&mut connection).await?.is_empty() {
        // Not what was there when the store was opened: another process may have added it since.
        return recognise(&mut connection).await;
    }
    drop(connection);
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
    for statement in missing(&mut transaction).await? {
        sqlx::query(statement).execute(&mut *transaction).await.map_err(unavailable)?;
    }
    let schema = recognise(&mut transaction).await?;
    transaction.commit().await.map_err(unavailable)?;
    Ok(schema)
}

/// What adds the parts of the extension that are missing, or of another version.
pub(crate) async fn missing(
    connection: &mut SqliteConnection,
) -> Result<Vec<&'static str>, StoreError> {
    let Tables { api_keys, users, secrets, policies, deprecations, settings, caches } =
        tables(connection).await?;
    let mut statements = Vec::new();
    for (column, statement) in DETAILS.into_iter().zip(EXTEND) {
        if !api_keys.iter().any(|known| known == column) {
            statements.push(statement);
        }
    }
    if !secrets.is_empty() && !secrets.iter().any(|known| known == CURRENT_SINCE) {
        statements.push(ADD_CURRENT_SINCE);
    }
    let own = [secrets, policies, deprecations, settings, caches];
    for (table, statement) in own.iter().zip(CREATE_TABLES) {
        if table.is_empty() {
            statements.push(statement);
        }
    }
    let kept = kept(connection).await?;
    for (Report { add_column, parts }, columns) in REPORTS.into_iter().zip([api_keys, users]) {
        if !columns.iter().any(|known| known == CHANGE) {
            statements.push(add_column);
        }
        for part in parts {
            match kept.iter().find(|(name, _)| name == part.name) {
                Some((_, statement)) if statement == part.create => {}
                Some(_) => statements.extend([part.drop, part.create]),
                None => statements.push(part.create),
            }
        }
    }
    Ok(statements)
}

/// Whether changes are reported, in the way of this version.
pub(super) async fn reports_changes(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let kept = kept(connection).await?;
    let mut parts = REPORTS.iter().flat_map(|report| &report.parts);
    Ok(parts.all(|part| kept.iter().any(|(_, statement)| statement == part.create)))
}

/// The indexes and triggers of this crate: their names, and the statements that created them.
async fn kept(connection: &mut SqliteConnection) -> Result<Vec<(String, String)>, StoreError> {
    let query = sqlx::query_as(
        "SELECT name, sql FROM sqlite_master \
         WHERE type IN ('index', 'trigger') AND name GLOB 'lexikon_auth_*'",
    );
    query.fetch_all(connection).await.map_err(unavailable)
}

async fn recognise(connection: &mut SqliteConnection) -> Result<Schema, StoreError> {
    Schema::recognise(&tables(connection).await?)
}

async fn tables(connection: &mut SqliteConnection) -> Result<Tables, StoreError> {
    Ok(Tables {
        api_keys: columns(connection, "api_keys").await?,
        users: columns(connection, "users").await?,
        secrets: columns(connection, SECRETS).await?,
        policies: columns(connection, POLICIES).await?,
        deprecations: columns(connection, DEPRECATIONS).await?,
        settings: columns(connection, SETTINGS).await?,
        caches: columns(connection, CACHES).await?,
    })
}

pub(crate) async fn columns(
    connection: &mut SqliteConnection,
    table: &str,
) -> Result<Vec<String>, StoreError> {
    let query = sqlx::query_scalar("SELECT name FROM pragma_table_info($1)").bind(table);
    query.fetch_all(connection).await.map_err(unavailable)
}

async fn is_empty(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM sqlite_master)");
    query.fetch_one(connection).await.map_err(unavailable)
}
