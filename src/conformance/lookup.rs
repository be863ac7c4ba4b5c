//! Looking up, inserting, and verifying on top.

use std::sync::Arc;

use super::{CURRENT, LEGACY, MICROSECOND, OWNERS, RETIRED, Subject};
use super::{RING, at, candidates, find, inserted, key, record, stored, succession};
use crate::crypto::hash::{Candidates, HashFormat};
use crate::error::{Refusal, StoreError, VerifyError};
use crate::id::{KeyId, OwnerId};
use crate::policy::{LegacyPolicy, Policy, RetiredPolicy};
use crate::record::{KeyRecord, Revocation};
use crate::store::{KeyLookup, KeyStore};
use crate::verify::Verifier;

pub(super) async fn run(subject: &impl Subject) {
    every_field_is_kept(subject).await;
    every_candidate_finds(subject).await;
    the_earliest_candidate_wins(subject).await;
    rows_are_found_whatever_their_state(subject).await;
    the_owner_is_as_of_now(subject).await;
    a_conflict_changes_nothing(subject).await;
    unknown_owners_are_refused(subject).await;
    a_wrong_row_is_never_granted(subject).await;
    hashes_move_on_use(subject).await;
}

async fn every_field_is_kept(subject: &impl Subject) {
    let store = subject.empty().await;
    let mut full = record(1, LEGACY);
    full.name = "naïve 'name'; DROP TABLE \"api_keys\" -- \\ 名".into();
    full.scopes = "read,custom:scope,write".into();
    full.created_at = Some(at(1_700_000_000) + MICROSECOND);
    full.expires_at = Some(at(4_000_000_000) + MICROSECOND);
    full.last_used_at = Some(at(1_800_000_000) + MICROSECOND);
    if subject.keeps_details() {
        full.format = Some(HashFormat::Sha256);
        let (at, reason) = (Some(at(1_900_000_000) + MICROSECOND), Some("it's \"lost\"".into()));
        full.revocation = Some(Box::new(Revocation { at, reason }));
    }
    let mut bare = record(2, CURRENT);
    bare.id = KeyId::from("any text, not a UUID");
    bare.name = "".into();
    bare.scopes = "".into();
    bare.created_at = None;
    for (number, expected) in [(1, full), (2, bare)] {
        store.insert(&expected).await.expect("insert succeeds");
        assert_eq!(stored(&store, number).await, expected, "every field is kept");
    }
    let missing = store.find_by_id(&KeyId::from("missing")).await.expect("find_by_id answers");
    assert_eq!(missing, None, "an unknown id has no record");
}

async fn every_candidate_finds(subject: &impl Subject) {
    let store = subject.empty().await;
    for candidate in [CURRENT, RETIRED, LEGACY] {
        let number = candidate as u32;
        let expected = inserted(&store, record(number, candidate)).await;
        let found = find(&store, &candidates(number)).await;
        assert_eq!(found.as_deref(), Some(&expected), "candidate {candidate} finds its row");
    }
    let found = find(&store, &candidates(99)).await;
    assert_eq!(found, None, "a key that was never stored is not found");
}

async fn the_earliest_candidate_wins(subject: &impl Subject) {
    let store = subject.empty().await;
    for (id, candidate) in [(3, LEGACY), (1, RETIRED), (2, CURRENT)] {
        let mut record = record(7, candidate);
        record.id = KeyId::from(&*id.to_string());
        store.insert(&record).await.expect("insert succeeds");
        let found = find(&store, &candidates(7)).await.expect("find finds each of several rows");
        assert_eq!(
            found.id, record.id,
            "of several rows, that of the earliest candidate is returned"
        );
    }
}

async fn rows_are_found_whatever_their_state(subject: &impl Subject) {
    let store = subject.empty().await;
    let mut expired = record(1, CURRENT);
    expired.expires_at = Some(at(1));
    let expired = inserted(&store, expired).await;
    let found = find(&store, &candidates(1)).await;
    assert_eq!(found.as_deref(), Some(&expired), "an expired row is found");
    store.revoke(&expired.id, at(2), None).await.expect("revoke succeeds");
    let found = find(&store, &candidates(1)).await.expect("a revoked row is found");
    assert!(found.is_revoked(), "a revoked row is found, and says so");
}

async fn the_owner_is_as_of_now(subject: &impl Subject) {
    let store = subject.empty().await;
    inserted(&store, record(1, CURRENT)).await;
    let mut other = record(2, CURRENT);
    other.owner = OWNERS[1].into();
    inserted(&store, other).await;
    for active in [false, true, false] {
        subject.set_owner_active(&store, &OwnerId::from(OWNERS[0]), active).await;
        assert_eq!(stored(&store, 1).await.owner_active, active, "owner_active is as of now");
        assert!(stored(&store, 2).await.owner_active, "another owner's keys are not touched");
    }
    inserted(&store, record(3, CURRENT)).await;
    assert!(!stored(&store, 3).await.owner_active, "an insert does not enable the owner");
}

async fn a_conflict_changes_nothing(subject: &impl Subject) {
    let store = subject.empty().await;
    let first = inserted(&store, record(1, CURRENT)).await;
    let mut same_id = record(2, CURRENT);
    same_id.id = first.id.clone();
    let mut same_hash = record(1, CURRENT);
    same_hash.id = KeyId::from("other");
    for conflicting in [same_id, same_hash] {
        let answer = store.insert(&conflicting).await;
        assert!(
            matches!(answer, Err(StoreError::Conflict)),
            "insert of an id or a hash that exists is Conflict: {answer:?}"
        );
        assert_eq!(stored(&store, 1).await, first, "a conflict changes nothing");
    }
    let found = find(&store, &candidates(2)).await;
    assert_eq!(found, None, "a conflicting key is not stored");
    let found = store.find_by_id(&KeyId::from("other")).await.expect("find_by_id answers");
    assert_eq!(found, None, "a conflicting id is not stored");
}

async fn unknown_owners_are_refused(subject: &impl Subject) {
    if !subject.keeps_owners() {
        return;
    }
    let store = subject.empty().await;
    let old = inserted(&store, record(2, CURRENT)).await;
    let mut orphan = record(1, CURRENT);
    orphan.owner = "nobody".into();
    let answers =
        [store.insert(&orphan).await, store.rotate(&succession(&old, at(20), &orphan)).await];
    for answer in answers {
        assert!(
            matches!(answer, Err(StoreError::UnknownOwner(_))),
            "a key of an unknown owner is UnknownOwner: {answer:?}"
        );
    }
    assert_eq!(stored(&store, 2).await, old, "without a successor the old key stays");
    let found = find(&store, &candidates(1)).await;
    assert_eq!(found, None, "a key without an owner is not stored");
}

/// A look-up that answers with another row than the one asked for.
struct WrongRow(Arc<KeyRecord>);

impl KeyLookup for WrongRow {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(Some(self.0.clone()))
    }

    async fn on_feed_event(&self, _: &crate::store::FeedEvent) {}
}

async fn a_wrong_row_is_never_granted(subject: &impl Subject) {
    let store = subject.empty().await;
    let other = inserted(&store, record(1, CURRENT)).await;
    let other = store.find_by_id(&other.id).await.expect("find_by_id answers");
    let other = other.expect("find_by_id finds what was inserted");
    let answer = Verifier::new(WrongRow(other), RING.clone()).verify(&key(2)).await;
    assert!(
        matches!(answer, Err(VerifyError::Unavailable(StoreError::WrongRow(_)))),
        "a wrong row is never granted: {answer:?}"
    );
}

async fn hashes_move_on_use(subject: &impl Subject) {
    let store = subject.empty().await;
    let policy =
        Policy::default().legacy(LegacyPolicy::UpgradeOnUse).retired(RetiredPolicy::UpgradeOnUse);
    let verifier = Verifier::new(store.clone(), RING.clone()).with_policy(policy);
    for (number, candidate) in [(1, CURRENT), (2, RETIRED), (3, LEGACY)] {
        inserted(&store, record(number, candidate)).await;
        let key = key(number);
        let before =
            verifier.verify(&key).await.expect("a key is accepted under each of its candidates");
        let is_retired = before.is_under_retired_secret();
        assert_eq!(is_retired, candidate == RETIRED, "find returns the hash that was inserted");
        let flushed = verifier.flush().await.expect("flush succeeds");
        assert_eq!(flushed.upgraded, usize::from(candidate != CURRENT), "a hash moves once");
        let after =
            verifier.verify(&key).await.expect("a key is accepted after its hash has moved");
        assert_eq!(after.format(), HashFormat::HmacSha256, "the hash is HMAC-SHA-256 now");
        assert!(!after.is_under_retired_secret(), "the hash is under the current secret now");
        let now = stored(&store, number).await;
        assert_eq!(now.hash, candidates(number).as_slice()[CURRENT], "the row holds that hash");
        assert!(now.last_used_at.is_some(), "record_usage writes last_used_at");
    }
    let unknown = verifier.verify(&key(4)).await;
    assert!(
        matches!(unknown, Err(VerifyError::Refused(Refusal::Unknown))),
        "find answers None for a missing row: {unknown:?}"
    );
}
