//! Calls that race. Whatever the order in which they run, the outcome is one of few.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::JoinSet;

use super::{CURRENT, LEGACY, Subject};
use super::{at, candidates, inserted, key, record, ring, stored};
use crate::error::{Refusal, StoreError, VerifyError};
use crate::hash::HashFormat;
use crate::store::{HashChange, KeyStore, Usage};
use crate::verify::Verifier;

/// Tasks that do the same at the same time.
const RACERS: u32 = 8;

pub(super) async fn run(subject: &impl Subject) {
    one_of_several_upgrades_wins(subject).await;
    one_of_several_inserts_wins(subject).await;
    one_of_several_rotations_wins(subject).await;
    a_key_is_never_refused_while_it_is_upgraded(subject).await;
    no_verification_accepts_after_a_revocation(subject).await;
    a_use_does_not_undo_a_revocation(subject).await;
}

/// Runs the same work in several tasks and counts those that answer yes.
async fn race<F>(work: impl Fn(u32) -> F) -> usize
where
    F: Future<Output = bool> + Send + 'static,
{
    let tasks: JoinSet<bool> = (0..RACERS).map(work).collect();
    tasks.join_all().await.into_iter().filter(|&won| won).count()
}

async fn one_of_several_upgrades_wins(subject: &impl Subject) {
    let store = subject.empty().await;
    for number in 0..8 {
        let row = inserted(&store, record(number, LEGACY)).await;
        let replacement = candidates(number).as_slice()[CURRENT];
        let change = HashChange { id: row.id.clone(), expected: row.hash, replacement };
        let winners = race(|_| {
            let (store, change) = (store.clone(), change.clone());
            async move { store.replace_hash(&change).await.expect("no error") }
        });
        assert_eq!(winners.await, 1, "one of several upgrades wins");
        assert_eq!(stored(&store, &row.id).await.hash, replacement);
    }
}

async fn one_of_several_inserts_wins(subject: &impl Subject) {
    let store = subject.empty().await;
    let winners = race(|racer| {
        let store = store.clone();
        let mut record = record(1, CURRENT);
        record.id = (&*racer.to_string()).into();
        async move {
            match store.insert(&record).await {
                Ok(()) => true,
                Err(StoreError::Conflict) => false,
                Err(error) => panic!("an insert that loses is a conflict: {error:?}"),
            }
        }
    });
    assert_eq!(winners.await, 1, "one of several inserts of a hash wins");
}

async fn one_of_several_rotations_wins(subject: &impl Subject) {
    let store = subject.empty().await;
    let old = inserted(&store, record(0, CURRENT)).await;
    let winners = race(|racer| {
        let (store, id) = (store.clone(), old.id.clone());
        async move {
            match store.rotate(&id, at(10), at(10), &record(racer + 1, CURRENT)).await {
                Ok(()) => true,
                Err(StoreError::NotInForce(_)) => false,
                Err(error) => panic!("a rotation that loses finds the key ended: {error:?}"),
            }
        }
    });
    assert_eq!(winners.await, 1, "one of several rotations without overlap wins");
}

async fn a_key_is_never_refused_while_it_is_upgraded(subject: &impl Subject) {
    let store = subject.empty().await;
    let verifier = Arc::new(Verifier::new(store.clone(), ring()));
    for number in 0..16 {
        let row = inserted(&store, record(number, LEGACY)).await;
        let upgraded = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (verifier, upgraded, key) = (verifier.clone(), upgraded.clone(), key(number));
            tasks.spawn(async move {
                // Once more after the upgrade, so that every key is verified in its new format too.
                loop {
                    let last = upgraded.load(Ordering::SeqCst);
                    let verified = verifier.verify(&key).await;
                    let verified = verified.expect("a key is never refused while it is upgraded");
                    if last {
                        assert_eq!(verified.format(), HashFormat::HmacSha256);
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        let replacement = candidates(number).as_slice()[CURRENT];
        let change = HashChange { id: row.id, expected: row.hash, replacement };
        assert!(store.replace_hash(&change).await.expect("no error"));
        upgraded.store(true, Ordering::SeqCst);
        tasks.join_all().await;
    }
}

async fn no_verification_accepts_after_a_revocation(subject: &impl Subject) {
    let store = subject.empty().await;
    let verifier = Arc::new(Verifier::new(store.clone(), ring()));
    for number in 0..16 {
        let row = inserted(&store, record(number, CURRENT)).await;
        let revoked = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let (verifier, revoked, key) = (verifier.clone(), revoked.clone(), key(number));
            tasks.spawn(async move {
                loop {
                    let began_after = revoked.load(Ordering::SeqCst);
                    match verifier.verify(&key).await {
                        Ok(_) => assert!(!began_after, "accepted after the revocation returned"),
                        Err(VerifyError::Refused(Refusal::Revoked(_))) => return,
                        Err(error) => panic!("accepted or revoked, nothing else: {error:?}"),
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
        store.revoke(&row.id, at(1), None).await.expect("revoke succeeds");
        revoked.store(true, Ordering::SeqCst);
        tasks.join_all().await;
    }
}

async fn a_use_does_not_undo_a_revocation(subject: &impl Subject) {
    let store = subject.empty().await;
    for number in 0..8 {
        let row = inserted(&store, record(number, CURRENT)).await;
        race(|racer| {
            let (store, id) = (store.clone(), row.id.clone());
            async move {
                let format = HashFormat::HmacSha256;
                let usage = Usage { id: id.clone(), at: at(u64::from(racer)), format };
                let written = match racer {
                    0 => store.revoke(&id, at(1), None).await,
                    _ => store.record_usage(&[usage]).await,
                };
                written.is_ok()
            }
        })
        .await;
        let now = stored(&store, &row.id).await;
        assert!(now.is_revoked(), "a use does not undo a revocation");
        assert_eq!(now.last_used_at, Some(at(u64::from(RACERS) - 1)), "and the latest use stands");
    }
}
