//! How a store is opened.

use std::fmt;
use std::path::Path;

use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};

use super::connections::{SqliteConnections, WAIT_LIMIT};
use super::error::store_error;
use super::feed::SqliteFeed;
use super::file::{OpenedFile, create_private};
use super::schema;
use crate::error::StoreError;
use crate::store::sql::store::SqlStore;
use crate::time_zone::SharedZone;

/// Readers work side by side in SQLite, and each connection has a thread.
const MAX_CONNECTIONS: u32 = 4;

const NOT_A_PATH: &str =
    "a path is needed, not a URL or \":memory:\"; for keys in memory use MemoryStore";

impl SqlStore<Sqlite> {
    /// Opens an existing database file. An empty one gets its tables. A call waits up to 2 seconds for
    /// a lock that another process holds.
    ///
    /// # Errors
    /// [`StoreError::CannotOpen`] when there is no such file, it may not be read, or the path is a URL
    /// or `:memory:` (for keys in memory there is [`MemoryStore`](crate::store::MemoryStore)),
    /// [`StoreError::Corrupt`] when it is not a database, [`StoreError::Schema`] when it holds other
    /// tables, [`StoreError::ReadOnly`] when it is empty and cannot be written.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::connect(file(path)?).await
    }

    /// Opens a database file, and creates it when there is none.
    ///
    /// A file that it creates is readable and writable by its owner alone (mode 0600 on Unix), and so are
    /// those that SQLite keeps beside it, which take over its mode; so is an empty one that everybody may
    /// open, before it gets its tables. Any other that is there keeps its mode: to share a database between
    /// two users, give it to a group of theirs, with mode 0660, in a folder where that group may create
    /// files (mode 2770).
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`StoreError::CannotOpen`] when the file cannot be created.
    pub async fn open_or_create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let options = file(path)?.create_if_missing(true);
        create_private(options.get_filename())?;
        Self::connect(options).await
    }

    /// Opens a database with options of sqlx 0.9, such as read-only access.
    ///
    /// The store has 4 connections and waits 2 seconds for a free one; use
    /// [`from_pool`](Self::from_pool) to choose otherwise.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn connect(options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(WAIT_LIMIT)
            // A file does not hang up; a ping before each call would double its cost.
            .test_before_acquire(false)
            .connect_with(options);
        Self::from_pool(pool.await.map_err(store_error)?).await
    }

    /// Uses a pool of sqlx 0.9 that the application has already. A database in memory is one for each
    /// connection, so its pool must have exactly one, which never closes.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn from_pool(pool: SqlitePool) -> Result<Self, StoreError> {
        let schema = schema::detect_or_create(&pool).await?;
        let file = OpenedFile::at(pool.connect_options().get_filename());
        let store = Self::new(SqliteConnections { pool, file }, schema, SharedZone::default());
        store.use_stored_zone().await?;
        Ok(store)
    }

    /// Adds what is missing of the extension, and returns a store that uses it: the columns
    /// `revoked_at`, `revoked_reason` and `hash_format` of `api_keys`, the tables `lexikon_auth_secrets`,
    /// `lexikon_auth_policies`, `lexikon_auth_deprecations`, `lexikon_auth_settings` and
    /// `lexikon_auth_caches`, and what reports [`changes`](Self::changes): a column `lexikon_auth_change` of
    /// `api_keys` and of `users`, an index of it, and triggers. Make managers and verifiers from this store:
    /// a clone made before goes on without them. From then on the database keeps the
    /// [time zone](Self::with_time_zone) that the store was given.
    ///
    /// The columns are NULL in the rows that are there, no row is rewritten, and readers that name their
    /// columns, as SQLAlchemy does, notice nothing. The triggers write to the table that they are on and
    /// to nothing else, so no write can fail for want of something that somebody has dropped. It can run
    /// on a live table, twice, and from two processes at once.
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] or [`StoreError::Unavailable`] when the table cannot be changed;
    /// [`StoreError::TimeZoneMismatch`] when the database has come to keep another time zone.
    pub async fn extend_schema(self) -> Result<Self, StoreError> {
        let schema = schema::extend(&self.connections.pool).await?;
        self.extended(schema).await
    }

    /// Returns the changes of keys and owners, as a [`Follower`](crate::tasks::Follower) of a cache over
    /// this store takes them: those of other processes, the Python service and `lxk` among them. The
    /// database needs the [extension](Self::extend_schema), which a new one has.
    ///
    /// ```
    /// # #[cfg(feature = "cache")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("keys.db");
    /// use lexikon_auth::store::{CacheOptions, CachedStore, SqliteStore};
    /// use lexikon_auth::tasks::Follower;
    /// let database = SqliteStore::open_or_create(&path).await?.extend_schema().await?;
    /// let store = CachedStore::new(database.clone(), CacheOptions::default());
    /// let follower = Follower::spawn(store.clone(), database.changes());
    /// follower.connected().await;
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    pub fn changes(&self) -> SqliteFeed {
        SqliteFeed::new(self.connections.pool.connect_options(), self.connections.file.clone())
    }
}

impl fmt::Debug for SqlStore<Sqlite> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.connections.pool.connect_options();
        let mut debug = f.debug_struct("SqliteStore");
        debug.field("file", &options.get_filename()).finish_non_exhaustive()
    }
}

fn file(path: impl AsRef<Path>) -> Result<SqliteConnectOptions, StoreError> {
    let bytes = path.as_ref().as_os_str().as_encoded_bytes();
    // SQLite would take these for a database in memory or a temporary one, each connection for its own,
    // or create a file named like the URL.
    let is_url = bytes.starts_with(b"sqlite:") || bytes.starts_with(b"file:");
    if is_url || matches!(bytes, b"" | b":memory:") {
        return Err(StoreError::CannotOpen(NOT_A_PATH.into()));
    }
    Ok(SqliteConnectOptions::new().filename(path).busy_timeout(WAIT_LIMIT))
}
