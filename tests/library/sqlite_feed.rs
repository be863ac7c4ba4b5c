//! Changes that others make to a SQLite database, and how they reach the caches: several connections and
//! processes on one file, and a service beside them that knows nothing of this crate.
#![cfg(all(feature = "sqlite", feature = "cache"))]

mod changes;
mod faults;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lexikon_auth::store::{CacheOptions, CachedStore, Change, SqliteStore};
use lexikon_auth::store::{ChangeFeed, Message, Subscription};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{
    IssuedKey, KeyManager, NewKey, SecretRing, ServerSecret, StoreError, Verifier, VerifyError,
};
use lexikon_auth_tests::data;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Only a report of a change can end an entry's life within a test.
const LONG: Duration = Duration::from_secs(3600);
/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);
const SECRET: &str = "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb";

fn ring() -> SecretRing {
    SecretRing::new(ServerSecret::new(&SECRET.into()).unwrap())
}

/// A database, one instance of a service, and somebody else with access to the file.
struct Scene {
    _folder: TempDir,
    path: PathBuf,
    pool: SqlitePool,
    database: SqliteStore,
    manager: KeyManager<SqliteStore>,
}

/// An instance with a cache that follows.
struct Instance {
    store: CachedStore<SqliteStore>,
    follower: Follower,
    verifier: Verifier<CachedStore<SqliteStore>>,
}

impl Scene {
    /// A database of this crate's own, which has a write-ahead log.
    async fn own() -> Self {
        Self::new(&[]).await
    }

    /// The service's database with the extension, which has a rollback journal.
    async fn service() -> Self {
        Self::new(data::SQLITE).await
    }

    async fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        std::fs::write(&path, bytes).unwrap();
        let database = SqliteStore::open(&path).await.unwrap().extend_schema().await.unwrap();
        let options = SqliteConnectOptions::new().filename(&path).foreign_keys(false);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
        // Another instance, which tells the first one nothing.
        let manager = KeyManager::new(SqliteStore::open(&path).await.unwrap(), &ring());
        Self { _folder: folder, path, pool, database, manager }
    }

    async fn follow(&self) -> Instance {
        let cache = CacheOptions::default().max_age(LONG).max_age_unfollowed(LONG);
        let store = CachedStore::new(self.database.clone(), cache);
        let follower = Follower::spawn(store.clone(), self.database.changes());
        follower.connected().await;
        Instance { verifier: Verifier::new(store.clone(), ring()), store, follower }
    }

    async fn issue(&self) -> IssuedKey {
        self.manager.issue(NewKey::new("user-1", "name").scopes("read")).await.unwrap()
    }

    async fn run(&self, statement: &str) {
        if let Err(error) = self.try_run(statement).await {
            panic!("{statement}: {error}");
        }
    }

    async fn try_run(&self, statement: &str) -> sqlx::Result<()> {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&self.pool).await.map(drop)
    }

    /// What reports changes is there again.
    async fn extend(&self) {
        self.database.clone().extend_schema().await.unwrap();
    }

    /// Copies a table as Alembic's batch mode does, all columns or those that the service knows.
    async fn copy_table(&self, table: &str, all_columns: bool) {
        let columns = "SELECT group_concat(name) FROM pragma_table_info($1) \
                       WHERE $2 OR name NOT IN ('revoked_at', 'revoked_reason', 'hash_format', \
                       'lexikon_auth_change')";
        let columns = sqlx::query_scalar(columns).bind(table).bind(all_columns);
        let columns: String = columns.fetch_one(&self.pool).await.unwrap();
        self.run(&format!(
            "BEGIN IMMEDIATE; CREATE TABLE _alembic_tmp AS SELECT {columns} FROM {table}; \
             DROP TABLE {table}; ALTER TABLE _alembic_tmp RENAME TO {table}; COMMIT"
        ))
        .await;
    }
}

impl Instance {
    async fn verify(&self, issued: &IssuedKey) -> &'static str {
        match self.verifier.verify(issued.key.expose_secret()).await {
            Ok(_) => "accepted",
            Err(VerifyError::Refused(refusal)) => refusal.as_str(),
            Err(VerifyError::Unavailable(error)) => panic!("unavailable: {error:?}"),
        }
    }

    async fn lost(&self) {
        timeout(PATIENCE, self.follower.lost()).await.expect("the loss is noticed");
    }

    async fn connected(&self) {
        timeout(PATIENCE, self.follower.connected()).await.expect("it reports again");
    }

    /// Waits for an answer, which an entry that is not invalidated would keep from coming.
    async fn eventually(&self, issued: &IssuedKey, expected: &str, after: &str) {
        let start = Instant::now();
        while self.verify(issued).await != expected {
            assert!(start.elapsed() < PATIENCE, "still not {expected}: {after}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// All that has been reported by now.
async fn reported(subscription: &mut impl Subscription) -> Vec<Change> {
    subscription.heartbeat().await.unwrap();
    let mut changes = Vec::new();
    loop {
        match subscription.receive().await.unwrap() {
            Message::Changed(change) => changes.push(change),
            Message::Heartbeat => return changes,
            Message::Other => {}
        }
    }
}

fn key(id: &str) -> Change {
    Change::Key(id.into())
}

fn owner(id: &str) -> Change {
    Change::Owner(id.into())
}

/// Keys with the ids and hashes `1` to `count`, and their owner `user-1`, for a database of our own.
fn insert(count: u32) -> String {
    format!(
        "INSERT INTO users (id, is_active) VALUES ('user-1', 1); \
         INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active) \
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {count}) \
         SELECT n, 'user-1', n, 'n', 'read', 1 FROM n"
    )
}
