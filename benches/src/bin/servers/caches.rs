//! Which cache library: what a hit costs, and whether a value whose load was under way while its key was
//! invalidated is kept.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use tokio::sync::Notify;

use crate::{Effort, Table};

type Key = [u8; 32];
type Value = Arc<u64>;

const ENTRIES: u64 = 45_000;

pub async fn measure(effort: Effort, table: &mut Table) {
    table.heading(
        "Cache libraries: a hit among 45 000 entries in random order, and a load that overlaps an invalidation",
        "library | 1 thread | 2 threads, each | the stale value is",
    );
    let keys: Vec<Key> = (0..ENTRIES).map(key).collect();

    let quick = quick_cache::sync::Cache::new(2 * ENTRIES as usize);
    keys.iter().for_each(|key| quick.insert(*key, Value::default()));
    let hit = |key: &Key| quick.get(key).is_some();
    row(effort, table, "quick_cache 0.7, sync", &keys, hit, quick_race().await);

    let moka = moka::sync::Cache::new(2 * ENTRIES);
    keys.iter().for_each(|key| moka.insert(*key, Value::default()));
    moka.run_pending_tasks();
    let hit = |key: &Key| moka.get(key).is_some();
    row(effort, table, "moka 0.12, sync", &keys, hit, moka_sync_race().await);

    let moka = moka::future::Cache::new(2 * ENTRIES);
    for key in &keys {
        moka.insert(*key, Value::default()).await;
    }
    moka.run_pending_tasks().await;
    let hit = |key: &Key| lexikon_auth_benches::now(moka.get(key)).is_some();
    row(effort, table, "moka 0.12, future", &keys, hit, moka_race().await);
}

/// Uniform, as digests are.
fn key(number: u64) -> Key {
    let mut key = [0; 32];
    for (word, place) in key.as_chunks_mut::<8>().0.iter_mut().zip(1..) {
        *word = (number + place).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    }
    key
}

fn row(
    effort: Effort,
    table: &mut Table,
    name: &str,
    keys: &[Key],
    hit: impl Fn(&Key) -> bool + Sync,
    is_kept: bool,
) {
    let time = |threads: usize| {
        let results = std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|_| {
                    scope.spawn(|| {
                        let mut keys = keys.to_vec();
                        keys.shuffle(&mut rand::rng());
                        hits(effort.time / 3, &keys, &hit)
                    })
                })
                .collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        format!("{:.0} ns", results.iter().sum::<f64>() / threads as f64)
    };
    let kept = if is_kept { "**kept**" } else { "not kept" };
    table.row(&[name, &time(1), &time(2), kept]);
}

/// Nanoseconds a hit.
fn hits(time: Duration, keys: &[Key], hit: &impl Fn(&Key) -> bool) -> f64 {
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        for key in keys {
            assert!(black_box(hit(black_box(key))));
        }
        count += keys.len();
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

async fn quick_race() -> bool {
    let cache = quick_cache::sync::Cache::<Key, Value>::new(10);
    let Err(guard) = cache.get_value_or_guard_async(&key(1)).await else { unreachable!() };
    cache.remove(&key(1));
    let _ = guard.insert(Value::default());
    cache.get(&key(1)).is_some()
}

async fn moka_sync_race() -> bool {
    let cache = moka::sync::Cache::<Key, Value>::new(10);
    let (begun, released) = (Arc::new(Notify::new()), std::sync::mpsc::channel());
    let load = tokio::task::spawn_blocking({
        let (cache, begun) = (cache.clone(), begun.clone());
        move || {
            cache.get_with(key(1), || {
                begun.notify_one();
                released.1.recv().expect("is sent");
                Value::default()
            })
        }
    });
    begun.notified().await;
    cache.invalidate(&key(1));
    released.0.send(()).expect("is received");
    load.await.expect("no panic");
    cache.get(&key(1)).is_some()
}

async fn moka_race() -> bool {
    let cache = moka::future::Cache::<Key, Value>::new(10);
    let (begun, released) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let load = tokio::spawn({
        let (cache, begun, released) = (cache.clone(), begun.clone(), released.clone());
        async move {
            let load = async {
                begun.notify_one();
                released.notified().await;
                Value::default()
            };
            cache.get_with(key(1), load).await
        }
    });
    begun.notified().await;
    cache.invalidate(&key(1)).await;
    released.notify_one();
    load.await.expect("no panic");
    cache.get(&key(1)).await.is_some()
}
