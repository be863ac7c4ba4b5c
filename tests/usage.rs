//! Write-behind: uses are coalesced, written forward only, bounded, and never lost by a failing flush.

mod common;

use std::future::{pending, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, SystemTime};

use common::{
    FORGED, SECRETS, TAGGED, UNTAGGED, WildClock, clock_at_noon, hmac_hash, legacy_hash, noon,
    ready, record, ring,
};
use lexikon_auth::{
    ApiKey, Candidates, Clock, Flushed, FormatCounts, HashChange, HashFormat, KeyHash, KeyId,
    KeyLookup, KeyRecord, KeyStore, KeyUpdate, LegacyPolicy, MemoryStore, OwnerId, Page, Policy,
    StoreError, Usage, Verifier,
};

const SECOND: Duration = Duration::from_secs(1);

/// How the store answers look-ups.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    /// As the memory store does: all verifications share a record, until a write replaces it.
    Shared,
    /// As a cache does: all verifications share a record, whatever is written.
    Cached,
    /// As a database does: a new copy for each look-up.
    Copied,
    /// As a store of endless keys: another one for each look-up.
    Endless,
}

/// What the store does with a write.
#[derive(Clone, Copy, PartialEq)]
enum Writes {
    Work,
    Fail,
    FailAfterOne,
    FailForHashes,
    Hang,
    HangForHashes,
    Panic,
    /// Works, and takes a second.
    #[cfg(feature = "tokio")]
    Slow,
}

/// A memory store whose writes can be made to fail, and that remembers the uses written to it.
#[derive(Clone)]
struct Probe {
    keys: MemoryStore,
    rows: Rows,
    writes: Arc<Mutex<Writes>>,
    written: Arc<Mutex<Vec<Usage>>>,
    lookups: Arc<AtomicU64>,
    /// How often a write was tried.
    attempts: Arc<AtomicU64>,
    /// Lets the next look-up wait once, with its row in hand.
    pause_next_lookup: Arc<AtomicBool>,
}

impl Probe {
    /// Holds [`TAGGED`] as `tagged`, and [`UNTAGGED`] in the legacy format as `legacy`.
    fn new(rows: Rows) -> Self {
        let keys = MemoryStore::new();
        ready(keys.insert(&record("tagged", hmac_hash(SECRETS[0], TAGGED)))).unwrap();
        ready(keys.insert(&record("legacy", legacy_hash(UNTAGGED)))).unwrap();
        Self {
            keys,
            rows,
            writes: Arc::new(Mutex::new(Writes::Work)),
            written: Arc::default(),
            lookups: Arc::default(),
            attempts: Arc::default(),
            pause_next_lookup: Arc::default(),
        }
    }

    fn set(&self, writes: Writes) {
        *self.writes.lock().unwrap() = writes;
    }

    /// The uses written since the last call.
    fn written(&self) -> Vec<Usage> {
        std::mem::take(&mut self.written.lock().unwrap())
    }

    fn stored(&self, id: &str) -> Arc<KeyRecord> {
        ready(self.keys.find_by_id(&id.into())).unwrap().expect("a record")
    }

    async fn write(&self, is_hash: bool) -> Result<(), StoreError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let writes = *self.writes.lock().unwrap();
        match writes {
            Writes::Fail => Err(StoreError::ReadOnly(io::Error::other("disk full").into())),
            Writes::FailForHashes if is_hash => Err(StoreError::Conflict),
            Writes::Hang => pending().await,
            Writes::HangForHashes if is_hash => pending().await,
            Writes::Panic => panic!("the store panics"),
            #[cfg(feature = "tokio")]
            Writes::Slow => {
                tokio::time::sleep(SECOND).await;
                Ok(())
            }
            Writes::FailAfterOne => {
                self.set(Writes::Fail);
                Ok(())
            }
            Writes::Work | Writes::FailForHashes | Writes::HangForHashes => Ok(()),
        }
    }
}

impl KeyLookup for Probe {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let number = self.lookups.fetch_add(1, Ordering::Relaxed);
        let row = match self.rows {
            Rows::Shared | Rows::Cached => self.keys.find(candidates).await?,
            Rows::Copied => self.keys.find(candidates).await?.map(|row| Arc::new((*row).clone())),
            Rows::Endless => Some(record(&number.to_string(), candidates.as_slice()[0]).into()),
        };
        poll_fn(|_| match self.pause_next_lookup.swap(false, Ordering::SeqCst) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        Ok(row)
    }
}

/// A flush writes uses and hashes; what else it called would be a mistake.
impl KeyStore for Probe {
    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        self.write(false).await?;
        self.written.lock().unwrap().extend_from_slice(batch);
        if self.rows == Rows::Cached {
            return Ok(());
        }
        self.keys.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        self.write(true).await?;
        self.keys.replace_hash(change).await
    }

    async fn insert(&self, _: &KeyRecord) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn find_by_id(&self, _: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        unreachable!()
    }

    async fn list(&self, _: &OwnerId, _: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        unreachable!()
    }

    async fn update(&self, _: &KeyId, _: &KeyUpdate) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn revoke(&self, _: &KeyId, _: SystemTime, _: Option<&str>) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn rotate(
        &self,
        _: &KeyRecord,
        _: SystemTime,
        _: SystemTime,
        _: &KeyRecord,
    ) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn expire(&self, _: SystemTime) -> Result<u64, StoreError> {
        unreachable!()
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        unreachable!()
    }
}

/// A clock that moves on by a microsecond whenever it is read.
#[derive(Default)]
struct TickingClock(AtomicU64);

impl TickingClock {
    fn last(&self) -> SystemTime {
        noon() + Duration::from_micros(self.0.load(Ordering::SeqCst))
    }
}

impl Clock for TickingClock {
    fn now(&self) -> SystemTime {
        noon() + Duration::from_micros(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }
}

/// A verifier at noon that upgrades legacy keys.
fn verifier(store: &Probe) -> Verifier<Probe> {
    Verifier::new(store.clone(), ring(&SECRETS[..1]))
        .with_policy(Policy::default().legacy(LegacyPolicy::UpgradeOnUse))
        .with_clock(clock_at_noon())
}

fn verify<S: KeyLookup>(verifier: &Verifier<S>, key: &str) {
    _ = ready(verifier.verify(key)).expect("a good key");
}

fn used(used: usize) -> Flushed {
    Flushed { used, upgraded: 0 }
}

fn usage(id: &str, at: SystemTime, format: HashFormat) -> Usage {
    Usage { id: id.into(), at, format }
}

#[test]
fn the_uses_of_a_key_become_one_write_of_the_latest() {
    for rows in [Rows::Shared, Rows::Copied] {
        let (store, clock) = (Probe::new(rows), clock_at_noon());
        let verifier = verifier(&store).with_clock(clock.clone());
        for _ in 0..10 {
            verify(&verifier, TAGGED);
            clock.advance(SECOND);
        }
        assert!(store.written().is_empty(), "verification writes nothing");
        assert_eq!(store.stored("tagged").last_used_at, None);

        assert_eq!(ready(verifier.flush()).unwrap(), used(1));
        let latest = noon() + 9 * SECOND;
        assert_eq!(store.written(), [usage("tagged", latest, HashFormat::HmacSha256)]);
        assert_eq!(store.stored("tagged").last_used_at, Some(latest));

        verify(&verifier, TAGGED);
        assert_eq!(ready(verifier.flush()).unwrap(), used(1));
        assert_eq!(store.stored("tagged").last_used_at, Some(noon() + 10 * SECOND));
    }
}

#[test]
fn a_flush_without_uses_does_not_touch_the_store() {
    let store = Probe::new(Rows::Shared);
    let verifier = verifier(&store);
    store.set(Writes::Panic);
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed::default());
    ready(verifier.verify("lxk_")).unwrap_err();
    ready(verifier.verify(FORGED)).unwrap_err();
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed::default(), "refusals are no uses");
}

#[test]
fn the_format_that_was_found_is_written_with_the_use() {
    let store = Probe::new(Rows::Shared);
    let verifier = verifier(&store).with_policy(Policy::default());
    assert_eq!(store.stored("legacy").format, None);
    verify(&verifier, UNTAGGED);
    ready(verifier.flush()).unwrap();
    assert_eq!(store.written(), [usage("legacy", noon(), HashFormat::Sha256)]);
    assert_eq!(store.stored("legacy").format, Some(HashFormat::Sha256));
}

#[test]
fn a_use_is_written_to_the_microsecond() {
    let (store, clock) = (Probe::new(Rows::Shared), clock_at_noon());
    let verifier = verifier(&store).with_clock(clock.clone());
    clock.advance(Duration::from_nanos(1_999));
    verify(&verifier, TAGGED);
    ready(verifier.flush()).unwrap();
    let expected = noon() + Duration::from_micros(1);
    assert_eq!(store.stored("tagged").last_used_at, Some(expected));
}

#[test]
fn the_last_use_only_moves_forward() {
    for rows in [Rows::Shared, Rows::Copied] {
        let store = Probe::new(rows);
        let clock = Arc::new(WildClock(Mutex::new(noon())));
        let verifier = verifier(&store).with_clock(clock.clone());
        let use_at = |at: SystemTime| {
            *clock.0.lock().unwrap() = at;
            verify(&verifier, TAGGED);
        };
        // Within one batch.
        use_at(noon());
        use_at(noon() - 5 * SECOND);
        ready(verifier.flush()).unwrap();
        assert_eq!(store.stored("tagged").last_used_at, Some(noon()));
        // From one batch to the next.
        use_at(noon() - SECOND);
        ready(verifier.flush()).unwrap();
        assert_eq!(store.stored("tagged").last_used_at, Some(noon()));
        // Against what somebody else wrote.
        let later = noon() + 60 * SECOND;
        let elsewhere = usage("tagged", later, HashFormat::HmacSha256);
        ready(store.keys.record_usage(&[elsewhere])).unwrap();
        use_at(noon() + SECOND);
        ready(verifier.flush()).unwrap();
        assert_eq!(store.stored("tagged").last_used_at, Some(later));
    }
}

#[test]
fn no_time_of_the_clock_makes_a_use_panic() {
    let extremes = [
        SystemTime::UNIX_EPOCH - SECOND,
        SystemTime::UNIX_EPOCH,
        SystemTime::UNIX_EPOCH + Duration::from_secs(i64::MAX as u64),
    ];
    for at in extremes {
        let store = Probe::new(Rows::Shared);
        let clock = Arc::new(WildClock(Mutex::new(at)));
        let verifier = verifier(&store).with_clock(clock);
        verify(&verifier, TAGGED);
        assert_eq!(ready(verifier.flush()).unwrap(), used(1), "{at:?}");
        let written = store.stored("tagged").last_used_at.expect("a use");
        assert!(written <= at.max(SystemTime::UNIX_EPOCH + Duration::from_micros(1)), "{at:?}");
    }
}

#[test]
fn uses_beyond_the_bound_are_dropped_and_counted() {
    const BOUND: usize = 114_688;
    const USES: usize = BOUND + 5_000;
    let store = Probe::new(Rows::Endless);
    let verifier = verifier(&store);
    for _ in 0..USES {
        verify(&verifier, TAGGED); // succeeds, noted or not
    }
    let dropped = verifier.dropped_uses() as usize;
    assert!((5_000..USES).contains(&dropped), "{dropped}");
    assert_eq!(ready(verifier.flush()).unwrap(), used(USES - dropped));
    assert_eq!(store.written().len(), USES - dropped);

    verify(&verifier, TAGGED);
    assert_eq!(ready(verifier.flush()).unwrap(), used(1), "there is room again");
    assert_eq!(verifier.dropped_uses() as usize, dropped);
}

#[test]
fn what_a_failed_flush_did_not_write_is_written_by_the_next() {
    for rows in [Rows::Shared, Rows::Copied] {
        let (store, clock) = (Probe::new(rows), clock_at_noon());
        let verifier = verifier(&store).with_clock(clock.clone());
        verify(&verifier, TAGGED);
        verify(&verifier, UNTAGGED);
        store.set(Writes::Fail);
        for _ in 0..3 {
            let error = ready(verifier.flush()).unwrap_err();
            assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
            clock.advance(SECOND);
            verify(&verifier, TAGGED); // a failing flush does not concern a verification
        }
        store.set(Writes::Work);
        assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 2, upgraded: 1 });
        assert_eq!(store.stored("tagged").last_used_at, Some(noon() + 3 * SECOND));
        assert_eq!(store.stored("legacy").last_used_at, Some(noon()));
        assert_eq!(store.stored("legacy").hash, hmac_hash(SECRETS[0], UNTAGGED));
        assert_eq!(ready(verifier.flush()).unwrap(), Flushed::default(), "nothing is left");
    }
}

#[test]
fn many_uses_are_written_in_short_batches_and_a_failure_keeps_the_rest() {
    let store = Probe::new(Rows::Endless);
    let verifier = verifier(&store);
    for _ in 0..2500 {
        verify(&verifier, TAGGED);
    }
    store.set(Writes::FailAfterOne);
    ready(verifier.flush()).unwrap_err();
    let first = store.written();
    assert_eq!(first.len(), 1000);
    store.set(Writes::Work);
    assert_eq!(ready(verifier.flush()).unwrap(), used(1500));
    let mut ids: Vec<_> = first.into_iter().chain(store.written()).map(|use_| use_.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2500, "each use is written once");
}

#[test]
fn uses_that_were_written_are_not_written_again_when_the_hashes_fail() {
    let store = Probe::new(Rows::Shared);
    let verifier = verifier(&store);
    verify(&verifier, TAGGED);
    verify(&verifier, UNTAGGED);
    store.set(Writes::FailForHashes);
    ready(verifier.flush()).unwrap_err();
    assert_eq!(store.written().len(), 2);
    store.set(Writes::Work);
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 0, upgraded: 1 });
    assert!(store.written().is_empty());
}

/// Polls a flush until the store hangs, runs `meanwhile`, and drops the flush.
fn abandon_flush(verifier: &Verifier<Probe>, meanwhile: impl FnOnce()) {
    let mut flush = pin!(verifier.flush());
    assert!(flush.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    meanwhile();
}

#[test]
fn what_an_abandoned_flush_did_not_write_is_written_by_the_next() {
    for rows in [Rows::Shared, Rows::Copied] {
        for (writes, uses) in [(Writes::Hang, 2), (Writes::HangForHashes, 1)] {
            let (store, clock) = (Probe::new(rows), clock_at_noon());
            let verifier = verifier(&store).with_clock(clock.clone());
            verify(&verifier, TAGGED);
            verify(&verifier, UNTAGGED);
            store.set(writes);
            abandon_flush(&verifier, || {
                clock.advance(SECOND);
                verify(&verifier, TAGGED);
            });
            store.set(Writes::Work);
            let expected = Flushed { used: uses, upgraded: 1 };
            assert_eq!(ready(verifier.flush()).unwrap(), expected);
            assert_eq!(store.stored("tagged").last_used_at, Some(noon() + SECOND));
            assert_eq!(store.stored("legacy").last_used_at, Some(noon()));
        }
    }
}

#[test]
fn what_a_panicking_store_did_not_write_is_written_by_the_next_flush() {
    let store = Probe::new(Rows::Shared);
    let verifier = verifier(&store);
    verify(&verifier, TAGGED);
    verify(&verifier, UNTAGGED);
    store.set(Writes::Panic);
    catch_unwind(AssertUnwindSafe(|| ready(verifier.flush()))).unwrap_err();
    store.set(Writes::Work);
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 2, upgraded: 1 });
}

/// The memory store shares records among verifiers, so a use is noted where the last one is.
#[test]
fn verifiers_of_one_store_write_the_latest_use_together() {
    let (store, clock) = (Probe::new(Rows::Shared), clock_at_noon());
    let [one, other] = [(); 2].map(|()| verifier(&store).with_clock(clock.clone()));
    verify(&one, TAGGED);
    clock.advance(SECOND);
    verify(&other, TAGGED);
    let written = ready(one.flush()).unwrap().used + ready(other.flush()).unwrap().used;
    assert!(written >= 1);
    assert_eq!(store.stored("tagged").last_used_at, Some(noon() + SECOND));
}

#[test]
fn a_verifier_that_was_dropped_unflushed_does_not_silence_the_next() {
    let store = Probe::new(Rows::Shared);
    verify(&verifier(&store), TAGGED);
    let successor = verifier(&store);
    verify(&successor, TAGGED);
    assert_eq!(ready(successor.flush()).unwrap(), used(1));
    assert_eq!(store.stored("tagged").last_used_at, Some(noon()));
}

/// A verification that was under way while its record changed comes back with the older copy.
#[test]
fn an_older_copy_of_a_record_does_not_hide_the_uses_of_the_newer() {
    let (store, clock) = (Probe::new(Rows::Shared), clock_at_noon());
    let verifier = verifier(&store).with_clock(clock.clone());
    let context = &mut Context::from_waker(Waker::noop());

    store.pause_next_lookup.store(true, Ordering::SeqCst);
    let mut slow = pin!(verifier.verify(TAGGED));
    assert!(slow.as_mut().poll(context).is_pending());
    let update = KeyUpdate::default().name("renamed");
    ready(store.keys.update(&"tagged".into(), &update)).unwrap();
    verify(&verifier, TAGGED);
    assert!(slow.poll(context).is_ready());

    clock.advance(SECOND);
    verify(&verifier, TAGGED);
    assert_eq!(ready(verifier.flush()).unwrap(), used(1));
    assert_eq!(store.stored("tagged").last_used_at, Some(noon() + SECOND));
}

/// One flush begins together with two threads that use a few keys again and again. What it did not
/// write, the flush after them has to.
#[test]
fn concurrent_uses_and_flushes_lose_nothing() {
    const ROUNDS: usize = 300;
    const PASSES: usize = 20;
    let secret = common::secret(SECRETS[0]);
    let keys: Vec<_> = (0..4).map(|_| ApiKey::generate(&secret).unwrap()).collect();
    for rows in [Rows::Shared, Rows::Cached, Rows::Copied] {
        let (store, clock) = (Probe::new(rows), Arc::new(TickingClock::default()));
        for (index, key) in keys.iter().enumerate() {
            let row = record(&index.to_string(), KeyHash::of(key, &secret));
            ready(store.keys.insert(&row)).unwrap();
        }
        let verifier = verifier(&store).with_clock(clock.clone());
        for round in 0..ROUNDS {
            let start = Barrier::new(3);
            // Returns, for each key, a moment before its last use on this thread.
            let use_all = || {
                let mut last_uses = vec![noon(); keys.len()];
                start.wait();
                for _ in 0..PASSES {
                    for (last_use, key) in last_uses.iter_mut().zip(&keys) {
                        *last_use = clock.last();
                        verify(&verifier, key.expose_secret());
                    }
                }
                last_uses
            };
            let [one, other] = thread::scope(|scope| {
                let threads = [scope.spawn(use_all), scope.spawn(use_all)];
                start.wait();
                ready(verifier.flush()).unwrap();
                threads.map(|thread| thread.join().unwrap())
            });
            ready(verifier.flush()).unwrap();
            let written = store.written();
            for (index, used_after) in one.iter().zip(&other).map(|(a, b)| a.max(b)).enumerate() {
                let id = KeyId::from(&*index.to_string());
                let last_used = written.iter().filter(|usage| usage.id == id).map(|usage| usage.at);
                assert!(last_used.max() > Some(*used_after), "key {index} in round {round}");
            }
        }
        assert_eq!(verifier.dropped_uses(), 0);
        assert_eq!(ready(verifier.flush()).unwrap(), Flushed::default());
    }
}

/// The task that flushes on a timer. The time of the runtime stands still and jumps to the next
/// timer whenever all tasks wait, so no test here depends on real time.
#[cfg(feature = "tokio")]
mod timer {
    use tokio::task::yield_now;
    use tokio::time::{Instant, sleep};

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    /// Gives the flush task its turn, without letting the time move.
    async fn let_it_run() {
        for _ in 0..20 {
            yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn uses_are_written_when_the_interval_is_over() {
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Endless);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Endless);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
        verify(&verifier, TAGGED);
        store.set(Writes::Fail);
        let error = flusher.shutdown().await.unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
        store.set(Writes::Work);
        assert_eq!(verifier.flush().await.unwrap(), used(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flusher_that_is_dropped_flushes_once_more_and_ends() {
        let store = Probe::new(Rows::Shared);
        let verifier = Arc::new(verifier(&store));
        let flusher = verifier.spawn_flush(INTERVAL);
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
}
