//! Listing, changing, revoking, rotating, and writing in batches.

use super::{CURRENT, LEGACY, OWNERS, Subject};
use super::{at, candidates, inserted, record, stored};
use crate::error::StoreError;
use crate::hash::HashFormat;
use crate::record::{KeyId, KeyRecord, OwnerId};
use crate::store::{FormatCounts, HashChange, KeyLookup, KeyStore, KeyUpdate, Page, Usage};

pub(super) async fn run(subject: &impl Subject) {
    lists_are_paged_and_newest_first(subject).await;
    an_update_changes_what_it_names(subject).await;
    a_revocation_is_for_good(subject).await;
    a_rotation_is_whole(subject).await;
    only_keys_in_force_are_rotated(subject).await;
    a_sweep_revokes_what_is_due(subject).await;
    uses_only_move_forward(subject).await;
    a_hash_is_replaced_only_if_it_is_the_expected_one(subject).await;
    formats_are_counted(subject).await;
    an_unknown_id_is_not_found(subject).await;
}

async fn lists_are_paged_and_newest_first(subject: &impl Subject) {
    let store = subject.empty().await;
    // In this order: by date, then by id, then those without a date, again by id.
    let dates = [Some(3000), Some(2000), Some(2000), Some(1000), None, None];
    let mut expected = Vec::new();
    for (position, date) in dates.into_iter().enumerate() {
        let mut record = record(100 - position as u32, CURRENT);
        record.created_at = date.map(at);
        expected.push(record);
    }
    let text_id = KeyId::from("a text sorts as texts do");
    expected[1].id = text_id;
    for position in [4, 1, 5, 0, 3, 2] {
        store.insert(&expected[position]).await.expect("insert succeeds");
    }
    let mut other = record(50, CURRENT);
    other.owner = OWNERS[1].into();
    inserted(&store, other).await;

    let ids = |records: &[KeyRecord]| -> Vec<_> { records.iter().map(|r| r.id.clone()).collect() };
    let list = async |owner: &str, page: Page| -> Vec<KeyId> {
        let records = store.list(&OwnerId::from(owner), &page).await.expect("list answers");
        records.iter().map(|record| record.id.clone()).collect()
    };
    assert_eq!(list(OWNERS[0], Page::first(100)).await, ids(&expected), "newest first");
    assert_eq!(list(OWNERS[0], Page::first(0)).await, [], "a limit of zero lists nothing");
    for size in 1..=expected.len() {
        let mut page = Page::first(size as u32);
        let mut listed = Vec::new();
        loop {
            let next = list(OWNERS[0], page).await;
            let Some(last) = next.last() else { break };
            page = Page::after(size as u32, last.clone());
            listed.extend(next);
        }
        assert_eq!(listed, ids(&expected), "pages of {size} are the whole list");
    }
    assert_eq!(list("nobody", Page::first(9)).await, [], "an unknown owner has none");
    let foreign = Page::after(9, record(50, CURRENT).id);
    assert_eq!(list(OWNERS[0], foreign).await, [], "a page after another owner's key is empty");
    let unknown = Page::after(9, KeyId::from("unknown"));
    assert_eq!(list(OWNERS[0], unknown).await, [], "a page after an unknown id is empty");
}

async fn an_update_changes_what_it_names(subject: &impl Subject) {
    let store = subject.empty().await;
    let mut expected = record(1, CURRENT);
    expected.expires_at = Some(at(4_000_000_000));
    store.insert(&expected).await.expect("insert succeeds");
    let untouched = inserted(&store, record(2, CURRENT)).await;
    let update = async |update: KeyUpdate, expected: &KeyRecord| {
        store.update(&expected.id, &update).await.expect("update succeeds");
        assert_eq!(stored(&store, &expected.id).await, *expected, "after {update:?}");
    };
    update(KeyUpdate::default(), &expected).await;
    expected.name = "new".into();
    update(KeyUpdate { name: Some("new".into()), ..KeyUpdate::default() }, &expected).await;
    expected.scopes = "".into();
    update(KeyUpdate { scopes: Some("".into()), ..KeyUpdate::default() }, &expected).await;
    expected.expires_at = Some(at(4_100_000_000));
    let date = Some(expected.expires_at);
    update(KeyUpdate { expires_at: date, ..KeyUpdate::default() }, &expected).await;
    expected.expires_at = None;
    update(KeyUpdate { expires_at: Some(None), ..KeyUpdate::default() }, &expected).await;
    assert_eq!(stored(&store, &untouched.id).await, untouched, "other rows are not touched");
}

async fn a_revocation_is_for_good(subject: &impl Subject) {
    let store = subject.empty().await;
    let revoked = inserted(&store, record(1, CURRENT)).await;
    let untouched = inserted(&store, record(2, CURRENT)).await;
    for (time, reason) in [(5000, Some("first")), (6000, Some("second")), (7000, None)] {
        store.revoke(&revoked.id, at(time), reason).await.expect("revoking again is no error");
        let found = store.find(&candidates(1)).await.expect("find answers").expect("is found");
        let revocation = found.revocation.as_deref().expect("the next look-up sees it");
        if subject.keeps_details() {
            let kept = (revocation.at, revocation.reason.as_deref());
            assert_eq!(kept, (Some(at(5000)), Some("first")), "the first revocation stands");
        }
    }
    assert_eq!(stored(&store, &untouched.id).await, untouched, "other rows are not touched");
}

async fn a_rotation_is_whole(subject: &impl Subject) {
    let store = subject.empty().await;
    let old = inserted(&store, record(1, CURRENT)).await;
    store.rotate(&old.id, at(10), at(20), &record(2, CURRENT)).await.expect("rotate succeeds");
    assert_eq!(stored(&store, &old.id).await.expires_at, Some(at(20)), "the old key gets a date");
    let successor = record(2, CURRENT);
    assert_eq!(stored(&store, &successor.id).await, successor, "the successor is stored");

    store.rotate(&old.id, at(11), at(30), &record(3, CURRENT)).await.expect("rotate succeeds");
    let expiry = stored(&store, &old.id).await.expires_at;
    assert_eq!(expiry, Some(at(20)), "the old key never outlives its date");
    store.rotate(&old.id, at(11), at(11), &record(4, CURRENT)).await.expect("rotate succeeds");
    assert_eq!(stored(&store, &old.id).await.expires_at, Some(at(11)), "the overlap may be zero");

    let old = inserted(&store, record(5, CURRENT)).await;
    let answer = store.rotate(&old.id, at(10), at(20), &record(2, CURRENT)).await;
    assert!(matches!(answer, Err(StoreError::Conflict)), "a conflict is one: {answer:?}");
    assert_eq!(stored(&store, &old.id).await, old, "without a successor the old key stays");
}

async fn only_keys_in_force_are_rotated(subject: &impl Subject) {
    let store = subject.empty().await;
    let mut expired = record(1, CURRENT);
    expired.expires_at = Some(at(10));
    let expired = inserted(&store, expired).await;
    let revoked = inserted(&store, record(2, CURRENT)).await;
    store.revoke(&revoked.id, at(1), None).await.expect("revoke succeeds");
    for id in [expired.id, revoked.id] {
        let answer = store.rotate(&id, at(10), at(20), &record(3, CURRENT)).await;
        assert!(matches!(answer, Err(StoreError::NotInForce(_))), "not in force: {answer:?}");
    }
    let found = store.find(&candidates(3)).await.expect("find answers");
    assert_eq!(found, None, "no successor is stored");
}

async fn a_sweep_revokes_what_is_due(subject: &impl Subject) {
    let store = subject.empty().await;
    let dates = [Some(999), Some(1000), Some(1001), None, Some(500)];
    for (number, date) in (0..).zip(dates) {
        let mut record = record(number, CURRENT);
        record.expires_at = date.map(at);
        store.insert(&record).await.expect("insert succeeds");
    }
    store.revoke(&record(4, CURRENT).id, at(1), Some("by hand")).await.expect("revoke succeeds");
    assert_eq!(store.expire(at(1000)).await.expect("expire succeeds"), 2, "the date itself is due");
    for (number, revoked) in [(0, true), (1, true), (2, false), (3, false), (4, true)] {
        let now = stored(&store, &record(number, CURRENT).id).await;
        assert_eq!(now.is_revoked(), revoked, "key {number} after the sweep");
        let reason = now.revocation.and_then(|revocation| revocation.reason);
        if subject.keeps_details() && revoked {
            let expected = if number == 4 { "by hand" } else { "expired" };
            assert_eq!(reason.as_deref(), Some(expected), "key {number} says why");
        }
    }
    assert_eq!(store.expire(at(1000)).await.expect("expire succeeds"), 0, "nothing is left");
}

async fn uses_only_move_forward(subject: &impl Subject) {
    let store = subject.empty().await;
    let used = inserted(&store, record(1, LEGACY)).await;
    let untouched = inserted(&store, record(2, CURRENT)).await;
    let usage =
        |seconds| Usage { id: used.id.clone(), at: at(seconds), format: HashFormat::Sha256 };
    store.record_usage(&[]).await.expect("an empty batch is no error");
    for (seconds, latest) in [(5000, 5000), (4000, 5000), (6000, 6000)] {
        let unknown = Usage { id: KeyId::from("unknown"), ..usage(seconds) };
        let batch = [unknown, usage(seconds)];
        store.record_usage(&batch).await.expect("an unknown id is passed over");
        let now = stored(&store, &used.id).await;
        assert_eq!(now.last_used_at, Some(at(latest)), "uses only move forward");
        let expected =
            KeyRecord { last_used_at: now.last_used_at, format: now.format, ..used.clone() };
        assert_eq!(now, expected, "nothing else changes");
    }
    assert_eq!(stored(&store, &untouched.id).await, untouched, "other rows are not touched");

    // More than a statement of SQLite or PostgreSQL can bind one by one.
    let unknown = |number| Usage { id: KeyId::from(&*format!("{number}")), ..usage(1) };
    let mut batch: Vec<_> = (0..40_000).map(unknown).collect();
    batch.push(usage(7000));
    store.record_usage(&batch).await.expect("a large batch is written");
    assert_eq!(stored(&store, &used.id).await.last_used_at, Some(at(7000)));
}

async fn a_hash_is_replaced_only_if_it_is_the_expected_one(subject: &impl Subject) {
    let store = subject.empty().await;
    let row = inserted(&store, record(1, LEGACY)).await;
    let other = inserted(&store, record(2, CURRENT)).await;
    let change = HashChange {
        id: row.id.clone(),
        expected: row.hash,
        replacement: candidates(1).as_slice()[CURRENT],
    };
    let refused = [
        ("another hash is expected", HashChange { expected: other.hash, ..change.clone() }),
        (
            "another row has the replacement",
            HashChange { replacement: other.hash, ..change.clone() },
        ),
        ("no row has the id", HashChange { id: KeyId::from("unknown"), ..change.clone() }),
        ("the hash is another row's", HashChange { id: other.id.clone(), ..change.clone() }),
    ];
    for (why, change) in refused {
        let replaced = store.replace_hash(&change).await.expect("no error");
        assert!(!replaced, "not replaced when {why}");
        assert_eq!(stored(&store, &row.id).await, row, "unchanged when {why}");
        assert_eq!(stored(&store, &other.id).await, other, "unchanged when {why}");
    }
    assert!(store.replace_hash(&change).await.expect("no error"), "replaced");
    assert!(!store.replace_hash(&change).await.expect("no error"), "only once");
    let found = store.find(&candidates(1)).await.expect("find answers").expect("is found");
    let expected = KeyRecord { hash: change.replacement, format: found.format, ..row };
    assert_eq!(*found, expected, "only the hash has changed");
}

async fn formats_are_counted(subject: &impl Subject) {
    let store = subject.empty().await;
    let formats = [Some(HashFormat::HmacSha256), Some(HashFormat::Sha256), None, None, None];
    for (number, format) in (0..).zip(formats) {
        let mut record = record(number, LEGACY);
        record.format = format;
        store.insert(&record).await.expect("insert succeeds");
    }
    let id = |number| record(number, LEGACY).id;
    let count = async |hmac_sha256, sha256, unknown| {
        let counts = store.count_by_format().await.expect("count_by_format answers");
        let expected = if subject.keeps_details() {
            FormatCounts { hmac_sha256, sha256, unknown }
        } else {
            FormatCounts { unknown: hmac_sha256 + sha256 + unknown, ..FormatCounts::default() }
        };
        assert_eq!(counts, expected, "the count of formats");
    };
    count(1, 1, 3).await;
    store.revoke(&id(2), at(1), None).await.expect("revoke succeeds");
    count(1, 1, 2).await;
    let usage = Usage { id: id(3), at: at(9), format: HashFormat::Sha256 };
    store.record_usage(&[usage]).await.expect("record_usage succeeds");
    count(1, 2, 1).await;
    let (expected, replacement) =
        (candidates(4).as_slice()[LEGACY], candidates(4).as_slice()[CURRENT]);
    let change = HashChange { id: id(4), expected, replacement };
    assert!(store.replace_hash(&change).await.expect("no error"));
    count(2, 2, 0).await;
}

async fn an_unknown_id_is_not_found(subject: &impl Subject) {
    let store = subject.empty().await;
    let id = KeyId::from("unknown");
    let answers = [
        store.update(&id, &KeyUpdate::default()).await,
        store.revoke(&id, at(1), None).await,
        store.rotate(&id, at(1), at(2), &record(1, CURRENT)).await,
    ];
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::NotFound(_))), "not found: {answer:?}");
    }
}
