//! The tables: found where they are, created in an empty schema, extended on request.

use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgExecutor, Postgres};

use super::connections::{Connections, Lease};
use super::error::store_error;
use crate::error::StoreError;
use crate::store::sql::detect;
use crate::store::sql::dialect::Dialect;
use crate::store::sql::schema::{CURRENT_SINCE, OWN_TABLES, SECRETS, Schema};

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

const ADD_EXTRA_COLUMNS: &str = "
    ALTER TABLE api_keys
        ADD COLUMN IF NOT EXISTS revoked_at timestamp,
        ADD COLUMN IF NOT EXISTS revoked_reason varchar,
        ADD COLUMN IF NOT EXISTS hash_format varchar;
";

/// For a table of secrets that an earlier version made.
const ADD_CURRENT_SINCE: &str =
    "ALTER TABLE lexikon_auth_secrets ADD COLUMN IF NOT EXISTS current_since timestamp";

/// The channel that changes are reported on.
pub(super) const CHANNEL: &str = "lexikon_auth";
/// How many triggers report them.
const TRIGGERS: i64 = 6;

/// Reports changes of keys, whoever makes them, also where `session_replication_role` is `replica`, as in
/// every worker that applies changes of logical replication: the triggers fire always. Not those of `last_used_at`, which the service writes
/// with every request. A notification holds less than 8000 bytes. What the function calls is looked for
/// where nobody who writes a key can have put something else.
const REPORT_KEYS: &str = "
    CREATE OR REPLACE FUNCTION lexikon_auth_report_key() RETURNS trigger LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth', 'all');
            RETURN NULL;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth',
                CASE WHEN octet_length(OLD.id::text) < 7900 THEN 'key:' || OLD.id ELSE 'all' END);
        END IF;
        IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND OLD.key_hash IS DISTINCT FROM NEW.key_hash) THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth', 'added');
        END IF;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE TRIGGER lexikon_auth_key_written AFTER INSERT OR DELETE ON api_keys
        FOR EACH ROW EXECUTE FUNCTION lexikon_auth_report_key();
    CREATE OR REPLACE TRIGGER lexikon_auth_key_changed AFTER UPDATE ON api_keys FOR EACH ROW WHEN (
        (OLD.id, OLD.user_id, OLD.key_hash, OLD.name, OLD.scopes, OLD.is_active, OLD.expires_at)
        IS DISTINCT FROM
        (NEW.id, NEW.user_id, NEW.key_hash, NEW.name, NEW.scopes, NEW.is_active, NEW.expires_at)
    ) EXECUTE FUNCTION lexikon_auth_report_key();
    CREATE OR REPLACE TRIGGER lexikon_auth_keys_truncated AFTER TRUNCATE ON api_keys
        FOR EACH STATEMENT EXECUTE FUNCTION lexikon_auth_report_key();
    ALTER TABLE api_keys ENABLE ALWAYS TRIGGER lexikon_auth_key_written,
        ENABLE ALWAYS TRIGGER lexikon_auth_key_changed,
        ENABLE ALWAYS TRIGGER lexikon_auth_keys_truncated;
";

/// Reports owners that are enabled, disabled, added or removed.
const REPORT_OWNERS: &str = "
    CREATE OR REPLACE FUNCTION lexikon_auth_report_owner() RETURNS trigger LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        IF TG_OP = 'TRUNCATE' THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth', 'all');
            RETURN NULL;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth',
                CASE WHEN octet_length(OLD.id::text) < 7900 THEN 'owner:' || OLD.id ELSE 'all' END);
        END IF;
        IF TG_OP <> 'DELETE' THEN
            PERFORM pg_catalog.pg_notify('lexikon_auth',
                CASE WHEN octet_length(NEW.id::text) < 7900 THEN 'owner:' || NEW.id ELSE 'all' END);
        END IF;
        RETURN NULL;
    END $$;
    CREATE OR REPLACE TRIGGER lexikon_auth_owner_written AFTER INSERT OR DELETE ON users
        FOR EACH ROW EXECUTE FUNCTION lexikon_auth_report_owner();
    CREATE OR REPLACE TRIGGER lexikon_auth_owner_changed AFTER UPDATE ON users FOR EACH ROW WHEN (
        (OLD.id, OLD.is_active) IS DISTINCT FROM (NEW.id, NEW.is_active)
    ) EXECUTE FUNCTION lexikon_auth_report_owner();
    CREATE OR REPLACE TRIGGER lexikon_auth_owners_truncated AFTER TRUNCATE ON users
        FOR EACH STATEMENT EXECUTE FUNCTION lexikon_auth_report_owner();
    ALTER TABLE users ENABLE ALWAYS TRIGGER lexikon_auth_owner_written,
        ENABLE ALWAYS TRIGGER lexikon_auth_owner_changed,
        ENABLE ALWAYS TRIGGER lexikon_auth_owners_truncated;
";

/// Finds out which schema a database has, and creates one where it has none.
pub(super) async fn detect_or_create(connections: &Connections) -> Result<Schema, StoreError> {
    let work = async |lease: &mut Lease| {
        if !is_empty(lease).await? {
            return detect::schema::<Postgres>(lease).await;
        }
        let mut transaction = lease.begin().await.map_err(store_error)?;
        Postgres::lock_maintenance(&mut transaction).await?;
        // Another instance may have been faster.
        if is_empty(&mut transaction).await? {
            let own_tables = OWN_TABLES.map(|(_, create)| create);
            for part in [CREATE].into_iter().chain(own_tables).chain([REPORT_KEYS, REPORT_OWNERS]) {
                run(&mut transaction, part).await?;
            }
        }
        let schema = detect::schema::<Postgres>(&mut transaction).await?;
        transaction.commit().await.map_err(store_error)?;
        Ok(schema)
    };
    connections.with_lease(work).await
}

/// Adds the parts of the extension that are missing.
pub(super) async fn extend(connections: &Connections) -> Result<Schema, StoreError> {
    // Each part by itself: a lock that one has to wait for holds up nobody on the other table. Every part
    // can be run again, but takes its lock each time.
    for part in connections.with_lease(async |lease: &mut Lease| missing(lease).await).await? {
        let work = async |lease: &mut Lease| {
            let mut transaction = lease.begin().await.map_err(store_error)?;
            // Whoever has to wait for a lock keeps everybody waiting who comes after.
            run(&mut transaction, "SET LOCAL lock_timeout = '500ms'").await?;
            Postgres::lock_maintenance(&mut transaction).await?;
            run(&mut transaction, part).await?;
            transaction.commit().await.map_err(store_error)
        };
        connections.with_lease(work).await?;
    }
    connections.with_lease(async |lease: &mut Lease| detect::schema::<Postgres>(lease).await).await
}

async fn run(connection: &mut PgConnection, statements: &'static str) -> Result<(), StoreError> {
    sqlx::raw_sql(statements).execute(connection).await.map_err(store_error).map(drop)
}

/// Returns what adds the parts of the extension that are missing, or of another version.
pub(super) async fn missing(
    connection: &mut PgConnection,
) -> Result<Vec<&'static str>, StoreError> {
    let schema = detect::schema::<Postgres>(connection).await?;
    let has_triggers = triggers(connection).await?.0 == TRIGGERS;
    let has_current_since = !schema.has_table(SECRETS) || schema.has(SECRETS, CURRENT_SINCE);
    let own = OWN_TABLES.map(|(table, create)| (schema.has_table(table), create));
    let parts = [(has_current_since, ADD_CURRENT_SINCE)].into_iter().chain(own).chain([
        (schema.has_extra_columns(), ADD_EXTRA_COLUMNS),
        (has_triggers, REPORT_KEYS),
        (has_triggers, REPORT_OWNERS),
    ]);
    Ok(parts.filter(|(is_there, _)| !is_there).map(|(_, part)| part).collect())
}

/// The triggers as the catalogue has them, each with its function: the row of every one, and the
/// transaction that wrote it. Whoever disables, replaces or copies one writes another row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Triggers {
    rows: String,
}

impl Triggers {
    /// Returns the triggers on the tables that are read, provided that all report changes, and always.
    pub(super) async fn prove(connection: impl PgExecutor<'_>) -> Result<Self, StoreError> {
        match triggers(connection).await? {
            (TRIGGERS, rows) => Ok(Self { rows }),
            _ => Err(StoreError::Schema(
                "the triggers that report changes are missing, disabled or of another version; run \
                 extend_schema"
                    .to_owned(),
            )),
        }
    }
}

/// Returns how many triggers fire always, on every change that matters, and call a function with the body
/// that it has here; and their rows.
async fn triggers(connection: impl PgExecutor<'_>) -> Result<(i64, String), StoreError> {
    let bodies = [REPORT_KEYS, REPORT_OWNERS].map(|part| part.split("$$").nth(1));
    // The bits of tgtype: 1 each row, 4 insert, 8 delete, 16 update, 32 truncate (pg_trigger.h). A condition
    // has to be one OR in which every column is. As a tree, because printing it waits for the table's lock.
    let query = sqlx::query_as(
        "SELECT count(*), coalesce(string_agg(concat_ws(' ', t.oid, t.xmin, p.oid, p.xmin), ', ' \
         ORDER BY t.oid), '') FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
         WHERE t.tgname LIKE 'lexikon\\_auth\\_%' AND t.tgenabled = 'A' AND p.prosrc = ANY($1) \
         AND t.tgrelid IN (to_regclass('api_keys'), to_regclass('users')) \
         AND t.tgtype = CASE WHEN t.tgname LIKE '%\\_written' THEN 1 + 4 + 8 \
         WHEN t.tgname LIKE '%\\_truncated' THEN 32 ELSE 1 + 16 END \
         AND cardinality(t.tgattr::int2[]) = 0 \
         AND (t.tgqual IS NULL OR t.tgqual::text LIKE '{BOOLEXPR :boolop or %' \
         AND t.tgqual::text !~ ':boolop (and|not) ' AND (SELECT count(*) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = t.tgrelid AND NOT a.attisdropped AND a.attname = ANY($2) \
         AND t.tgqual::text LIKE '%{VAR :varno 2 :varattno ' || a.attnum || ' %') \
         = CASE t.tgrelid WHEN to_regclass('users') THEN 2 ELSE 6 END)",
    );
    // `users` has two of them.
    let columns = ["id", "user_id", "key_hash", "scopes", "is_active", "expires_at"];
    let query = query.bind(bodies.as_slice()).bind(columns.as_slice());
    query.fetch_one(connection).await.map_err(store_error)
}

/// Returns whether the schema that tables are created in holds none, but for those of extensions.
async fn is_empty(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let query = sqlx::query_scalar(
        "SELECT to_regclass('api_keys') IS NULL AND NOT EXISTS (SELECT 1 FROM pg_class \
         WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v', 'm') \
         AND NOT EXISTS (SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass \
         AND objid = pg_class.oid AND deptype = 'e'))",
    );
    query.fetch_one(connection).await.map_err(store_error)
}
