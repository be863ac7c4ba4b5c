//! Faults of real servers and processes: killed, unreachable, interrupted half-way. Never a wrong yes,
//! never a wrong no, and nothing lost.
#![cfg(all(feature = "postgres", feature = "cache"))]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, PresentedKey};
use lexikon_auth::store::{CacheOptions, CachedStore, KeyStore, PostgresStore};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{
    KeyId, KeyManager, KeyRecord, LegacyPolicy, NewKey, Policy, Refusal, SecretRing, ServerSecret,
    Verifier, VerifyError,
};
use lexikon_auth_tests::data;
use lexikon_auth_tests::postgres::{self, Server};
use lexikon_auth_tests::proxy::{Mode, Proxy};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::task::JoinSet;
use tokio::time::sleep;

const SECRET: &str = "122b598615dcbe810beacd557705a54b5edbbbe5ce7f8fbeebef7a58f99d96fb";
/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn ring() -> SecretRing {
    SecretRing::new(ServerSecret::new(&SECRET.into()).unwrap())
}

/// A store that waits one second for a connection and one for an answer.
async fn connect(options: &PgConnectOptions) -> PostgresStore {
    let second = Duration::from_secs(1);
    let pool = PgPoolOptions::new().acquire_timeout(second).test_before_acquire(false);
    PostgresStore::from_pool(pool.connect_with(options.clone()).await.unwrap(), second)
        .await
        .unwrap()
}

/// Verifies without end: a good key, a revoked one and an unknown one.
struct Load {
    tasks: JoinSet<()>,
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    unavailable: Arc<AtomicU64>,
}

impl Load {
    async fn start(store: PostgresStore) -> Self {
        let manager = KeyManager::new(store.clone(), &ring());
        let issue = async |name| manager.issue(NewKey::new("user-1", name)).await.unwrap();
        let (good, revoked) = (issue("good").await, issue("revoked").await);
        manager.revoke(&revoked.record.id, None).await.unwrap();
        let unknown = lexikon_auth::ApiKey::generate(ring().current()).unwrap();
        let keys = [
            (good.key.expose_secret().to_owned(), "accepted"),
            (revoked.key.expose_secret().to_owned(), "revoked"),
            (unknown.expose_secret().to_owned(), "unknown"),
        ];
        let mut load = Self {
            tasks: JoinSet::new(),
            over: Arc::default(),
            answered: Arc::default(),
            unavailable: Arc::default(),
        };
        let verifier = Arc::new(Verifier::new(store, ring()));
        for (key, expected) in keys.into_iter().cycle().take(12) {
            let (verifier, over) = (verifier.clone(), load.over.clone());
            let (answered, unavailable) = (load.answered.clone(), load.unavailable.clone());
            load.tasks.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let counter = match verifier.verify(&key).await {
                        Err(VerifyError::Unavailable(_)) => &unavailable,
                        Ok(_) if expected == "accepted" => &answered,
                        Err(VerifyError::Refused(refusal)) if refusal.as_str() == expected => {
                            &answered
                        }
                        wrong => panic!("{expected}, or unavailable; not {wrong:?}"),
                    };
                    counter.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        load
    }

    /// Waits until a count has grown by this much.
    async fn more(&self, count: &AtomicU64, by: u64) {
        let (start, before) = (Instant::now(), count.load(Ordering::SeqCst));
        while count.load(Ordering::SeqCst) < before + by {
            assert!(start.elapsed() < LONG, "an answer comes in time");
            assert!(!self.tasks.is_empty());
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn stop(mut self) {
        self.over.store(true, Ordering::SeqCst);
        while let Some(done) = self.tasks.join_next().await {
            done.expect("not one wrong answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_is_unavailable_until_it_is_back() {
    let mut server = Server::start();
    let load = Load::start(connect(&server.options()).await).await;
    for _ in 0..2 {
        load.more(&load.answered, 100).await;
        server.kill();
        load.more(&load.unavailable, 50).await;
        server.start_again();
        load.more(&load.answered, 100).await;
    }
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_fails_is_unavailable_until_it_is_mended() {
    let options = postgres::database().await;
    let proxy = Proxy::to(options.get_port()).await;
    let load = Load::start(connect(&options.port(proxy.port)).await).await;
    for fault in
        [Mode::Reset, Mode::Blackhole, Mode::Garbage, Mode::Delay(2 * Duration::from_secs(1))]
    {
        load.more(&load.answered, 100).await;
        proxy.set(fault);
        load.more(&load.unavailable, 30).await;
        proxy.set(Mode::Forward);
        load.more(&load.answered, 100).await;
    }
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_goes_on_for_a_while_and_no_longer() {
    let options = postgres::database().await;
    let proxy = Proxy::to(options.get_port()).await;
    let database = connect(&options.clone().port(proxy.port)).await;
    let store = CachedStore::new(database.clone(), CacheOptions::default());
    let follower = Follower::spawn(store.clone(), database.changes());
    follower.connected().await;
    // Whoever revokes is not cut off.
    let manager = KeyManager::new(connect(&options).await, &ring());
    let issued = manager.issue(NewKey::new("user-1", "name")).await.unwrap();
    let key = issued.key.expose_secret();
    let verifier = Verifier::new(store, ring());
    _ = verifier.verify(key).await.unwrap();

    proxy.set(Mode::Blackhole);
    manager.revoke(&issued.record.id, None).await.unwrap();
    let revoked = Instant::now();
    let refused = loop {
        match verifier.verify(key).await {
            Ok(_) => sleep(Duration::from_millis(20)).await,
            Err(error) => break error,
        }
        assert!(revoked.elapsed() < LONG, "the short age is the bound");
    };
    assert!(matches!(refused, VerifyError::Unavailable(_)), "not a wrong no: {refused:?}");
    follower.lost().await;
    proxy.set(Mode::Forward);
    follower.connected().await;
    let error = loop {
        match verifier.verify(key).await.unwrap_err() {
            VerifyError::Unavailable(_) => sleep(Duration::from_millis(20)).await,
            error => break error,
        }
        assert!(revoked.elapsed() < LONG);
    };
    assert!(matches!(error.refusal(), Some(Refusal::Revoked(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_one_cold_key_are_one_statement() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    sqlx::raw_sql("CREATE EXTENSION pg_stat_statements").execute(&pool).await.unwrap();
    let store = connect(&options).await;
    let issued = KeyManager::new(store.clone(), &ring()).issue(NewKey::new("user-1", "name")).await;
    let key: Arc<str> = issued.unwrap().key.expose_secret().into();
    let verifier =
        Arc::new(Verifier::new(CachedStore::new(store, CacheOptions::default()), ring()));
    let executed = async || -> i64 {
        let query = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements \
                     JOIN pg_database ON oid = dbid WHERE datname = current_database() \
                     AND query LIKE '%key_hash IN%'";
        sqlx::query_scalar(query).fetch_one(&pool).await.unwrap()
    };
    let before = executed().await;
    let mut tasks = JoinSet::new();
    for _ in 0..64 {
        let (verifier, key) = (verifier.clone(), key.clone());
        tasks.spawn(async move { verifier.verify(&*key).await.is_ok() });
    }
    assert_eq!(tasks.join_all().await, [true; 64]);
    assert_eq!(executed().await - before, 1);
}

/// Rows that a worker changes until it is killed.
const ROWS: u32 = 200;
/// Tells this binary that it is a worker, and on which database.
const WORKER: &str = "LEXIKON_AUTH_TEST_WORKER";

fn key(number: u32) -> String {
    format!("lxk_{number:043}")
}

fn hashes(number: u32) -> (KeyHash, KeyHash) {
    let key = key(number);
    let candidates = Candidates::compute(&PresentedKey::parse(&key).unwrap(), &ring()).unwrap();
    (candidates.as_slice()[0], candidates.as_slice()[1])
}

fn id(number: u32) -> KeyId {
    (&*format!("key-{number:03}")).into()
}

/// Not a test: what the test below starts as a process of its own, to kill it. Uses every key, upgrades
/// it, and says so once that is written; then extends the schema.
#[tokio::test]
async fn worker() {
    let Ok(port_and_database) = std::env::var(WORKER) else { return };
    let (port, database) = port_and_database.split_once(' ').unwrap();
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").username("postgres");
    let store = connect(&options.port(port.parse().unwrap()).database(database)).await;
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = Verifier::new(store.clone(), ring()).with_policy(upgrade);
    for number in 0..ROWS {
        _ = verifier.verify(&key(number)).await.unwrap();
        if number % 8 == 7 {
            verifier.flush().await.unwrap();
            println!("written {number}");
        }
    }
    store.extend_schema().await.unwrap();
    println!("finished");
}

fn start_worker(options: &PgConnectOptions) -> Child {
    let place = format!("{} {}", options.get_port(), options.get_database().unwrap());
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::worker", "--nocapture", "--test-threads=1"])
        .env(WORKER, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_half_way_loses_nothing() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let dump = data::POSTGRES;
    sqlx::raw_sql(dump).execute(&pool).await.unwrap();
    let clean = "SET search_path = public; DELETE FROM api_keys";
    sqlx::raw_sql(clean).execute(&pool).await.unwrap();
    let store = connect(&options).await;
    for number in 0..ROWS {
        let record = KeyRecord::new(id(number), "user-1".into(), hashes(number).1);
        store.insert(&record).await.unwrap();
    }
    let verifier = Verifier::new(store.clone(), ring());
    // Killed after each of several steps, and during the last ones; then it runs to its end.
    for lines in [1, 2, 5, 9, 14, 20, 25, usize::MAX] {
        let began = SystemTime::now();
        let mut worker = start_worker(&options);
        let mut written = None;
        let output = BufReader::new(worker.stdout.take().unwrap());
        let lines = output
            .lines()
            .map(Result::unwrap)
            .filter(|line| line.starts_with("written") || line == "finished")
            .take(lines);
        for line in lines {
            written = line
                .strip_prefix("written ")
                .map(|number| number.parse::<u32>().unwrap())
                .or(written);
        }
        let _ = worker.kill();
        worker.wait().unwrap();
        for number in 0..ROWS {
            let verified = verifier.verify(&key(number)).await.expect("every row verifies");
            let row = store.find_by_id(&id(number)).await.unwrap().unwrap();
            let (hmac, legacy) = hashes(number);
            assert!(row.hash == hmac || row.hash == legacy, "whole");
            if written.is_some_and(|written| number <= written) {
                assert_eq!(
                    verified.format(),
                    HashFormat::HmacSha256,
                    "what was acknowledged stands"
                );
                assert!(row.last_used_at >= Some(began - Duration::from_millis(1)), "its use too");
            }
        }
    }
    let extended = connect(&options).await;
    let record = extended.find_by_id(&id(0)).await.unwrap().unwrap();
    extended.revoke(&record.id, SystemTime::now(), Some("lost")).await.unwrap();
    let revoked = extended.find_by_id(&id(0)).await.unwrap().unwrap();
    assert_eq!(
        revoked.revocation.as_ref().unwrap().reason.as_deref(),
        Some("lost"),
        "the schema is extended"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_is_killed_half_way_can_be_run_again() {
    let options = postgres::database().await;
    let pool = PgPool::connect_with(options.clone()).await.unwrap();
    let dump = data::POSTGRES;
    sqlx::raw_sql(dump).execute(&pool).await.unwrap();
    for pause in 0..20 {
        // Each part of the extension is killed somewhere, over the rounds.
        let undo = "SET search_path = public; DROP TABLE IF EXISTS lexikon_auth_secrets; \
             ALTER TABLE api_keys DROP COLUMN IF EXISTS revoked_at, DROP COLUMN IF EXISTS \
             revoked_reason, DROP COLUMN IF EXISTS hash_format; \
             DROP FUNCTION IF EXISTS lexikon_auth_report_key, lexikon_auth_report_owner CASCADE";
        sqlx::raw_sql(undo).execute(&pool).await.unwrap();
        let store = connect(&options).await;
        let extension = tokio::spawn(store.extend_schema());
        sleep(Duration::from_millis(pause)).await;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::raw_sql(kill).execute(&pool).await.unwrap();
        let _ = extension.await.unwrap();
        let store = connect(&options).await.extend_schema().await.unwrap();
        store.check_secrets(&ring()).await.unwrap();
        let follower = Follower::spawn(store.clone(), store.changes());
        follower.connected().await;
        follower.shutdown().await;
    }
}
