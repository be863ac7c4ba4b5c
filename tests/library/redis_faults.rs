//! The tier in Redis while its server is killed, stopped, full, or cut off: keys are found all the
//! same, and nothing that was revoked comes back.
#![cfg(feature = "redis")]

use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use lexikon_auth::KeyId;
use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{Change, KeyLookup, KeyStore, MemoryStore, RedisOptions, RedisStore};
use lexikon_auth_tests::gated::Gated;
use lexikon_auth_tests::one_secret;
use lexikon_auth_tests::proxy::{Mode, Proxy};
use lexikon_auth_tests::redis_server::{self, RedisServer};
use redis::Commands;
use tokio::time::sleep;

/// A tier, and the store beneath it.
async fn tier(client: redis::Client, options: RedisOptions) -> (Gated, RedisStore<Gated>) {
    let beneath = Gated::default();
    let store = RedisStore::new(beneath.clone(), client, &one_secret(), options).await;
    (beneath, store)
}

/// A tier behind a proxy, with the default time limit.
async fn behind(proxy: &Proxy) -> (Gated, RedisStore<Gated>) {
    tier(redis_server::client(proxy.port), RedisOptions::default()).await
}

/// A key is found whatever happens.
async fn find_again_and_again(store: &RedisStore<Gated>, key: &Candidates) {
    for _ in 0..300 {
        assert!(store.find(key).await.unwrap().is_some(), "never a wrong no");
    }
}

async fn recovered(store: &RedisStore<Gated>, key: &Candidates) {
    let before = store.counts().hits;
    let start = Instant::now();
    while store.counts().hits == before {
        assert!(start.elapsed() < Duration::from_secs(60), "Redis is found again");
        store.find(key).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_to_redis_verification_goes_on() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port).await;
    let (beneath, store) = behind(&proxy).await;
    let key = beneath.issue("key-1").await;
    recovered(&store, &key).await;
    let faults = [
        Mode::Reset,
        Mode::Blackhole,
        Mode::Garbage,
        Mode::Delay(Duration::from_millis(500)),
        Mode::Refuse,
    ];
    for fault in faults {
        proxy.set(fault);
        let bypassed = store.counts().bypassed;
        find_again_and_again(&store, &key).await;
        if fault != Mode::Refuse {
            assert!(
                store.counts().bypassed > bypassed + 250,
                "{fault:?}: bypassed after the first"
            );
        }
        proxy.set(Mode::Forward);
        recovered(&store, &key).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_or_stopped_is_bypassed_and_found_again() {
    let mut server = RedisServer::start();
    let (beneath, store) = tier(server.client(), RedisOptions::default()).await;
    let key = beneath.issue("key-1").await;
    recovered(&store, &key).await;

    server.signal("STOP");
    find_again_and_again(&store, &key).await;
    assert!(store.counts().bypassed >= 299 && !store.is_used());
    server.signal("CONT");
    recovered(&store, &key).await;

    server.signal("KILL");
    find_again_and_again(&store, &key).await;
    server.start_again();
    recovered(&store, &key).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_redis_was_not_told_makes_it_forget_everything() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port).await;
    let (beneath, store) = behind(&proxy).await;
    // Another instance, whose way to Redis is never cut.
    let (client, options) = (server.client(), redis_server::patient());
    let other = RedisStore::new(beneath.clone(), client, &one_secret(), options).await;
    let key = beneath.issue("key-1").await;
    recovered(&store, &key).await;
    other.find(&key).await.unwrap();
    assert_eq!(other.counts().hits, 1);

    proxy.set(Mode::Blackhole);
    beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    store.invalidate(Change::Key("key-1".into())).await;
    assert!(store.find(&key).await.unwrap().unwrap().is_revoked(), "Redis is not asked");
    proxy.set(Mode::Forward);
    recovered(&store, &key).await;
    assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
    assert!(other.find(&key).await.unwrap().unwrap().is_revoked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_stores_nothing_and_grants_nothing_old() {
    let server = RedisServer::start();
    let mut admin = server.client().get_connection().unwrap();
    let (beneath, store) = tier(server.client(), redis_server::patient()).await;
    let [old, new] = [beneath.issue("key-1").await, beneath.issue("key-2").await];
    store.find(&old).await.unwrap();
    let mut config = |memory: &str| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(memory).exec(&mut admin).unwrap();
    };
    config("1");
    assert!(store.find(&new).await.unwrap().is_some());
    assert_eq!(store.counts().unwritten, 1);
    store.find(&old).await.unwrap();
    assert_eq!(store.counts().hits, 1, "what is there is still read");
    // A revocation that cannot be written: Redis is not believed any more.
    beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    store.invalidate(Change::Key("key-1".into())).await;
    assert!(store.find(&old).await.unwrap().unwrap().is_revoked());
    config("0");
    recovered(&store, &new).await;
    assert!(store.find(&old).await.unwrap().unwrap().is_revoked());
}

/// Revokes a key, and gives up when the store beneath has done it and Redis has not been told.
async fn revoke_and_give_up(proxy: &Proxy, store: &RedisStore<MemoryStore>, id: &str) {
    proxy.set(Mode::Delay(Duration::from_millis(500)));
    let id = KeyId::from(id);
    let mut revoke = pin!(store.revoke(&id, SystemTime::now(), None));
    tokio::select! {
        _ = &mut revoke => panic!("Redis was told in half the time that it takes"),
        () = async {
            while !store.inner().find_by_id(&id).await.unwrap().unwrap().is_revoked() {
                sleep(Duration::from_millis(5)).await;
            }
        } => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_given_up_leaves_redis_distrusted() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port).await;
    let beneath = Gated::default();
    let key = beneath.issue("key-1").await;
    let client = redis_server::client(proxy.port);
    let store = RedisStore::new(beneath.keys, client, &one_secret(), redis_server::patient()).await;
    store.find(&key).await.unwrap();
    revoke_and_give_up(&proxy, &store, "key-1").await;
    assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
    proxy.set(Mode::Forward);
    let start = Instant::now();
    while store.counts().hits == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "Redis is found again");
        assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
        sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(feature = "cache")]
#[tokio::test(flavor = "multi_thread")]
async fn others_hear_of_a_write_that_was_given_up() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port).await;
    let beneath = Gated::default();
    let key = beneath.issue("key-1").await;
    let instance = async |client| {
        RedisStore::new(beneath.keys.clone(), client, &one_secret(), redis_server::patient()).await
    };
    let (one, two) =
        (instance(redis_server::client(proxy.port)).await, instance(server.client()).await);
    let feed = two.changes();
    let cached =
        lexikon_auth::store::CachedStore::new(two, lexikon_auth::store::CacheOptions::default());
    let follower = lexikon_auth::tasks::Follower::spawn(cached.clone(), feed);
    follower.connected().await;
    assert!(!cached.find(&key).await.unwrap().unwrap().is_revoked());

    revoke_and_give_up(&proxy, &one, "key-1").await;
    proxy.set(Mode::Forward);
    let start = Instant::now();
    // Far sooner than the age of a cached answer, which is 5 minutes.
    while !cached.find(&key).await.unwrap().unwrap().is_revoked() {
        assert!(start.elapsed() < Duration::from_secs(60), "the other instance is told");
        sleep(Duration::from_millis(10)).await;
    }
    follower.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_remembers_of_its_last_run_is_not_read() {
    let mut server = RedisServer::start();
    let (beneath, store) = tier(server.client(), RedisOptions::default()).await;
    let key = beneath.issue("key-1").await;
    recovered(&store, &key).await;
    let name = format!("lexikon:auth:key:{}", key.as_slice()[0].to_hex());
    let entry: Vec<u8> = server.client().get_connection().unwrap().get(&name).unwrap();
    beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    store.invalidate(Change::Key("key-1".into())).await;

    // As after a crash, from a snapshot that was made before the revocation.
    server.signal("KILL");
    assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
    server.start_again();
    let () = server.client().get_connection().unwrap().set(&name, entry).unwrap();
    let before = store.counts();
    let start = Instant::now();
    while store.counts().hits == before.hits {
        assert!(start.elapsed() < Duration::from_secs(60), "Redis is found again");
        assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.counts().rejected, before.rejected, "nobody has tampered with it");
    assert_eq!(store.counts().stale, before.stale + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_waits_for_redis_no_longer_than_the_limit_in_all() {
    let server = RedisServer::start();
    let proxy = Proxy::to(server.port).await;
    let (beneath, store) = behind(&proxy).await;
    let key = beneath.issue("key-1").await;
    recovered(&store, &key).await;
    // Each answer comes within the limit of 100 ms, but a hit takes two.
    proxy.set(Mode::Delay(Duration::from_millis(60)));
    let before = store.counts();
    find_again_and_again(&store, &key).await;
    assert_eq!(store.counts().hits, before.hits);
    assert!(store.counts().bypassed > before.bypassed + 250);
}
