//! Write-behind: uses are coalesced, written forward only, bounded, and never lost by a failing flush.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, SystemTime};

use lexikon_auth::clock::Clock;
use lexikon_auth::crypto::{HashFormat, KeyHash};
use lexikon_auth::store::{KeyStore, Usage};
use lexikon_auth::tasks::Flushed;
use lexikon_auth::{ApiKey, KeyId, KeyUpdate, Policy, StoreError, Verifier};
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, WildClock, clock_at_noon, hmac_hash, noon, ready, record,
};

use crate::probe::{Probe, Rows, SECOND, Writes, used, verifier, verify};

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
    let secret = lexikon_auth_tests::secret(SECRETS[0]);
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
