//! The store in SQLite: the lexikon service's own tables as they are, or the same tables in an empty
//! database.
//!
//! Rows that this store writes read back in SQLAlchemy: times as `YYYY-MM-DD HH:MM:SS.ffffff`, booleans
//! as 0 and 1, hashes as 64 hex digits. `expires_at` and `last_used_at` are in the
//! [`TimeZone`](crate::store::TimeZone) of the service, as it writes them; all other times are in UTC, as
//! SQLite's own `CURRENT_TIMESTAMP` is.

mod feed;
mod file;
mod keys;
pub(crate) mod row;
pub(crate) mod schema;
mod time_zone;
pub(crate) mod timestamp;
mod triggers;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sqlx::SqlStr;
use sqlx::query::Query;
use sqlx::sqlite::{
    Sqlite, SqliteArguments, SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions,
};

pub use self::feed::SqliteFeed;
use self::file::OpenedFile;
use self::timestamp::{from_text, to_text, to_text_optional};
use super::sql::{INSERT_SECRET, POLICIES, SELECT_POLICY, SELECT_SECRETS, Schema, Statements};
use super::sql::{knows, policy, require_secrets};
use crate::crypto::hash::{Candidates, HashFormat};
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::policy::LegacyPolicy;
use crate::record::KeyRecord;
use crate::store::PolicySource;
use crate::telemetry::StoreMetrics;
use crate::time_zone::SharedZone;

/// How long a call waits for a lock or for a connection before the store is unavailable: a request
/// waits behind it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Readers work side by side in SQLite, and each connection has a thread.
const MAX_CONNECTIONS: u32 = 4;

const NOT_A_PATH: &str =
    "a path is needed, not a URL or \":memory:\"; for keys in memory use MemoryStore";

/// Keys in a SQLite database. Clones share its connections.
///
/// In an empty database the store creates the tables `api_keys` and `users`. There an owner is
/// created with its first key. In a database of the lexikon service it uses the service's tables
/// without a change; owners are the service's users, and a key for an unknown one is an error.
///
/// A revocation's time and reason and the format of a hash have no column in the service's table.
/// [`extend_schema`](Self::extend_schema) adds them.
///
/// ```
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.db");
/// use lexikon_auth::store::SqliteStore;
/// let store = SqliteStore::open_or_create(&path).await?;
/// # store.close().await;
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    pub(crate) pool: SqlitePool,
    pub(crate) schema: Schema,
    pub(crate) statements: Arc<Statements>,
    /// The look-ups for one candidate, for two, and so on.
    find: Arc<[SqlStr]>,
    pub(crate) zone: SharedZone,
    file: OpenedFile,
    calls: StoreMetrics,
}

impl SqliteStore {
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
    /// [`with_pool`](Self::with_pool) to choose otherwise.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn connect(options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(PATIENCE)
            // A file does not hang up; a ping before each call would double its cost.
            .test_before_acquire(false)
            .connect_with(options);
        Self::with_pool(pool.await.map_err(unavailable)?).await
    }

    /// Uses a pool of sqlx 0.9 that the application has already. A database in memory is one for each
    /// connection, so its pool must have exactly one, which never closes.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub async fn with_pool(pool: SqlitePool) -> Result<Self, StoreError> {
        let schema = schema::recognise_or_create(&pool).await?;
        let file = OpenedFile::at(pool.connect_options().get_filename());
        let store = Self::on(pool, schema, SharedZone::default(), file);
        store.follow_kept_zone().await?;
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
        let schema = schema::extend(&self.pool).await?;
        let store = Self::on(self.pool, schema, self.zone, self.file);
        match store.zone.given().cloned() {
            Some(zone) => store.keep_zone(&zone).await?,
            None => store.follow_kept_zone().await?,
        }
        Ok(store)
    }

    /// The changes of keys and owners, as a [`Follower`](crate::tasks::Follower) of a cache over this store
    /// takes them: those of other processes, the Python service and `lxk` among them. The database needs
    /// the [extension](Self::extend_schema), which a new one has.
    ///
    /// ```
    /// # #[cfg(feature = "cache")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("keys.db");
    /// use lexikon_auth::store::{CachedStore, SqliteStore};
    /// use lexikon_auth::tasks::Follower;
    /// let database = SqliteStore::open_or_create(&path).await?.extend_schema().await?;
    /// let store = CachedStore::new(database.clone());
    /// let follower = Follower::spawn(store.clone(), database.changes());
    /// follower.connected().await;
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    pub fn changes(&self) -> SqliteFeed {
        SqliteFeed::new(self.pool.connect_options(), self.file.clone())
    }

    /// Disables or enables an owner: the keys of a disabled one are refused. Caches over this store
    /// learn of it from a [`Follower`](crate::tasks::Follower) of its [`changes`](Self::changes), or by their
    /// `invalidate`.
    ///
    /// # Errors
    /// [`StoreError::UnknownOwner`] in a database of the lexikon service, where users are the
    /// service's to create.
    pub async fn set_owner_active(&self, owner: &OwnerId, active: bool) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
        self.create_owner(&mut transaction, owner).await?;
        let changed = sqlx::query("UPDATE users SET is_active = $2 WHERE id = $1")
            .bind(owner.as_str())
            .bind(active)
            .execute(&mut *transaction)
            .await
            .map_err(unavailable)?
            .rows_affected();
        if changed == 0 {
            return Err(StoreError::UnknownOwner(owner.clone()));
        }
        transaction.commit().await.map_err(unavailable)
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
        let known = sqlx::query_scalar(SELECT_SECRETS).fetch_all(&self.pool).await;
        if knows(ring.current(), &known.map_err(unavailable)?)?.is_some() {
            return Ok(());
        }
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
        // Of several processes that start with different secrets, the first one decides.
        let known = sqlx::query_scalar(SELECT_SECRETS).fetch_all(&mut *transaction).await;
        if knows(ring.current(), &known.map_err(unavailable)?)?.is_none() {
            let insert = insert_secret(ring.current())?.execute(&mut *transaction).await;
            insert.map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)
    }

    /// Lets the database know a new secret, so that services may start with it.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when the tables are without the [extension](Self::extend_schema).
    pub async fn add_secret(&self, secret: &ServerSecret) -> Result<(), StoreError> {
        require_secrets(self.schema)?;
        insert_secret(secret)?.execute(&self.pool).await.map_err(unavailable).map(drop)
    }

    /// Closes all connections, once the calls that are under way have ended.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    fn on(pool: SqlitePool, schema: Schema, zone: SharedZone, file: OpenedFile) -> Self {
        let statements = Statements::new(schema, "", "k.id");
        let find = |count| {
            let others: String = (2..=count).map(|number| format!(", ${number}")).collect();
            statements.select(&format!("WHERE k.key_hash IN ($1{others})"))
        };
        let find = (1..=Candidates::MAX).map(find).collect();
        let calls = StoreMetrics::new("sqlite");
        Self { pool, schema, statements: Arc::new(statements), find, zone, file, calls }
    }

    /// Adds the owner where owners are this store's to create.
    async fn create_owner(
        &self,
        connection: &mut SqliteConnection,
        owner: &OwnerId,
    ) -> Result<(), StoreError> {
        if self.schema.owns_users {
            // Not ON CONFLICT DO NOTHING, which the feed of changes takes for a replacement.
            let insert = "INSERT INTO users (id, is_active) \
                          SELECT $1, 1 WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = $1)";
            let insert = sqlx::query(insert).bind(owner.as_str());
            insert.execute(connection).await.map_err(unavailable)?;
        }
        Ok(())
    }

    pub(crate) async fn insert_in(
        &self,
        connection: &mut SqliteConnection,
        record: &KeyRecord,
    ) -> Result<(), StoreError> {
        self.create_owner(connection, &record.owner).await?;
        let mut insert = sqlx::query(self.statements.insert.clone())
            .bind(record.id.to_string())
            .bind(record.owner.as_str())
            .bind(record.hash.to_hex())
            .bind(&*record.name)
            .bind(record.scopes.as_str())
            .bind(!record.is_revoked())
            .bind(to_text_optional("created_at", record.created_at)?)
            .bind(self.local_text_optional("expires_at", record.expires_at)?)
            .bind(self.local_text_optional("last_used_at", record.last_used_at)?);
        if self.schema.has_details {
            let revocation = record.revocation.as_deref().cloned().unwrap_or_default();
            insert = insert
                .bind(to_text_optional("revoked_at", revocation.at)?)
                .bind(revocation.reason)
                .bind(record.format.map(HashFormat::as_str));
        }
        match insert.execute(connection).await.map_err(unavailable)?.rows_affected() {
            0 => Err(StoreError::UnknownOwner(record.owner.clone())),
            _ => Ok(()),
        }
    }
}

impl PolicySource for SqliteStore {
    async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
        // Asked for each time, because an operator may add the table while this runs.
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        if schema::columns(&mut connection, POLICIES).await?.is_empty() {
            return Ok(None);
        }
        let row: Option<(String, Option<String>)> = sqlx::query_as(SELECT_POLICY)
            .fetch_optional(&mut *connection)
            .await
            .map_err(unavailable)?;
        let read = |(legacy, until): (String, Option<String>)| {
            policy(&legacy, until.as_deref().and_then(from_text))
        };
        row.map(read).transpose()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = self.pool.connect_options();
        let mut debug = f.debug_struct("SqliteStore");
        debug.field("file", &options.get_filename()).finish_non_exhaustive()
    }
}

fn insert_secret(secret: &ServerSecret) -> Result<Query<'_, Sqlite, SqliteArguments>, StoreError> {
    let now = to_text("added_at", SystemTime::now())?;
    Ok(sqlx::query(INSERT_SECRET).bind(secret.fingerprint().to_string()).bind(now))
}

fn file(path: impl AsRef<Path>) -> Result<SqliteConnectOptions, StoreError> {
    let bytes = path.as_ref().as_os_str().as_encoded_bytes();
    // SQLite would take these for a database in memory or a temporary one, each connection for its own,
    // or create a file named like the URL.
    let is_url = bytes.starts_with(b"sqlite:") || bytes.starts_with(b"file:");
    if is_url || matches!(bytes, b"" | b":memory:") {
        return Err(StoreError::CannotOpen(NOT_A_PATH.into()));
    }
    Ok(SqliteConnectOptions::new().filename(path).busy_timeout(PATIENCE))
}

/// Creates an empty file for its owner alone, where there is none: SQLite would leave it to the umask.
fn create_private(path: &Path) -> Result<(), StoreError> {
    // Where the path is a link, what counts is what it leads to.
    if path.exists() {
        return Ok(());
    }
    let mut options = std::fs::File::options();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop).map_err(|error| StoreError::CannotOpen(error.into()))
}

/// Keeps all others out of a file that is about to become a database and that everybody may open: its mode
/// is that of a umask. One that only a group may open as well was given to it.
fn make_private(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = std::fs::metadata(path) {
        use std::os::unix::fs::PermissionsExt;
        let mut permissions = metadata.permissions();
        if metadata.is_file() && permissions.mode() & 0o007 != 0 {
            permissions.set_mode(permissions.mode() & 0o700);
            // Some file systems have no modes, and some files are another user's to protect.
            let _ = std::fs::set_permissions(path, permissions);
        }
    }
    #[cfg(not(unix))]
    let _ = path;
}

/// What a failure of sqlx means to a caller. SQLite's codes: <https://www.sqlite.org/rescode.html>.
pub(crate) fn unavailable(error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error() else {
        return StoreError::Unavailable(error.into());
    };
    if database.is_unique_violation() {
        return StoreError::Conflict;
    }
    let code = database.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
    // The low byte is the kind, the rest its details.
    match code & 0xff {
        8 => StoreError::ReadOnly(error.into()),
        11 | 26 => StoreError::Corrupt(error.into()),
        14 => StoreError::CannotOpen(error.into()),
        _ => StoreError::Unavailable(error.into()),
    }
}
