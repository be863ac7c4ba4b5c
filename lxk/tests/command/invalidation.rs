//! The command `lxk` and the copies that instances keep in Redis, over SQLite: what it changes is refused at
//! once, also where it is interrupted or killed, and what it cannot tell it says.
#![cfg(unix)]

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lexikon_auth::Verifier;
use lexikon_auth::store::{DynKeyStore, KeyLookup, RedisOptions, RedisStore, SqliteStore};
use lexikon_auth_tests::{
    data, one_secret,
    redis_server::{self, RedisServer},
};
use sqlx::SqlitePool;
use tokio::time::sleep;

use crate::operator::Desk;

/// Three batches of legacy keys, an instance that follows no feed, and a key in each batch that it has
/// put into Redis.
struct Scene {
    server: RedisServer,
    desk: Desk,
    pool: SqlitePool,
    store: RedisStore<DynKeyStore>,
    instance: Verifier<RedisStore<DynKeyStore>>,
    keys: Vec<String>,
}

const BUSY: Duration = Duration::from_secs(60);

impl Scene {
    async fn new() -> Self {
        let server = RedisServer::start();
        let desk = Desk::new().with("REDIS_URL", format!("redis://127.0.0.1:{}", server.port));
        let store = SqliteStore::open(desk.path()).await.unwrap();
        let pool = SqlitePool::connect(&desk.variables["DATABASE_URL"]).await.unwrap();
        let store = DynKeyStore::new(store);
        let client = server.client();
        let store = RedisStore::new(store, client, &one_secret(), redis_server::patient()).await;
        let instance = Verifier::new(store.clone(), one_secret());
        let mut scene = Self { server, desk, pool, store, instance, keys: Vec::new() };
        for number in [10, 1500, 2500] {
            let (id, key) = scene.desk.issue("user-1", "used");
            scene.run(&format!("UPDATE api_keys SET id = '{number:06}+' WHERE id = '{id}'")).await;
            scene.keys.push(key);
        }
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2997) \
             INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active, created_at) \
             SELECT printf('%06d', i), 'user-1', printf('%064x', i), 'x', 'read', 1, \
             '2026-01-01 00:00:00' FROM n";
        scene.run(rows).await;
        scene.run("UPDATE api_keys SET hash_format = 'sha256'").await;
        // In the second batch there is a row that takes a second, and on a busy machine less than the ten for
        // which lxk waits for the database.
        let slow = "CREATE TRIGGER slow AFTER UPDATE OF is_active ON api_keys WHEN NEW.id = '001600' \
             BEGIN SELECT sum(length(a.id || b.id)) FROM api_keys a, api_keys b; END";
        scene.run(slow).await;
        for key in 0..3 {
            scene.put_into_redis(key).await;
        }
        scene
    }

    async fn run(&self, statement: &str) {
        run(&self.pool, statement).await;
    }

    async fn is_accepted(&self, key: usize) -> bool {
        self.instance.verify(&self.keys[key]).await.is_ok()
    }

    /// Verifies a key until the answer comes from Redis.
    async fn put_into_redis(&self, key: usize) {
        let (before, start) = (self.store.counts().hits, Instant::now());
        while self.store.counts().hits == before {
            assert!(start.elapsed() < BUSY, "Redis is not used");
            assert!(self.is_accepted(key).await);
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn revoked(&self) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM api_keys WHERE is_active = 0");
        count.fetch_one(&self.pool).await.unwrap()
    }

    /// Begins a change, and returns while it is at its second batch.
    async fn begin(&self) -> Child {
        let mut command = self.desk.command(&["migrate", "revoke", "--force"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        while self.revoked().await < 1000 {
            assert!(child.try_wait().unwrap().is_none(), "it ended before its first batch");
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.revoked().await, 1000);
        child
    }

    fn marker(&self) -> Option<String> {
        let mut connection = self.server.client().get_connection().unwrap();
        let marker = RedisOptions::default().bulk_change_marker();
        redis::Cmd::get(marker).query(&mut connection).unwrap()
    }

    async fn wait_until_refused(&self, key: usize) {
        let start = Instant::now();
        while self.is_accepted(key).await {
            assert!(start.elapsed() < BUSY, "key {key} is still accepted");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn run(pool: &SqlitePool, statement: &str) {
    let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned()));
    statement.execute(pool).await.unwrap();
}

fn send(signal: &str, child: &Child) {
    let kill = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(kill.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_change_after_a_batch_that_is_told() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let scene = Scene::new().await;
        let mut child = scene.begin().await;
        scene.wait_until_refused(0).await;
        assert!(child.try_wait().unwrap().is_none(), "the first batch is told before the end");
        assert!(scene.is_accepted(1).await, "the second batch is under way");
        send(signal, &child);
        let ended = child.wait().unwrap();
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(ended.code(), Some(code), "{err}");
        assert!(err.contains("run it again for the rest"), "{err}");
        assert_eq!(
            scene.revoked().await,
            2000,
            "the batch under way was finished, and no other begun"
        );
        let accepted =
            [scene.is_accepted(0).await, scene.is_accepted(1).await, scene.is_accepted(2).await];
        assert_eq!(accepted, [false, false, true]);
        // Nothing keeps instances from using Redis.
        scene.put_into_redis(2).await;
        let revoke = ["migrate", "revoke", "--force"];
        scene.desk.lxk(&revoke).ends_with(0).prints("1000 legacy keys revoked");
        assert!(!scene.is_accepted(2).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_revocation_between_two_keys() {
    let scene = Scene::new().await;
    // The second takes seconds.
    let revoke = ["revoke", "000010+", "001600", "002500+"];
    let mut command = scene.desk.command(&revoke);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while scene.revoked().await == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before its first key");
        sleep(Duration::from_millis(5)).await;
    }
    send("TERM", &child);
    let ended = child.wait().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(ended.code(), Some(143), "{err}");
    assert!(err.contains("run it again for the rest"), "{err}");
    assert!(!scene.is_accepted(0).await && scene.is_accepted(2).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_revokes_a_revoked_key_tells_of_it() {
    let scene = Scene::new().await;
    scene.run("UPDATE api_keys SET is_active = 0 WHERE id = '000010+'").await;
    assert!(scene.is_accepted(0).await, "nobody has told Redis");
    scene.desk.lxk(&["revoke", "000010+", "--dry-run"]).ends_with(0).prints("revoked already");
    assert!(scene.is_accepted(0).await);
    scene.desk.lxk(&["revoke", "000010+"]).ends_with(0).prints("revoked already");
    assert!(!scene.is_accepted(0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_killed_costs_speed_and_no_freshness() {
    let scene = Scene::new().await;
    let mut child = scene.begin().await;
    child.kill().unwrap();
    child.wait().unwrap();
    // As if it had committed what it could not tell any more.
    scene.run("DROP TRIGGER slow; UPDATE api_keys SET is_active = 0 WHERE id = '002500+'").await;
    assert!(!scene.is_accepted(2).await);
    let hits = scene.store.counts().hits;
    for key in 0..3 {
        scene.is_accepted(key).await;
    }
    assert_eq!(scene.store.counts().hits, hits, "nothing in Redis is believed");
    // The next run puts it right.
    scene.desk.lxk(&["migrate", "revoke", "--force"]).ends_with(0);
    scene.run("UPDATE api_keys SET is_active = 1 WHERE id = '002500+'").await;
    scene.put_into_redis(2).await;

    // And so does who clears the cache.
    let changing = scene.store.begin_bulk_change().await.unwrap();
    drop(changing);
    let hits = scene.store.counts().hits;
    assert!(scene.is_accepted(2).await);
    assert_eq!(scene.store.counts().hits, hits);
    scene.desk.lxk(&["cache", "clear", "--all"]).ends_with(0);
    scene.put_into_redis(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_clears_the_cache_waits_for_the_batch_that_is_under_way() {
    let scene = Scene::new().await;
    let mut child = scene.begin().await;
    scene.wait_until_refused(0).await;
    scene.desk.lxk(&["cache", "clear", "--all"]).ends_with(0);
    assert!(scene.revoked().await >= 2000, "the marker was taken away in the middle of a batch");
    assert!(child.wait().unwrap().success());
    for key in 0..3 {
        assert!(!scene.is_accepted(key).await, "{key}");
    }
    assert_eq!(scene.marker(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_waits_for_input_leaves_redis_in_use_and_ends_with_a_word() {
    let scene = Scene::new().await;
    let exported = scene.desk.exported();
    let batch: Vec<_> = exported.split_inclusive('\n').take(1001).collect();
    assert!(batch[1000].contains("checkpoint"));
    let url = format!("redis://127.0.0.1:{}", scene.server.port);
    let desk = Desk::new().with("REDIS_URL", url);
    let mut import = desk.command(&["import"]);
    import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = import.spawn().unwrap();
    // Kept open until the end.
    let mut input = child.stdin.take().unwrap();
    input.write_all(batch.concat().as_bytes()).unwrap();
    let start = Instant::now();
    while desk.lxk(&["list"]).ends_with(0).out.lines().count() < 1000 {
        assert!(start.elapsed() < BUSY && child.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(scene.marker(), None);
    scene.put_into_redis(0).await;
    send("INT", &child);
    let ended = child.wait().unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!(ended.code(), Some(130), "{err}");
    assert!(err.contains("what was done stays done"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_redis_cannot_be_told_of_does_not_begin() {
    let Scene { server, desk, pool, .. } = Scene::new().await;
    drop(server);
    desk.lxk(&["migrate", "revoke", "--force"]).fails(3, "nothing was changed");
    let count = sqlx::query_scalar("SELECT count(*) FROM api_keys WHERE is_active = 0");
    let revoked: i64 = count.fetch_one(&pool).await.unwrap();
    assert_eq!(revoked, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_told_is_said() {
    let server = RedisServer::start();
    let url = format!("redis://127.0.0.1:{}", server.port);
    let desk = Desk::new();
    let issue = |name: &str| desk.issue("user-1", name);
    let [(first, key), (second, _), (third, _), (fourth, _), (fifth, _)] =
        ["1", "2", "3", "4", "5"].map(issue);
    // Where no instance keeps copies, there is nobody to be told.
    desk.lxk(&["revoke", &first]).ends_with(0);
    desk.lxk(&["preflight"]).ends_with(0);
    let pool = SqlitePool::connect(&desk.variables["DATABASE_URL"]).await.unwrap();
    run(&pool, "UPDATE api_keys SET is_active = 1").await;

    // An instance, and a wrapper in between.
    let store = DynKeyStore::new(SqliteStore::open(desk.path()).await.unwrap());
    let options = redis_server::patient().prefix("service:");
    let own = options.shared_cache(&server.client());
    let store = RedisStore::new(store, server.client(), &one_secret(), options).await;
    let instance = Verifier::new(store, one_secret());
    assert!(instance.verify(&key).await.is_ok());
    let start = Instant::now();
    let registered = "SELECT prefix || address FROM lexikon_auth_caches";
    while sqlx::query_scalar::<_, String>(registered).fetch_all(&pool).await.unwrap()
        != [format!("{}{}", own.prefix, own.address)]
    {
        assert!(start.elapsed() < BUSY, "the cache is not registered");
        sleep(Duration::from_millis(20)).await;
    }

    let untold = "instances also keep copies in Redis";
    desk.lxk(&["revoke", &first]).fails(3, untold).prints("revoked");
    desk.lxk(&["expire"]).ends_with(0).prints("0 keys marked");
    run(
        &pool,
        &format!("UPDATE api_keys SET expires_at = '2020-01-01 00:00:00' WHERE id = '{fifth}'"),
    )
    .await;
    desk.lxk(&["expire"]).fails(3, &own.address).prints("1 key marked");
    desk.lxk(&["migrate", "revoke"]).fails(3, "service:");
    desk.lxk(&["rotate", &second]).fails(3, untold).prints("lxk_");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("REDIS_URL is not set, but");
    // What changes no key is no matter.
    for arguments in [
        &["list"][..],
        &["revoke", &third, "--dry-run"],
        &["migrate", "revoke", "--dry-run"],
        &["issue", "--owner", "user-1", "--name", "x"],
        &["migrate", "policy", "shadow"],
    ] {
        desk.lxk(arguments).ends_with(0);
    }
    let desk = desk.with("REDIS_URL", &url);
    desk.lxk(&["revoke", &third]).fails(3, "prefix service: at");
    desk.lxk(&["preflight"]).fails(1, "1 check failed").prints("as they have them");
    let desk = desk.with("REDIS_PREFIX", "service:");
    desk.lxk(&["revoke", &fourth]).ends_with(0);
    desk.lxk(&["cache", "stats"]).ends_with(0).prints(&format!("service: at {}", own.address));

    // A cache that nobody has used for long holds nothing any more.
    let desk = desk.without("REDIS_URL");
    run(&pool, "UPDATE lexikon_auth_caches SET last_seen_at = datetime('now', '-25 hours')").await;
    desk.lxk(&["revoke", &fifth]).fails(3, untold);
    run(&pool, "UPDATE lexikon_auth_caches SET last_seen_at = datetime('now', '-27 hours')").await;
    desk.lxk(&["revoke", &fifth]).ends_with(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_notes_a_cache_once_it_has_the_place_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    std::fs::write(&path, data::SQLITE).unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    let client = redis::Client::open("redis://cache.example.org").unwrap();
    let cache = RedisOptions::default().shared_cache(&client);
    store.register_cache(&cache).await.unwrap();
    let extended = store.clone().extend_schema().await.unwrap();
    store.register_cache(&cache).await.unwrap();
    store.register_cache(&cache).await.unwrap();
    let table = lexikon_auth::admin::KeyTable::from(extended);
    let hour = std::time::SystemTime::now() - Duration::from_secs(3600);
    assert_eq!(table.shared_caches(hour).await.unwrap(), [cache]);
}
