//! One and two threads on one store: verification takes no lock that readers contend on.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use criterion::{Criterion, Throughput};
use lexikon_auth_benches::{Keys, Kind, now};

use crate::limit;

pub fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("threads");
    limit::unit(&mut group);
    let Keys { verifier, texts } = Keys::new(Kind::Untagged, 100_000);
    for threads in [1, 2] {
        // Criterion's figure is the time in which each thread verifies one key.
        group.throughput(Throughput::Elements(threads as u64));
        let mut first = 0;
        group.bench_function(format!("threads: {threads}"), |b| {
            b.iter_custom(|count| {
                first = (first + count as usize) % texts.count();
                let barrier = Barrier::new(threads + 1);
                thread::scope(|scope| {
                    for thread in 0..threads {
                        let (verifier, texts, barrier) = (&verifier, &texts, &barrier);
                        scope.spawn(move || {
                            // All threads use all keys, each from another place on.
                            let own = first + thread * texts.count() / threads;
                            let mut next = texts.endless(own % texts.count());
                            barrier.wait();
                            for _ in 0..count {
                                black_box(now(verifier.verify(black_box(next()))).ok());
                            }
                            barrier.wait();
                        });
                    }
                    barrier.wait();
                    let start = Instant::now();
                    barrier.wait();
                    start.elapsed()
                })
            });
        });
    }
}
