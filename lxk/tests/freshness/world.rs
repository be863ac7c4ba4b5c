//! The servers, the instances on them, and the keys that are watched.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lexikon_auth::store::{DynKeyStore, PostgresStore, SqliteStore};
use lexikon_auth::{KeyManager, NewKey};
use lexikon_auth_tests::{one_secret, postgres::Server, proxy::Proxy, redis_server::RedisServer};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::instances::{Feed, Instance, Place, Plan};
use crate::oracle::{Key, Oracle};
use crate::stalls::Stalls;

/// Longer than a server takes to come back on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The instances on PostgreSQL that Redis tells, and the others.
pub const TOLD_BY_REDIS: Range<usize> = 4..6;
pub const OTHERS: Range<usize> = 0..4;

/// Of the instances that Redis tells. The others have the default of 2 seconds.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(6);

pub struct World {
    pub oracle: Oracle,
    pub instances: Vec<Instance>,
    pub postgres: Mutex<Server>,
    postgres_url: String,
    pub postgres_proxy: Proxy,
    options: PgConnectOptions,
    pub redis: Mutex<[RedisServer; 2]>,
    redis_ports: [u16; 2],
    /// Which of the two is the master.
    pub master: AtomicUsize,
    sqlite: SqliteConnectOptions,
    folder: TempDir,
    issuers: [KeyManager<DynKeyStore>; 2],
    watched: Mutex<Vec<Arc<Key>>>,
    issued: AtomicU64,
}

impl World {
    pub async fn new(start: Instant) -> Self {
        let postgres = Server::start();
        let options = postgres.options();
        let redis = [RedisServer::start(), RedisServer::start()];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        let sqlite = SqliteConnectOptions::new().filename(&path);
        let file = SqliteStore::open_or_create(&path).await.unwrap();
        let issuer = PostgresStore::connect(options.clone()).await.unwrap();
        let ring = one_secret();
        let issuers = [
            KeyManager::new(DynKeyStore::new(issuer), &ring),
            KeyManager::new(DynKeyStore::new(file), &ring),
        ];

        let postgres_proxy = Proxy::to(options.get_port()).await;
        let far = options.clone().port(postgres_proxy.port);
        let tier = Some(redis[0].port);
        let mut instances = Vec::new();
        let near = PostgresStore::connect(options.clone()).await.unwrap();
        let far = PostgresStore::connect(far).await.unwrap();
        let patient = patient(options.clone()).await;
        for (name, feed, redis, database) in [
            ("full", Feed::Database, tier, &near),
            ("full, far", Feed::Database, tier, &far),
            ("without redis, far", Feed::Database, None, &far),
            ("not followed", Feed::None, None, &near),
            ("told by redis, 1", Feed::Redis, tier, &patient),
            ("told by redis, 2", Feed::Redis, tier, &patient),
        ] {
            let database = database.clone();
            let plan = Plan { name, feed, redis };
            instances.push(plan.on_postgres(instances.len(), database).await);
        }
        for (name, feed) in [("sqlite, followed", Feed::Database), ("sqlite", Feed::None)] {
            let database = SqliteStore::open(&path).await.unwrap();
            let plan = Plan { name, feed, redis: None };
            instances.push(plan.on_sqlite(instances.len(), database).await);
        }
        for instance in &instances {
            instance.connected().await;
        }
        Self {
            oracle: Oracle::new(start, Stalls::measure()),
            instances,
            postgres_url: postgres.url(),
            postgres: Mutex::new(postgres),
            postgres_proxy,
            options,
            redis_ports: [redis[0].port, redis[1].port],
            redis: Mutex::new(redis),
            master: AtomicUsize::new(0),
            sqlite,
            folder,
            issuers,
            watched: Mutex::default(),
            issued: AtomicU64::new(0),
        }
    }

    pub fn say(&self, text: impl AsRef<str>) {
        self.oracle.say(text.as_ref());
    }

    pub fn at(&self, place: Place) -> impl Iterator<Item = &Instance> {
        self.instances.iter().filter(move |instance| instance.place == place)
    }

    /// Issues a key with an owner of its own. Nobody has looked it up yet.
    pub async fn issue(&self, place: Place) -> Arc<Key> {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let (id, owner) = (format!("key-{number}"), format!("owner-{number}"));
        let begun = Instant::now();
        loop {
            // The second attempt finds the id taken where the answer to the first was lost.
            let id = format!("{id}-{}", begun.elapsed().as_millis());
            let new = NewKey::new(owner.as_str(), "name").id(id.as_str()).scopes("read,write");
            match self.issuers[place as usize].issue(new).await {
                Ok(issued) => {
                    let text = issued.key.expose_secret().to_owned();
                    return Arc::new(Key::new(issued.record.id, text, owner, place));
                }
                Err(error) => assert!(begun.elapsed() < PATIENCE, "a key can be issued: {error:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has a key verified again and again from now on, everywhere.
    pub fn watch(&self, key: &Arc<Key>) {
        self.watched.lock().unwrap().push(key.clone());
    }

    /// Keys that are watched, and in every cache.
    pub async fn warm(&self, count: usize) -> Vec<Arc<Key>> {
        let mut keys = Vec::new();
        for _ in 0..count {
            let key = self.issue(Place::Postgres).await;
            self.watch(&key);
            self.verify_everywhere(&key).await;
            keys.push(key);
        }
        keys
    }

    pub async fn verify_everywhere(&self, key: &Key) {
        for instance in self.at(key.place) {
            self.verify(instance, key).await;
        }
    }

    pub async fn verify(&self, instance: &Instance, key: &Key) {
        let asked = Instant::now();
        let answer = instance.verifier.verify(&*key.text).await;
        self.oracle.judge(instance, key, asked, &answer);
    }

    /// The next key for an instance to verify, in turns.
    pub fn next(&self, instance: &Instance, turn: &AtomicUsize) -> Option<Arc<Key>> {
        let mut watched = self.watched.lock().unwrap();
        watched.retain(|key| !key.is_done());
        let due: Vec<_> =
            watched.iter().filter(|key| key.place == instance.place && !key.rests()).collect();
        let next = turn.fetch_add(1, Ordering::Relaxed).checked_rem(due.len())?;
        Some(due[next].clone())
    }

    /// Runs statements in the database itself, as soon as it lets anybody in. They have to be such that
    /// a second time does no harm: the answer to the first may be lost.
    pub async fn sql(&self, place: Place, statements: &str) {
        let begun = Instant::now();
        while let Err(error) = self.try_sql(place, statements).await {
            assert!(begun.elapsed() < PATIENCE, "{statements}: {error}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn try_sql(&self, place: Place, statements: &str) -> sqlx::Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match place {
            Place::Postgres => {
                let mut connection = self.connect().await?;
                statements.execute(&mut connection).await?;
                connection.close().await
            }
            Place::Sqlite => {
                let mut connection = self.sqlite.connect().await?;
                statements.execute(&mut connection).await?;
                connection.close().await
            }
        }
    }

    /// A connection to PostgreSQL that no fault of the network concerns.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        let connection = timeout(Duration::from_secs(5), self.options.connect()).await;
        connection.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// Waits until a change shows in the row, for as long as one may take. `false` when it never did.
    pub async fn is_committed(&self, key: &Key) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(15) {
            if let Ok(true) = self.is_changed(key).await {
                return true;
            }
            sleep(Duration::from_millis(40)).await;
        }
        false
    }

    async fn is_changed(&self, key: &Key) -> sqlx::Result<bool> {
        let query = "SELECT count(*) FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = $1 \
             AND (NOT k.is_active OR k.expires_at IS NOT NULL OR k.scopes = 'read' OR NOT u.is_active)";
        let id = key.id.to_string();
        let count: i64 = match key.place {
            Place::Postgres => {
                let mut connection = self.connect().await?;
                let count = sqlx::query_scalar(query).bind(id).fetch_one(&mut connection).await?;
                connection.close().await?;
                count
            }
            Place::Sqlite => {
                let mut connection = self.sqlite.connect().await?;
                let count = sqlx::query_scalar(query).bind(id).fetch_one(&mut connection).await?;
                connection.close().await?;
                count
            }
        };
        Ok(count > 0)
    }

    /// Where `lxk` finds the database.
    pub fn url(&self, place: Place) -> String {
        match place {
            Place::Postgres => self.postgres_url.clone(),
            Place::Sqlite => format!("sqlite://{}", self.folder.path().join("keys.db").display()),
        }
    }

    /// The database, for a store of its own.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The port of one of the two servers.
    pub fn redis_port(&self, server: usize) -> u16 {
        self.redis_ports[server]
    }
}

/// A store of a service that waits long for a lock, with a pool of its own.
async fn patient(options: PgConnectOptions) -> PostgresStore {
    let limit = format!("SET statement_timeout = {}", STATEMENT_TIMEOUT.as_millis());
    let pool =
        PgPoolOptions::new().test_before_acquire(false).after_connect(move |connection, _| {
            let limit = sqlx::raw_sql(AssertSqlSafe(limit.clone()));
            Box::pin(async move { limit.execute(connection).await.map(drop) })
        });
    let pool = pool.connect_with(options).await.unwrap();
    PostgresStore::from_pool(pool, STATEMENT_TIMEOUT).await.unwrap()
}
