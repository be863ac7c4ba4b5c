//! Changes that others make, and how they reach the caches: triggers, LISTEN and NOTIFY on a real server.
#![cfg(all(feature = "postgres", feature = "cache"))]

use std::time::{Duration, Instant};

use lexikon_auth::store::ChangeFeed;
use lexikon_auth::store::{CacheOptions, CachedStore, PostgresStore};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{
    IssuedKey, KeyManager, NewKey, SecretRing, ServerSecret, StoreError, Verifier, VerifyError,
};
use lexikon_auth_tests::postgres;
use sqlx::postgres::{PgConnectOptions, PgPool};
use tokio::time::sleep;

/// Only a report of a change can end an entry's life within a test.
const LONG: Duration = Duration::from_secs(3600);

fn ring(secret: &str) -> SecretRing {
    SecretRing::new(ServerSecret::new(&secret.into()).unwrap())
}

const SECRET: &str = "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb";
const OTHER: &str = "2a0631187348761d11bb570232010b84550c17410b39af09e18c4f72a30e4cfa";

/// One instance of a service, and somebody else with access to its database.
struct Scene {
    options: PgConnectOptions,
    pool: PgPool,
    store: CachedStore<PostgresStore>,
    follower: Follower,
    verifier: Verifier<CachedStore<PostgresStore>>,
    manager: KeyManager<PostgresStore>,
}

impl Scene {
    async fn new() -> Self {
        let options = postgres::database().await;
        let database = PostgresStore::connect(options.clone()).await.unwrap();
        let cache = CacheOptions::default().max_age(LONG);
        let store = CachedStore::new(database.clone(), cache);
        let follower = Follower::spawn(store.clone(), database.changes());
        follower.connected().await;
        Self {
            verifier: Verifier::new(store.clone(), ring(SECRET)),
            // Another instance, which tells this one nothing.
            manager: KeyManager::new(database, &ring(SECRET)),
            pool: PgPool::connect_with(options.clone()).await.unwrap(),
            options,
            store,
            follower,
        }
    }

    async fn issue(&self) -> IssuedKey {
        self.manager.issue(NewKey::new("user-1", "name").scopes("read")).await.unwrap()
    }

    async fn verify(&self, issued: &IssuedKey) -> &'static str {
        match self.verifier.verify(issued.key.expose_secret()).await {
            Ok(_) => "accepted",
            Err(VerifyError::Refused(refusal)) => refusal.as_str(),
            Err(VerifyError::Unavailable(error)) => panic!("unavailable: {error:?}"),
        }
    }

    async fn run(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::raw_sql(statement).execute(&self.pool).await.unwrap();
    }

    /// Puts the triggers in order, as an operator does.
    async fn mend(&self) {
        let database = PostgresStore::connect(self.options.clone()).await.unwrap();
        database.extend_schema().await.unwrap();
    }

    /// Waits for an answer, which an entry that is not invalidated would keep from coming.
    async fn eventually(&self, issued: &IssuedKey, expected: &str) {
        let start = Instant::now();
        while self.verify(issued).await != expected {
            assert!(start.elapsed() < Duration::from_secs(60), "still not {expected}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_anybody_changes_is_seen() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    let id = &issued.record.id;
    let steps = [
        (format!("UPDATE api_keys SET is_active = false WHERE id = '{id}'"), "revoked"),
        (format!("UPDATE api_keys SET is_active = true WHERE id = '{id}'"), "accepted"),
        ("UPDATE users SET is_active = false".to_owned(), "owner_disabled"),
        (
            "UPDATE users SET is_active = NULL; UPDATE users SET is_active = true".to_owned(),
            "accepted",
        ),
        (format!("UPDATE api_keys SET expires_at = '2001-01-01' WHERE id = '{id}'"), "expired"),
        (format!("UPDATE api_keys SET expires_at = NULL WHERE id = '{id}'"), "accepted"),
        ("UPDATE api_keys SET key_hash = reverse(key_hash)".to_owned(), "unknown"),
        ("UPDATE api_keys SET key_hash = reverse(key_hash)".to_owned(), "accepted"),
        ("CREATE TABLE kept AS TABLE api_keys; DELETE FROM api_keys".to_owned(), "unknown"),
        ("INSERT INTO api_keys TABLE kept".to_owned(), "accepted"),
        ("TRUNCATE api_keys".to_owned(), "unknown"),
        ("INSERT INTO api_keys TABLE kept".to_owned(), "accepted"),
        ("TRUNCATE users CASCADE".to_owned(), "unknown"),
    ];
    assert_eq!(scene.verify(&issued).await, "accepted");
    for (statement, answer) in &steps {
        scene.run(statement).await;
        scene.eventually(&issued, answer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_decision_depends_on_is_not_reported() {
    let scene = Scene::new().await;
    let (one, other, last) = (scene.issue().await, scene.issue().await, scene.issue().await);
    // When this change has arrived, all before it have.
    assert_eq!(scene.verify(&last).await, "accepted");
    scene.manager.revoke(&last.record.id, None).await.unwrap();
    scene.eventually(&last, "revoked").await;
    assert_eq!(scene.verify(&one).await, "accepted");
    assert_eq!(scene.verify(&other).await, "accepted");
    let loads = scene.store.loads();
    // The service does this with every request.
    scene.run("UPDATE api_keys SET last_used_at = now()").await;
    scene.run("UPDATE users SET is_active = is_active").await;
    scene.manager.revoke(&one.record.id, None).await.unwrap();
    scene.eventually(&one, "revoked").await;
    assert_eq!(scene.verify(&other).await, "accepted");
    assert_eq!(scene.store.loads(), loads + 1, "one key was read again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_channel_is_noticed_and_found_again() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE (query LIKE 'LISTEN%' OR query LIKE '%pg_notify%' OR query LIKE '%pg_trigger%') \
                     AND datname = current_database() AND pid <> pg_backend_pid()";
    scene.run(terminate).await;
    scene.follower.lost().await;
    // Nobody hears of this one.
    scene.run("ALTER TABLE api_keys DISABLE TRIGGER USER").await;
    scene.manager.revoke(&issued.record.id, None).await.unwrap();
    scene.mend().await;
    scene.follower.connected().await;
    assert_eq!(scene.verify(&issued).await, "revoked", "what was read before is not trusted");
}

/// Ways to have the triggers report nothing, while notifications get through.
const SILENT: [&str; 4] = [
    // As `pg_restore --disable-triggers` does.
    "ALTER TABLE api_keys DISABLE TRIGGER USER",
    "DROP TRIGGER lexikon_auth_key_changed ON api_keys",
    "CREATE OR REPLACE FUNCTION lexikon_auth_report_key() RETURNS trigger LANGUAGE plpgsql \
     AS 'BEGIN RETURN NULL; END'",
    // As a migration that rewrites a table does.
    "CREATE TABLE copy (LIKE api_keys INCLUDING ALL); INSERT INTO copy TABLE api_keys; \
     DROP TABLE api_keys; ALTER TABLE copy RENAME TO api_keys",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_whose_triggers_report_nothing_counts_as_lost() {
    for fault in SILENT {
        let scene = Scene::new().await;
        let issued = scene.issue().await;
        scene.eventually(&issued, "accepted").await;
        scene.run(fault).await;
        scene.manager.revoke(&issued.record.id, None).await.unwrap();
        scene.eventually(&issued, "revoked").await;
        scene.follower.lost().await;
        scene.mend().await;
        scene.follower.connected().await;
        assert_eq!(scene.verify(&issued).await, "revoked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_while_the_triggers_were_off_for_a_moment_is_seen() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    // Between two signs of life, and as it was before.
    let id = &issued.record.id;
    let enable: String = ["key_written", "key_changed", "keys_truncated"]
        .map(|name| format!("ALTER TABLE api_keys ENABLE ALWAYS TRIGGER lexikon_auth_{name};"))
        .concat();
    scene
        .run(&format!(
            "BEGIN; ALTER TABLE api_keys DISABLE TRIGGER USER; \
             UPDATE api_keys SET is_active = false WHERE id = '{id}'; {enable} COMMIT"
        ))
        .await;
    scene.eventually(&issued, "revoked").await;
    scene.follower.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_role_changes_is_reported() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    let mut writer = scene.pool.acquire().await.unwrap();
    let write = "SET session_replication_role = replica; UPDATE api_keys SET is_active = false";
    sqlx::raw_sql(write).execute(&mut *writer).await.unwrap();
    scene.eventually(&issued, "revoked").await;
    assert!(scene.follower.is_connected(), "it was reported, and not merely noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_logical_replication_applies_is_reported() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    // The same tables in another database, where the keys are changed.
    let origin = postgres::database().await;
    let _ = PostgresStore::connect(origin.clone()).await.unwrap();
    let pool = PgPool::connect_with(origin.clone()).await.unwrap();
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT format('INSERT INTO users VALUES (%L, %L)', id, is_active) FROM users UNION ALL \
         SELECT format('INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active) \
         VALUES (%L, %L, %L, %L, %L, %L)', id, user_id, key_hash, name, scopes, is_active) \
         FROM api_keys",
    )
    .fetch_all(&scene.pool)
    .await
    .unwrap();
    for row in rows {
        sqlx::raw_sql(sqlx::AssertSqlSafe(row)).execute(&pool).await.unwrap();
    }
    let publish = "CREATE PUBLICATION keys FOR TABLE api_keys";
    sqlx::raw_sql(publish).execute(&pool).await.unwrap();
    let slot = format!("slot_{}", origin.get_database().unwrap());
    let make = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
    sqlx::query(make).bind(&slot).execute(&pool).await.unwrap();
    scene
        .run(&format!(
            "CREATE SUBSCRIPTION keys_of_{slot} CONNECTION 'host={} port={} user={} dbname={}' \
             PUBLICATION keys WITH (create_slot = false, slot_name = {slot}, copy_data = false)",
            origin.get_host(),
            origin.get_port(),
            origin.get_username(),
            origin.get_database().unwrap()
        ))
        .await;
    sqlx::raw_sql("UPDATE api_keys SET is_active = false").execute(&pool).await.unwrap();
    scene.eventually(&issued, "revoked").await;
    assert!(scene.follower.is_connected(), "it was reported, and not merely noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_without_triggers_says_what_to_do() {
    let scene = Scene::new().await;
    let faults = [
        "DROP TRIGGER lexikon_auth_owner_changed ON users",
        "ALTER TABLE users DISABLE TRIGGER lexikon_auth_owner_changed",
        // It fires in sessions that apply what another server replicates, and in no other.
        "ALTER TABLE users ENABLE REPLICA TRIGGER lexikon_auth_owner_changed",
        // It does not fire in those, and DISABLE and ENABLE leave it like this.
        "ALTER TABLE users ENABLE TRIGGER USER",
        // They fire, but not on every change.
        "CREATE OR REPLACE TRIGGER lexikon_auth_key_changed AFTER UPDATE ON api_keys FOR EACH ROW \
         WHEN (OLD.name IS DISTINCT FROM NEW.name) EXECUTE FUNCTION lexikon_auth_report_key(); \
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER lexikon_auth_key_changed",
        "CREATE OR REPLACE TRIGGER lexikon_auth_key_changed AFTER UPDATE OF name ON api_keys \
         FOR EACH ROW EXECUTE FUNCTION lexikon_auth_report_key(); \
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER lexikon_auth_key_changed",
        "CREATE OR REPLACE TRIGGER lexikon_auth_key_written AFTER INSERT ON api_keys \
         FOR EACH ROW EXECUTE FUNCTION lexikon_auth_report_key(); \
         ALTER TABLE api_keys ENABLE ALWAYS TRIGGER lexikon_auth_key_written",
    ];
    for fault in faults {
        scene.run(fault).await;
        let database = PostgresStore::connect(scene.options.clone()).await.unwrap();
        let error = database.changes().subscribe().await.err().expect(fault);
        assert!(
            matches!(&error, StoreError::Schema(text) if text.contains("extend_schema")),
            "{error}"
        );
        let database = database.extend_schema().await.unwrap();
        database.changes().subscribe().await.map(drop).expect("the trigger is there again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_reported_whatever_the_search_path_of_its_writer() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    scene
        .run(
            "CREATE FUNCTION pg_notify(text, text) RETURNS void LANGUAGE sql AS ''; \
             CREATE FUNCTION octet_length(text) RETURNS int LANGUAGE sql AS 'SELECT 1 / 0'; \
             CREATE FUNCTION wrong(text, text) RETURNS bool LANGUAGE sql AS 'SELECT 1 / 0 = 0'; \
             CREATE OPERATOR = (FUNCTION = wrong, LEFTARG = text, RIGHTARG = text); \
             CREATE OPERATOR <> (FUNCTION = wrong, LEFTARG = text, RIGHTARG = text)",
        )
        .await;
    let mut writer = scene.pool.acquire().await.unwrap();
    let write = "SET search_path = public, pg_catalog; UPDATE api_keys SET is_active = false; \
                 UPDATE users SET is_active = false";
    sqlx::raw_sql(write).execute(&mut *writer).await.unwrap();
    scene.eventually(&issued, "revoked").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_of_another_version_are_replaced() {
    let scene = Scene::new().await;
    // As long as this one reads, nobody may change the table's columns.
    let mut reader = scene.pool.begin().await.unwrap();
    sqlx::query("SELECT * FROM api_keys, users").execute(&mut *reader).await.unwrap();
    let body = async |function: &str| -> String {
        let query = "SELECT pg_get_functiondef($1::regproc)";
        sqlx::query_scalar(query).bind(function).fetch_one(&scene.pool).await.unwrap()
    };
    for function in ["lexikon_auth_report_key", "lexikon_auth_report_owner"] {
        let current = body(function).await;
        let old = format!(
            "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql \
             AS $$ BEGIN PERFORM pg_notify('lexikon_auth', 'all'); RETURN NULL; END $$"
        );
        scene.run(&old).await;
        let database = PostgresStore::connect(scene.options.clone()).await.unwrap();
        let error =
            database.changes().subscribe().await.err().expect("what it reports is not known");
        assert!(matches!(error, StoreError::Schema(_)), "{error}");
        database.extend_schema().await.unwrap();
        assert_eq!(body(function).await, current);
    }
    // Nobody may write either, and nothing has to be written.
    sqlx::raw_sql("LOCK TABLE api_keys, users").execute(&mut *reader).await.unwrap();
    let pool = PgPool::connect_with(scene.options.clone()).await.unwrap();
    let database = PostgresStore::from_pool(pool, Duration::from_secs(2)).await.unwrap();
    database.extend_schema().await.expect("all is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_too_long_for_a_notification_does_not_fail_the_write() {
    let scene = Scene::new().await;
    let issued = scene.issue().await;
    scene.eventually(&issued, "accepted").await;
    scene.run("UPDATE api_keys SET id = repeat('x', 10000)").await;
    scene.run("UPDATE api_keys SET is_active = false").await;
    scene.eventually(&issued, "revoked").await;
}

#[tokio::test]
async fn a_secret_that_the_database_does_not_know_is_refused() {
    let options = postgres::database().await;
    let store = PostgresStore::connect(options).await.unwrap();
    store.check_secrets(&ring(SECRET)).await.expect("the first one is learned");
    store.check_secrets(&ring(SECRET)).await.expect("and known");
    let error = store.check_secrets(&ring(OTHER)).await.unwrap_err();
    let text = error.to_string();
    for secret in [SECRET, OTHER] {
        let fingerprint = ring(secret).current().fingerprint().to_string();
        assert!(text.contains(&fingerprint), "both fingerprints: {text}");
    }
    assert!(text.contains("add_secret"), "what to do: {text}");
    store.add_secret(ring(OTHER).current()).await.unwrap();
    store.add_secret(ring(OTHER).current()).await.expect("twice is once");
    for secret in [SECRET, OTHER] {
        store.check_secrets(&ring(secret)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_instances_that_start_with_different_secrets_one_is_refused() {
    for _ in 0..10 {
        let options = postgres::database().await;
        let store = PostgresStore::connect(options).await.unwrap();
        let (one, other) = (ring(SECRET), ring(OTHER));
        let answers = tokio::join!(store.check_secrets(&one), store.check_secrets(&other));
        assert_ne!(answers.0.is_ok(), answers.1.is_ok(), "{answers:?}");
    }
}
