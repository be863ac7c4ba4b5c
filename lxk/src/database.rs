//! What a command works on: the database, and the tier in Redis where there is one.

use std::cell::Cell;
use std::path::Path;
use std::time::Duration;

use lexikon_auth::admin::{KeyFilter, KeyTable};
use lexikon_auth::store::{
    DatabaseUrl, DynKeyStore, PostgresStore, RedisStore, SharedCache, SqliteMode, SqliteStore,
    TimeZone,
};
use lexikon_auth::{SecretRing, ServerSecret, StoreError};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tokio::time::{sleep, timeout};

use crate::environment::{configured_cache, describe, redis_client, redis_options, variable};
use crate::failure::Failure;
use crate::times::ago;

/// How long to wait for a connection or a lock. Nobody's request waits behind it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for Redis, which may have to be started or be far away.
const REDIS_TIMEOUT: Duration = Duration::from_secs(2);

const NO_URL: &str = "no database is named; set DATABASE_URL or give --database-url, such as \
     sqlite:///var/lib/lexikon/keys.db or postgres://lexikon@localhost/lexikon";
const NO_TABLES: &str = "the database holds no table api_keys; check the URL, or make the tables \
     with: lxk schema apply --create";
const REDIS_NOT_TOLD: &str = "the database has changed, but Redis cannot be told{fault}: instances may go on by \
     what it holds, for the whole life of an entry. Once it can be, run: lxk cache clear --all";

/// The database.
pub struct Database {
    pub table: KeyTable,
    /// Its store, with the tier in Redis on top where there is one, so that it forgets what changes.
    pub store: DynKeyStore,
    redis: Option<RedisStore<DynKeyStore>>,
    /// Whether it was opened to change it.
    is_writable: bool,
    /// Why Redis was not told of a change.
    invalidation_failure: Cell<Option<String>>,
}

impl Database {
    /// Opens the database to look at it: what caches say does not count.
    pub async fn open(url: Option<&str>) -> Result<Self, Failure> {
        Ok(Self::new(connect(url, MissingTables::Refuse).await?, None))
    }

    /// Opens a database, and makes the tables in an empty one.
    pub async fn open_or_create(url: Option<&str>) -> Result<Self, Failure> {
        Ok(Self::new(connect(url, MissingTables::Create).await?, None))
    }

    /// Opens the database to change it, with the caches that have to be told.
    pub async fn open_to_change(url: Option<&str>) -> Result<Self, Failure> {
        let table = connect(url, MissingTables::Refuse).await?;
        require_kept_zone(&table).await?;
        let redis = match variable("REDIS_URL") {
            Some(url) => Some(redis(&url, &table).await?),
            None => None,
        };
        Ok(Self { is_writable: true, ..Self::new(table, redis) })
    }

    /// Opens the database to change it, or only to look at it in a dry run.
    pub async fn open_to_change_unless(
        is_dry_run: bool,
        url: Option<&str>,
    ) -> Result<Self, Failure> {
        if is_dry_run { Self::open(url).await } else { Self::open_to_change(url).await }
    }

    fn new(table: KeyTable, redis: Option<RedisStore<DynKeyStore>>) -> Self {
        let store = redis.clone().map_or_else(|| table.store(), DynKeyStore::new);
        Self { table, store, redis, is_writable: false, invalidation_failure: Cell::default() }
    }

    /// Has [`check_invalidation`](Self::check_invalidation) fail for this reason.
    pub fn note_invalidation_failure(&self, problem: String) {
        self.invalidation_failure.set(Some(problem));
    }

    /// Fails where a cache may hold what has changed, because it was not told.
    pub async fn check_invalidation(&self) -> Result<(), Failure> {
        if !self.is_writable {
            return Ok(());
        }
        if let Some(problem) = self.invalidation_failure.take() {
            return Err(Failure::Unavailable(problem));
        }
        if let Some(redis) = &self.redis {
            // The store looks every second whether Redis is there, unless a read of standard input blocked it.
            let used = async {
                while !redis.is_used() {
                    sleep(Duration::from_millis(50)).await;
                }
            };
            if timeout(REDIS_TIMEOUT, used).await.is_err() {
                let fault = redis.fault().map_or(String::new(), |fault| format!(" ({fault})"));
                return Err(Failure::Unavailable(REDIS_NOT_TOLD.replace("{fault}", &fault)));
            }
        }
        let own = match variable("REDIS_URL") {
            Some(url) => Some(configured_cache(&url)?),
            None => None,
        };
        let mut others = self.shared_caches().await?;
        others.retain(|cache| Some(cache) != own.as_ref());
        if others.is_empty() {
            return Ok(());
        }
        let others: Vec<_> = others.iter().map(describe).collect();
        Err(Failure::Unavailable(format!(
            "the database has changed, but instances also keep copies in Redis where they could not be \
             told: {}. Until they hear of it from the database's feed, or the copies are too old, they \
             go on by them. Set REDIS_URL and REDIS_PREFIX as those instances have them, and run: lxk \
             cache clear --all",
            others.join(", ")
        )))
    }

    /// Returns the caches in Redis that hold copies of rows, as far as instances have noted them: an entry
    /// lives for a day at most, and an instance that keeps any says so every ten minutes.
    pub async fn shared_caches(&self) -> Result<Vec<SharedCache>, Failure> {
        const LONGEST: Duration = Duration::from_secs(26 * 3600);
        Ok(self.table.shared_caches(ago(LONGEST)).await?)
    }

    /// Refuses a secret that the database does not know. One that knows none yet, but holds keys, is not
    /// told of it here: a wrong secret would be taken for the right one from then on.
    pub async fn check_secret(&self, ring: &SecretRing) -> Result<(), Failure> {
        let has_keys = self.table.count(&KeyFilter::default()).await? > 0;
        if has_keys && self.table.is_extended() && self.table.secrets().await?.is_empty() {
            return Err(Failure::Refused(format!(
                "the database knows no secret yet; see with lxk verify that a key is accepted under \
                 {}, and then run: lxk secret rotate add",
                ring.current().fingerprint()
            )));
        }
        Ok(self.table.check_secrets(ring).await?)
    }

    pub fn redis(&self) -> Option<&RedisStore<DynKeyStore>> {
        self.redis.as_ref()
    }
}

/// What becomes of a database without tables, and of a file that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MissingTables {
    Refuse,
    Create,
}

/// Returns whether the URL is that of a database in SQLite.
pub fn is_sqlite(url: Option<&str>) -> bool {
    matches!(parse(url), Ok(DatabaseUrl::Sqlite { .. }))
}

/// Reads the URL of the command line, or else of the environment.
fn parse(url: Option<&str>) -> Result<DatabaseUrl, Failure> {
    let from_environment = variable("DATABASE_URL");
    let url = url.or(from_environment.as_deref()).ok_or(Failure::Usage(NO_URL.to_owned()))?;
    Ok(url.parse()?)
}

async fn connect(url: Option<&str>, missing_tables: MissingTables) -> Result<KeyTable, Failure> {
    match parse(url)? {
        DatabaseUrl::Sqlite { path, mode } => connect_sqlite(&path, mode, missing_tables).await,
        DatabaseUrl::Postgres(options) => connect_postgres(options, missing_tables).await,
        _ => Err(Failure::Usage("lxk works on SQLite and PostgreSQL alone".to_owned())),
    }
}

async fn connect_sqlite(
    path: &Path,
    mode: SqliteMode,
    missing_tables: MissingTables,
) -> Result<KeyTable, Failure> {
    // A database is made only where the command says so, whatever the mode, and by the store.
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(TIMEOUT);
    let options = options.read_only(mode == SqliteMode::ReadOnly);
    let name = path.display();
    let cannot_be_opened = |error: &dyn std::fmt::Display| {
        Failure::Unavailable(format!(
            "{name} cannot be opened: {error}; check that the path names a database that may be read \
             and written, or make one with: lxk schema apply --create"
        ))
    };
    if missing_tables == MissingTables::Create {
        // The store makes the file readable for its owner alone; SQLite would not.
        match SqliteStore::open_or_create(path).await {
            Ok(store) => store.close().await,
            Err(StoreError::CannotOpen(error)) => return Err(cannot_be_opened(&error)),
            Err(error) => return Err(error.into()),
        }
    }
    let pool = SqlitePoolOptions::new().acquire_timeout(TIMEOUT).connect_with(options).await;
    let pool = pool.map_err(|error| cannot_be_opened(&error))?;
    let tables = "SELECT count(*) FROM sqlite_master WHERE name = 'api_keys'";
    let tables: Result<i64, _> = sqlx::query_scalar(tables).fetch_one(&pool).await;
    match tables {
        Ok(0) if missing_tables == MissingTables::Refuse => {
            Err(Failure::Refused(NO_TABLES.to_owned()))
        }
        Ok(_) => in_time_zone(SqliteStore::from_pool(pool).await?),
        Err(error) => Err(Failure::Unavailable(format!("{name} cannot be read: {error}"))),
    }
}

async fn connect_postgres(
    options: PgConnectOptions,
    missing_tables: MissingTables,
) -> Result<KeyTable, Failure> {
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    let connection_failed = |error: &dyn std::fmt::Display| {
        Failure::Unavailable(format!(
            "PostgreSQL at {host}:{port} does not let this in: {error}; check that it runs, and the \
             user, password and database of the URL"
        ))
    };
    // Without the pool, which tries again until its time is up where nobody listens.
    let connection = timeout(TIMEOUT, PgConnection::connect_with(&options)).await;
    let connection = connection.map_err(|elapsed| connection_failed(&elapsed))?;
    let mut connection = connection.map_err(|error| connection_failed(&error))?;
    let is_there = "SELECT to_regclass('api_keys') IS NOT NULL";
    let is_there: Result<bool, _> = sqlx::query_scalar(is_there).fetch_one(&mut connection).await;
    let pool = PgPoolOptions::new().max_connections(4).acquire_timeout(TIMEOUT);
    match is_there {
        Ok(false) if missing_tables == MissingTables::Refuse => {
            Err(Failure::Refused(NO_TABLES.to_owned()))
        }
        Ok(_) => {
            in_time_zone(PostgresStore::from_pool(pool.connect_lazy_with(options), TIMEOUT).await?)
        }
        Err(error) => Err(Failure::Unavailable(format!("{host}:{port} does not answer: {error}"))),
    }
}

/// Uses the zone of the environment, if it names one.
fn in_time_zone(table: impl Into<KeyTable>) -> Result<KeyTable, Failure> {
    let table = table.into();
    match variable("LEXIKON_TIME_ZONE") {
        Some(name) => Ok(table.with_time_zone(&name.parse()?)?),
        None => Ok(table),
    }
}

/// Refuses to write in a zone that nobody else learns of, where the database could keep it.
async fn require_kept_zone(table: &KeyTable) -> Result<(), Failure> {
    let zone = table.time_zone();
    if *zone == TimeZone::UTC
        || !table.can_keep_time_zone()
        || table.kept_time_zone().await?.is_some()
    {
        return Ok(());
    }
    Err(Failure::Refused(format!(
        "LEXIKON_TIME_ZONE says {zone}, and the database keeps no time zone yet, so instances go by \
         others; run: lxk schema time-zone {zone}"
    )))
}

async fn redis(url: &str, table: &KeyTable) -> Result<RedisStore<DynKeyStore>, Failure> {
    let client = redis_client(url)?;
    // Invalidation needs no secret, so a command that changes keys needs none either. Under a secret drawn
    // here, entries of instances are not believed, and none is written.
    let ring = match SecretRing::from_env() {
        Ok(ring) => ring,
        Err(_) => SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?),
    };
    let options = redis_options().timeout(REDIS_TIMEOUT);
    Ok(RedisStore::new(table.store(), client, &ring, options).await)
}
