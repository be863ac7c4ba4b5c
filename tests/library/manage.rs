//! Issuing, changing, revoking and listing keys: what is refused, and what the rows say afterwards.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::{HashFormat, KeyHash};
use lexikon_auth::store::{FormatCounts, KeyStore, MemoryStore, Page};
use lexikon_auth::{
    KeyId, KeyManager, KeyRecord, KeyUpdate, LegacyPolicy, NewKey, OwnerId, Policy, Refusal,
    Rotation, Scopes, StoreError, Verifier,
};
use lexikon_auth_tests::{
    SECRETS, UNTAGGED, WildClock, hmac_hash, legacy_hash, noon, one_secret, ready, record, ring,
};

use crate::desk::{
    Desk, HOUR, MICROSECOND, NANOSECOND, SECOND, end_of_time, extremes, invalid_field, new_key,
    store_error,
};

#[test]
fn an_issued_key_is_stored_as_its_record_says_and_verifies() {
    let desk = Desk::new();
    let issued = desk.issue(new_key().expires_at(noon() + HOUR));
    let record = &issued.record;
    assert_eq!(*record, *desk.stored(&record.id));
    assert_eq!(record.owner, "user-1".into());
    assert_eq!(&*record.name, "deploy");
    assert_eq!(record.scopes, "read,write".into());
    assert_eq!(record.format, Some(HashFormat::HmacSha256));
    assert_eq!(record.created_at, Some(noon()));
    assert_eq!(record.expires_at, Some(noon() + HOUR));
    assert_eq!((record.last_used_at, record.is_revoked()), (None, false));
    assert_eq!(record.hash, KeyHash::of(&issued.key, &lexikon_auth_tests::secret(SECRETS[0])));

    let verified = ready(desk.verifier.verify(issued.key.expose_secret())).unwrap();
    assert_eq!(*verified.id(), record.id);
    assert!(verified.allows("write") && !verified.allows("admin"));
}

#[test]
fn a_key_without_scopes_may_do_nothing_and_without_expiry_never_ends() {
    let desk = Desk::new();
    let issued = desk.issue(NewKey::new("user-1", ""));
    desk.clock.advance(Duration::from_secs(200 * 365 * 24 * 3600));
    let verified = ready(desk.verifier.verify(issued.key.expose_secret())).unwrap();
    assert!(!verified.allows("read"));
    assert_eq!(verified.expires_at(), None);
}

#[test]
fn ids_are_distinct_uuids_of_version_4() {
    let desk = Desk::new();
    let ids: HashSet<_> = (0..100).map(|_| desk.issue(new_key()).record.id.to_string()).collect();
    assert_eq!(ids.len(), 100);
    for id in ids {
        let groups: Vec<_> = id.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
        assert_eq!(id.as_bytes()[14], b'4', "{id}");
        assert!(b"89ab".contains(&id.as_bytes()[19]), "{id}");
    }
}

#[test]
fn a_key_is_issued_under_the_current_secret_of_the_ring() {
    let store = MemoryStore::new();
    let manager = KeyManager::new(store.clone(), &ring(&SECRETS[..3]));
    let issued = ready(manager.issue(new_key())).unwrap();
    let verifier = Verifier::new(store, one_secret());
    assert!(ready(verifier.verify(issued.key.expose_secret())).is_ok());
}

#[test]
fn the_key_of_a_disabled_owner_is_refused_from_the_start() {
    let desk = Desk::new();
    desk.store.set_owner_active(&OwnerId::from("user-1"), false);
    let issued = desk.issue(new_key());
    let disabled = Refusal::OwnerDisabled(issued.record.id.clone());
    assert_eq!(desk.refusal(&issued), Some(disabled));
}

#[test]
fn a_key_with_values_that_cannot_be_stored_is_not_issued() {
    let desk = Desk::new();
    let long = "x".repeat(1025);
    let wide = "é".repeat(513);
    let named = |name: &str| NewKey::new("user-1", name);
    let owned = |owner: &str| NewKey::new(owner, "deploy");
    let mut requests = vec![
        ("the owner", owned("")),
        ("the owner", owned("user\0-1")),
        ("the owner", owned(&long)),
        ("the name", named("\0")),
        ("the name", named(&long)),
        ("the name", named(&wide)),
        ("the scopes", new_key().scopes("read,wri\0te")),
        ("the scopes", new_key().scopes(&*long)),
        ("the scopes", new_key().scopes("read write")),
        ("the scopes", new_key().scopes("read,write\tadmin")),
        ("the scopes", new_key().scopes("read,wri\u{a0}te")),
        ("the expiry", new_key().expires_at(noon())),
        ("the expiry", new_key().expires_at(noon() - SECOND)),
        ("the expiry", new_key().expires_at(noon() + MICROSECOND - NANOSECOND)),
        ("the expiry", new_key().expires_at(SystemTime::UNIX_EPOCH)),
    ];
    requests.extend(extremes().map(|date| ("the expiry", new_key().expires_at(date))));
    for (field, request) in requests {
        assert_eq!(invalid_field(ready(desk.manager.issue(request.clone()))), field, "{request:?}");
    }
    assert_eq!(desk.listed("user-1", &Page::first(10)), []);
}

#[test]
fn values_at_the_bounds_are_stored() {
    let desk = Desk::new();
    let longest = "x".repeat(1024);
    let requests = [
        NewKey::new(&*longest, &longest).scopes(&*longest),
        NewKey::new("user-1", "").scopes(""),
        NewKey::new("Jürgen 🔑", "ключ\n\t'\"").scopes("чтение"),
        new_key().expires_at(noon() + MICROSECOND),
        new_key().expires_at(end_of_time()),
        new_key().expires_at(end_of_time() + MICROSECOND - NANOSECOND),
    ];
    for request in requests {
        let issued = desk.issue(request);
        assert_eq!(*desk.stored(&issued.record.id), issued.record);
        assert_eq!(desk.refusal(&issued), None);
    }
}

#[test]
fn owned_texts_and_lists_of_names_are_taken() {
    let desk = Desk::new();
    let (owner, id, names) = ("user-1".to_owned(), "key-1".to_owned(), ["read", "write", "read"]);
    let issued = desk.issue(NewKey::new(&owner, "deploy").scopes(Scopes::from_iter(names)));
    assert_eq!(issued.record.owner.as_str(), owner);
    assert_eq!(issued.record.scopes.as_str(), "read,write");
    let scopes = "read".to_owned();
    let issued = desk.issue(NewKey::new(owner, "deploy").scopes(&scopes));
    assert_eq!(issued.record.scopes, Scopes::from(scopes));
    assert_eq!((KeyId::from(&id), KeyId::from(id)), ("key-1".into(), "key-1".into()));
}

#[test]
fn scopes_are_tidied_where_they_are_given_and_left_as_they_stand_in_a_row() {
    let desk = Desk::new();
    let issued = desk.issue(new_key().scopes(" read, write ,read,,"));
    let id = &issued.record.id;
    assert_eq!(desk.stored(id).scopes.as_str(), "read,write");
    ready(desk.manager.update(id, KeyUpdate::default().scopes("admin "))).unwrap();
    assert_eq!(desk.stored(id).scopes.as_str(), "admin");

    // A row of the lexikon service, which grants `read` alone. So does its successor.
    let mut row = record("row", hmac_hash(SECRETS[0], UNTAGGED));
    row.scopes = "read, write, admin".into();
    ready(desk.store.insert(&row)).unwrap();
    let successor = ready(desk.manager.rotate(&row.id, Rotation::default())).unwrap();
    assert_eq!(desk.stored(&successor.record.id).scopes, row.scopes);
    let verified = ready(desk.verifier.verify(successor.key.expose_secret())).unwrap();
    let granted = ["read", "write", "admin"].map(|scope| verified.allows(scope));
    assert_eq!(granted, [true, false, false]);
}

#[test]
fn times_are_cut_to_the_microsecond() {
    let desk = Desk::new();
    desk.clock.advance(Duration::from_nanos(1_999));
    let issued = desk.issue(new_key().expires_at(noon() + Duration::from_nanos(5_999)));
    assert_eq!(issued.record.created_at, Some(noon() + MICROSECOND));
    assert_eq!(issued.record.expires_at, Some(noon() + 5 * MICROSECOND));

    let id = &issued.record.id;
    let update = KeyUpdate::default().expires_at(noon() + Duration::from_nanos(7_999));
    ready(desk.manager.update(id, update)).unwrap();
    assert_eq!(desk.stored(id).expires_at, Some(noon() + 7 * MICROSECOND));

    let successor = desk.rotate(id, Duration::from_nanos(1_999));
    assert_eq!(desk.stored(id).expires_at, Some(noon() + 2 * MICROSECOND));
    ready(desk.manager.revoke(&successor.record.id, None)).unwrap();
    let revocation = desk.stored(&successor.record.id).revocation.clone().unwrap();
    assert_eq!(revocation.at, Some(noon() + MICROSECOND));
}

#[test]
fn no_time_of_the_clock_panics() {
    for now in extremes().into_iter().chain([SystemTime::UNIX_EPOCH, end_of_time()]) {
        let desk = Desk::new();
        let clock = Arc::new(WildClock(Mutex::new(now)));
        let manager = KeyManager::new(desk.store.clone(), &one_secret()).with_clock(clock);
        let issued = ready(manager.issue(new_key())).unwrap();
        let id = &issued.record.id;
        _ = ready(manager.issue(new_key().expires_at(noon())));
        for overlap in [Duration::ZERO, HOUR, Duration::MAX] {
            _ = ready(manager.rotate(id, Rotation::default().overlap(overlap)));
        }
        ready(manager.revoke(id, None)).unwrap();
        ready(manager.expire()).unwrap();
    }
}

/// What an update is to do to a record.
type Change = fn(&mut KeyRecord);

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let desk = Desk::new();
    let issued = desk.issue(new_key().expires_at(noon() + HOUR));
    let id = &issued.record.id;
    let steps: [(KeyUpdate, Change); 5] = [
        (KeyUpdate::default(), |_| {}),
        (KeyUpdate::default().name("renamed"), |record| {
            record.name = "renamed".into();
        }),
        (KeyUpdate::default().scopes("admin"), |record| {
            record.scopes = "admin".into();
        }),
        (KeyUpdate::default().scopes(Scopes::default()), |record| {
            record.scopes = Scopes::default();
        }),
        (KeyUpdate::default().never_expires(), |record| {
            record.expires_at = None;
        }),
    ];
    let mut expected = issued.record.clone();
    for (update, change) in steps {
        ready(desk.manager.update(id, update)).unwrap();
        change(&mut expected);
        assert_eq!(*desk.stored(id), expected);
        let verified = ready(desk.verifier.verify(issued.key.expose_secret())).unwrap();
        assert_eq!(*verified.scopes(), expected.scopes);
    }
}

#[test]
fn an_update_may_end_a_key_at_once() {
    let desk = Desk::new();
    for date in [SystemTime::UNIX_EPOCH, noon() - HOUR, noon()] {
        let issued = desk.issue(new_key());
        let update = KeyUpdate::default().expires_at(date);
        ready(desk.manager.update(&issued.record.id, update)).unwrap();
        assert_eq!(desk.refusal(&issued), Some(Refusal::Expired(issued.record.id.clone())));
    }
}

#[test]
fn an_update_with_values_that_cannot_be_stored_changes_nothing() {
    let desk = Desk::new();
    let issued = desk.issue(new_key());
    let id = &issued.record.id;
    let long = "x".repeat(1025);
    let update = KeyUpdate::default;
    let mut updates = vec![
        ("the name", update().name("\0")),
        ("the name", update().name(&long)),
        ("the scopes", update().scopes("a\0")),
        ("the scopes", update().scopes(&long)),
        ("the scopes", update().scopes("read write")),
    ];
    let dated = |date| ("the expiry", update().expires_at(date));
    updates.extend(extremes().map(dated));
    for (field, update) in updates {
        assert_eq!(invalid_field(ready(desk.manager.update(id, update))), field);
    }
    assert_eq!(*desk.stored(id), issued.record);
}

#[test]
fn a_revoked_key_is_refused_at_once_and_for_good() {
    let desk = Desk::new();
    let issued = desk.issue(new_key());
    let id = &issued.record.id;
    assert_eq!(desk.refusal(&issued), None);
    desk.clock.advance(SECOND);
    ready(desk.manager.revoke(id, Some("laptop lost"))).unwrap();
    let revoked = Some(Refusal::Revoked(id.clone()));
    assert_eq!(desk.refusal(&issued), revoked);
    let revocation = desk.stored(id).revocation.clone().unwrap();
    assert_eq!(revocation.at, Some(noon() + SECOND));
    assert_eq!(revocation.reason.as_deref(), Some("laptop lost"));

    desk.clock.advance(SECOND);
    ready(desk.manager.revoke(id, Some("another reason"))).unwrap();
    assert_eq!(desk.stored(id).revocation.as_deref(), Some(&*revocation), "the first one stands");
    let update = KeyUpdate::default().expires_at(noon() + HOUR);
    ready(desk.manager.update(id, update)).unwrap();
    assert_eq!(desk.refusal(&issued), revoked);
}

#[test]
fn a_reason_that_cannot_be_stored_does_not_revoke() {
    let desk = Desk::new();
    let issued = desk.issue(new_key());
    for reason in ["\0", &"x".repeat(1025)] {
        let answer = ready(desk.manager.revoke(&issued.record.id, Some(reason)));
        assert_eq!(invalid_field(answer), "the reason");
    }
    assert_eq!(desk.refusal(&issued), None);
    ready(desk.manager.revoke(&issued.record.id, Some(&"x".repeat(1024)))).unwrap();
    let revoked = Refusal::Revoked(issued.record.id.clone());
    assert_eq!(desk.refusal(&issued), Some(revoked));
}

#[test]
fn an_unknown_id_is_not_found() {
    let desk = Desk::new();
    let manager = &desk.manager;
    for id in ["", "ef4eb8aa-4d1f-493e-8ac6-2257a6a956b5", "'; DROP TABLE api_keys; --"] {
        let id = KeyId::from(id);
        assert!(ready(manager.find(&id)).unwrap().is_none());
        let answers = [
            ready(manager.update(&id, KeyUpdate::default())),
            ready(manager.revoke(&id, None)),
            ready(manager.rotate(&id, Rotation::default())).map(drop),
        ];
        for answer in answers {
            assert!(matches!(store_error(answer), StoreError::NotFound(unknown) if unknown == id));
        }
    }
}

#[test]
fn keys_are_listed_newest_first_and_by_pages() {
    let desk = Desk::new();
    let mut expected = Vec::new();
    for _ in 0..3 {
        // Two of the same time: in descending order of id.
        let mut pair = [(); 2].map(|()| desk.issue(new_key()).record.id);
        pair.sort();
        expected.splice(0..0, pair.into_iter().rev());
        desk.clock.advance(SECOND);
    }
    let mut undated = record("undated", legacy_hash(UNTAGGED));
    undated.created_at = None;
    ready(desk.store.insert(&undated)).unwrap();
    expected.push(undated.id);
    desk.issue(NewKey::new("user-2", "of another owner"));

    assert_eq!(desk.listed("user-1", &Page::first(100)), expected);
    assert_eq!(desk.listed("user-1", &Page::first(2)), expected[..2]);
    assert_eq!(desk.listed("user-1", &Page::first(0)), []);
    assert_eq!(desk.listed("nobody", &Page::first(100)), []);
    for size in 1..=8 {
        let (mut page, mut listed) = (Page::first(size), Vec::new());
        loop {
            let ids = desk.listed("user-1", &page);
            let Some(last) = ids.last() else { break };
            page = Page::after(size, last.clone());
            listed.extend(ids);
        }
        assert_eq!(listed, expected, "by pages of {size}");
    }
}

#[test]
fn the_sweep_revokes_what_has_expired_and_nothing_else() {
    let desk = Desk::new();
    let at = |offset| desk.issue(new_key().expires_at(noon() + offset));
    let (due, just_due, not_yet, endless) =
        (at(SECOND), at(HOUR), at(HOUR + MICROSECOND), desk.issue(new_key()));
    let revoked = at(SECOND);
    ready(desk.manager.revoke(&revoked.record.id, Some("laptop lost"))).unwrap();

    assert_eq!(ready(desk.manager.expire()).unwrap(), 0);
    desk.clock.advance(HOUR);
    assert_eq!(ready(desk.manager.expire()).unwrap(), 2);
    assert_eq!(ready(desk.manager.expire()).unwrap(), 0);
    for key in [&due, &just_due] {
        let revocation = desk.stored(&key.record.id).revocation.clone().unwrap();
        assert_eq!(revocation.at, Some(noon() + HOUR));
        assert_eq!(revocation.reason.as_deref(), Some("expired"));
        // The refusal still says why.
        assert_eq!(desk.refusal(key), Some(Refusal::Expired(key.record.id.clone())));
    }
    for key in [&not_yet, &endless] {
        assert!(!desk.stored(&key.record.id).is_revoked());
        assert_eq!(desk.refusal(key), None);
    }
    let revocation = desk.stored(&revoked.record.id).revocation.clone().unwrap();
    assert_eq!(revocation.reason.as_deref(), Some("laptop lost"));
}

#[test]
fn keys_are_counted_by_format_as_far_as_the_rows_say() {
    let desk = Desk::new();
    let count = || ready(desk.manager.count_by_format()).unwrap();
    assert_eq!(count(), FormatCounts::default());
    let issued = desk.issue(new_key());
    desk.issue(new_key());
    ready(desk.store.insert(&record("legacy", legacy_hash(UNTAGGED)))).unwrap();
    assert_eq!(count(), FormatCounts { hmac_sha256: 2, sha256: 0, unknown: 1 });

    // A use tells the format, an upgrade changes it, a revoked key counts no more.
    _ = ready(desk.verifier.verify(UNTAGGED)).unwrap();
    ready(desk.verifier.flush()).unwrap();
    assert_eq!(count(), FormatCounts { hmac_sha256: 2, sha256: 1, unknown: 0 });
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let upgrading = Verifier::new(desk.store.clone(), one_secret()).with_policy(upgrade);
    _ = ready(upgrading.verify(UNTAGGED)).unwrap();
    ready(upgrading.flush()).unwrap();
    assert_eq!(count(), FormatCounts { hmac_sha256: 3, sha256: 0, unknown: 0 });
    ready(desk.manager.revoke(&issued.record.id, None)).unwrap();
    assert_eq!(count(), FormatCounts { hmac_sha256: 2, sha256: 0, unknown: 0 });
}

#[test]
fn a_second_row_with_the_same_id_or_hash_is_a_conflict() {
    let desk = Desk::new();
    let issued = desk.issue(new_key());
    let mut same_id = record("other", legacy_hash(UNTAGGED));
    same_id.id = issued.record.id.clone();
    let same_hash = record("other", issued.record.hash);
    for record in [&issued.record, &same_id, &same_hash] {
        let error = ready(desk.store.insert(record)).unwrap_err();
        assert!(matches!(error, StoreError::Conflict), "{error:?}");
    }
    assert_eq!(*desk.stored(&issued.record.id), issued.record);
}
