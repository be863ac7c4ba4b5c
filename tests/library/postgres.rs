//! The store on a real PostgreSQL server: the service's tables, its own, and faults.
#![cfg(feature = "postgres")]

use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::HashFormat;
use lexikon_auth::store::{
    ChangeFeed, KeyStore, Page, PolicySource, PostgresStore, Subscription, Usage,
};
use lexikon_auth::{
    KeyId, KeyManager, LegacyPolicy, NewKey, OwnerId, Policy, Refusal, Rotation, SecretRing,
    ServerSecret, StoreError, Verifier, VerifyError,
};
use lexikon_auth_tests::{data, postgres};
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

const CASES: &str = data::POSTGRES_CASES;

/// A database with what the service wrote.
async fn service() -> PgConnectOptions {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let dump = data::POSTGRES;
    sqlx::raw_sql(dump).execute(&pool).await.unwrap();
    pool.close().await;
    options
}

async fn connect(options: &PgConnectOptions) -> PostgresStore {
    PostgresStore::connect(options.clone()).await.unwrap()
}

async fn run(options: &PgConnectOptions, statement: &'static str) {
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    sqlx::raw_sql(statement).execute(&pool).await.unwrap();
}

fn ring() -> SecretRing {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    let secret = cases["api_key_secret"].as_str().unwrap();
    SecretRing::new(ServerSecret::new(&secret.into()).unwrap())
}

fn cases() -> Vec<Value> {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    cases["cases"].as_array().unwrap().clone()
}

fn key_of(case: &str) -> String {
    let case = cases().into_iter().find(|known| known["case"] == case).expect("a known case");
    case["key"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_key_gets_the_answer_of_the_service() {
    let options = service().await;
    let store = connect(&options).await;
    for store in [store.clone(), store.extend_schema().await.unwrap()] {
        let verifier = Verifier::new(store, ring());
        assert_eq!(cases().len(), 25);
        for case in cases() {
            let name = case["case"].as_str().unwrap();
            let answer = verifier.verify(case["key"].as_str().unwrap()).await;
            assert_eq!(case["service_answer"] == "accepted", answer.is_ok(), "{name}: {answer:?}");
            if let Ok(verified) = answer {
                assert_eq!(case["format"], verified.format().as_str(), "{name}");
                assert_eq!(case["owner"], verified.owner().as_str(), "{name}");
                assert_eq!(case["id"], verified.id().to_string(), "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_verification_is_one_statement() {
    let options = service().await;
    run(&options, "CREATE EXTENSION pg_stat_statements").await;
    let verifier = Verifier::new(connect(&options).await, ring());
    let key = key_of("sha256 plain read");
    _ = verifier.verify(&key).await.unwrap();
    let pool = PgPool::connect_with(options).await.unwrap();
    let executed = async || -> i64 {
        let query = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
                     JOIN pg_database ON oid = dbid WHERE datname = current_database() \
                     AND query NOT LIKE '%pg_stat_statements%'";
        sqlx::query_scalar(query).fetch_one(&pool).await.unwrap()
    };
    let before = executed().await;
    for _ in 0..100 {
        _ = verifier.verify(&key).await.unwrap();
    }
    assert_eq!(executed().await - before, 100);
}

#[tokio::test]
async fn times_are_utc_whatever_the_session_says() {
    let options = service().await;
    // sqlx sets the zone of its sessions to UTC; an application's pool may set another.
    let pool = PgPoolOptions::new().after_connect(|connection, _| {
        Box::pin(async move {
            let set = sqlx::raw_sql("SET TIME ZONE 'Asia/Kathmandu'");
            set.execute(connection).await.map(drop)
        })
    });
    let pool = pool.connect_with(options).await.unwrap();
    let store = PostgresStore::from_pool(pool.clone(), Duration::from_secs(2)).await.unwrap();
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_micros(4_070_953_815_123_456);
    let new = NewKey::new("user-1", "dated").scopes("read").expires_at(expiry);
    let issued = KeyManager::new(store.clone(), &ring()).issue(new).await.unwrap();
    let (written, zone): (String, String) = sqlx::query_as(
        "SELECT expires_at::text, current_setting('TimeZone') FROM api_keys WHERE name = 'dated'",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!((&*written, &*zone), ("2099-01-01 12:30:15.123456", "Asia/Kathmandu"));
    let stored = store.find_by_id(&issued.record.id).await.unwrap().unwrap();
    assert_eq!(stored.expires_at, Some(expiry));
    assert_eq!(stored.created_at, issued.record.created_at);
}

#[tokio::test]
async fn a_time_without_end_is_read_and_not_a_panic() {
    let options = service().await;
    let verifier = Verifier::new(connect(&options).await, ring());
    let key = key_of("sha256 plain read");
    run(&options, "UPDATE api_keys SET expires_at = 'infinity', created_at = '0044-03-15 BC'")
        .await;
    _ = verifier.verify(&key).await.unwrap();
    run(&options, "UPDATE api_keys SET expires_at = '-infinity'").await;
    let error = verifier.verify(&key).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Expired(_))), "{error:?}");
}

#[tokio::test]
async fn keys_are_managed_on_the_tables_of_the_service_as_they_are() {
    let options = service().await;
    let store = connect(&options).await;
    let manager = KeyManager::new(store.clone(), &ring());
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = Verifier::new(store.clone(), ring()).with_policy(upgrade);

    let issued = manager.issue(NewKey::new("user-1", "new").scopes("read")).await.unwrap();
    let next = manager.rotate(&issued.record.id, Rotation::default()).await.unwrap();
    assert!(verifier.verify(issued.key.expose_secret()).await.is_err());
    _ = verifier.verify(next.key.expose_secret()).await.unwrap();
    manager.revoke(&next.record.id, Some("has no column to go to")).await.unwrap();
    assert!(verifier.verify(next.key.expose_secret()).await.is_err());
    let error = manager.issue(NewKey::new("nobody", "new")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no owner nobody; create the user first");

    let legacy = key_of("sha256 admin");
    _ = verifier.verify(&legacy).await.unwrap();
    assert_eq!(verifier.flush().await.unwrap().upgraded, 1);
    assert_eq!(verifier.verify(&legacy).await.unwrap().format(), HashFormat::HmacSha256);
}

#[tokio::test]
async fn two_instances_create_and_extend_at_once() {
    let empty = postgres::database().await;
    let (one, other) = tokio::join!(connect(&empty), connect(&empty));
    let issued = KeyManager::new(one, &ring())
        .issue(NewKey::new("new owner", "n").scopes("a"))
        .await
        .unwrap();
    let verifier = Verifier::new(other, ring());
    assert!(verifier.verify(issued.key.expose_secret()).await.unwrap().allows("a"));

    let service = service().await;
    let (one, other) = (connect(&service).await, connect(&service).await);
    let before = one.clone();
    let (one, other) = tokio::join!(one.extend_schema(), other.extend_schema());
    let one = one.unwrap().extend_schema().await.unwrap();
    let id = KeyId::from("253d2261-270a-49e7-9adf-1b0cbeedb6e4");
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
    one.revoke(&id, at, Some("lost")).await.unwrap();
    let record = other.unwrap().find_by_id(&id).await.unwrap().unwrap();
    let revocation = record.revocation.as_deref().unwrap();
    assert_eq!((revocation.at, revocation.reason.as_deref()), (Some(at), Some("lost")));
    assert!(
        before.find_by_id(&id).await.unwrap().unwrap().is_revoked(),
        "the old columns still do"
    );
}

#[tokio::test]
async fn the_extension_does_not_queue_behind_a_long_transaction() {
    let options = service().await;
    let store = connect(&options).await;
    let pool = PgPool::connect_with(options).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT * FROM api_keys").execute(&mut *reader).await.unwrap();
    let error = store.clone().extend_schema().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::Unavailable(source) if source.to_string().contains("lock"))
    );
    reader.rollback().await.unwrap();
    store.extend_schema().await.unwrap();
}

#[tokio::test]
async fn a_database_of_another_schema_is_refused_and_left_alone() {
    let cases = [
        ("CREATE TABLE notes (id int)", "table api_keys is missing"),
        ("CREATE TABLE api_keys (id varchar)", "table api_keys has no column user_id"),
    ];
    for (statement, problem) in cases {
        let options = postgres::database().await;
        run(&options, statement).await;
        let error = PostgresStore::connect(options).await.unwrap_err();
        assert!(
            matches!(&error, StoreError::Schema(found) if found.starts_with(problem)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn usage_of_many_instances_is_written_without_a_deadlock() {
    let options = service().await;
    let store = connect(&options).await.extend_schema().await.unwrap();
    let records = store.list(&OwnerId::from("user-1"), &Page::first(100)).await.unwrap();
    let usage = |seconds: u64| {
        let usage = |id: &KeyId| Usage {
            id: id.clone(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + seconds),
            format: HashFormat::Sha256,
        };
        records.iter().map(|record| usage(&record.id)).collect::<Vec<_>>()
    };
    let mut instances = tokio::task::JoinSet::new();
    for seconds in 0..64 {
        let (store, mut batch) = (store.clone(), usage(seconds));
        if seconds % 2 == 0 {
            batch.reverse();
        }
        instances.spawn(async move { store.record_usage(&batch).await });
    }
    while let Some(written) = instances.join_next().await {
        written.unwrap().unwrap();
    }
    for record in store.list(&OwnerId::from("user-1"), &Page::first(100)).await.unwrap() {
        let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_063);
        assert_eq!(record.last_used_at, Some(latest));
    }
}

#[tokio::test]
async fn a_statement_that_hangs_is_unavailable_and_its_connection_is_not_used_again() {
    let options = service().await;
    let pool = PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    let store = PostgresStore::from_pool(pool, Duration::from_secs(1)).await.unwrap();
    let verifier = Verifier::new(store, ring());
    let key = key_of("hmac-sha256 admin");
    _ = verifier.verify(&key).await.unwrap();

    let pool = PgPool::connect_with(options).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE api_keys").execute(&mut *lock).await.unwrap();
    let error = verifier.verify(&key).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(StoreError::Unavailable(_))), "{error:?}");
    lock.rollback().await.unwrap();

    let mut answer = verifier.verify(&key).await;
    for _ in 0..20 {
        match &answer {
            Err(VerifyError::Unavailable(_)) => answer = verifier.verify(&key).await,
            _ => break,
        }
    }
    _ = answer.expect("recovered by itself");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unavailable() {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(1);
    let error = PostgresStore::connect(options).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn connections_kept_for_the_next_statement_come_back() {
    let options = service().await;
    let pool = PgPoolOptions::new().max_connections(3).connect_with(options).await.unwrap();
    let store = PostgresStore::from_pool(pool.clone(), Duration::from_secs(60)).await.unwrap();
    let verifier = Verifier::new(store, ring());
    _ = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap();
    // The application wants all of its connections.
    let all = [pool.acquire().await, pool.acquire().await, pool.acquire().await];
    assert!(all.iter().all(Result::is_ok));
    drop(all);
    _ = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap();
    pool.close().await;
    let error = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
}

#[test]
fn a_store_may_outlive_the_runtime_that_it_was_used_on() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(async {
        let store = connect(&service().await).await;
        let verifier = Verifier::new(store.clone(), ring());
        _ = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap();
        store
    });
    drop(runtime);
    drop(store);
}

/// The rights that the docs of `PostgresStore` name, for this role.
fn grants(role: &str) -> String {
    let docs = include_str!("../../src/store/postgres.rs");
    let sql = docs.split("/// ```sql").nth(1).unwrap().split("/// ```").next().unwrap();
    let grants = sql.replace("///", "").replace("TO lexikon", &format!("TO {role}"));
    assert_eq!(grants.matches("GRANT").count(), 5);
    grants
}

#[tokio::test]
async fn a_role_with_the_rights_that_the_docs_name_can_do_all() {
    let options = service().await;
    connect(&options).await.extend_schema().await.unwrap();
    let role = format!("instance_of_{}", options.get_database().unwrap());
    let owner = PgPool::connect_with(options.clone()).await.unwrap();
    let create = format!("CREATE ROLE {role} LOGIN PASSWORD 'instance'; {}", grants(&role));
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&owner).await.unwrap();

    let store = connect(&options.clone().username(&role).password("instance")).await;
    store.check_secrets(&ring()).await.unwrap();
    assert_eq!(store.legacy_policy().await.unwrap(), None);
    let mut changes = store.changes().subscribe().await.unwrap();
    changes.heartbeat().await.unwrap();
    #[cfg(feature = "redis")]
    {
        use lexikon_auth::store::{KeyLookup, RedisOptions};
        let client = redis::Client::open("redis://localhost/").unwrap();
        for _ in 0..2 {
            let cache = RedisOptions::default().shared_cache(&client);
            store.register_cache(&cache).await.unwrap();
        }
    }
    let verifier = Verifier::new(store.clone(), ring());
    let verifier = verifier.with_policy(Policy::default().legacy(LegacyPolicy::UpgradeOnUse));
    _ = verifier.verify(&key_of("sha256 plain read")).await.unwrap();
    let flushed = verifier.flush().await.unwrap();
    assert_eq!((flushed.used, flushed.upgraded), (1, 1));
    let manager = KeyManager::new(store.clone(), &ring());
    let issued = manager.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    let successor = manager.rotate(&issued.record.id, Rotation::default()).await.unwrap();
    manager.revoke(&successor.record.id, Some("laptop lost")).await.unwrap();
    manager.expire().await.unwrap();
    assert!(!manager.list(&"user-1".into(), &Page::first(9)).await.unwrap().is_empty());
}

#[tokio::test]
async fn callers_that_give_up_do_not_cost_the_server_a_connection_each() {
    let options = service().await;
    let store = connect(&options).await;
    let pool = PgPool::connect_with(options).await.unwrap();
    let sessions = async || -> i64 {
        let query = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()";
        sqlx::query_scalar(query).fetch_one(&pool).await.unwrap()
    };
    let verifier = Verifier::new(store, ring());
    let before = sessions().await;
    for _ in 0..200 {
        let key = key_of("hmac-sha256 admin");
        let verify = verifier.verify(&key);
        let _ = tokio::time::timeout(Duration::from_micros(100), verify).await;
    }
    // Statistics arrive with a delay.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let opened = sessions().await - before;
    assert!(opened < 50, "{opened} new connections");
    _ = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap();
}

#[tokio::test]
async fn a_statement_that_was_given_up_ends_in_the_server_too() {
    let options = service().await;
    let verifier = Verifier::new(connect(&options).await, ring());
    let pool = PgPool::connect_with(options).await.unwrap();
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let error = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                   AND datname = current_database()";
    let start = std::time::Instant::now();
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "it still waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The options of a connection hold a password.
#[tokio::test]
async fn no_password_is_printed() {
    const PASSWORD: &str = "correct-horse-battery-staple";
    let options = postgres::database().await.password(PASSWORD);
    let database = options.get_database().unwrap().to_owned();
    let store = PostgresStore::connect(options).await.unwrap();
    for text in [format!("{store:?} {store:#?}"), format!("{0:?} {0:#?}", store.changes())] {
        assert!(!text.contains("horse"), "{text}");
        assert!(text.contains("127.0.0.1") && text.contains(&database), "{text}");
    }
}
