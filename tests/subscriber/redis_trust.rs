//! When the tier in Redis may be believed: what happens to its marks of changes, to its clock, to its role
//! as a master, and to those who report changes to it.
#![cfg(feature = "redis")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lexikon_auth::StoreError;
use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{Change, KeyLookup, KeyStore, RedisOptions, RedisStore};
use lexikon_auth::store::{ChangeFeed, FeedEvent, FeedEventKind, Message, Subscription};
use lexikon_auth::tasks::Follower;
use lexikon_auth_tests::gated::Gated;
use lexikon_auth_tests::proxy::{Mode, Proxy};
use lexikon_auth_tests::redis_server::{self, RedisServer};
use lexikon_auth_tests::{Log, one_secret};
use redis::Commands;
use tokio::time::sleep;

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

struct Scene {
    server: RedisServer,
    redis: redis::Connection,
    beneath: Gated,
}

impl Scene {
    fn new() -> Self {
        let server = RedisServer::start();
        let redis = server.client().get_connection().unwrap();
        Self { server, redis, beneath: Gated::default() }
    }

    /// An instance over the same database.
    async fn instance(&self) -> RedisStore<Gated> {
        self.instance_on(&self.server).await
    }

    async fn instance_on(&self, server: &RedisServer) -> RedisStore<Gated> {
        let options = RedisOptions::default().timeout(Duration::from_secs(5));
        RedisStore::new(self.beneath.clone(), server.client(), &one_secret(), options).await
    }

    fn set(&mut self, name: &str, value: &str) {
        let mut config = redis::cmd("CONFIG");
        let () = config.arg("SET").arg(name).arg(value).query(&mut self.redis).unwrap();
    }

    fn time(&mut self) -> u64 {
        let (seconds, microseconds): (u64, u64) =
            redis::cmd("TIME").query(&mut self.redis).unwrap();
        seconds * 1_000_000 + microseconds
    }

    fn generation(&mut self) -> Option<String> {
        self.redis.get("lexikon:auth:generation").unwrap()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Revokes a key, and has everybody know who can be told.
async fn revoke(store: &RedisStore<Gated>, id: &str) {
    store.inner().keys.revoke(&id.into(), SystemTime::now(), None).await.unwrap();
    store.invalidate(Change::Key(id.into())).await;
}

async fn is_revoked(store: &RedisStore<Gated>, key: &Candidates) -> bool {
    store.find(key).await.unwrap().unwrap().is_revoked()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_mark_of_a_change_is_evicted_before_the_entry_that_it_speaks_of() {
    for policy in ["volatile-ttl", "volatile-lru", "volatile-random"] {
        let mut scene = Scene::new();
        let (one, other) = (scene.instance().await, scene.instance().await);
        let mut keys = Vec::new();
        for number in 0..200 {
            keys.push(scene.beneath.issue(&format!("key-{number}")).await);
            one.find(&keys[number]).await.unwrap();
        }
        for number in 0..keys.len() {
            revoke(&one, &format!("key-{number}")).await;
        }
        scene.set("maxmemory-policy", policy);
        let used: String = redis::cmd("INFO").arg("memory").query(&mut scene.redis).unwrap();
        let used = used.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
        let limit = used.trim().parse::<u64>().unwrap() + (1 << 20);
        scene.set("maxmemory", &limit.to_string());
        // Others fill the memory, with longer lives than any entry or mark.
        for number in 0..4000 {
            let filler = vec![b'x'; 1000];
            let () = scene.redis.set_ex(format!("filler {number}"), filler, 90_000).unwrap();
        }
        let info: String = redis::cmd("INFO").arg("stats").query(&mut scene.redis).unwrap();
        assert!(!info.contains("evicted_keys:0"), "{policy}: there was pressure");
        assert!(other.is_used(), "{policy} is a good policy");
        for key in &keys {
            assert!(is_revoked(&other, key).await, "{policy}: an entry outlived its mark");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_policy_that_evicts_marks_redis_is_bypassed() {
    let mut scene = Scene::new();
    scene.set("maxmemory-policy", "allkeys-lru");
    let store = scene.instance().await;
    assert!(!store.is_used(), "it is read before anything else");
    scene.set("maxmemory-policy", "volatile-ttl");
    until("used under a good policy", || store.is_used()).await;
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&store, &key).await);
    assert!(!is_revoked(&store, &key).await);
    assert_eq!(scene.beneath.reads(), 1);

    scene.set("maxmemory-policy", "allkeys-random");
    until("read again while it runs", || !store.is_used()).await;
    // Whatever was evicted meanwhile, marks among it.
    scene.beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    scene.set("maxmemory-policy", "noeviction");
    until("used again", || store.is_used()).await;
    assert!(is_revoked(&store, &key).await, "entries from before are not believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_set_back_has_everything_forgotten_once() {
    let mut scene = Scene::new();
    let (store, other) = (scene.instance().await, scene.instance().await);
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&store, &key).await);
    // As everything stands where the clock of the server was an hour ahead and has been set right.
    let future = scene.time() + 3_600_000_000;
    let generation = scene.generation().unwrap();
    store.invalidate(Change::Key("key-1".into())).await;
    let names: Vec<String> = scene.redis.keys("lexikon:auth:changed:*").unwrap();
    assert_eq!(names.len(), 1);
    let () = scene.redis.set(&names[0], format!("{generation}:{future}")).unwrap();
    let () = scene.redis.set("lexikon:auth:clock", future).unwrap();

    assert!(!is_revoked(&other, &key).await);
    let reads = scene.beneath.reads();
    assert!(!is_revoked(&other, &key).await);
    assert_eq!(scene.beneath.reads(), reads, "entries are not stale for good");
    assert_ne!(scene.generation().unwrap(), generation);
    assert!(scene.redis.get::<_, u64>("lexikon:auth:clock").unwrap() < future);

    // A change that is made first, before anybody looks, counts as well.
    let () = scene.redis.set("lexikon:auth:clock", future).unwrap();
    revoke(&store, "key-1").await;
    assert!(is_revoked(&other, &key).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_nobody_reports_show_after_the_life_of_an_entry() {
    let scene = Scene::new();
    let options =
        RedisOptions::default().timeout(Duration::from_secs(5)).ttl(Duration::from_secs(2));
    let client = scene.server.client();
    let store = RedisStore::new(scene.beneath.clone(), client, &one_secret(), options).await;
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&store, &key).await);
    // Past every store, and nobody follows the database.
    scene.beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    let start = Instant::now();
    while !is_revoked(&store, &key).await {
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_stands_in_place_of_the_generation_is_mended() {
    let mut scene = Scene::new();
    let store = scene.instance().await;
    let key = scene.beneath.issue("key-1").await;
    for text in ["zzz", "1", "", "123456789abcdef", "0123456789ABCDEF"] {
        let () = scene.redis.set("lexikon:auth:generation", text).unwrap();
        until("used again", || store.is_used()).await;
        let start = Instant::now();
        let hits = store.counts().hits;
        while store.counts().hits == hits {
            assert!(start.elapsed() < LONG, "entries are stored again after {text:?}");
            assert!(!is_revoked(&store, &key).await);
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_that_never_heard_of_a_change_is_told_again() {
    let scene = Scene::new();
    let successor = RedisServer::start();
    let way = Proxy::to(scene.server.port).await;
    let options = RedisOptions::default().timeout(Duration::from_secs(5));
    let client = redis_server::client(way.port);
    let store = RedisStore::new(scene.beneath.clone(), client, &one_secret(), options).await;
    let other = scene.instance_on(&successor).await;
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&other, &key).await);
    // The one still talks to the server of before, which takes the change and dies with it.
    revoke(&store, "key-1").await;
    way.lead_to(successor.port);
    way.set(Mode::Reset);
    until("noticed", || !store.is_used()).await;
    way.set(Mode::Forward);
    until("used again", || store.is_used()).await;
    assert!(is_revoked(&other, &key).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_flushed_between_a_change_and_a_slow_fill_brings_nothing_back() {
    let mut scene = Scene::new();
    let (slow, other) = (scene.instance().await, scene.instance().await);
    let key = scene.beneath.issue("key-1").await;
    // The slow one has read the row, and is about to store it.
    scene.beneath.closed.send_replace(true);
    let reading = {
        let (slow, key) = (slow.clone(), key.clone());
        tokio::spawn(async move { slow.find(&key).await })
    };
    scene.beneath.reach(1).await;
    revoke(&other, "key-1").await;
    let () = redis::cmd("FLUSHALL").query(&mut scene.redis).unwrap();
    scene.beneath.closed.send_replace(false);
    reading.await.unwrap().unwrap();
    assert!(is_revoked(&other, &key).await, "nothing older than the flush counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_was_demoted_is_not_trusted() {
    let mut scene = Scene::new();
    let successor = RedisServer::start();
    let store = scene.instance().await;
    let elsewhere = scene.instance_on(&successor).await;
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&store, &key).await);
    assert!(!is_revoked(&store, &key).await);
    assert_eq!(scene.beneath.reads(), 1);
    let follower = Follower::spawn(elsewhere.clone(), store.changes());
    follower.connected().await;

    let () = redis::cmd("REPLICAOF")
        .arg("127.0.0.1")
        .arg(successor.port)
        .query(&mut scene.redis)
        .unwrap();
    // Whoever follows the successor never tells this one.
    revoke(&elsewhere, "key-1").await;
    until("noticed", || !store.is_used()).await;
    assert!(is_revoked(&store, &key).await);
    follower.lost().await;

    // Promoted again, it is another one: it has the history of its successor.
    let () = redis::cmd("REPLICAOF").arg("NO").arg("ONE").query(&mut scene.redis).unwrap();
    until("found again", || store.is_used()).await;
    assert!(is_revoked(&store, &key).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_instances_recover_with_one_flush() {
    let mut scene = Scene::new();
    let mut instances = Vec::new();
    for _ in 0..10 {
        let store = scene.instance().await;
        let follower = Follower::spawn(store.clone(), store.changes());
        follower.connected().await;
        instances.push((store, follower));
    }
    let mut generations = vec![scene.generation().unwrap()];
    // Each misses a change of its own, and the server loses everything.
    scene.server.signal("STOP");
    for (number, (store, _)) in instances.iter().enumerate() {
        store.invalidate(Change::Key((&*number.to_string()).into())).await;
    }
    scene.server.signal("KILL");
    scene.server.start_again();
    scene.redis = scene.server.client().get_connection().unwrap();
    let start = Instant::now();
    while instances.iter().any(|(store, follower)| !store.is_used() || !follower.is_connected())
        || start.elapsed() < Duration::from_secs(5)
    {
        generations.extend(scene.generation());
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(5)).await;
    }
    generations.dedup();
    assert_eq!(generations.len(), 2, "one before, one after: {generations:?}");
}

/// A feed that reports nothing, and whose beats come back.
struct Quiet;

struct Beats(u32);

impl ChangeFeed for Quiet {
    type Subscription = Beats;

    async fn subscribe(&self) -> Result<Beats, StoreError> {
        Ok(Beats(0))
    }
}

impl Subscription for Beats {
    async fn receive(&mut self) -> Result<Message, StoreError> {
        if self.0 == 0 {
            return std::future::pending().await;
        }
        self.0 -= 1;
        Ok(Message::Heartbeat)
    }

    async fn heartbeat(&mut self) -> Result<(), StoreError> {
        self.0 += 1;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_follower_that_was_replaced_does_not_disable_redis() {
    let scene = Scene::new();
    let store = scene.instance().await;
    let old = Follower::spawn(store.clone(), Quiet);
    old.connected().await;
    let new = Follower::spawn(store.clone(), Quiet);
    new.connected().await;
    old.shutdown().await;
    until("the word of the newer one stands", || store.is_used()).await;
    new.shutdown().await;
    assert!(!store.is_used());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_logged_once() {
    let log = Log::default();
    let writer = {
        let log = log.clone();
        move || log.clone()
    };
    let subscriber = tracing_subscriber::fmt().with_writer(writer).with_ansi(false).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let mut scene = Scene::new();
    let store = scene.instance().await;
    let key = scene.beneath.issue("key-1").await;
    let port = format!("{}", scene.server.port);
    scene.set("maxmemory", "1");
    until("bypassed", || !store.is_used()).await;
    for _ in 0..60 {
        store.invalidate(Change::Key("key-1".into())).await;
        assert!(store.find(&key).await.unwrap().is_some());
        sleep(Duration::from_millis(100)).await;
    }
    // Other tests of this module log their own.
    let about_memory = log.text().lines().filter(|line| line.contains("OOM")).count();
    assert_eq!(about_memory, 1, "{port}: {}", log.text());
    scene.set("maxmemory", "0");
    until("used again", || store.is_used()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_many_rows_are_changed_nothing_in_redis_is_believed() {
    let mut scene = Scene::new();
    let (store, other) = (scene.instance().await, scene.instance().await);
    let key = scene.beneath.issue("key-1").await;
    assert!(!is_revoked(&other, &key).await);
    let change = store.begin_bulk_change().await.unwrap();
    change.set_marker().await.unwrap();
    // Past every store, as a statement about many rows does.
    scene.beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    assert!(is_revoked(&other, &key).await, "before anybody is told");
    change.invalidate().await.unwrap();
    // Killed here, it leaves its marker.
    drop(change);
    assert!(scene.redis.exists::<_, bool>("lexikon:auth:changing").unwrap());
    let lives: i64 = scene.redis.ttl("lexikon:auth:changing").unwrap();
    assert_eq!(lives, -1, "it stays for as long as it takes");
    let reads = scene.beneath.reads();
    assert!(is_revoked(&other, &key).await);
    assert!(is_revoked(&other, &key).await);
    assert_eq!(scene.beneath.reads(), reads + 2, "Redis is not believed");

    let (one, two) =
        (store.begin_bulk_change().await.unwrap(), other.begin_bulk_change().await.unwrap());
    one.finish().await.unwrap();
    assert!(scene.redis.exists::<_, bool>("lexikon:auth:changing").unwrap(), "the other goes on");
    two.finish().await.unwrap();
    assert!(!scene.redis.exists::<_, bool>("lexikon:auth:changing").unwrap());
    assert!(is_revoked(&other, &key).await);
    let hits = other.counts().hits;
    assert!(is_revoked(&other, &key).await);
    assert_eq!(other.counts().hits, hits + 1, "it is believed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_was_not_told_while_it_was_away_it_is_told_when_it_is_back() {
    let scene = Scene::new();
    let (store, other) = (scene.instance().await, scene.instance().await);
    let key = scene.beneath.issue("key-1").await;
    let kept = scene.beneath.issue("key-2").await;
    assert!(!is_revoked(&other, &key).await);
    assert!(!is_revoked(&other, &kept).await);
    let one = Arc::new(store);
    scene.server.signal("STOP");
    let revoking = {
        let one = one.clone();
        tokio::spawn(async move { revoke(&one, "key-1").await })
    };
    until("bypassed", || !one.is_used()).await;
    revoking.await.unwrap();
    scene.server.signal("CONT");
    until("used again", || one.is_used() && other.is_used()).await;
    assert!(is_revoked(&other, &key).await);
    let hits = other.counts().hits;
    assert!(!is_revoked(&other, &kept).await);
    assert_eq!(other.counts().hits, hits + 1, "no other entry was forgotten");
}

#[tokio::test]
async fn what_redis_itself_reports_is_not_written_there_again() {
    let mut scene = Scene::new();
    let store = scene.instance().await;
    let before = scene.generation();
    for kind in [FeedEventKind::Lost, FeedEventKind::Connected, FeedEventKind::Changed(Change::All)]
    {
        store.on_feed_event(&FeedEvent::of_shared_cache(kind)).await;
        assert!(store.is_used(), "what is in Redis does not depend on who hears of it");
    }
    assert_eq!(scene.generation(), before);
    store.on_feed_event(&FeedEvent::of_database(FeedEventKind::Changed(Change::All))).await;
    assert_ne!(scene.generation(), before);
}

/// Asserts that a feed is lost: for whoever follows it, and for whoever begins to.
async fn assert_lost(store: &RedisStore<Gated>, subscription: &mut impl Subscription) {
    assert!(subscription.heartbeat().await.is_err());
    assert!(store.changes().subscribe().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_through_a_server_that_stores_leave_alone_counts_as_lost() {
    let mut scene = Scene::new();
    let store = scene.instance().await;
    let mut subscription = store.changes().subscribe().await.unwrap();
    subscription.heartbeat().await.unwrap();
    scene.set("maxmemory-policy", "allkeys-lru");
    assert_lost(&store, &mut subscription).await;
    scene.set("maxmemory-policy", "volatile-ttl");
    store.changes().subscribe().await.map(drop).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_counts_as_lost_until_a_change_to_many_rows_has_finished() {
    let scene = Scene::new();
    let store = scene.instance().await;
    let mut subscription = store.changes().subscribe().await.unwrap();
    let killed = store.begin_bulk_change().await.unwrap();
    drop(killed);
    assert_lost(&store, &mut subscription).await;
    store.begin_bulk_change().await.unwrap().finish().await.unwrap();
    store.changes().subscribe().await.map(drop).unwrap();
}
