//! Rotating keys: how long the old one lives, what its successor takes over, and what is refused.

use std::time::Duration;

use lexikon_auth::crypto::KeyHash;
use lexikon_auth::store::Page;
use lexikon_auth::{IssuedKey, Refusal, Rotation, StoreError};
use lexikon_auth_tests::{SECRETS, noon, ready};

use crate::desk::{
    Desk, HOUR, MICROSECOND, NANOSECOND, SECOND, end_of_time, extremes, invalid_field, new_key,
    store_error,
};

#[test]
fn a_rotated_key_is_accepted_for_the_overlap_and_never_longer_than_before() {
    let cases = [
        // Expiry before, overlap, expiry after: each from noon.
        (None, Duration::ZERO, Duration::ZERO),
        (None, HOUR, HOUR),
        (Some(2 * HOUR), HOUR, HOUR),
        (Some(HOUR), HOUR, HOUR),
        (Some(HOUR), 2 * HOUR, HOUR),
        (Some(HOUR), Duration::ZERO, Duration::ZERO),
    ];
    for (before, overlap, after) in cases {
        let desk = Desk::new();
        let request = before.map_or(new_key(), |before| new_key().expires_at(noon() + before));
        let old = desk.issue(request);
        let id = &old.record.id;
        let successor = desk.rotate(id, overlap);
        assert_eq!(desk.stored(id).expires_at, Some(noon() + after));
        assert_eq!(desk.refusal(&successor), None);

        let expired = Some(Refusal::Expired(id.clone()));
        if !after.is_zero() {
            desk.clock.advance(after - NANOSECOND);
            assert_eq!(desk.refusal(&old), None, "the instant before");
            desk.clock.advance(NANOSECOND);
        }
        assert_eq!(desk.refusal(&old), expired);
    }
}

#[test]
fn a_successor_takes_over_owner_name_scopes_and_expiry() {
    let desk = Desk::new();
    let old = desk.issue(new_key().expires_at(noon() + HOUR));
    desk.clock.advance(SECOND);
    let successor = desk.rotate(&old.record.id, SECOND);
    let mut expected = old.record.clone();
    expected.id = successor.record.id.clone();
    expected.hash = KeyHash::of(&successor.key, &lexikon_auth_tests::secret(SECRETS[0]));
    expected.created_at = Some(noon() + SECOND);
    assert_eq!(*desk.stored(&successor.record.id), expected);
    assert_eq!(successor.record, expected);
    assert!(expected.id != old.record.id && expected.hash != old.record.hash);

    let endless = desk.issue(new_key());
    assert_eq!(desk.rotate(&endless.record.id, SECOND).record.expires_at, None);
}

#[test]
fn a_successor_may_have_an_expiry_of_its_own() {
    for own in [SECOND, 2 * HOUR] {
        for before in [None, Some(noon() + HOUR)] {
            let desk = Desk::new();
            let old = desk.issue(before.map_or(new_key(), |date| new_key().expires_at(date)));
            let rotation = Rotation::default().overlap(SECOND).expires_at(noon() + own);
            let successor = ready(desk.manager.rotate(&old.record.id, rotation)).unwrap();
            assert_eq!(successor.record.expires_at, Some(noon() + own));
        }
    }
}

#[test]
fn a_successor_can_be_rotated_in_turn() {
    let desk = Desk::new();
    let first = desk.issue(new_key());
    let second = desk.rotate(&first.record.id, HOUR);
    let third = desk.rotate(&second.record.id, HOUR);
    for key in [&first, &second, &third] {
        assert_eq!(desk.refusal(key), None);
    }
    desk.clock.advance(HOUR);
    assert!(desk.refusal(&first).is_some() && desk.refusal(&second).is_some());
    assert_eq!(desk.refusal(&third), None);
}

#[test]
fn a_rotation_that_is_refused_changes_nothing() {
    let desk = Desk::new();
    let old = desk.issue(new_key());
    let id = &old.record.id;
    let too_long = end_of_time().duration_since(noon()).unwrap() + MICROSECOND;
    let plain = Rotation::default;
    let mut rotations = vec![
        ("the overlap", Rotation::default().overlap(Duration::MAX)),
        ("the overlap", Rotation::default().overlap(too_long)),
        ("the expiry", plain().expires_at(noon())),
        ("the expiry", plain().expires_at(noon() - HOUR)),
    ];
    rotations.extend(extremes().map(|date| ("the expiry", plain().expires_at(date))));
    for (field, rotation) in rotations {
        assert_eq!(invalid_field(ready(desk.manager.rotate(id, rotation))), field);
    }
    assert_eq!(desk.listed("user-1", &Page::first(10)).len(), 1, "no successor was stored");
    assert_eq!(*desk.stored(id), old.record);
    assert_eq!(desk.refusal(&old), None);
}

#[test]
fn a_key_that_is_not_in_force_cannot_be_rotated() {
    let desk = Desk::new();
    let [revoked, expired] = [(); 2].map(|()| desk.issue(new_key().expires_at(noon() + HOUR)));
    ready(desk.manager.revoke(&revoked.record.id, None)).unwrap();
    let rotate = |key: &IssuedKey| ready(desk.manager.rotate(&key.record.id, Rotation::default()));
    assert!(matches!(store_error(rotate(&revoked)), StoreError::NotInForce(_)));
    desk.clock.advance(HOUR);
    for key in [&revoked, &expired] {
        let error = store_error(rotate(key));
        assert!(matches!(error, StoreError::NotInForce(id) if id == key.record.id));
    }
    assert_eq!(desk.listed("user-1", &Page::first(10)).len(), 2, "no successor was stored");
}
