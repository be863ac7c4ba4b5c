//! What one would use instead, on the same keys in the same run.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use hmac::{Hmac, KeyInit, Mac};
use lexikon_auth::crypto::{Candidates, PresentedKey};
use lexikon_auth_benches::alternatives::{Plain, Prefixed, Row, Simplified, hmac_sha256, sha256};
use lexikon_auth_benches::{Keys, Kind, SECRETS, Texts, now, ring};
use sha2::{Digest, Sha256};

use crate::limit;

const COUNT: usize = 100_000;

pub fn bench(criterion: &mut Criterion) {
    digests(criterion);
    verifications(criterion);
}

/// HMAC and plain SHA-256 of an untagged key, the HMAC key prepared where the library can.
fn digests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("alternatives, digest");
    limit::unit(&mut group);
    let Keys { texts, .. } = Keys::new(Kind::Untagged, 1);
    let text = texts.first();
    let secret = SECRETS[0].as_bytes();

    let ring = ring(1);
    group.bench_function("lexikon-auth", |b| {
        b.iter(|| {
            let key = PresentedKey::parse(black_box(text)).expect("a key of ours");
            Candidates::compute(&key, &ring)
        });
    });
    let key = Hmac::<Sha256>::new_from_slice(secret).expect("any length");
    group.bench_function("hmac and sha2", |b| {
        b.iter(|| {
            let text = black_box(text.as_bytes());
            (key.clone().chain_update(text).finalize(), Sha256::digest(text))
        });
    });
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    group.bench_function("ring", |b| {
        b.iter(|| {
            let text = black_box(text.as_bytes());
            (ring::hmac::sign(&key, text), ring::digest::digest(&ring::digest::SHA256, text))
        });
    });
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    group.bench_function("aws-lc-rs", |b| {
        b.iter(|| {
            let text = black_box(text.as_bytes());
            let sha256 = &aws_lc_rs::digest::SHA256;
            (aws_lc_rs::hmac::sign(&key, text), aws_lc_rs::digest::digest(sha256, text))
        });
    });
}

fn verifications(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("alternatives, verify");
    limit::unit(&mut group);
    for (name, kind) in [("HMAC", Kind::Untagged), ("legacy", Kind::Legacy)] {
        let keys = Keys::new(kind, COUNT);
        let digest = if kind == Kind::Legacy { sha256 } else { hmac_sha256 };
        let mut plain = Plain::default();
        for (number, text) in keys.texts.iter().enumerate() {
            let hash = hex::encode(digest(text));
            plain.0.insert(hash.clone(), Row::new(number, hash));
        }
        each(&mut group, &format!("lexikon-auth, {name}"), &keys.texts, |text| {
            now(keys.verifier.verify(text)).ok()
        });
        each(&mut group, &format!("plain code, {name}"), &keys.texts, |text| plain.verify(text));
    }

    let keys = Keys::new(Kind::Tagged, COUNT);
    each(&mut group, "lexikon-auth, tagged", &keys.texts, |text| {
        now(keys.verifier.verify(text)).ok()
    });
    let texts: Vec<_> = keys.texts.iter().map(Prefixed::text).collect();
    let prefixed = Prefixed::new(&texts);
    each(&mut group, "prefixed-api-key", &Texts::new(&texts), |text| prefixed.verify(text));

    // Eight keys, because each takes milliseconds to make.
    let (simplified, keys) = Simplified::new(8);
    let mut keys = keys.iter().cycle();
    let mut verify = || simplified.verify(black_box(keys.next().expect("endless")));
    assert!(verify().is_some());
    group.sample_size(10);
    group.bench_function("api-keys-simplified", |b| b.iter(&mut verify));
}

/// Presents all keys over and over.
fn each<'a, T>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    texts: &'a Texts,
    verify: impl Fn(&'a str) -> Option<T>,
) {
    assert!(verify(texts.first()).is_some(), "{name} accepts its keys");
    let mut next = texts.endless(0);
    group.bench_function(name, |b| b.iter(|| verify(black_box(next()))));
}
