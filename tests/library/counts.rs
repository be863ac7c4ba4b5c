//! What the cache counts, exactly: it is what a status page shows and an alarm goes by.
#![cfg(feature = "cache")]

use lexikon_auth::store::{
    CacheCounts, CacheOptions, CachedStore, Change, KeyLookup, KeyStore, MemoryStore,
};
use lexikon_auth::store::{FeedEvent, FeedEventKind};
use lexikon_auth_tests::{SECRETS, candidates, hmac_hash, ready, record};

fn key(number: u32) -> String {
    format!("lxk_{number:0>43}")
}

/// A cache over the keys below `count`.
fn cached(count: u32, options: CacheOptions) -> CachedStore<MemoryStore> {
    let store = MemoryStore::new();
    for number in 0..count {
        let row = record(&number.to_string(), hmac_hash(SECRETS[0], &key(number)));
        ready(store.insert(&row)).unwrap();
    }
    let cached = CachedStore::new(store, options);
    ready(cached.on_feed_event(&FeedEvent::of_database(FeedEventKind::Connected)));
    cached
}

fn find(cached: &CachedStore<MemoryStore>, number: u32) {
    ready(cached.find(&candidates(&key(number)))).unwrap();
}

#[test]
fn hits_misses_and_loads() {
    let cached = cached(1, CacheOptions::default());
    let counts = |change: &dyn Fn(&mut CacheCounts)| {
        let mut counts = cached.counts();
        (counts.bytes, counts.unknown_bytes) = (0, 0); // as the bounds count them
        let mut expected = CacheCounts::default();
        change(&mut expected);
        assert_eq!(counts, expected);
    };
    counts(&|_| {});
    find(&cached, 0);
    find(&cached, 1);
    counts(&|counts| {
        (counts.misses, counts.loads) = (2, 2);
        (counts.entries, counts.unknown_entries) = (1, 1);
    });
    (0..3).for_each(|_| find(&cached, 0));
    (0..5).for_each(|_| find(&cached, 1));
    counts(&|counts| {
        (counts.misses, counts.loads) = (2, 2);
        (counts.entries, counts.unknown_entries) = (1, 1);
        (counts.hits, counts.unknown_hits) = (3, 5);
    });
    cached.invalidate(Change::Key("0".into()));
    cached.invalidate(Change::Added);
    counts(&|counts| {
        (counts.misses, counts.loads) = (2, 2);
        (counts.hits, counts.unknown_hits) = (3, 5);
        counts.invalidations = 2;
    });
}

#[test]
fn hits_of_all_threads_add_up() {
    let cached = cached(1, CacheOptions::default());
    find(&cached, 0);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| (0..100).for_each(|_| find(&cached, 0)));
        }
    });
    assert_eq!(cached.counts().hits, 4000);
}

#[test]
fn every_entry_is_held_or_was_evicted() {
    let options = CacheOptions::default().max_bytes(100_000).max_unknown_bytes(20_000);
    let cached = cached(500, options);
    (0..1000).for_each(|number| find(&cached, number));
    let counts = cached.counts();
    assert!(counts.evictions > 0 && counts.unknown_evictions > 0, "{counts:?}");
    assert_eq!(counts.entries + counts.evictions, 500, "{counts:?}");
    assert_eq!(counts.unknown_entries + counts.unknown_evictions, 500, "{counts:?}");
    assert_eq!(counts.bytes, cached.bytes());
    assert!(counts.bytes <= 100_000 && counts.unknown_bytes <= 20_000, "{counts:?}");
}
