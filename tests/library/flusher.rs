//! The task that flushes on a timer. The time of the runtime stands still and jumps to the next timer
//! whenever all tasks wait, so no test here depends on real time.
#![cfg(feature = "tokio")]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lexikon_auth::tasks::Flusher;
use lexikon_auth::{StoreError, Verifier};
use lexikon_auth_tests::{SECRETS, TAGGED, UNTAGGED, hmac_hash};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::probe::{Probe, Rows, SECOND, Writes, used, verifier, verify};

const INTERVAL: Duration = Duration::from_secs(30);

/// A store, a verifier over it, and the task that flushes it.
fn flushing(rows: Rows) -> (Probe, Arc<Verifier<Probe>>, Flusher<Probe>) {
    let store = Probe::new(rows);
    let verifier = Arc::new(verifier(&store));
    let flusher = verifier.spawn_flush(INTERVAL);
    (store, verifier, flusher)
}

/// Gives the flush task its turn, without letting the time move.
async fn let_it_run() {
    for _ in 0..20 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn uses_are_written_when_the_interval_is_over() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    for _ in 0..3 {
        verify(&verifier, TAGGED);
        sleep(INTERVAL - SECOND).await;
        assert!(store.written().is_empty());
        sleep(SECOND).await;
        let_it_run().await;
        assert_eq!(store.written().len(), 1);
    }
    flusher.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_flush_that_fails_on_the_timer_is_tried_again() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    verify(&verifier, TAGGED);
    store.set(Writes::Fail);
    sleep(3 * INTERVAL).await;
    assert!(store.written().is_empty());
    store.set(Writes::Work);
    sleep(2 * INTERVAL).await;
    assert_eq!(store.written().len(), 1);
    flusher.shutdown().await.unwrap();
}

/// By the pigeonhole principle: 16 shards that each wake the task at 3584 keys.
#[tokio::test(start_paused = true)]
async fn many_uses_are_written_before_the_interval_is_over() {
    let (store, verifier, flusher) = flushing(Rows::Endless);
    let started = Instant::now();
    let_it_run().await;
    for _ in 0..16 * 3583 + 1 {
        verify(&verifier, TAGGED);
    }
    assert!(store.written().is_empty());
    let_it_run().await;
    assert!(!store.written().is_empty());
    assert_eq!(started.elapsed(), Duration::ZERO);
    flusher.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn many_uses_that_cannot_be_written_wait_for_the_interval() {
    let (store, verifier, flusher) = flushing(Rows::Endless);
    let_it_run().await;
    store.set(Writes::Fail);
    for _ in 0..16 * 3700 {
        verify(&verifier, TAGGED);
    }
    sleep(10 * INTERVAL - SECOND).await;
    let attempts = store.attempts.load(Ordering::Relaxed);
    assert!((2..=12).contains(&attempts), "{attempts} attempts in nine intervals");
    store.set(Writes::Work);
    flusher.shutdown().await.unwrap();
    assert_eq!(store.written().len(), 16 * 3700, "nothing is lost");
}

#[tokio::test(start_paused = true)]
async fn a_flusher_that_is_dropped_during_a_flush_writes_what_came_after() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    verify(&verifier, TAGGED);
    store.set(Writes::Slow);
    sleep(INTERVAL + SECOND / 2).await;
    verify(&verifier, UNTAGGED);
    drop(flusher);
    sleep(10 * SECOND).await;
    assert_eq!(store.written().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_writes_what_waits_at_once() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    let started = Instant::now();
    let_it_run().await;
    verify(&verifier, TAGGED);
    verify(&verifier, UNTAGGED);
    flusher.shutdown().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(store.written().len(), 2);
    assert_eq!(store.stored("legacy").hash, hmac_hash(SECRETS[0], UNTAGGED));

    verify(&verifier, TAGGED);
    sleep(10 * INTERVAL).await;
    assert!(store.written().is_empty(), "the task has ended");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_cannot_write_says_so_and_keeps_the_uses() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    verify(&verifier, TAGGED);
    store.set(Writes::Fail);
    let error = flusher.shutdown().await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
    store.set(Writes::Work);
    assert_eq!(verifier.flush().await.unwrap(), used(1));
}

#[tokio::test(start_paused = true)]
async fn a_flusher_that_is_dropped_flushes_once_more_and_ends() {
    let (store, verifier, flusher) = flushing(Rows::Shared);
    let_it_run().await;
    verify(&verifier, TAGGED);
    drop(flusher);
    let_it_run().await;
    assert_eq!(store.written().len(), 1);
    verify(&verifier, TAGGED);
    sleep(10 * INTERVAL).await;
    assert!(store.written().is_empty());
    assert_eq!(Arc::strong_count(&verifier), 1, "the task holds nothing any more");
}

#[tokio::test(start_paused = true)]
async fn an_interval_of_zero_does_not_keep_the_task_busy() {
    let store = Probe::new(Rows::Shared);
    let verifier = Arc::new(verifier(&store));
    let flusher = verifier.spawn_flush(Duration::ZERO);
    let mut flushes = 0;
    for _ in 0..100 {
        verify(&verifier, TAGGED);
        sleep(Duration::from_millis(1)).await;
        flushes += store.written().len();
    }
    assert!((1..=10).contains(&flushes), "{flushes} flushes in 100 ms");
    flusher.shutdown().await.unwrap();
}
