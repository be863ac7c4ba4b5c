//! Policies: which keys are still accepted, until when, and which hashes move to the current secret.

use std::sync::Arc;
use std::time::Duration;

use lexikon_auth::crypto::HashFormat;
use lexikon_auth::store::{HashChange, KeyStore, MemoryStore};
use lexikon_auth::tasks::Flushed;
use lexikon_auth::{
    KeyRecord, LegacyPolicy, Policy, Refusal, RetiredPolicy, UntaggedPolicy, Verifier,
};
use lexikon_auth_tests::{
    SECRETS, TAGGED, UNTAGGED, clock_at_noon, hmac_hash, legacy_hash, noon, ready, record, refusal,
    ring, store, untagged_record, verifier,
};

const SECOND: Duration = Duration::from_secs(1);

/// A key tagged under `SECRETS[1]`.
const TAGGED_BY_SECOND: &str = "lxk_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg5rP1PD2S";

fn find(store: &MemoryStore, id: &str) -> Arc<KeyRecord> {
    ready(store.find_by_id(&id.into())).unwrap().expect("a record")
}

#[test]
fn a_policy_that_refuses_untagged_keys_accepts_tagged_ones() {
    let policy = Policy::default().untagged(UntaggedPolicy::Refuse);
    let stored = record("tagged", hmac_hash(SECRETS[0], TAGGED));
    assert!(ready(verifier(store(&[stored])).with_policy(policy).verify(TAGGED)).is_ok());
}

#[test]
fn a_legacy_key_is_accepted_by_default_and_nothing_is_written() {
    let store = store(&[untagged_record(HashFormat::Sha256)]);
    let verifier = verifier(store.clone());
    let verified = ready(verifier.verify(UNTAGGED)).unwrap();
    assert_eq!(verified.format(), HashFormat::Sha256);
    assert!(!verified.is_under_retired_secret());
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 1, upgraded: 0 });
    assert_eq!(find(&store, "legacy").hash, legacy_hash(UNTAGGED));
}

#[test]
fn a_rehearsal_of_refusal_accepts_and_replaces_nothing() {
    let store = store(&[untagged_record(HashFormat::Sha256)]);
    let verifier = verifier(store.clone());
    verifier.set_legacy_policy(LegacyPolicy::Shadow);
    assert!(ready(verifier.verify(UNTAGGED)).is_ok());
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 1, upgraded: 0 });
    assert_eq!(find(&store, "legacy").hash, legacy_hash(UNTAGGED));
    verifier.set_legacy_policy(LegacyPolicy::Refuse);
    assert_eq!(refusal(&verifier, UNTAGGED), Refusal::LegacyClosed("legacy".into()));
}

#[test]
fn a_policy_is_what_it_was_set_to() {
    let verifier = verifier(MemoryStore::new());
    let microsecond = Duration::from_micros(1);
    for policy in [
        LegacyPolicy::Refuse,
        LegacyPolicy::Accept,
        LegacyPolicy::AcceptUntil(noon() + microsecond),
        LegacyPolicy::AcceptUntil(std::time::SystemTime::UNIX_EPOCH),
        LegacyPolicy::Shadow,
        LegacyPolicy::UpgradeOnUse,
    ] {
        verifier.set_legacy_policy(policy);
        assert_eq!(verifier.legacy_policy(), policy);
    }
}

#[test]
fn legacy_keys_are_accepted_until_the_date_and_refused_at_it() {
    let nanosecond = Duration::from_nanos(1);
    let clock = clock_at_noon();
    let policy = Policy::default().legacy(LegacyPolicy::AcceptUntil(noon() + SECOND));
    let modern = record("modern", hmac_hash(SECRETS[0], TAGGED));
    let store = store(&[untagged_record(HashFormat::Sha256), modern]);
    let verifier = verifier(store).with_policy(policy).with_clock(clock.clone());

    assert!(ready(verifier.verify(UNTAGGED)).is_ok());
    clock.advance(SECOND - nanosecond);
    assert!(ready(verifier.verify(UNTAGGED)).is_ok(), "the instant before");
    for (step, moment) in [(nanosecond, "at the date"), (nanosecond, "after"), (SECOND, "later")] {
        clock.advance(step);
        let closed = Refusal::LegacyClosed("legacy".into());
        assert_eq!(refusal(&verifier, UNTAGGED), closed, "{moment}");
        assert!(ready(verifier.verify(TAGGED)).is_ok(), "HMAC keys have no such date");
    }
}

#[test]
fn a_legacy_key_is_upgraded_on_use_and_survives_the_end_of_the_format() {
    let store = store(&[untagged_record(HashFormat::Sha256)]);
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let upgrading = verifier(store.clone()).with_policy(upgrade);
    for _ in 0..3 {
        let verified = ready(upgrading.verify(UNTAGGED)).unwrap();
        assert_eq!(verified.format(), HashFormat::Sha256, "verification itself writes nothing");
    }
    assert_eq!(ready(upgrading.flush()).unwrap(), Flushed { used: 1, upgraded: 1 });
    assert_eq!(find(&store, "legacy").hash, hmac_hash(SECRETS[0], UNTAGGED));
    assert_eq!(find(&store, "legacy").format, Some(HashFormat::HmacSha256));

    let closed = Policy::default().legacy(LegacyPolicy::Refuse);
    let closed = verifier(store).with_policy(closed);
    assert_eq!(ready(closed.verify(UNTAGGED)).unwrap().format(), HashFormat::HmacSha256);
    _ = ready(upgrading.verify(UNTAGGED)).unwrap();
    assert_eq!(ready(upgrading.flush()).unwrap(), Flushed { used: 1, upgraded: 0 });
}

#[test]
fn a_refused_key_is_not_upgraded() {
    let upgrade =
        Policy::default().legacy(LegacyPolicy::UpgradeOnUse).retired(RetiredPolicy::UpgradeOnUse);
    let mut expired = untagged_record(HashFormat::Sha256);
    expired.expires_at = Some(noon());
    let store = store(&[expired]);
    let verifier = verifier(store.clone()).with_policy(upgrade);
    refusal(&verifier, UNTAGGED);
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed::default());
    assert_eq!(find(&store, "legacy").hash, legacy_hash(UNTAGGED));
    assert_eq!(find(&store, "legacy").last_used_at, None);
}

#[test]
fn an_upgrade_does_not_overwrite_a_hash_that_changed_meanwhile() {
    let store = store(&[untagged_record(HashFormat::Sha256)]);
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = verifier(store.clone()).with_policy(upgrade);
    _ = ready(verifier.verify(UNTAGGED)).unwrap();

    let elsewhere = HashChange {
        id: "legacy".into(),
        expected: legacy_hash(UNTAGGED),
        replacement: hmac_hash(SECRETS[1], UNTAGGED),
    };
    assert!(ready(store.replace_hash(&elsewhere)).unwrap());
    assert!(!ready(store.replace_hash(&elsewhere)).unwrap(), "the expected hash is gone");
    assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 1, upgraded: 0 });
    assert_eq!(find(&store, "legacy").hash, elsewhere.replacement);
}

#[test]
fn a_retired_secret_verifies_and_its_hash_moves_only_where_the_policy_says_so() {
    for (policy, upgraded) in [(RetiredPolicy::Accept, 0), (RetiredPolicy::UpgradeOnUse, 1)] {
        for key in [TAGGED, UNTAGGED] {
            let store = store(&[record("key-1", hmac_hash(SECRETS[0], key))]);
            let verifier = Verifier::new(store.clone(), ring(&[SECRETS[1], SECRETS[0]]))
                .with_policy(Policy::default().retired(policy));
            let verified = ready(verifier.verify(key)).unwrap();
            assert!(verified.is_under_retired_secret());
            assert_eq!(verified.format(), HashFormat::HmacSha256);
            assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 1, upgraded });

            let holder = SECRETS[upgraded];
            assert_eq!(find(&store, "key-1").hash, hmac_hash(holder, key));
            let verified = ready(verifier.verify(key)).unwrap();
            assert_eq!(verified.is_under_retired_secret(), upgraded == 0);
        }
    }
}

#[test]
fn the_policies_for_retired_and_legacy_hashes_are_apart() {
    let rows = [
        record("retired", hmac_hash(SECRETS[1], TAGGED_BY_SECOND)),
        untagged_record(HashFormat::Sha256),
    ];
    let upgrade_legacy = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let upgrade_retired = Policy::default().retired(RetiredPolicy::UpgradeOnUse);
    for (policy, moved) in [(upgrade_legacy, "legacy"), (upgrade_retired, "retired")] {
        let store = store(&rows);
        let verifier = Verifier::new(store.clone(), ring(&SECRETS[..2])).with_policy(policy);
        for key in [TAGGED_BY_SECOND, UNTAGGED] {
            _ = ready(verifier.verify(key)).unwrap();
        }
        assert_eq!(ready(verifier.flush()).unwrap(), Flushed { used: 2, upgraded: 1 });
        for row in &rows {
            let has_moved = find(&store, &row.id.to_string()).hash != row.hash;
            assert_eq!(has_moved, row.id == moved.into(), "{moved}");
        }
    }
}
