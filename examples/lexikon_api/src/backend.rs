//! The stores: SQLite or PostgreSQL, Redis where there is one, and a cache in memory over all.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, KeyStore, PostgresStore, RedisOptions, RedisStore,
    SqliteStore,
};
use lexikon_auth::store::{ChangeFeed, RedisCounts};
use lexikon_auth::tasks::{Follower, PolicyFollower};
use lexikon_auth::{KeyId, StoreError, Verifier};
use tempfile::TempDir;

use crate::config::Config;

pub type Store = CachedStore<DynKeyStore>;

/// How long the database may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// The stores, and what keeps them up to date.
#[derive(Clone)]
pub struct Backend {
    pub store: Store,
    pub kind: &'static str,
    /// What has happened in Redis, where there is one.
    pub redis: Option<Arc<dyn Fn() -> RedisCounts + Send + Sync>>,
    follower: Arc<Follower>,
    database: Database,
    _demo: Option<Arc<TempDir>>,
}

#[derive(Clone)]
enum Database {
    Sqlite(SqliteStore),
    Postgres(PostgresStore),
}

impl Backend {
    pub async fn open(config: &Config) -> Result<Self, Box<dyn Error>> {
        match config.database_url.strip_prefix("sqlite://") {
            Some(path) => {
                let store = SqliteStore::open_or_create(path).await?.extend_schema().await?;
                store.check_secrets(&config.ring).await?;
                let (feed, database) = (store.changes(), Database::Sqlite(store.clone()));
                Self::over(store, feed, database, config).await
            }
            None => {
                let store = PostgresStore::connect(config.database_url.parse()?).await?;
                let store = store.extend_schema().await?;
                store.check_secrets(&config.ring).await?;
                let (feed, database) = (store.changes(), Database::Postgres(store.clone()));
                Self::over(store, feed, database, config).await
            }
        }
    }

    async fn over(
        store: impl KeyStore + 'static,
        feed: impl ChangeFeed,
        database: Database,
        config: &Config,
    ) -> Result<Self, Box<dyn Error>> {
        let (store, redis) = match &config.redis_url {
            None => (DynKeyStore::new(store), None),
            Some(url) => {
                let client = redis::Client::open(url.as_str())?;
                let options = RedisOptions::default();
                let tier = RedisStore::new(store, client, &config.ring, options).await;
                let tier = Arc::new(tier);
                let counts: Arc<dyn Fn() -> RedisCounts + Send + Sync> = {
                    let tier = tier.clone();
                    Arc::new(move || tier.counts())
                };
                (DynKeyStore::new(RedisStore::clone(&tier)), Some(counts))
            }
        };
        let store = CachedStore::new(store, CacheOptions::default());
        let follower = Arc::new(Follower::spawn(store.clone(), feed));
        let kind = match database {
            Database::Sqlite(_) => "sqlite",
            Database::Postgres(_) => "postgres",
        };
        let demo = config.demo.clone();
        Ok(Self { store, kind, redis, follower, database, _demo: demo })
    }

    /// How long the database takes to answer.
    pub async fn ping(&self) -> Result<Duration, StoreError> {
        let started = Instant::now();
        let id = KeyId::from("nobody");
        let asked = tokio::time::timeout(PATIENCE, self.store.find_by_id(&id)).await;
        asked.map_err(|elapsed| StoreError::Unavailable(elapsed.into()))??;
        Ok(started.elapsed())
    }

    /// Whether changes that others make are being reported.
    pub fn is_followed(&self) -> bool {
        self.follower.is_connected()
    }

    /// Has a verifier follow the legacy policy that operators set with `lxk migrate policy`.
    pub async fn lead<S>(&self, verifier: &Arc<Verifier<S>>) -> Result<PolicyFollower, StoreError>
    where
        S: Send + Sync + 'static,
    {
        match &self.database {
            Database::Sqlite(store) => verifier.follow_policy(store.clone()).await,
            Database::Postgres(store) => verifier.follow_policy(store.clone()).await,
        }
    }

    pub async fn close(self) {
        match self.database {
            Database::Sqlite(store) => store.close().await,
            Database::Postgres(store) => store.close().await,
        }
    }
}
