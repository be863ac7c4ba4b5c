//! Times two classes of inputs, at random and interleaved, and reports Welch's t for each pair: the
//! method of Reparaz, Balasch and Verbauwhede, "Dude, is my code constant time?", 2017
//! (<https://eprint.iacr.org/2016/1123>). |t| above 4.5 speaks for a difference. A report, not a gate: on a
//! shared machine it is noisy, and two of the pairs differ by design.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use lexikon_auth::crypto::{Candidates, KeyHash, PresentedKey};
use lexikon_auth::store::{KeyStore, MemoryStore};
use lexikon_auth::{KeyRecord, SecretRing, ServerSecret, Verifier, constant_time};

/// Timings for each pair.
const SAMPLES: usize = 1_000_000;
/// Calls in one timing, so that it is well above the resolution of the clock.
const CALLS: usize = 8;

fn main() {
    println!("| pair | mean of the first | mean of the second | t | |t| over 4.5 |");
    println!("| --- | ---: | ---: | ---: | --- |");
    let secret = ServerSecret::new(&"dudect secret 0123456789abcdef!!".into()).expect("strong");
    let ring = SecretRing::new(secret);

    let candidates = |key: &str| {
        constant_time::candidates(&PresentedKey::parse(key).expect("well-formed"), &ring)
    };
    let one = candidates(&key(1));
    let near = |equal: usize| {
        let mut bytes = one.as_slice()[0].as_bytes().map(|byte| !byte);
        bytes[..equal].copy_from_slice(&one.as_slice()[0].as_bytes()[..equal]);
        KeyHash::from_bytes(bytes)
    };
    let hashes = [near(0), near(31)];
    report("comparison: 0 or 31 bytes equal", |class| {
        black_box(constant_time::position(&one, &hashes[class]));
    });
    let hashes = [one.as_slice()[0], one.as_slice()[1]];
    report("comparison: HMAC or legacy hit", |class| {
        black_box(constant_time::position(&one, &hashes[class]));
    });

    let store = MemoryStore::new();
    for (number, candidate) in [(1, 0), (2, 1)] {
        let hash = candidates(&key(number)).as_slice()[candidate];
        let record = KeyRecord::new((&*number.to_string()).into(), "owner".into(), hash);
        ready(store.insert(&record)).expect("a new row");
    }
    let verifier = Verifier::new(store, ring.clone());
    let pairs = [
        (
            "verification: HMAC or legacy hit (the second is found one probe later)",
            [key(1), key(2)],
        ),
        ("verification: unknown or forged (the second is not looked up)", [key(3), forged()]),
    ];
    for (name, keys) in pairs {
        report(name, |class| {
            black_box(ready(verifier.verify(&keys[class])).is_ok());
        });
    }

    let hashes = [near(0), near(31)];
    report("control that leaks: 0 or 31 bytes equal", |class| {
        black_box(leaky_position(&one, &hashes[class]));
    });
}

fn key(number: u32) -> String {
    format!("lxk_{number:0>43}")
}

fn forged() -> String {
    format!("lxk_{:0>51}", 1)
}

/// The control: a comparison that stops at the first byte that differs.
#[inline(never)]
fn leaky_position(candidates: &Candidates, stored: &KeyHash) -> Option<usize> {
    let differs = |hash: &KeyHash| {
        hash.as_bytes().iter().zip(stored.as_bytes()).any(|(one, other)| black_box(one) != other)
    };
    candidates.as_slice().iter().position(|hash| !differs(hash))
}

fn report(name: &str, work: impl Fn(usize)) {
    let mut classes = Vec::with_capacity(SAMPLES);
    let mut times = Vec::with_capacity(SAMPLES);
    // xorshift64 (Marsaglia 2003): the order of the classes only has to be unrelated to the work.
    let mut random = 88_172_645_463_325_252_u64;
    for _ in 0..SAMPLES {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let class = (random >> 32 & 1) as usize;
        let start = Instant::now();
        for _ in 0..CALLS {
            work(black_box(class));
        }
        times.push(start.elapsed().as_nanos() as f64 / CALLS as f64);
        classes.push(class);
    }

    // Interruptions make a long tail that hides small differences: crop it.
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let limit = sorted[SAMPLES * 9 / 10];
    let statistics = [0, 1].map(|class| {
        let times = times.iter().zip(&classes).filter(|&(&time, &of)| of == class && time <= limit);
        Statistics::of(times.map(|(&time, _)| time))
    });
    let [first, second] = &statistics;
    let error = (first.variance / first.count + second.variance / second.count).sqrt();
    let t = (first.mean - second.mean) / error;
    let verdict = if t.abs() > 4.5 { "yes" } else { "no" };
    println!("| {name} | {:.1} ns | {:.1} ns | {t:.1} | {verdict} |", first.mean, second.mean);
}

struct Statistics {
    count: f64,
    mean: f64,
    variance: f64,
}

impl Statistics {
    /// Welford's running mean and variance.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            count += 1.0;
            let delta = value - mean;
            mean += delta / count;
            squares += delta * (value - mean);
        }
        Self { count, mean, variance: squares / (count - 1.0) }
    }
}

/// The answer of a future that waits for nothing.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the future waits"),
    }
}
