//! How a store is opened.

use std::fmt;
use std::time::Duration;

use sqlx::Postgres;
#[cfg(feature = "tls-rustls")]
use sqlx::postgres::PgSslMode;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use super::connections::{Connections, with_time_limit};
use super::error::store_error;
use super::feed::PostgresFeed;
use super::reach::reach;
use super::schema;
use crate::error::StoreError;
use crate::store::sql::store::SqlStore;
use crate::time_zone::SharedZone;

/// How long a call waits for a connection, and how long for an answer, unless it is set otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(2);

impl SqlStore<Postgres> {
    /// Connects with the options of sqlx 0.9: up to 10 connections, 2 seconds to wait for one, and as
    /// long for an answer. A server that is about to start is waited for as long. For TLS, say so in the
    /// options, and enable the feature `tls-rustls` or `tls-native-tls`.
    ///
    /// # Errors
    /// With the cause in its text, and never the password: [`StoreError::Unavailable`] when the server does
    /// not answer, [`StoreError::CannotOpen`] when it does not let this in, or the options are wrong;
    /// [`StoreError::Schema`] when the schema holds other tables.
    pub async fn connect(options: PgConnectOptions) -> Result<Self, StoreError> {
        // sqlx 0.9 chooses a provider itself, save in this mode.
        #[cfg(feature = "tls-rustls")]
        if matches!(options.get_ssl_mode(), PgSslMode::VerifyCa) {
            crate::util::tls::choose_provider();
        }
        reach(&options, TIME_LIMIT).await?;
        let pool = PgPoolOptions::new()
            .acquire_timeout(TIME_LIMIT)
            // A broken connection shows in the statement itself; a ping before each would double the
            // time of a verification.
            .test_before_acquire(false)
            // A connection that is closed does not end a statement that waits for a lock.
            .after_connect(|connection, _| {
                let limit = sqlx::raw_sql("SET statement_timeout = '2s'");
                Box::pin(async move { limit.execute(connection).await.map(drop) })
            })
            .connect_with(options);
        Self::from_pool(pool.await.map_err(store_error)?, TIME_LIMIT).await
    }

    /// Uses a pool of sqlx 0.9 that the application has already: for another number of connections,
    /// other time limits, or to share it. An answer that takes longer than `time_limit` is given up, and
    /// its connection closed when the statement has not ended after as long again; the pool's own
    /// settings say how long to wait for one. Set PostgreSQL's `statement_timeout` on its connections to
    /// `time_limit` or less: otherwise a write costs two more round trips, in which it is set for that write,
    /// and a look-up that waits for a lock goes on in the server after its connection was closed.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub async fn from_pool(pool: PgPool, time_limit: Duration) -> Result<Self, StoreError> {
        let connections = Connections::new(pool, time_limit).limit_writes();
        let connections = with_time_limit(time_limit, connections).await?;
        let schema = schema::detect_or_create(&connections).await?;
        let store = Self::new(connections, schema, SharedZone::default());
        store.use_stored_zone().await?;
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
        let schema = schema::extend(&self.connections).await?;
        self.extended(schema).await
    }

    /// Returns the changes of keys and owners, whoever makes them, for a
    /// [`Follower`](crate::tasks::Follower). They are reported by triggers that a new schema has, and that
    /// [`extend_schema`](Self::extend_schema) adds. The feed holds one connection of its own.
    pub fn changes(&self) -> PostgresFeed {
        PostgresFeed::new(self.connections.pool().connect_options(), self.connections.time_limit())
    }
}

impl fmt::Debug for SqlStore<Postgres> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.connections.pool().connect_options();
        let mut debug = f.debug_struct("PostgresStore");
        debug.field("host", &options.get_host()).field("database", &options.get_database());
        debug.finish_non_exhaustive()
    }
}
