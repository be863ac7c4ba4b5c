//! Changes that others make to a SQLite database, and how they reach the caches: several connections and
//! processes on one file, and a service beside them that knows nothing of this crate.
#![cfg(all(feature = "sqlite", feature = "cache"))]

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

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_changes_is_seen() {
    for scene in [Scene::own().await, Scene::service().await] {
        let issued = scene.issue().await;
        let id = &issued.record.id;
        let turn = "UPDATE api_keys SET key_hash = substr(key_hash, 33) || substr(key_hash, 1, 32)";
        let keep = "CREATE TABLE kept AS SELECT * FROM api_keys";
        let bring_back = "INSERT INTO api_keys SELECT * FROM kept";
        let steps = [
            (format!("UPDATE api_keys SET is_active = 0 WHERE id = '{id}'"), "revoked"),
            (format!("UPDATE api_keys SET is_active = 1 WHERE id = '{id}'"), "accepted"),
            ("UPDATE users SET is_active = 0".into(), "owner_disabled"),
            (
                "UPDATE users SET is_active = NULL; UPDATE users SET is_active = 1".into(),
                "accepted",
            ),
            (
                format!("UPDATE api_keys SET expires_at = '2001-01-01 00:00:00' WHERE id = '{id}'"),
                "expired",
            ),
            (format!("UPDATE api_keys SET expires_at = NULL WHERE id = '{id}'"), "accepted"),
            (turn.into(), "unknown"),
            (turn.into(), "accepted"),
            (format!("{keep}; DELETE FROM api_keys"), "unknown"),
            (bring_back.into(), "accepted"),
            (
                "INSERT OR REPLACE INTO api_keys (id, user_id, key_hash, name, scopes, is_active) \
                 SELECT id, user_id, key_hash, name, scopes, 0 FROM kept"
                    .into(),
                "revoked",
            ),
            ("INSERT OR REPLACE INTO api_keys SELECT * FROM kept".into(), "accepted"),
            ("DELETE FROM users".into(), "owner_disabled"),
        ];
        let instance = scene.follow().await;
        assert_eq!(instance.verify(&issued).await, "accepted");
        for (statement, answer) in &steps {
            scene.run(statement).await;
            instance.eventually(&issued, answer, statement).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_decision_depends_on_is_not_reported() {
    let scene = Scene::service().await;
    let (one, other, last) = (scene.issue().await, scene.issue().await, scene.issue().await);
    let instance = scene.follow().await;
    // When this change has arrived, all before it have.
    assert_eq!(instance.verify(&last).await, "accepted");
    scene.manager.revoke(&last.record.id, None).await.unwrap();
    instance.eventually(&last, "revoked", "revoke").await;
    assert_eq!(instance.verify(&one).await, "accepted");
    assert_eq!(instance.verify(&other).await, "accepted");
    let loads = instance.store.loads();
    // The service does this with every request.
    scene.run("UPDATE api_keys SET last_used_at = '2026-01-01 00:00:00'").await;
    scene.run("UPDATE api_keys SET hash_format = 'sha256'").await;
    scene.run("UPDATE users SET is_active = is_active, updated_at = '2026-01-01 00:00:00'").await;
    scene.manager.revoke(&one.record.id, None).await.unwrap();
    instance.eventually(&one, "revoked", "revoke").await;
    assert_eq!(instance.verify(&other).await, "accepted");
    assert_eq!(instance.store.loads(), loads + 1, "one key was read again");
}

#[tokio::test]
async fn each_change_is_reported_for_what_it_is() {
    let scene = Scene::own().await;
    scene.run(&insert(9)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    let added = |id| vec![key(id), Change::Added];
    let cases = [
        ("SELECT 1", vec![]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '1'", vec![key("1")]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '1'", vec![]),
        ("UPDATE api_keys SET name = 'other' WHERE id = '2'", vec![key("2")]),
        ("UPDATE api_keys SET is_active = NULL WHERE id IN ('1', '2')", vec![key("1"), key("2")]),
        ("UPDATE api_keys SET key_hash = 'h' WHERE id = '3'", added("3")),
        ("UPDATE api_keys SET user_id = 'user-2' WHERE id = '3'", vec![key("3")]),
        ("UPDATE users SET is_active = 0", vec![owner("user-1")]),
        ("INSERT INTO users (id, is_active) VALUES ('user-2', 1)", vec![owner("user-2")]),
        ("UPDATE users SET is_active = 0 WHERE id = 'nobody'", vec![]),
        (
            "INSERT INTO api_keys (id, user_id, key_hash, name, scopes) VALUES ('x', 'y', 'z', '', '')",
            added("x"),
        ),
        ("BEGIN; UPDATE api_keys SET is_active = 0; DELETE FROM users; ROLLBACK", vec![]),
        // Which of two changes came last is all that a row says.
        ("UPDATE api_keys SET name = id; UPDATE api_keys SET name = 'n'", vec![Change::All]),
        ("DELETE FROM api_keys WHERE id = '4'", vec![Change::All]),
        ("DELETE FROM users WHERE id = 'user-2'", vec![Change::All]),
        ("UPDATE api_keys SET id = 'new' WHERE id = '5'", vec![Change::All]),
        ("UPDATE users SET id = 'new' WHERE id = 'user-1'", vec![Change::All]),
        ("UPDATE api_keys SET is_active = 0 WHERE id = '6'", vec![key("6")]),
        ("CREATE TABLE other (id)", vec![Change::All]),
        ("UPDATE users SET is_active = 1", vec![owner("new")]),
        ("DELETE FROM api_keys", vec![Change::All]),
        // What may have come and gone in an empty table, nobody knows.
        ("UPDATE users SET is_active = 0", vec![Change::All]),
    ];
    for (statement, changes) in cases {
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, changes, "{statement}");
    }
}

#[tokio::test]
async fn no_number_comes_twice() {
    // Whatever is done to the row with the latest number between two looks, anything may have changed.
    let statements = [
        "DELETE FROM api_keys WHERE id = '3'",
        "DELETE FROM api_keys WHERE id = '3'; INSERT INTO api_keys SELECT * FROM kept WHERE id = '3'",
        "DELETE FROM api_keys; INSERT INTO api_keys SELECT * FROM kept",
        "DELETE FROM api_keys; UPDATE kept SET lexikon_auth_change = NULL; \
         INSERT INTO api_keys SELECT * FROM kept",
        "INSERT OR REPLACE INTO api_keys SELECT * FROM kept",
        "UPDATE kept SET lexikon_auth_change = NULL; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE id = '3'",
        // The hash of another row, which goes.
        "UPDATE kept SET lexikon_auth_change = NULL, id = 'x'; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE key_hash = '3'",
        "UPDATE kept SET lexikon_auth_change = NULL, id = 'x'; \
         INSERT OR REPLACE INTO api_keys SELECT * FROM kept WHERE key_hash = '1'",
        "INSERT OR REPLACE INTO users (id, is_active) VALUES ('user-1', 0)",
        "DELETE FROM users; INSERT INTO users (id, is_active) VALUES ('user-1', 0)",
    ];
    for rows in [1, 2, 3] {
        for statement in statements {
            let statement = statement.replace("'3'", &format!("'{rows}'"));
            let scene = Scene::own().await;
            scene.run(&insert(rows)).await;
            scene.run("CREATE TABLE kept AS SELECT * FROM api_keys").await;
            let mut feed = scene.database.changes().subscribe().await.unwrap();
            scene.run(&statement).await;
            assert_eq!(reported(&mut feed).await, [Change::All], "{rows} rows: {statement}");
            scene.run("UPDATE api_keys SET name = 'other' WHERE id = '1'").await;
            let _ = reported(&mut feed).await;
            assert_eq!(reported(&mut feed).await, [], "{rows} rows: {statement}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_an_update_takes_the_place_of_is_reported() {
    let statements = [
        "UPDATE OR REPLACE api_keys SET key_hash = '1' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET key_hash = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '1' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET id = '1', key_hash = '3' WHERE id = '2'",
        "UPDATE OR REPLACE api_keys SET key_hash = '1'",
        "UPDATE OR REPLACE users SET id = 'user-1' WHERE id = 'user-2'",
    ];
    let owners = "INSERT INTO users (id) VALUES ('user-2'), ('user-3')";
    for statement in statements {
        let scene = Scene::own().await;
        scene.run(&format!("{}; {owners}", insert(4))).await;
        let mut feed = scene.database.changes().subscribe().await.unwrap();
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, [Change::All], "{statement}");
        scene.run("UPDATE api_keys SET name = 'other'").await;
        let _ = reported(&mut feed).await;
        assert_eq!(reported(&mut feed).await, [], "{statement}");
    }
    // One that fails changes nothing.
    let scene = Scene::own().await;
    scene.run(&insert(4)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.try_run("UPDATE api_keys SET key_hash = '1' WHERE id = '2'").await.unwrap_err();
    assert_eq!(reported(&mut feed).await, []);
}

#[tokio::test]
async fn rows_that_had_no_number_before_the_extension_are_reported() {
    let removed = [
        "DELETE FROM api_keys WHERE id = (SELECT id FROM api_keys LIMIT 1)",
        "UPDATE api_keys SET is_active = 0 WHERE is_active",
        "DELETE FROM api_keys",
        "DELETE FROM users",
    ];
    for statement in removed {
        let scene = Scene::service().await;
        let mut feed = scene.database.changes().subscribe().await.unwrap();
        scene.run(statement).await;
        assert_eq!(reported(&mut feed).await, [Change::All], "{statement}");
    }
}

#[tokio::test]
async fn many_changes_at_once_are_a_change_of_anything() {
    let scene = Scene::own().await;
    scene.run(&insert(1000)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.run("UPDATE api_keys SET is_active = 0").await;
    let changes = reported(&mut feed).await;
    let ids: BTreeSet<String> = changes
        .iter()
        .map(|change| match change {
            Change::Key(id) => id.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((changes.len(), ids.len()), (1000, 1000));
    scene.issue().await;
    reported(&mut feed).await;
    scene.run("UPDATE api_keys SET name = 'other'").await;
    assert_eq!(reported(&mut feed).await, [Change::All]);
}

#[tokio::test]
async fn a_receiver_that_is_dropped_loses_nothing() {
    let scene = Scene::own().await;
    scene.run(&insert(100)).await;
    let feed = scene.database.changes().interval(Duration::from_millis(1));
    let mut feed = feed.subscribe().await.unwrap();
    let writer = async {
        for id in 1..=100 {
            scene.run(&format!("UPDATE api_keys SET is_active = 0 WHERE id = '{id}'")).await;
        }
    };
    let reader = async {
        let mut missing: BTreeSet<String> = (1..=100).map(|id| id.to_string()).collect();
        let start = Instant::now();
        let mut patience = 0;
        while !missing.is_empty() {
            assert!(start.elapsed() < PATIENCE, "lost: {missing:?}");
            patience = (patience + 37) % 3000;
            match timeout(Duration::from_micros(patience), feed.receive()).await {
                Ok(Ok(Message::Changed(Change::Key(id)))) => drop(missing.remove(&*id.to_string())),
                Ok(other) => panic!("{other:?}"),
                Err(_) => {}
            }
        }
    };
    tokio::join!(writer, reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_changes_from_being_reported_is_noticed_and_can_be_mended() {
    let faults = [
        "DROP TRIGGER lexikon_auth_owner_changed",
        "DROP TRIGGER lexikon_auth_key_replaced",
        "DROP INDEX lexikon_auth_key_changes",
        "DROP TRIGGER lexikon_auth_key_changed; \
         CREATE TRIGGER lexikon_auth_key_changed AFTER UPDATE ON users BEGIN SELECT 1; END",
        "ALTER TABLE api_keys RENAME TO old; CREATE TABLE api_keys AS SELECT * FROM old",
    ];
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    for fault in faults {
        let instance = scene.follow().await;
        instance.eventually(&issued, "accepted", fault).await;
        scene.run(fault).await;
        instance.lost().await;
        let error = scene.database.changes().subscribe().await.err().expect(fault);
        let text = error.to_string();
        assert!(matches!(error, StoreError::Schema(_)), "{fault}: {error:?}");
        assert!(text.contains("extend_schema") && text.contains("lxk schema apply"), "{text}");
        // Nobody hears of this one, unless the trigger is there still.
        scene.run("UPDATE api_keys SET is_active = 0; UPDATE users SET is_active = 0").await;
        scene.extend().await;
        instance.connected().await;
        assert_ne!(
            instance.verify(&issued).await,
            "accepted",
            "what was read before is not trusted"
        );
        scene.run("UPDATE api_keys SET is_active = 1; UPDATE users SET is_active = 1").await;
        instance.eventually(&issued, "accepted", fault).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_a_migration_dropped_silently_are_noticed() {
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    // With the column of the numbers too, as where the copy is of the table as it stands.
    for (table, all_columns) in [("api_keys", false), ("users", false), ("api_keys", true)] {
        instance.eventually(&issued, "accepted", table).await;
        scene.copy_table(table, all_columns).await;
        instance.lost().await;
        scene.extend().await;
        instance.connected().await;
        scene.run("UPDATE api_keys SET is_active = 0").await;
        instance.eventually(&issued, "revoked", table).await;
        scene.run("UPDATE api_keys SET is_active = 1").await;
    }
}

#[tokio::test]
async fn triggers_that_were_gone_for_a_moment_have_missed_anything() {
    let scene = Scene::own().await;
    scene.run(&insert(3)).await;
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    scene.run("DROP TRIGGER lexikon_auth_key_changed; UPDATE api_keys SET is_active = 0").await;
    scene.extend().await;
    assert_eq!(reported(&mut feed).await, [Change::All]);
}

/// The service at work.
struct Writer(std::process::Child);

impl Writer {
    fn start(database: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/sqlalchemy/writer.py");
        let mut child = Command::new("/usr/bin/python3")
            .args([Path::new(script), database])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "writing\n", "python3-sqlalchemy is installed, and it writes");
        Self(child)
    }

    /// Panics where a write has failed.
    fn stop(mut self, after: &str) {
        drop(self.0.stdin.take());
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success() && text.ends_with("writes\n"), "a write failed: {after}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_write_of_the_service_fails_whatever_is_dropped_of_the_extension() {
    let drop_column = "ALTER TABLE api_keys DROP COLUMN lexikon_auth_change";
    let steps = [
        // What Alembic's autogenerate proposes, because its models do not know it.
        "DROP TABLE lexikon_auth_secrets; DROP TABLE lexikon_auth_policies; \
         DROP TABLE lexikon_auth_deprecations",
        "DROP INDEX lexikon_auth_key_changes; DROP INDEX lexikon_auth_owner_changes",
        "DROP TRIGGER lexikon_auth_key_changed",
    ];
    let scene = Scene::service().await;
    let instance = scene.follow().await;
    for step in steps {
        let writer = Writer::start(&scene.path);
        scene.run(step).await;
        sleep(Duration::from_millis(300)).await;
        writer.stop(step);
        Writer::start(&scene.path).stop(step);
    }
    // A column that a trigger needs cannot be dropped by itself. The migration says so; the service goes on.
    scene.extend().await;
    scene.run("DROP INDEX lexikon_auth_key_changes").await;
    let writer = Writer::start(&scene.path);
    let error = scene.try_run(drop_column).await.unwrap_err().to_string();
    assert!(error.contains("lexikon_auth_key_added"), "{error}");
    writer.stop(drop_column);
    // In batch mode it goes with the table.
    let writer = Writer::start(&scene.path);
    scene.copy_table("api_keys", false).await;
    scene.copy_table("users", false).await;
    sleep(Duration::from_millis(300)).await;
    writer.stop("batch mode");
    Writer::start(&scene.path).stop("batch mode");
    instance.lost().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_drops_a_column_once_the_triggers_that_name_it_are_gone() {
    let scene = Scene::service().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    instance.eventually(&issued, "accepted", "issued").await;
    scene.run("ALTER TABLE api_keys DROP COLUMN last_used_at").await;
    let drop_column = "ALTER TABLE api_keys DROP COLUMN expires_at";
    let error = scene.try_run(drop_column).await.unwrap_err().to_string();
    assert!(error.contains("error in trigger lexikon_auth_key_changed after drop"), "{error}");
    let triggers =
        "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'api_keys'";
    let triggers: Vec<String> = sqlx::query_scalar(triggers).fetch_all(&scene.pool).await.unwrap();
    for trigger in triggers {
        scene.run(&format!("DROP TRIGGER {trigger}")).await;
    }
    scene.run(drop_column).await;
    instance.lost().await;
    for column in ["expires_at", "last_used_at"] {
        scene.run(&format!("ALTER TABLE api_keys ADD COLUMN {column} DATETIME")).await;
    }
    scene.extend().await;
    instance.connected().await;
    scene.run("UPDATE api_keys SET is_active = 0").await;
    instance.eventually(&issued, "revoked", "migrated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_another_takes_the_place_of_is_noticed() {
    let scene = Scene::own().await;
    let issued = scene.issue().await;
    let instance = scene.follow().await;
    instance.eventually(&issued, "accepted", "issued").await;
    let feed = scene.database.changes();
    std::fs::rename(&scene.path, scene.path.with_extension("old")).unwrap();
    SqliteStore::open_or_create(&scene.path).await.unwrap();
    instance.lost().await;
    let error = feed.subscribe().await.err().unwrap();
    assert!(error.to_string().contains("restart"), "{error}");
    // What this program has open, nobody changes any more.
    let error = lexikon_auth::store::KeyStore::find_by_id(&scene.database, &issued.record.id)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("restart"), "{error}");
}

#[tokio::test]
async fn a_database_that_cannot_report_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service.db");
    std::fs::write(&path, data::SQLITE).unwrap();
    for read_only in [false, true] {
        let options = SqliteConnectOptions::new().filename(&path).read_only(read_only);
        let store = SqliteStore::connect(options).await.unwrap();
        let error = store.changes().subscribe().await.err().unwrap();
        assert!(matches!(error, StoreError::Schema(_)), "{error:?}");
        assert!(error.to_string().contains("lxk schema apply"), "{error}");
    }
    let pool =
        SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
    let store = SqliteStore::from_pool(pool).await.unwrap();
    let error = store.changes().subscribe().await.err().unwrap();
    assert!(error.to_string().contains("in a file"), "{error}");
}

#[tokio::test]
async fn a_store_that_may_only_read_hears_of_changes() {
    for scene in [Scene::own().await, Scene::service().await] {
        let options = SqliteConnectOptions::new().filename(&scene.path).read_only(true);
        let store = SqliteStore::connect(options).await.unwrap();
        let mut feed = store.changes().subscribe().await.unwrap();
        let issued = scene.issue().await;
        assert!(!reported(&mut feed).await.is_empty());
        scene.manager.revoke(&issued.record.id, None).await.unwrap();
        assert_eq!(reported(&mut feed).await, [Change::Key(issued.record.id)]);
    }
}

#[tokio::test]
async fn a_key_for_a_known_owner_is_an_addition_and_no_more() {
    let scene = Scene::own().await;
    scene.issue().await;
    scene.manager.issue(NewKey::new("user-2", "name")).await.unwrap();
    let mut feed = scene.database.changes().subscribe().await.unwrap();
    let issued = scene.issue().await;
    assert_eq!(reported(&mut feed).await, [Change::Key(issued.record.id), Change::Added]);
}

#[tokio::test]
async fn the_database_is_what_it_was_but_for_the_extension() {
    let scene = Scene::service().await;
    let count = "SELECT count(*) FROM api_keys WHERE lexikon_auth_change IS NOT NULL";
    let changed: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(changed, 0, "no row was rewritten");
    // Nor is one by what the service does with every request.
    scene.run("UPDATE api_keys SET last_used_at = '2026-01-01 00:00:00'").await;
    let changed: i64 = sqlx::query_scalar(count).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(changed, 0);
    let check: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&scene.pool).await.unwrap();
    assert_eq!(check, "ok");
}
