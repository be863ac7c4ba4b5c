//! Calls that race. Whatever the order in which they run, the outcome is one of few.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::{JoinSet, yield_now};

use super::{CURRENT, LEGACY, RETIRED, Subject};
use super::{RING, at, candidates, inserted, key, record, stored, succession};
use crate::crypto::hash::HashFormat;
use crate::error::{Refusal, StoreError, VerifyError};
use crate::store::{HashChange, KeyLookup, KeyStore, Usage};
use crate::verify::Verifier;

/// Tasks that do the same at the same time.
const RACERS: u32 = 8;
/// Keys that a race is about, one after the other.
const ROWS: u32 = 16;
/// How long a race is run again and again: the moment in which a store in memory can be caught is
/// short.
const LONG_ENOUGH: Duration = Duration::from_millis(500);

pub(super) async fn run(subject: &impl Subject) {
    repeatedly(subject, one_of_several_upgrades_wins).await;
    repeatedly(subject, one_of_several_inserts_wins).await;
    repeatedly(subject, one_of_several_rotations_wins).await;
    repeatedly(subject, a_use_does_not_undo_a_revocation).await;
    a_key_is_never_refused_while_its_hash_moves(subject).await;
    no_verification_accepts_after_a_revocation(subject).await;
}

/// Runs a race, each time on an empty store.
async fn repeatedly<S: Subject>(subject: &S, race: impl AsyncFn(S::Store)) {
    let start = Instant::now();
    loop {
        race(subject.empty().await).await;
        if start.elapsed() > LONG_ENOUGH {
            return;
        }
    }
}

/// Does the same work on each row in several tasks, which go through the rows side by side. Counts for
/// each row the tasks that answered yes.
async fn race<F>(work: impl Fn(u32, u32) -> F) -> Vec<usize>
where
    F: Future<Output = bool> + Send + 'static,
{
    let start = Arc::new(Barrier::new(RACERS as usize));
    let racer = |racer| {
        let start = start.clone();
        let calls: Vec<_> = (0..ROWS).map(|row| work(racer, row)).collect();
        async move {
            start.wait().await;
            let mut answers = Vec::new();
            for call in calls {
                answers.push(call.await);
                // A store that never waits would let one task run through all rows alone.
                yield_now().await;
            }
            answers
        }
    };
    let answers = (0..RACERS).map(racer).collect::<JoinSet<_>>().join_all().await;
    (0..ROWS as usize).map(|row| answers.iter().filter(|answers| answers[row]).count()).collect()
}

/// Returns the change that moves the hash of a key from one of its candidates to another.
fn change(number: u32, from: usize, to: usize) -> HashChange {
    let (row, candidates) = (record(number, from), candidates(number));
    HashChange { id: row.id, expected: row.hash, replacement: candidates.as_slice()[to] }
}

async fn one_of_several_upgrades_wins(store: impl KeyStore + Clone + 'static) {
    for row in 0..ROWS {
        inserted(&store, record(row, LEGACY)).await;
    }
    let winners = race(|_, row| {
        let (store, change) = (store.clone(), change(row, LEGACY, CURRENT));
        async move { store.replace_hash(&change).await.expect("a replace_hash that loses is no error") }
    });
    assert_eq!(winners.await, [1; ROWS as usize], "one of several upgrades wins");
    for row in 0..ROWS {
        let expected = record(row, CURRENT).hash;
        assert_eq!(stored(&store, row).await.hash, expected, "an upgrade that wins is stored");
    }
}

async fn one_of_several_inserts_wins(store: impl KeyStore + Clone + 'static) {
    let winners = race(|racer, row| {
        let store = store.clone();
        let mut record = record(row, CURRENT);
        record.id = (&*format!("{row} of {racer}")).into();
        async move {
            match store.insert(&record).await {
                Ok(()) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => panic!("an insert that loses is a conflict: {error:?}"),
            }
        }
    });
    assert_eq!(winners.await, [1; ROWS as usize], "one of several inserts of a hash wins");
}

async fn one_of_several_rotations_wins(store: impl KeyStore + Clone + 'static) {
    for row in 0..ROWS {
        inserted(&store, record(row, CURRENT)).await;
    }
    let winners = race(|racer, row| {
        let (store, old) = (store.clone(), record(row, CURRENT));
        let successor = record(ROWS + row * RACERS + racer, CURRENT);
        async move {
            match store.rotate(&succession(&old, at(10), &successor)).await {
                Ok(()) => true,
                Err(StoreError::NotInForce(_)) => false,
                Err(error) => panic!("a rotation that loses finds the key ended: {error:?}"),
            }
        }
    });
    let winners = winners.await;
    assert_eq!(winners, [1; ROWS as usize], "one of several rotations without overlap wins");
}

async fn a_use_does_not_undo_a_revocation(store: impl KeyStore + Clone + 'static) {
    for row in 0..ROWS {
        inserted(&store, record(row, CURRENT)).await;
    }
    let succeeded = race(|racer, row| {
        let (store, id) = (store.clone(), record(row, CURRENT).id);
        let (at, format) = (at(u64::from(racer)), HashFormat::HmacSha256);
        async move {
            let written = match racer {
                0 => store.revoke(&id, at, None).await,
                _ => store.record_usage(&[Usage { id, at, format }]).await,
            };
            written.is_ok()
        }
    });
    assert_eq!(
        succeeded.await,
        [RACERS as usize; ROWS as usize],
        "revoke and record_usage succeed beside each other"
    );
    for row in 0..ROWS {
        let now = stored(&store, row).await;
        assert!(now.is_revoked(), "a use does not undo a revocation");
        assert_eq!(
            now.last_used_at,
            Some(at(u64::from(RACERS) - 1)),
            "of several uses the latest stands"
        );
    }
}

async fn a_key_is_never_refused_while_its_hash_moves(subject: &impl Subject) {
    let store = subject.empty().await;
    let verifier = Arc::new(Verifier::new(store.clone(), RING.clone()));
    inserted(&store, record(0, LEGACY)).await;
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for _ in 0..2 {
        let (store, verifier, over) = (store.clone(), verifier.clone(), over.clone());
        tasks.spawn(async move {
            let (key, candidates) = (key(0), candidates(0));
            while !over.load(Ordering::SeqCst) {
                _ = verifier
                    .verify(&key)
                    .await
                    .expect("a key is never refused while its hash moves");
                // Without the hashing, so that more time is spent where the hash can be missed.
                for _ in 0..100 {
                    let found = store.find(&candidates).await.expect("find answers");
                    assert!(found.is_some(), "a row is never missed while its hash moves");
                }
                yield_now().await;
            }
        });
    }
    // Then to the retired secret and back, so that a fast store too is met in the middle of a move.
    let upgrade = change(0, LEGACY, CURRENT);
    assert!(store.replace_hash(&upgrade).await.expect("replace_hash succeeds"), "the hash moves");
    let there_and_back = [change(0, CURRENT, RETIRED), change(0, RETIRED, CURRENT)];
    let start = Instant::now();
    while start.elapsed() < LONG_ENOUGH {
        for change in &there_and_back {
            assert!(
                store.replace_hash(change).await.expect("replace_hash succeeds"),
                "the hash moves"
            );
        }
    }
    over.store(true, Ordering::SeqCst);
    tasks.join_all().await;
    let verified =
        verifier.verify(&key(0)).await.expect("a key is accepted after its hash has moved");
    assert_eq!(verified.format(), HashFormat::HmacSha256, "the legacy format is left behind");
}

async fn no_verification_accepts_after_a_revocation(subject: &impl Subject) {
    let store = subject.empty().await;
    let verifier = Arc::new(Verifier::new(store.clone(), RING.clone()));
    for number in 0..ROWS {
        let row = inserted(&store, record(number, CURRENT)).await;
        let revoked = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (verifier, revoked, key) = (verifier.clone(), revoked.clone(), key(number));
            tasks.spawn(async move {
                loop {
                    let began_after = revoked.load(Ordering::SeqCst);
                    match verifier.verify(&key).await {
                        Ok(_) => assert!(!began_after, "no find that begins after revoke returned misses it"),
                        Err(VerifyError::Refused(Refusal::Revoked(_))) => return,
                        Err(error) => panic!("a key is accepted or revoked while it is revoked, nothing else: {error:?}"),
                    }
                    yield_now().await;
                }
            });
        }
        store.revoke(&row.id, at(1), None).await.expect("revoke succeeds");
        revoked.store(true, Ordering::SeqCst);
        tasks.join_all().await;
    }
}
