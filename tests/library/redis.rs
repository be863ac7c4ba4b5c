//! The tier in Redis, on a real server: what it stores, what it refuses to read, and what it forgets.
#![cfg(feature = "redis")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use lexikon_auth::crypto::{Candidates, KeyHash};
use lexikon_auth::store::{Change, KeyLookup, KeyStore, RedisOptions, RedisStore};
use lexikon_auth::store::{FeedEvent, FeedEventKind, RedisCounts};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{ApiKey, KeyRecord, SecretRing, StoreError};
use lexikon_auth_tests::gated::Gated;
use lexikon_auth_tests::{
    SECRETS, candidates, legacy_hash, one_secret, record, redis_server, ring,
};
use redis::Commands;
use tokio::sync::watch;
use tokio::time::sleep;

fn name(prefix: &str, hash: &KeyHash) -> String {
    format!("{prefix}auth:key:{}", hash.to_hex())
}

struct Scene {
    beneath: Gated,
    prefix: String,
    store: RedisStore<Gated>,
    redis: redis::Connection,
}

impl Scene {
    async fn new() -> Self {
        Self::with(redis_server::patient()).await
    }

    async fn with(options: RedisOptions) -> Self {
        let (beneath, prefix) = (Gated::default(), redis_server::prefix());
        let client = redis_server::shared_client();
        let redis = client.get_connection().unwrap();
        let options = options.prefix(&prefix);
        let store = RedisStore::new(beneath.clone(), client, &one_secret(), options).await;
        Self { beneath, prefix, store, redis }
    }

    /// Another instance with its own store beneath.
    async fn other(&self, ring: &SecretRing, beneath: Gated) -> RedisStore<Gated> {
        let options = redis_server::patient().prefix(&self.prefix);
        RedisStore::new(beneath, redis_server::shared_client(), ring, options).await
    }
}

#[tokio::test]
async fn instances_share_what_one_has_read() {
    let scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    let first = scene.store.find(&key).await.unwrap().unwrap();
    let empty = Gated::default();
    let other = scene.other(&one_secret(), empty.clone()).await;
    let second = other.find(&key).await.unwrap().unwrap();
    assert_eq!(first, second);
    assert_eq!((scene.beneath.reads(), empty.reads()), (1, 0));
    assert_eq!(other.counts().hits, 1);
}

#[tokio::test]
async fn unknown_keys_leave_no_trace() {
    let mut scene = Scene::new().await;
    let key = Gated::default().issue("elsewhere").await;
    assert_eq!(scene.store.find(&key).await.unwrap(), None);
    let names: Vec<String> =
        scene.redis.scan_match(format!("{}auth:key:*", scene.prefix)).unwrap().flatten().collect();
    assert_eq!(names, [""; 0]);
}

#[tokio::test]
async fn an_entry_that_was_tampered_with_is_a_miss_and_counted() {
    let mut scene = Scene::new().await;
    let (key, other) = (scene.beneath.issue("key-1").await, scene.beneath.issue("key-2").await);
    scene.store.find(&key).await.unwrap();
    scene.store.find(&other).await.unwrap();
    let [name, other_name] = [&key, &other].map(|key| name(&scene.prefix, &key.as_slice()[0]));
    let good: Vec<u8> = scene.redis.get(&name).unwrap();
    let other_good: Vec<u8> = scene.redis.get(&other_name).unwrap();
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut forged = vec![altered(0), good[..good.len() - 1].to_vec(), other_good, b"?".to_vec()];
    forged.extend((0..good.len()).step_by(7).map(altered));
    forged.push([&*good, b"more"].concat());
    forged.push(vec![0; 200_000]);
    for (number, bytes) in forged.iter().enumerate() {
        let () = scene.redis.set(&name, bytes).unwrap();
        let (before, reads) = (scene.store.counts(), scene.beneath.reads());
        let found = scene.store.find(&key).await.unwrap().unwrap();
        assert_eq!(found.id, "key-1".into(), "{number}");
        let RedisCounts { rejected, misses, .. } = scene.store.counts();
        assert_eq!((rejected, misses), (before.rejected + 1, before.misses + 1), "{number}");
        assert_eq!(scene.beneath.reads(), reads + 1, "{number}");
        let stored: Vec<u8> = scene.redis.get(&name).unwrap();
        assert_ne!(&stored, bytes, "replaced by a good one");
    }
    // Of another deployment with the same secret, on the same server.
    let elsewhere = Scene::new().await;
    let there = elsewhere.other(&one_secret(), scene.beneath.clone()).await;
    there.find(&key).await.unwrap();
    let moved: Vec<u8> =
        scene.redis.get(self::name(&elsewhere.prefix, &key.as_slice()[0])).unwrap();
    let () = scene.redis.set(&name, moved).unwrap();
    let before = scene.store.counts();
    assert!(scene.store.find(&key).await.unwrap().is_some());
    assert_eq!(scene.store.counts().rejected, before.rejected + 1);
    // Of another kind altogether.
    let () = scene.redis.del(&name).unwrap();
    let () = scene.redis.lpush(&name, &good).unwrap();
    let before = scene.store.counts();
    assert!(scene.store.find(&key).await.unwrap().is_some());
    assert_eq!(scene.store.counts().rejected, before.rejected + 1);
    assert_eq!(scene.store.counts().bypassed, 0);
}

#[tokio::test]
async fn an_entry_of_an_instance_with_another_secret_is_not_read() {
    let scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    let stranger = scene.other(&ring(&SECRETS[1..2]), scene.beneath.clone()).await;
    stranger.find(&key).await.unwrap();
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.store.counts().rejected, 1);
    // One that has retired the secret of the other reads its entries.
    let successor = scene.other(&ring(&[SECRETS[1], SECRETS[0]]), Gated::default()).await;
    assert!(successor.find(&key).await.unwrap().is_some());
}

#[tokio::test]
async fn a_change_outlives_every_older_entry() {
    let mut scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    let name = name(&scene.prefix, &key.as_slice()[0]);
    for change in [Change::Key("key-1".into()), Change::Owner("user-1".into()), Change::All] {
        scene.store.find(&key).await.unwrap();
        let old: Vec<u8> = scene.redis.get(&name).unwrap();
        scene.store.invalidate(change).await;
        // Somebody puts the old entry back.
        let () = scene.redis.set(&name, &old).unwrap();
        let before = (scene.store.counts().stale, scene.beneath.reads());
        scene.store.find(&key).await.unwrap();
        assert_eq!(
            (scene.store.counts().stale, scene.beneath.reads()),
            (before.0 + 1, before.1 + 1)
        );
        scene.store.find(&key).await.unwrap();
        assert_eq!(scene.beneath.reads(), before.1 + 1, "the new entry counts");
    }
    let reads = scene.beneath.reads();
    scene.store.invalidate(Change::Key("key-2".into())).await;
    scene.store.invalidate(Change::Added).await;
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.beneath.reads(), reads, "other changes do not concern it");
}

#[tokio::test]
async fn a_slow_read_does_not_bring_a_revoked_key_back() {
    let scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    let closed = watch::Sender::new(true);
    let slow = Gated { closed: closed.clone(), ..scene.beneath.clone() };
    let slow = scene.other(&one_secret(), slow).await;
    let read = tokio::spawn({
        let (slow, key) = (slow.clone(), key.clone());
        async move { slow.find(&key).await.unwrap().unwrap().is_revoked() }
    });
    scene.beneath.reach(1).await;
    scene.beneath.keys.revoke(&"key-1".into(), SystemTime::now(), None).await.unwrap();
    scene.store.invalidate(Change::Key("key-1".into())).await;
    closed.send_replace(false);
    assert!(!read.await.unwrap(), "it began before the revocation");
    for store in [&scene.store, &slow] {
        assert!(store.find(&key).await.unwrap().unwrap().is_revoked());
    }
}

#[tokio::test]
async fn a_row_that_is_preferred_replaces_one_that_is_stored() {
    let scene = Scene::new().await;
    let key = lexikon_auth_tests::UNTAGGED;
    let candidates = candidates(key);
    scene.beneath.keys.insert(&record("old", legacy_hash(key))).await.unwrap();
    scene.store.find(&candidates).await.unwrap();
    assert_eq!(scene.store.find(&candidates).await.unwrap().unwrap().id, "old".into());
    assert_eq!(scene.beneath.reads(), 1);
    scene.beneath.keys.insert(&record("new", candidates.as_slice()[0])).await.unwrap();
    scene.store.invalidate(Change::Added).await;
    assert_eq!(scene.store.find(&candidates).await.unwrap().unwrap().id, "new".into());
}

#[tokio::test]
async fn lives_end_and_are_clamped() {
    let clamp = |seconds| async move {
        let mut scene =
            Scene::with(redis_server::patient().ttl(Duration::from_secs(seconds))).await;
        let key = scene.beneath.issue("key-1").await;
        scene.store.find(&key).await.unwrap();
        let life: u64 = scene.redis.pttl(name(&scene.prefix, &key.as_slice()[0])).unwrap();
        life.div_ceil(1000)
    };
    assert_eq!(clamp(0).await, 1);
    assert!((3590..=3600).contains(&clamp(3600).await));
    assert!((86_390..=86_400).contains(&clamp(1_000_000).await));

    // An entry ends with its key, and by its own date, whatever life Redis gives it.
    let mut scene = Scene::new().await;
    let key = candidates(lexikon_auth_tests::UNTAGGED);
    let mut dated = record("dated", key.as_slice()[0]);
    dated.expires_at = Some(SystemTime::now() + Duration::from_millis(1500));
    scene.beneath.keys.insert(&dated).await.unwrap();
    scene.store.find(&key).await.unwrap();
    let name = name(&scene.prefix, &key.as_slice()[0]);
    let life: i64 = scene.redis.pttl(&name).unwrap();
    assert!(life <= 1500, "{life}");
    let _: bool = scene.redis.persist(&name).unwrap();
    sleep(Duration::from_millis(1600)).await;
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.beneath.reads(), 2, "an entry past its date is not read");
}

#[tokio::test]
async fn a_long_entry_is_not_stored() {
    let mut scene = Scene::with(redis_server::patient().max_value_bytes(500)).await;
    let key = candidates(lexikon_auth_tests::UNTAGGED);
    let mut long = record("long", key.as_slice()[0]);
    long.name = "x".repeat(500).into();
    scene.beneath.keys.insert(&long).await.unwrap();
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.store.counts().oversized, 1);
    let is_stored: bool = scene.redis.exists(name(&scene.prefix, &key.as_slice()[0])).unwrap();
    assert!(!is_stored);
}

#[tokio::test]
async fn clearing_takes_its_own_and_nothing_else() {
    let mut scene = Scene::new().await;
    // The prefix ends in characters that patterns give a meaning to.
    let prefix = format!("{}[a-z]*?\\", scene.prefix);
    let options = redis_server::patient().prefix(&prefix);
    let client = redis_server::shared_client();
    let store = RedisStore::new(scene.beneath.clone(), client, &one_secret(), options).await;
    for number in 0..1200 {
        let key = ApiKey::generate(one_secret().current()).unwrap();
        let candidates = candidates(key.expose_secret());
        let mut record = record(&format!("key-{number}"), candidates.as_slice()[0]);
        record.owner = if number % 3 == 0 { "user-1".into() } else { "user-2".into() };
        scene.beneath.keys.insert(&record).await.unwrap();
        store.find(&candidates).await.unwrap();
        scene.store.find(&candidates).await.unwrap();
    }
    let foreign = format!("{}a??auth:key:foreign", scene.prefix);
    let () = scene.redis.set(&foreign, "stays").unwrap();
    assert_eq!(store.clear_owner(&"user-1".into()).await.unwrap(), 400);
    assert_eq!(store.clear_owner(&"user-1".into()).await.unwrap(), 0);
    assert_eq!(store.clear().await.unwrap(), 800);
    assert_eq!(store.clear().await.unwrap(), 0);
    assert_eq!(scene.store.clear().await.unwrap(), 1200, "another prefix, another service");
    let stays: String = scene.redis.get(&foreign).unwrap();
    assert_eq!(stays, "stays");
}

#[tokio::test]
async fn changes_travel_by_redis_where_nothing_else_is_shared() {
    let scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    let other = scene.other(&one_secret(), scene.beneath.clone()).await;
    let heard = Heard(watch::Sender::new(Vec::new()));
    let follower = Follower::spawn(heard.clone(), other.changes());
    follower.connected().await;
    scene.store.find(&key).await.unwrap();
    let changes =
        [Change::Key("key: 1".into()), Change::Owner("naïve".into()), Change::Added, Change::All];
    for change in &changes {
        scene.store.invalidate(change.clone()).await;
    }
    let mut received = heard.0.subscribe();
    let received = received.wait_for(|heard| heard.len() == changes.len()).await.unwrap();
    assert_eq!(*received, changes);
}

/// Writes down what a follower says.
#[derive(Clone)]
struct Heard(watch::Sender<Vec<Change>>);

impl KeyLookup for Heard {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(None)
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        if let FeedEventKind::Changed(change) = &event.kind {
            self.0.send_modify(|heard| heard.push(change.clone()));
        }
    }
}

#[tokio::test]
async fn while_a_feed_is_lost_redis_is_not_read_and_afterwards_not_believed() {
    let scene = Scene::new().await;
    let key = scene.beneath.issue("key-1").await;
    scene.store.find(&key).await.unwrap();
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.beneath.reads(), 1);
    assert!(scene.store.is_used());
    scene.store.on_feed_event(&FeedEvent::of_database(FeedEventKind::Lost)).await;
    assert!(!scene.store.is_used());
    scene.store.find(&key).await.unwrap();
    assert_eq!((scene.beneath.reads(), scene.store.counts().bypassed), (2, 1));
    scene.store.on_feed_event(&FeedEvent::of_database(FeedEventKind::Connected)).await;
    assert!(scene.store.is_used());
    scene.store.find(&key).await.unwrap();
    assert_eq!((scene.beneath.reads(), scene.store.counts().stale), (3, 1));
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.beneath.reads(), 3);
    scene
        .store
        .on_feed_event(&FeedEvent::of_database(FeedEventKind::Changed(Change::Key("key-1".into()))))
        .await;
    scene.store.find(&key).await.unwrap();
    assert_eq!(scene.beneath.reads(), 4);
}

#[tokio::test]
async fn the_names_of_changes_are_bounded_in_number() {
    let mut scene = Scene::new().await;
    for number in 0..2000 {
        let id = format!("{number} {}", "long".repeat(500));
        scene
            .store
            .on_feed_event(&FeedEvent::of_database(FeedEventKind::Changed(Change::Key(
                (&*id).into(),
            ))))
            .await;
        scene
            .store
            .on_feed_event(&FeedEvent::of_database(FeedEventKind::Changed(Change::Owner(
                (&*id).into(),
            ))))
            .await;
    }
    let names: Vec<String> = scene.redis.keys(format!("{}auth:changed:*", scene.prefix)).unwrap();
    assert!(names.len() > 1000);
    for name in names {
        let number = name.rsplit(':').next().unwrap();
        assert!(number.len() == 4 && u16::from_str_radix(number, 16).is_ok(), "{name}");
    }
}

#[tokio::test]
async fn a_feed_that_gave_no_sign_of_life_in_time_counts_as_lost() {
    let scene = Scene::new().await;
    assert!(scene.store.is_used(), "nobody follows a feed");
    scene.store.on_feed_event(&FeedEvent::of_database(FeedEventKind::Connected)).await;
    let since = Instant::now();
    let alive = async |until| {
        scene
            .store
            .on_feed_event(&FeedEvent::of_database(FeedEventKind::Heartbeat { since, until }))
            .await
    };
    alive(Instant::now() + Duration::from_secs(600)).await;
    assert!(scene.store.is_used());
    alive(Instant::now()).await;
    sleep(Duration::from_millis(1)).await;
    assert!(!scene.store.is_used());
    alive(Instant::now() + Duration::from_secs(600)).await;
    assert!(scene.store.is_used());
}
