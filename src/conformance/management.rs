//! Listing, changing, revoking, rotating, and writing in batches.

use super::{CURRENT, LEGACY, MICROSECOND, OWNERS, Subject};
use super::{at, candidates, find, inserted, record, stored, succession};
use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyUpdate;
use crate::record::{KeyRecord, Revocation};
use crate::store::{FormatCounts, HashChange, KeyStore, Page, Usage};

pub(super) async fn run(subject: &impl Subject) {
    lists_are_paged_and_newest_first(subject).await;
    an_update_changes_what_it_names(subject).await;
    a_revocation_is_for_good(subject).await;
    a_rotation_is_whole(subject).await;
    a_rotation_does_not_bring_back_what_was_taken_away(subject).await;
    only_keys_in_force_are_rotated(subject).await;
    a_sweep_revokes_what_is_due(subject).await;
    uses_only_move_forward(subject).await;
    uses_tell_the_format(subject).await;
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
    assert_eq!(
        list(OWNERS[0], Page::first(100)).await,
        ids(&expected),
        "list returns the newest first"
    );
    assert_eq!(list(OWNERS[0], Page::first(0)).await, [], "a limit of zero lists nothing");
    for size in 1..=expected.len() {
        let mut page = Page::first(size as u32);
        for part in expected.chunks(size) {
            assert_eq!(list(OWNERS[0], page).await, ids(part), "the list in pages of {size}");
            page = Page::after(size as u32, part[part.len() - 1].id.clone());
        }
        assert_eq!(list(OWNERS[0], page).await, [], "nothing comes after the last");
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
        assert_eq!(
            stored(&store, 1).await,
            *expected,
            "update changes what it names and nothing else: {update:?}"
        );
    };
    update(KeyUpdate::default(), &expected).await;
    expected.name = "new".into();
    update(KeyUpdate::default().name("new"), &expected).await;
    expected.scopes = "".into();
    update(KeyUpdate::default().scopes(""), &expected).await;
    expected.expires_at = Some(at(4_100_000_000) + MICROSECOND);
    update(KeyUpdate::default().expires_at(at(4_100_000_000) + MICROSECOND), &expected).await;
    expected.expires_at = None;
    update(KeyUpdate::default().never_expires(), &expected).await;
    assert_eq!(stored(&store, 2).await, untouched, "other rows are not touched");
}

async fn a_revocation_is_for_good(subject: &impl Subject) {
    let store = subject.empty().await;
    let untouched = inserted(&store, record(2, CURRENT)).await;
    // The first may have given no reason, and that stands too.
    for (number, first) in [(1, Some("first")), (3, None)] {
        let mut expected = inserted(&store, record(number, CURRENT)).await;
        for (time, reason) in [(5000, first), (4000, Some("second")), (7000, None)] {
            let time = at(time) + MICROSECOND;
            store.revoke(&expected.id, time, reason).await.expect("revoking again is no error");
            let now = stored(&store, number).await;
            assert!(now.is_revoked(), "a find after revoke sees the revocation");
            if subject.keeps_details() {
                let (at, reason) = (Some(at(5000) + MICROSECOND), first.map(Into::into));
                expected.revocation = Some(Box::new(Revocation { at, reason }));
                assert_eq!(now, expected, "the first revocation stands, and nothing else changes");
            }
        }
    }
    assert_eq!(stored(&store, 2).await, untouched, "other rows are not touched");
}

async fn a_rotation_is_whole(subject: &impl Subject) {
    let store = subject.empty().await;
    let old = inserted(&store, record(1, CURRENT)).await;
    let rotations = [
        (at(20) + MICROSECOND, at(20) + MICROSECOND, "the old key gets a date"),
        (at(30), at(20) + MICROSECOND, "the old key never outlives its date"),
        (at(11), at(11), "the overlap may be zero"),
    ];
    for (number, (date, expected, promise)) in (2..).zip(rotations) {
        let successor = record(number, CURRENT);
        let read = stored(&store, 1).await;
        store.rotate(&succession(&read, date, &successor)).await.expect("rotate succeeds");
        assert_eq!(stored(&store, number).await, successor, "the successor is stored");
        let expected = KeyRecord { expires_at: Some(expected), ..old.clone() };
        assert_eq!(stored(&store, 1).await, expected, "{promise}, and nothing else changes");
    }

    let old = inserted(&store, record(5, CURRENT)).await;
    let answer = store.rotate(&succession(&old, at(20), &record(2, CURRENT))).await;
    assert!(
        matches!(answer, Err(StoreError::Conflict)),
        "rotate to a hash that exists is Conflict: {answer:?}"
    );
    assert_eq!(stored(&store, 5).await, old, "without a successor the old key stays");
}

async fn a_rotation_does_not_bring_back_what_was_taken_away(subject: &impl Subject) {
    let updates = [
        KeyUpdate::default().scopes("read"),
        KeyUpdate::default().expires_at(at(1000)),
        KeyUpdate::default().never_expires(),
    ];
    for update in updates {
        let store = subject.empty().await;
        let mut read = record(1, CURRENT);
        read.expires_at = Some(at(2000));
        let read = inserted(&store, read).await;
        store.update(&read.id, &update).await.expect("update succeeds");
        let now = stored(&store, 1).await;
        let answer = store.rotate(&succession(&read, at(20), &record(2, CURRENT))).await;
        assert!(
            matches!(answer, Err(StoreError::Changed(_))),
            "rotate of a key that is not as it was read is Changed: {answer:?}"
        );
        assert_eq!(stored(&store, 1).await, now, "the old key stays");
        let found = find(&store, &candidates(2)).await;
        assert_eq!(found, None, "no successor is stored");
    }
}

async fn only_keys_in_force_are_rotated(subject: &impl Subject) {
    let store = subject.empty().await;
    let mut expired = record(1, CURRENT);
    expired.expires_at = Some(at(10));
    let expired = inserted(&store, expired).await;
    let revoked = inserted(&store, record(2, CURRENT)).await;
    store.revoke(&revoked.id, at(1), None).await.expect("revoke succeeds");
    for key in [expired, revoked] {
        let answer = store.rotate(&succession(&key, at(20), &record(3, CURRENT))).await;
        assert!(
            matches!(answer, Err(StoreError::NotInForce(_))),
            "rotate of a revoked or expired key is NotInForce: {answer:?}"
        );
    }
    let found = find(&store, &candidates(3)).await;
    assert_eq!(found, None, "no successor is stored");
}

async fn a_sweep_revokes_what_is_due(subject: &impl Subject) {
    let store = subject.empty().await;
    let now = at(1000);
    let dates = [Some(now - MICROSECOND), Some(now), Some(now + MICROSECOND), None, Some(at(500))];
    for (number, date) in (0..).zip(dates) {
        let mut record = record(number, CURRENT);
        record.expires_at = date;
        store.insert(&record).await.expect("insert succeeds");
    }
    store.revoke(&record(4, CURRENT).id, at(1), Some("by hand")).await.expect("revoke succeeds");
    assert_eq!(
        store.expire(now).await.expect("expire succeeds"),
        2,
        "expire counts what is due, at the date itself too"
    );
    let (swept, by_hand) = (Some((now, "expired")), Some((at(1), "by hand")));
    for (number, expected) in (0..).zip([swept, swept, None, None, by_hand]) {
        let row = stored(&store, number).await;
        assert_eq!(
            row.is_revoked(),
            expected.is_some(),
            "expire revokes what is due and nothing else: key {number}"
        );
        if subject.keeps_details() {
            let revocation =
                |(at, reason): (_, &str)| Revocation { at: Some(at), reason: Some(reason.into()) };
            let expected = expected.map(revocation);
            assert_eq!(
                row.revocation.as_deref(),
                expected.as_ref(),
                "expire gives its time and the reason expired: key {number}"
            );
        }
    }
    assert_eq!(store.expire(now).await.expect("expire succeeds"), 0, "expire revokes a key once");
}

async fn uses_only_move_forward(subject: &impl Subject) {
    let store = subject.empty().await;
    let used = inserted(&store, record(1, LEGACY)).await;
    let untouched = inserted(&store, record(2, CURRENT)).await;
    let usage = |at| Usage { id: used.id.clone(), at, format: HashFormat::Sha256 };
    store.record_usage(&[]).await.expect("an empty batch is no error");
    let later = at(5000) + MICROSECOND;
    for (time, latest) in [(at(5000), at(5000)), (at(4000), at(5000)), (later, later)] {
        let unknown = Usage { id: KeyId::from("unknown"), ..usage(time) };
        store.record_usage(&[unknown, usage(time)]).await.expect("an unknown id is passed over");
        let now = stored(&store, 1).await;
        assert_eq!(now.last_used_at, Some(latest), "record_usage moves last_used_at forward only");
        let expected =
            KeyRecord { last_used_at: now.last_used_at, format: now.format, ..used.clone() };
        assert_eq!(now, expected, "record_usage changes last_used_at and format alone");
    }
    assert_eq!(stored(&store, 2).await, untouched, "other rows are not touched");
    let batch = [usage(at(6000)), usage(at(6500)), usage(at(6000))];
    store.record_usage(&batch).await.expect("a batch may hold several uses of a key");
    assert_eq!(
        stored(&store, 1).await.last_used_at,
        Some(at(6500)),
        "the latest of a batch stands"
    );

    // More than a statement of SQLite or PostgreSQL can bind one by one.
    let unknown = |number| Usage { id: KeyId::from(&*format!("{number}")), ..usage(at(1)) };
    let mut batch: Vec<_> = (0..40_000).map(unknown).collect();
    batch.push(usage(at(7000)));
    store.record_usage(&batch).await.expect("a large batch is written");
    assert_eq!(
        stored(&store, 1).await.last_used_at,
        Some(at(7000)),
        "all of a large batch is written"
    );
}

async fn uses_tell_the_format(subject: &impl Subject) {
    if !subject.keeps_details() {
        return;
    }
    let store = subject.empty().await;
    let id = inserted(&store, record(1, LEGACY)).await.id;
    let sha256 = "record_usage writes format";
    let upgraded = "record_usage writes format, also over another: a hash moves to HMAC-SHA-256";
    // Noted before the upgrade, written after it.
    let late = "record_usage never writes format back from HMAC-SHA-256 to SHA-256";
    let (modern, legacy) = (HashFormat::HmacSha256, HashFormat::Sha256);
    let uses = [(legacy, legacy, sha256), (modern, modern, upgraded), (legacy, modern, late)];
    for (second, (format, expected, promise)) in (1..).zip(uses) {
        let usage = Usage { id: id.clone(), at: at(second), format };
        store.record_usage(&[usage]).await.expect("record_usage succeeds");
        let row = store.find_by_id(&id).await.expect("find_by_id answers");
        assert_eq!(row.expect("find_by_id finds the row").format, Some(expected), "{promise}");
    }
    let id = inserted(&store, record(2, LEGACY)).await.id;
    let usage = |second, format| Usage { id: id.clone(), at: at(second), format };
    let batch = [usage(1, modern), usage(2, legacy)];
    store.record_usage(&batch).await.expect("a batch may hold several uses of a key");
    let row = store.find_by_id(&id).await.expect("find_by_id answers");
    assert_eq!(row.expect("find_by_id finds the row").format, Some(modern), "{late}");
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
        let replaced = store
            .replace_hash(&change)
            .await
            .expect("replace_hash that replaces nothing is no error");
        assert!(!replaced, "replace_hash replaces nothing when {why}");
        assert_eq!(stored(&store, 1).await, row, "replace_hash changes no row when {why}");
        assert_eq!(stored(&store, 2).await, other, "replace_hash changes no row when {why}");
    }
    let replaced = store.replace_hash(&change).await.expect("replace_hash succeeds");
    assert!(replaced, "replace_hash replaces the expected hash");
    let replaced = store.replace_hash(&change).await.expect("a second replace_hash is no error");
    assert!(!replaced, "replace_hash replaces a hash once");
    let now = stored(&store, 1).await;
    let expected = KeyRecord { hash: change.replacement, format: now.format, ..row };
    assert_eq!(now, expected, "replace_hash changes the hash and its format alone");
    let mut heir = record(3, CURRENT);
    heir.hash = change.expected;
    store.insert(&heir).await.expect("after replace_hash no row holds the old hash");
}

async fn formats_are_counted(subject: &impl Subject) {
    let store = subject.empty().await;
    let formats = [Some(HashFormat::HmacSha256), Some(HashFormat::Sha256), None, None, None];
    for (number, format) in (0..).zip(formats) {
        let mut record = record(number, LEGACY);
        record.format = format;
        record.expires_at = Some(at(1));
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
        assert_eq!(
            counts, expected,
            "count_by_format counts the keys that are not revoked by their format"
        );
    };
    // All are past their date: what is not revoked counts.
    count(1, 1, 3).await;
    store.revoke(&id(2), at(1), None).await.expect("revoke succeeds");
    count(1, 1, 2).await;
    let usage = Usage { id: id(3), at: at(9), format: HashFormat::Sha256 };
    store.record_usage(&[usage]).await.expect("record_usage succeeds");
    count(1, 2, 1).await;
    let (expected, replacement) =
        (candidates(4).as_slice()[LEGACY], candidates(4).as_slice()[CURRENT]);
    let change = HashChange { id: id(4), expected, replacement };
    assert!(store.replace_hash(&change).await.expect("replace_hash succeeds"), "the hash moves");
    count(2, 2, 0).await;
}

async fn an_unknown_id_is_not_found(subject: &impl Subject) {
    let store = subject.empty().await;
    let id = KeyId::from("unknown");
    let answers = [
        store.update(&id, &KeyUpdate::default()).await,
        store.revoke(&id, at(1), None).await,
        store.rotate(&succession(&record(2, CURRENT), at(20), &record(1, CURRENT))).await,
    ];
    for answer in answers {
        assert!(
            matches!(answer, Err(StoreError::NotFound(_))),
            "a change of an unknown id is NotFound: {answer:?}"
        );
    }
    let found = find(&store, &candidates(1)).await;
    assert_eq!(found, None, "no successor is stored");
}
