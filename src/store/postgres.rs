//! The store in PostgreSQL: the lexikon service's own tables as they are, or the same tables in an
//! empty schema.
//!
//! Times are `timestamp without time zone`: `expires_at` and `last_used_at` in the
//! [`TimeZone`](crate::store::TimeZone) of the service, as it writes them, all others in UTC. They are bound and
//! read as such and never taken from the server's clock, so the time zone of this store's sessions does
//! not matter. That of the service's does for `created_at`, which its table fills with `now()`: it is
//! read as UTC, so where the sessions are not in UTC it is off by their zone. No decision on a key
//! depends on it.

pub(crate) mod connection;
mod feed;
mod keys;
mod reach;
pub(crate) mod row;
pub(crate) mod schema;
mod time_zone;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlx::postgres::{
    PgArguments, PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow, Postgres,
};
use sqlx::query::Query;
use sqlx::{Connection, FromRow, SqlStr};

use self::connection::{Connections, is_broken, limited, unavailable};
pub use self::feed::PostgresFeed;
use self::reach::reach;
use self::row::Timestamp;
use super::sql::{INSERT_SECRET, POLICIES, SELECT_POLICY, SELECT_SECRETS, Schema, Statements};
use super::sql::{constant, knows, policy, require_secrets};
use crate::crypto::hash::{Candidates, HashFormat};
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::policy::LegacyPolicy;
use crate::record::KeyRecord;
use crate::store::PolicySource;
use crate::telemetry::StoreMetrics;
use crate::time_zone::SharedZone;

/// How long a call waits for a connection, and how long for an answer, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keys in a PostgreSQL database. Clones share its connections.
///
/// In a schema without tables the store creates `api_keys` and `users`; there an owner is created with
/// its first key. In a database of the lexikon service it uses the service's tables without a change;
/// owners are the service's users, and a key for an unknown one is an error.
///
/// A verification is one prepared statement, whatever the number of candidates.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use lexikon_auth::store::PostgresStore;
/// let store = PostgresStore::connect("postgres://lexikon@localhost/lexikon".parse()?).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    pub(crate) connections: Connections,
    patience: Duration,
    pub(crate) schema: Schema,
    pub(crate) statements: Arc<Statements>,
    /// The look-ups for one candidate, for two, and so on.
    find: Arc<[SqlStr]>,
    record_usage: SqlStr,
    pub(crate) zone: SharedZone,
    calls: StoreMetrics,
}

impl PostgresStore {
    /// Connects with the options of sqlx 0.9: up to 10 connections, 2 seconds to wait for one, and as
    /// long for an answer. For TLS, say so in the options, and enable the feature `tls-rustls` or
    /// `tls-native-tls`.
    ///
    /// # Errors
    /// With the cause in its text, and never the password: [`StoreError::Unavailable`] when the server does
    /// not answer, [`StoreError::CannotOpen`] when it does not let this in, or the options are wrong;
    /// [`StoreError::Schema`] when the schema holds other tables.
    pub async fn connect(options: PgConnectOptions) -> Result<Self, StoreError> {
        reach(&options, PATIENCE).await?;
        let pool = PgPoolOptions::new()
            .acquire_timeout(PATIENCE)
            // A broken connection shows in the statement itself; a ping before each would double the
            // time of a verification.
            .test_before_acquire(false)
            // A connection that is closed does not end a statement that waits for a lock.
            .after_connect(|connection, _| {
                let limit = sqlx::raw_sql("SET statement_timeout = '2s'");
                Box::pin(async move { limit.execute(connection).await.map(drop) })
            })
            .connect_with(options);
        Self::with_pool(pool.await.map_err(unavailable)?, PATIENCE).await
    }

    /// Uses a pool of sqlx 0.9 that the application has already: for another number of connections,
    /// other time limits, or to share it. An answer that takes longer than `patience` is given up, and
    /// its connection closed when the statement has not ended after as long again; the pool's own
    /// settings say how long to wait for one. Set PostgreSQL's `statement_timeout` on its connections to
    /// `patience` or less: otherwise a write costs two more round trips, in which it is set for that write,
    /// and a look-up that waits for a lock goes on in the server after its connection was closed.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub async fn with_pool(pool: PgPool, patience: Duration) -> Result<Self, StoreError> {
        let connections = Connections::new(pool, patience).limit_writes();
        let connections = limited(patience, connections).await?;
        let schema = schema::recognise_or_create(&connections, patience).await?;
        let store = Self::on(connections, patience, schema, SharedZone::default());
        store.follow_kept_zone().await?;
        Ok(store)
    }

    /// Adds what is missing of the extension, and returns a store that uses it: the columns
    /// `revoked_at`, `revoked_reason` and `hash_format` of `api_keys`, the tables
    /// `lexikon_auth_secrets`, `lexikon_auth_policies`, `lexikon_auth_deprecations` and
    /// `lexikon_auth_settings` and `lexikon_auth_caches`, and triggers on `api_keys` and `users` that report
    /// [changes](Self::changes). The functions of triggers that another version of this crate made are
    /// replaced. Make managers and verifiers from this store: a clone made before goes on without the
    /// columns. From then on the database keeps the [time zone](Self::with_time_zone) that the store was
    /// given.
    ///
    /// The columns are NULL in the rows that are there, no row is rewritten, and readers that name
    /// their columns, as SQLAlchemy does, notice nothing. It can run on a live table, twice, and from
    /// two instances at once. A table is locked for the change of its catalogue entry alone; while a
    /// long transaction keeps it from that lock, it gives up after half a second instead of holding up
    /// everybody behind it. What was added by then stays.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the lock was not to be had: try again. [`StoreError::ReadOnly`]
    /// when something is missing or of another version, and the role may not change it.
    /// [`StoreError::TimeZoneMismatch`] when the database has come to keep another time zone.
    pub async fn extend_schema(self) -> Result<Self, StoreError> {
        let schema = schema::extend(&self.connections, self.patience, self.schema).await?;
        let store = Self::on(self.connections, self.patience, schema, self.zone);
        match store.zone.given().cloned() {
            Some(zone) => store.keep_zone(&zone).await?,
            None => store.follow_kept_zone().await?,
        }
        Ok(store)
    }

    /// Disables or enables an owner: the keys of a disabled one are refused. Caches over this store
    /// learn of it from a follower of [`changes`](Self::changes).
    ///
    /// # Errors
    /// [`StoreError::UnknownOwner`] in a database of the lexikon service, where users are the
    /// service's to create.
    pub async fn set_owner_active(&self, owner: &OwnerId, active: bool) -> Result<(), StoreError> {
        let upsert = if self.schema.owns_users {
            "INSERT INTO users (id, is_active) VALUES ($1, $2) \
             ON CONFLICT (id) DO UPDATE SET is_active = excluded.is_active"
        } else {
            "UPDATE users SET is_active = $2 WHERE id = $1"
        };
        let upsert = sqlx::query(upsert).bind(owner.as_str().to_owned()).bind(active);
        match self.execute(upsert).await? {
            0 => Err(StoreError::UnknownOwner(owner.clone())),
            _ => Ok(()),
        }
    }

    /// Refuses a current secret that the database does not know; call it when the service starts. A
    /// database that knows none yet learns this one. Tables without the
    /// [extension](Self::extend_schema) know nothing, and refuse nothing.
    ///
    /// # Errors
    /// [`StoreError::UnknownSecret`].
    pub async fn check_secrets(&self, ring: &SecretRing) -> Result<(), StoreError> {
        if !self.schema.has_secrets {
            return Ok(());
        }
        limited(self.patience, async {
            let mut lease = self.connections.lease().await?;
            let known = sqlx::query_scalar(SELECT_SECRETS).fetch_all(&mut *lease).await;
            if knows(ring.current(), &known.map_err(unavailable)?)?.is_some() {
                lease.end();
                return Ok(());
            }
            let mut transaction = lease.begin().await.map_err(unavailable)?;
            // Of several instances that start with different secrets, the first one decides.
            schema::take_turns(&mut transaction).await?;
            let known = sqlx::query_scalar(SELECT_SECRETS).fetch_all(&mut *transaction).await;
            if knows(ring.current(), &known.map_err(unavailable)?)?.is_none() {
                let insert = insert_secret(ring.current())?.execute(&mut *transaction).await;
                insert.map_err(unavailable)?;
            }
            transaction.commit().await.map_err(unavailable)?;
            lease.end();
            Ok(())
        })
        .await
    }

    /// Lets the database know a new secret, so that services may start with it.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when the tables are without the [extension](Self::extend_schema).
    pub async fn add_secret(&self, secret: &ServerSecret) -> Result<(), StoreError> {
        require_secrets(self.schema)?;
        self.execute(insert_secret(secret)?).await.map(drop)
    }

    /// The changes of keys and owners, whoever makes them, for a [`Follower`](crate::tasks::Follower). They
    /// are reported by triggers that a new schema has, and that
    /// [`extend_schema`](Self::extend_schema) adds. The feed holds one connection of its own.
    pub fn changes(&self) -> PostgresFeed {
        PostgresFeed::new(self.connections.pool().connect_options(), self.patience)
    }

    /// Closes all connections, once the calls that are under way have ended.
    pub async fn close(&self) {
        self.connections.pool().close().await;
    }

    fn on(connections: Connections, patience: Duration, schema: Schema, zone: SharedZone) -> Self {
        let statements = Statements::new(schema, "-infinity", "k.id COLLATE \"C\"");
        // Not one array: for an array of unknown length the server expects ten elements, finds a plan
        // made for the actual ones cheaper, and plans anew with every statement.
        let find = |count| {
            let others: String = (2..=count).map(|number| format!(", ${number}")).collect();
            statements.select(&format!("WHERE k.key_hash = ANY(ARRAY[$1{others}])"))
        };
        let find = (1..=Candidates::MAX).map(find).collect();
        // In order of id, so that instances that write the same rows do not deadlock.
        let format = if schema.has_details {
            ", hash_format = CASE b.hash_format WHEN 'hmac-sha256' THEN b.hash_format \
             ELSE coalesce(k.hash_format, b.hash_format) END"
        } else {
            ""
        };
        // Of several uses of a key the least format: HMAC-SHA-256, if it is among them.
        let record_usage = constant(format!(
            "WITH batch AS (SELECT id, max(at) AS at, min(hash_format) AS hash_format \
             FROM unnest($1::varchar[], $2::timestamp[], $3::varchar[]) AS batch (id, at, hash_format) \
             GROUP BY id), \
             locked AS (SELECT id FROM api_keys WHERE id IN (SELECT id FROM batch) ORDER BY id FOR UPDATE) \
             UPDATE api_keys k SET last_used_at = greatest(k.last_used_at, b.at){format} \
             FROM batch b JOIN locked l ON l.id = b.id WHERE k.id = b.id"
        ));
        let (statements, calls) = (Arc::new(statements), StoreMetrics::new("postgres"));
        Self { connections, patience, schema, statements, find, record_usage, zone, calls }
    }

    async fn execute(
        &self,
        query: Query<'static, Postgres, PgArguments>,
    ) -> Result<u64, StoreError> {
        self.connections.write(|lease| lease.execute(query)).await
    }

    /// Asks a query, which changes nothing: it is asked once more where the connection turns out to
    /// have broken, as all do that nobody used while the server restarted.
    async fn fetch<'q>(
        &self,
        query: impl Fn() -> Query<'q, Postgres, PgArguments>,
    ) -> Result<Vec<PgRow>, StoreError> {
        limited(self.patience, async {
            let mut lease = self.connections.lease().await?;
            let mut rows = query().fetch_all(&mut *lease).await;
            if is_broken(&rows) {
                drop(lease); // first, so that there is room for another
                lease = self.connections.lease_alive().await?;
                rows = query().fetch_all(&mut *lease).await;
            }
            lease.end_after(&rows);
            rows.map_err(unavailable)
        })
        .await
    }

    pub(crate) async fn insert_in(
        &self,
        connection: &mut PgConnection,
        record: &KeyRecord,
    ) -> Result<(), StoreError> {
        if self.schema.owns_users {
            sqlx::query(
                "INSERT INTO users (id, is_active) VALUES ($1, TRUE) ON CONFLICT DO NOTHING",
            )
            .bind(record.owner.as_str())
            .execute(&mut *connection)
            .await
            .map_err(unavailable)?;
        }
        let mut insert = sqlx::query(self.statements.insert.clone())
            .bind(record.id.to_string())
            .bind(record.owner.as_str())
            .bind(record.hash.to_hex())
            .bind(&*record.name)
            .bind(record.scopes.as_str())
            .bind(!record.is_revoked())
            .bind(Timestamp::optional("created_at", record.created_at)?)
            .bind(self.local_optional("expires_at", record.expires_at)?)
            .bind(self.local_optional("last_used_at", record.last_used_at)?);
        if self.schema.has_details {
            let revocation = record.revocation.as_deref().cloned().unwrap_or_default();
            insert = insert
                .bind(Timestamp::optional("revoked_at", revocation.at)?)
                .bind(revocation.reason.map(String::from))
                .bind(record.format.map(HashFormat::as_str));
        }
        match insert.execute(connection).await.map_err(unavailable)?.rows_affected() {
            0 => Err(StoreError::UnknownOwner(record.owner.clone())),
            _ => Ok(()),
        }
    }
}

impl PolicySource for PostgresStore {
    async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
        // Asked for each time, because an operator may add the table while this runs.
        let is_there = "SELECT 1 WHERE to_regclass($1) IS NOT NULL";
        if self.fetch(|| sqlx::query(is_there).bind(POLICIES)).await?.is_empty() {
            return Ok(None);
        }
        let rows = self.fetch(|| sqlx::query(SELECT_POLICY)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (legacy, until): (String, Option<Timestamp>) =
            FromRow::from_row(row).map_err(unavailable)?;
        policy(&legacy, until.map(Timestamp::to_time)).map(Some)
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.connections.pool().connect_options();
        let mut debug = f.debug_struct("PostgresStore");
        debug.field("host", &options.get_host()).field("database", &options.get_database());
        debug.finish_non_exhaustive()
    }
}

fn insert_secret(
    secret: &ServerSecret,
) -> Result<Query<'static, Postgres, PgArguments>, StoreError> {
    let now = Timestamp::new("added_at", SystemTime::now())?;
    Ok(sqlx::query(INSERT_SECRET).bind(secret.fingerprint().to_string()).bind(now))
}
