//! Changes in a cache that holds many keys: what they cost does not depend on how many.

use std::hint::black_box;

use criterion::{BatchSize, Criterion};
use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth::store::{CacheOptions, CachedStore, Change, KeyLookup, KeyStore, MemoryStore};
use lexikon_auth_benches::{Kind, draw, now, ring, rng};

/// Keys of each owner, as [`draw`] numbers them.
const OWNED: usize = 10;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cache");
    for count in [40_000, 400_000] {
        let keys = Keys::new(count);
        let mut owners = (0..count / OWNED).cycle();
        group.bench_function(format!("an owner disabled, keys: {count}"), |b| {
            b.iter_batched(
                || keys.load(owners.next().expect("it has no end")),
                |owner| keys.cached.invalidate(black_box(owner)),
                BatchSize::PerIteration,
            );
        });
        let mut numbers = (0..count).cycle();
        group.bench_function(format!("a key forgotten and read again, keys: {count}"), |b| {
            b.iter(|| {
                let (candidates, change) = &keys.keys[numbers.next().expect("it has no end")];
                keys.cached.invalidate(change.clone());
                black_box(now(keys.cached.find(candidates))).expect("a store in memory answers");
            });
        });
    }
}

/// A cache that holds every key of its store.
struct Keys {
    cached: CachedStore<MemoryStore>,
    keys: Vec<(Candidates, Change)>,
}

impl Keys {
    fn new(count: usize) -> Self {
        let (store, ring, mut rng) = (MemoryStore::new(), ring(1), rng());
        let mut keys = Vec::with_capacity(count);
        for number in 0..count {
            let (text, record) = draw(Kind::Tagged, number, &mut rng);
            now(store.insert(&record)).expect("random keys differ");
            let key = PresentedKey::parse(&text).expect("well-formed");
            let candidates = Candidates::compute(&key, &ring).expect("the tag is right");
            keys.push((candidates, Change::Key(record.id)));
        }
        let options = CacheOptions::default().max_bytes(1 << 30);
        let keys = Self { cached: CachedStore::new(store, options), keys };
        (0..count / OWNED).for_each(|owner| _ = keys.load(owner));
        keys
    }

    /// Has the keys of an owner in the cache, and returns the change that concerns them.
    fn load(&self, owner: usize) -> Change {
        for (candidates, _) in &self.keys[owner * OWNED..][..OWNED] {
            now(self.cached.find(candidates)).expect("a store in memory answers");
        }
        Change::Owner(format!("user-{owner}").into())
    }
}
