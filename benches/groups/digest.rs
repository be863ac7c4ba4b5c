//! All digests of a key, from one to three secrets.

use std::hint::black_box;

use criterion::Criterion;
use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth_benches::{Keys, Kind, ring};

use crate::limit;

pub fn bench(criterion: &mut Criterion) {
    for secrets in 1..=3 {
        let mut group = criterion.benchmark_group(format!("digest, secrets: {secrets}"));
        limit::unit(&mut group);
        let ring = ring(secrets);
        for (name, kind) in [("untagged", Kind::Untagged), ("tagged", Kind::Tagged)] {
            let Keys { texts, .. } = Keys::new(kind, 1);
            let key = PresentedKey::parse(texts.first()).expect("a key of ours");
            assert!(Candidates::compute(&key, &ring).is_some());
            group.bench_function(name, |b| {
                // Looked at where they are: to move them out would cost as much as a third of a digest.
                b.iter(|| {
                    black_box(&Candidates::compute(black_box(&key), black_box(&ring)));
                });
            });
        }
    }
}
