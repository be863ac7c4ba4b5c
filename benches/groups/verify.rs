//! Verification on the memory store, from the bytes of a header to the answer.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use lexikon_auth::Verifier;
use lexikon_auth::store::MemoryStore;
use lexikon_auth_benches::{Keys, Kind, Strangers, Texts, USES_A_FLUSH, now};

use crate::limit;

type Group<'a> = BenchmarkGroup<'a, WallTime>;

pub fn bench(criterion: &mut Criterion) {
    for count in [1_000, 100_000, 1_000_000] {
        let mut group = criterion.benchmark_group(format!("verify, keys: {count}"));
        limit::unit(&mut group);
        for (name, kind) in [
            ("hit, HMAC, tagged", Kind::Tagged),
            ("hit, HMAC, untagged", Kind::Untagged),
            ("hit, legacy", Kind::Legacy),
        ] {
            let keys = Keys::new(kind, count);
            assert!(now(keys.verifier.verify(keys.texts.first())).is_ok());
            // Of more keys than are noted between two flushes, each use is the first since one.
            if count as u64 <= 2 * USES_A_FLUSH {
                again(&mut group, name, &keys.verifier, &keys.texts);
            }
            first_use(&mut group, name, &keys.verifier, &keys.texts);
            if kind == Kind::Tagged {
                strangers(&mut group, &keys.verifier, count);
            }
        }
        for (name, kind) in [("expired", Kind::Expired), ("revoked", Kind::Revoked)] {
            let keys = Keys::new(kind, count);
            assert_refused(&keys.verifier, &keys.texts, name);
            again(&mut group, name, &keys.verifier, &keys.texts);
        }
    }
}

fn strangers(group: &mut Group<'_>, verifier: &Verifier<MemoryStore>, count: usize) {
    let Strangers { unknown, forged, malformed } = Strangers::new(count);
    for (name, reason, texts) in [
        ("unknown", "unknown", unknown),
        ("forged tag", "forged_tag", forged),
        ("malformed", "malformed", malformed),
    ] {
        assert_refused(verifier, &texts, reason);
        again(group, name, verifier, &texts);
    }
}

fn assert_refused(verifier: &Verifier<MemoryStore>, texts: &Texts, reason: &str) {
    let error = now(verifier.verify(texts.first())).expect_err("refused");
    assert_eq!(error.refusal().map(|refusal| refusal.as_str()), Some(reason));
}

/// Presents all keys over and over: but for the first round, their uses are noted already.
fn again(group: &mut Group<'_>, name: &str, verifier: &Verifier<MemoryStore>, texts: &Texts) {
    let mut next = texts.endless(0);
    group.bench_function(name, |b| b.iter(|| now(verifier.verify(black_box(next())))));
}

/// Flushes, outside of what is timed, often enough for every use to be noted as a new one.
fn first_use(group: &mut Group<'_>, name: &str, verifier: &Verifier<MemoryStore>, texts: &Texts) {
    let part = USES_A_FLUSH.min(texts.count() as u64);
    let mut next = texts.endless(0);
    let mut timed = |uses| {
        now(verifier.flush()).expect("the memory store writes");
        let start = Instant::now();
        for _ in 0..uses {
            black_box(now(verifier.verify(black_box(next()))).ok());
        }
        start.elapsed()
    };
    let name = format!("{name}, first use since a flush");
    group.bench_function(name, |b| {
        b.iter_custom(|count| {
            let (parts, rest) = (count / part, count % part);
            (0..parts).map(|_| timed(part)).sum::<Duration>() + timed(rest)
        });
    });
}
