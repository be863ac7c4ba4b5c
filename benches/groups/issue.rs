//! Issuing keys into the memory store.

use std::time::Instant;

use criterion::{Criterion, Throughput};
use lexikon_auth::store::MemoryStore;
use lexikon_auth::{KeyManager, NewKey};
use lexikon_auth_benches::{now, ring};

use crate::limit;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("issue");
    limit::unit(&mut group);
    let ring = ring(1);
    group.throughput(Throughput::Elements(1));
    group.bench_function("issue", |b| {
        // A new store for each sample: one that grew for a minute would not fit the memory.
        b.iter_custom(|count| {
            let manager = KeyManager::new(MemoryStore::new(), &ring);
            let start = Instant::now();
            for _ in 0..count {
                let new = NewKey::new("user-1", "deploy").scopes("read,write");
                now(manager.issue(new)).expect("the memory store writes");
            }
            start.elapsed()
        });
    });
}
