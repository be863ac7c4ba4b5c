//! Writes whose callers give up, and writes that are not answered in time: they are made all the same, and
//! the caches know of it.
#![cfg(all(feature = "postgres", feature = "redis", feature = "cache"))]

use std::time::{Duration, Instant};

use lexikon_auth::store::{CacheOptions, CachedStore, PostgresStore, RedisStore};
use lexikon_auth::{IssuedKey, KeyManager, KeyUpdate, ManageError, NewKey, StoreError, Verifier};
use lexikon_auth_tests::proxy::{Mode, Proxy};
use lexikon_auth_tests::{one_secret, postgres, redis_server};
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool};
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Nothing but an invalidation can end an entry's life within a test.
const AGE: Duration = Duration::from_secs(3600);

type Tier = RedisStore<PostgresStore>;

/// One instance with both caches, another that shares Redis, and somebody who holds rows up. Nobody follows
/// a feed, so that only what a write itself tells is heard.
struct Scene {
    pool: PgPool,
    tier: Tier,
    manager: KeyManager<CachedStore<Tier>>,
    verifier: Verifier<CachedStore<Tier>>,
    other: Verifier<Tier>,
}

impl Scene {
    /// `patience` is how long the instance waits for an answer of the database. Its pool sets no limit.
    async fn new(patience: Duration) -> Self {
        let options = postgres::database().await;
        Self::over(options.clone(), options, patience).await
    }

    /// `way` is how the instance reaches the database.
    async fn over(way: PgConnectOptions, direct: PgConnectOptions, patience: Duration) -> Self {
        let pool = PgPool::connect_with(way).await.unwrap();
        let database = PostgresStore::from_pool(pool, patience).await.unwrap();
        let redis = redis_server::patient().prefix(&redis_server::prefix());
        let tier = async || {
            let client = redis_server::shared_client();
            RedisStore::new(database.clone(), client, &one_secret(), redis.clone()).await
        };
        let shared = tier().await;
        let options = CacheOptions::default().max_age(AGE).max_age_unfollowed(AGE);
        let store = CachedStore::new(shared.clone(), options);
        Self {
            pool: PgPool::connect_with(direct).await.unwrap(),
            tier: shared,
            manager: KeyManager::new(store.clone(), &one_secret()),
            verifier: Verifier::new(store, one_secret()),
            other: Verifier::new(tier().await, one_secret()),
        }
    }

    async fn issue(&self) -> IssuedKey {
        let issued =
            self.manager.issue(NewKey::new("user-1", "name").scopes("read")).await.unwrap();
        assert_eq!(self.answers(&issued).await, [true, true]);
        issued
    }

    /// Whether the instance and the other one accept a key.
    async fn answers(&self, issued: &IssuedKey) -> [bool; 2] {
        let key = issued.key.expose_secret();
        [self.verifier.verify(key).await.is_ok(), self.other.verify(key).await.is_ok()]
    }

    /// Holds the row of a key until the transaction ends.
    async fn hold(&self, issued: &IssuedKey) -> sqlx::Transaction<'static, sqlx::Postgres> {
        let mut transaction = self.pool.begin().await.unwrap();
        let lock = sqlx::query("SELECT 1 FROM api_keys WHERE id = $1 FOR UPDATE");
        lock.bind(issued.record.id.to_string()).execute(&mut *transaction).await.unwrap();
        transaction
    }

    /// Waits until somebody waits for a row.
    async fn blocked(&self) {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                     AND datname = current_database()";
        while sqlx::query_scalar::<_, i64>(query).fetch_one(&self.pool).await.unwrap() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn eventually_refused(&self, issued: &IssuedKey) {
        let start = Instant::now();
        while self.answers(issued).await != [false, false] {
            assert!(start.elapsed() < LONG, "an entry from before the revocation is believed");
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_caller_hangs_up_reaches_the_caches() {
    let scene = Scene::new(LONG).await;
    let issued = scene.issue().await;
    let held = scene.hold(&issued).await;
    let id = &issued.record.id;
    tokio::select! {
        _ = scene.manager.revoke(id, None) => panic!("the row is held"),
        () = scene.blocked() => {}
    }
    assert_eq!(scene.answers(&issued).await, [true, true], "it is not committed yet");
    held.rollback().await.unwrap();
    scene.eventually_refused(&issued).await;
    assert!(scene.tier.is_used(), "and Redis is still of use");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_caller_hangs_up_reaches_the_caches() {
    let scene = Scene::new(LONG).await;
    let issued = scene.issue().await;
    let held = scene.hold(&issued).await;
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    tokio::select! {
        _ = scene.manager.update(&issued.record.id, KeyUpdate::default().expires_at(past)) => {
            panic!("the row is held")
        }
        () = scene.blocked() => {}
    }
    assert_eq!(scene.answers(&issued).await, [true, true]);
    held.rollback().await.unwrap();
    scene.eventually_refused(&issued).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_times_out_and_is_made_reaches_the_caches() {
    let scene = Scene::new(Duration::from_secs(2)).await;
    let issued = scene.issue().await;
    // The server gives the statement up at about the time at which the caller does: now the one is first,
    // now the other. Whatever becomes of it, caches and database agree.
    for held_for in [1500, 1900, 1950, 2000, 2050, 2500] {
        let held = scene.hold(&issued).await;
        let release = async {
            sleep(Duration::from_millis(held_for)).await;
            held.rollback().await.unwrap();
        };
        let (revoked, ()) = tokio::join!(scene.manager.revoke(&issued.record.id, None), release);
        match revoked {
            Err(ManageError::Store(StoreError::Unsettled(unsettled))) => {
                timeout(LONG, unsettled.settled()).await.expect("its outcome is known soon");
            }
            Err(ManageError::Store(StoreError::Unavailable(_))) | Ok(()) => {}
            Err(error) => panic!("{error:?}"),
        }
        let query = sqlx::query_scalar("SELECT is_active FROM api_keys WHERE id = $1");
        let is_active: bool =
            query.bind(issued.record.id.to_string()).fetch_one(&scene.pool).await.unwrap();
        assert_eq!(scene.answers(&issued).await, [is_active; 2], "held for {held_for} ms");
        sqlx::raw_sql("UPDATE api_keys SET is_active = true").execute(&scene.pool).await.unwrap();
        scene.tier.invalidate(lexikon_auth::store::Change::All).await;
        scene.manager.update(&issued.record.id, KeyUpdate::default().name("again")).await.unwrap();
        assert_eq!(scene.answers(&issued).await, [true, true]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_waits_for_a_lock_ends_though_the_pool_sets_no_limit() {
    let scene = Scene::new(Duration::from_millis(500)).await;
    let issued = scene.issue().await;
    let held = scene.hold(&issued).await;
    let error = scene.manager.revoke(&issued.record.id, None).await.unwrap_err();
    if let ManageError::Store(StoreError::Unsettled(unsettled)) = error {
        timeout(LONG, unsettled.settled()).await.unwrap();
    }
    sleep(Duration::from_millis(500)).await;
    held.rollback().await.unwrap();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(scene.answers(&issued).await, [true, true], "nothing is made long after the error");
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_who_hang_up_do_not_switch_redis_off() {
    let scene = Scene::new(LONG).await;
    let issued = scene.issue().await;
    let mut held = scene.pool.begin().await.unwrap();
    let lock = "LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE";
    sqlx::raw_sql(lock).execute(&mut *held).await.unwrap();
    let hits = scene.tier.counts();
    for name in ["one", "two", "three"] {
        tokio::select! {
            _ = scene.manager.issue(NewKey::new("user-1", name)) => panic!("the table is held"),
            () = scene.blocked() => {}
        }
        assert!(scene.tier.is_used(), "a client who hangs up changes nothing for the others");
        assert_eq!(scene.answers(&issued).await, [true, true]);
    }
    held.rollback().await.unwrap();
    assert_eq!(scene.tier.counts().bypassed, hits.bypassed);
    assert_eq!(scene.tier.counts().stale, hits.stale, "nothing was forgotten for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_connection_breaks_and_that_is_made_reaches_the_caches() {
    let options = postgres::database().await;
    let proxy = Proxy::to(options.get_port()).await;
    // With a limit of its own, a write is one statement, which commits by itself.
    let way = options.clone().port(proxy.port).options([("statement_timeout", "15s")]);
    let scene = Scene::over(way, options, Duration::from_secs(20)).await;
    let issued = scene.issue().await;
    let held = scene.hold(&issued).await;
    let revoking = scene.manager.revoke(&issued.record.id, None);
    let breaking = async {
        scene.blocked().await;
        proxy.set(Mode::Reset);
    };
    let (revoked, ()) = tokio::join!(revoking, breaking);
    assert!(
        matches!(revoked, Err(ManageError::Store(StoreError::Unsettled(_)))),
        "nobody knows whether it will be made: {revoked:?}"
    );
    proxy.set(Mode::Forward);
    assert_eq!(scene.answers(&issued).await, [true, true], "it is not made yet");
    // The server has not noticed that nobody waits any more.
    held.rollback().await.unwrap();
    scene.eventually_refused(&issued).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_commit_stalls_reaches_the_caches() {
    let server = postgres::Server::start();
    let options = server.options();
    let scene = Scene::over(options.clone(), options.clone(), Duration::from_secs(1)).await;
    let issued = scene.issue().await;
    let configure = async |names: &str| {
        let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(set)).execute(&scene.pool).await.unwrap();
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&scene.pool).await.unwrap();
        let shown = async || -> String {
            let show = "SHOW synchronous_standby_names";
            sqlx::query_scalar(show).fetch_one(&scene.pool).await.unwrap()
        };
        while shown().await != names {
            sleep(Duration::from_millis(10)).await;
        }
    };
    // A standby that never comes, without which no commit is acknowledged or seen.
    configure("nobody").await;
    // SHOW is ahead of the process that decides whether commits wait.
    let stalls = async || {
        let mut connection = PgConnection::connect_with(&options).await.unwrap();
        let write = sqlx::query("SELECT pg_logical_emit_message(true, 'test', '')");
        timeout(Duration::from_millis(500), write.execute(&mut connection)).await.is_err()
    };
    while !stalls().await {}
    let error = scene.manager.revoke(&issued.record.id, None).await.unwrap_err();
    assert!(matches!(error, ManageError::Store(StoreError::Unsettled(_))), "{error:?}");
    sleep(Duration::from_secs(4)).await;
    assert_eq!(scene.answers(&issued).await, [true, true], "nobody can see it yet");
    configure("").await;
    scene.eventually_refused(&issued).await;
}
