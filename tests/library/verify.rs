//! The verifier: every refusal, and that the comparison decides, not the store.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, MalformedKey, PresentedKey};
use lexikon_auth::store::{KeyLookup, MemoryStore, Revocation};
use lexikon_auth::{
    KeyId, KeyRecord, LegacyPolicy, OwnerId, Policy, Refusal, StoreError, UntaggedPolicy, Verifier,
    VerifyError,
};
use lexikon_auth_tests::{
    FORGED, SECRETS, TAGGED, UNTAGGED, WrongRow, assert_reveals_nothing, clock_at_noon, hmac_hash,
    legacy_hash, noon, printed, ready, record, refusal, ring, store, untagged_record, verifier,
};

const SECOND: Duration = Duration::from_secs(1);

/// Counts the look-ups that reach a store.
struct Counting {
    store: MemoryStore,
    lookups: Arc<AtomicUsize>,
}

impl KeyLookup for Counting {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        self.store.find(candidates).await
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

/// A store that holds this record, and the number of look-ups that reached it.
fn counting(record: KeyRecord) -> (Counting, Arc<AtomicUsize>) {
    let lookups = Arc::new(AtomicUsize::new(0));
    (Counting { store: store(&[record]), lookups: lookups.clone() }, lookups)
}

/// Cannot answer.
struct Failing;

impl KeyLookup for Failing {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Err(StoreError::Unavailable(io::Error::other("the connection was closed").into()))
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

#[test]
fn a_key_in_force_is_verified_with_all_that_its_row_says() {
    let mut stored = record("key-1", hmac_hash(SECRETS[0], TAGGED));
    stored.name = "deploy".into();
    stored.scopes = "read,write".into();
    stored.expires_at = Some(noon() + SECOND);
    let verifier = verifier(store(&[stored.clone()]));

    let verified = ready(verifier.verify(TAGGED)).unwrap();
    assert_eq!(*verified.id(), stored.id);
    assert_eq!(*verified.owner(), stored.owner);
    assert_eq!(verified.name(), "deploy");
    assert_eq!(*verified.scopes(), stored.scopes);
    assert_eq!(verified.expires_at(), stored.expires_at);
    assert_eq!(verified.format(), HashFormat::HmacSha256);
    assert!(!verified.is_under_retired_secret());
    assert!(verified.allows("write") && !verified.allows("admin"));
}

#[test]
fn every_refusal_has_its_reason_and_its_word() {
    let modern = || untagged_record(HashFormat::HmacSha256);
    let with = |change: fn(&mut KeyRecord)| {
        let mut record = modern();
        change(&mut record);
        store(&[record])
    };
    let disabled = store(&[modern()]);
    disabled.set_owner_active(&OwnerId::from("user-1"), false);
    let id = || KeyId::from("modern");
    let refuse_untagged = Policy::default().untagged(UntaggedPolicy::Refuse);
    let refuse_legacy = Policy::default().legacy(LegacyPolicy::Refuse);
    let legacy = store(&[untagged_record(HashFormat::Sha256)]);
    let (empty, any) = (MemoryStore::new(), Policy::default());

    let cases = [
        (empty.clone(), any, "lxk_", Refusal::Malformed(MalformedKey::Length), "malformed"),
        (empty.clone(), any, FORGED, Refusal::ForgedTag, "forged_tag"),
        (store(&[modern()]), refuse_untagged, UNTAGGED, Refusal::UntaggedClosed, "untagged_closed"),
        (empty.clone(), any, UNTAGGED, Refusal::Unknown, "unknown"),
        (empty, any, TAGGED, Refusal::Unknown, "unknown"),
        (
            with(|record| record.expires_at = Some(noon())),
            any,
            UNTAGGED,
            Refusal::Expired(id()),
            "expired",
        ),
        (
            with(|record| record.revocation = Some(Box::new(Revocation::default()))),
            any,
            UNTAGGED,
            Refusal::Revoked(id()),
            "revoked",
        ),
        (disabled, any, UNTAGGED, Refusal::OwnerDisabled(id()), "owner_disabled"),
        (legacy, refuse_legacy, UNTAGGED, Refusal::LegacyClosed("legacy".into()), "legacy_closed"),
    ];
    for (store, policy, key, expected, word) in cases {
        let error = ready(verifier(store).with_policy(policy).verify(key)).unwrap_err();
        assert_eq!(error.refusal(), Some(&expected));
        assert_eq!(expected.as_str(), word);
        // The caller sees the same words whatever the reason; the log finds it in the source.
        assert_eq!(error.to_string(), "the API key was refused");
        let source = std::error::Error::source(&error).expect("the reason");
        assert_eq!(source.to_string(), expected.to_string());
        assert_reveals_nothing(&printed(&error), key);
    }
}

#[test]
fn the_same_row_is_accepted_once_the_reason_is_gone() {
    let store = store(&[untagged_record(HashFormat::HmacSha256)]);
    let verifier = verifier(store.clone());
    let owner = OwnerId::from("user-1");
    for _ in 0..2 {
        store.set_owner_active(&owner, false);
        assert_eq!(refusal(&verifier, UNTAGGED), Refusal::OwnerDisabled("modern".into()));
        store.set_owner_active(&owner, true);
        assert!(ready(verifier.verify(UNTAGGED)).is_ok());
    }
}

#[test]
fn a_key_expires_at_the_very_instant_of_its_date() {
    let nanosecond = Duration::from_nanos(1);
    let cases = [
        (noon() - SECOND, false),
        (noon() - nanosecond, false),
        (noon(), false),
        (noon() + nanosecond, true),
        (noon() + SECOND, true),
        (SystemTime::UNIX_EPOCH - SECOND, false),
    ];
    for (date, accepted) in cases {
        for format in [HashFormat::HmacSha256, HashFormat::Sha256] {
            let mut stored = untagged_record(format);
            stored.expires_at = Some(date);
            let expired = Refusal::Expired(stored.id.clone());
            let answer = ready(verifier(store(&[stored])).verify(UNTAGGED)).map(|_| ());
            match answer {
                Ok(()) => assert!(accepted, "{date:?}"),
                Err(error) => assert_eq!((error.refusal(), accepted), (Some(&expired), false)),
            }
        }
    }
}

#[test]
fn a_key_expires_while_the_clock_moves() {
    let clock = clock_at_noon();
    let mut stored = untagged_record(HashFormat::HmacSha256);
    stored.expires_at = Some(noon() + SECOND);
    let verifier = verifier(store(&[stored])).with_clock(clock.clone());
    assert!(ready(verifier.verify(UNTAGGED)).is_ok());
    clock.advance(SECOND);
    assert_eq!(refusal(&verifier, UNTAGGED), Refusal::Expired("modern".into()));
}

#[test]
fn malformed_forged_and_closed_keys_reach_no_store() {
    let (store, lookups) = counting(untagged_record(HashFormat::HmacSha256));
    let policy = Policy::default().untagged(UntaggedPolicy::Refuse);
    let verifier = verifier(store).with_policy(policy);
    let megabyte = "lxk_".repeat(1 << 18);
    for key in ["", "lxk_", "Bearer", &megabyte, "lxk_\0", FORGED, UNTAGGED] {
        refusal(&verifier, key);
    }
    assert_eq!(lookups.load(Ordering::Relaxed), 0);
    // The counter counts.
    assert_eq!(refusal(&verifier, TAGGED), Refusal::Unknown);
    assert_eq!(lookups.load(Ordering::Relaxed), 1);
}

#[test]
fn a_verification_is_one_lookup_with_every_candidate() {
    let (store, lookups) = counting(untagged_record(HashFormat::Sha256));
    let verifier = Verifier::new(store, ring(&SECRETS[..4]));
    assert!(ready(verifier.verify(UNTAGGED)).is_ok());
    assert_eq!(lookups.load(Ordering::Relaxed), 1);
    assert_eq!(refusal(&verifier, TAGGED), Refusal::Unknown);
    assert_eq!(lookups.load(Ordering::Relaxed), 2);
}

#[test]
fn a_store_that_cannot_answer_is_unavailable_and_refuses_nothing() {
    for key in [TAGGED, UNTAGGED] {
        let error = ready(verifier(Failing).verify(key)).unwrap_err();
        assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
        assert_eq!(error.refusal(), None);
        let message = "API keys cannot be verified right now; try again";
        assert_eq!(error.to_string(), message);
        assert!(printed(&error).contains("the connection was closed"), "the cause is kept");
        assert_reveals_nothing(&printed(&error), key);
    }
    // What needs no store is answered without it.
    assert_eq!(refusal(&verifier(Failing), FORGED), Refusal::ForgedTag);
}

#[test]
fn a_store_that_returns_a_wrong_row_grants_nothing() {
    let tagged = hmac_hash(SECRETS[0], TAGGED);
    let mut one_bit_off = *tagged.as_bytes();
    one_bit_off[31] ^= 1;
    let wrong = [
        hmac_hash(SECRETS[1], TAGGED),
        legacy_hash(TAGGED), // a tagged key has no legacy candidate
        hmac_hash(SECRETS[0], UNTAGGED),
        KeyHash::from_bytes(one_bit_off),
        KeyHash::from_bytes([0; 32]),
        KeyHash::default(),
    ];
    for hash in wrong {
        let mut row = record("wrong", hash);
        row.format = Some(HashFormat::HmacSha256);
        let error = ready(verifier(WrongRow(row.into())).verify(TAGGED)).unwrap_err();
        let is_wrong_row = |error: &VerifyError| matches!(error, VerifyError::Unavailable(StoreError::WrongRow(id)) if *id == "wrong".into());
        assert!(is_wrong_row(&error), "{error:?}");
    }
    // The same store is believed where the row is the right one.
    assert!(ready(verifier(WrongRow(record("right", tagged).into())).verify(TAGGED)).is_ok());
}

#[test]
fn the_hash_decides_the_format_and_not_the_row() {
    for (format, said) in
        [(HashFormat::Sha256, HashFormat::HmacSha256), (HashFormat::HmacSha256, HashFormat::Sha256)]
    {
        let mut stored = untagged_record(format);
        stored.format = Some(said);
        assert_eq!(ready(verifier(store(&[stored])).verify(UNTAGGED)).unwrap().format(), format);
    }
}

#[test]
fn candidates_are_the_secrets_in_order_and_then_the_legacy_hash() {
    let ring = ring(&[SECRETS[2], SECRETS[0], SECRETS[1], SECRETS[3]]);
    let hashes = |key| {
        Candidates::compute(&PresentedKey::parse(key).unwrap(), &ring)
            .expect("a tag of the ring")
            .as_slice()
            .to_vec()
    };
    let under = |key, secrets: [usize; 4]| secrets.map(|index| hmac_hash(SECRETS[index], key));
    let mut untagged = under(UNTAGGED, [2, 0, 1, 3]).to_vec();
    untagged.push(legacy_hash(UNTAGGED));
    assert_eq!(hashes(UNTAGGED), untagged);
    assert_eq!(hashes(UNTAGGED).len(), Candidates::MAX);
    assert_eq!(hashes(TAGGED), under(TAGGED, [2, 0, 1, 3]));
}

#[test]
fn of_several_rows_of_one_key_the_most_preferred_answers() {
    let rows = [
        record("current", hmac_hash(SECRETS[0], UNTAGGED)),
        record("retired", hmac_hash(SECRETS[1], UNTAGGED)),
        record("legacy", legacy_hash(UNTAGGED)),
    ];
    let answers = [
        ("current", HashFormat::HmacSha256, false),
        ("retired", HashFormat::HmacSha256, true),
        ("legacy", HashFormat::Sha256, false),
    ];
    for first in 0..rows.len() {
        let mut present = rows[first..].to_vec();
        present.reverse();
        let verifier = Verifier::new(store(&present), ring(&SECRETS[..2]));
        let verified = ready(verifier.verify(UNTAGGED)).unwrap();
        let (id, format, retired) = answers[first];
        assert_eq!(*verified.id(), id.into());
        assert_eq!((verified.format(), verified.is_under_retired_secret()), (format, retired));
    }
}

#[test]
fn a_tagged_key_needs_the_secret_of_its_tag_in_the_ring() {
    // Its hash has moved to the second secret; the first one has left the ring.
    let store = store(&[record("key-1", hmac_hash(SECRETS[1], TAGGED))]);
    let verifier = Verifier::new(store.clone(), ring(&SECRETS[1..2]));
    assert_eq!(refusal(&verifier, TAGGED), Refusal::ForgedTag);
    let verifier = Verifier::new(store, ring(&[SECRETS[1], SECRETS[0]]));
    assert!(ready(verifier.verify(TAGGED)).is_ok());
}

#[test]
fn a_stored_hash_presented_as_a_key_is_refused() {
    for format in [HashFormat::HmacSha256, HashFormat::Sha256] {
        let stored = untagged_record(format);
        let hash = stored.hash.to_hex();
        let verifier = verifier(store(&[stored]));
        let prefix = Refusal::Malformed(MalformedKey::Prefix);
        assert_eq!(refusal(&verifier, &hash), prefix);
        assert_eq!(refusal(&verifier, &format!("lxk_{hash}")), Refusal::Unknown);
    }
}

#[test]
fn a_key_may_be_presented_as_any_bytes() {
    let verifier = verifier(store(&[record("key-1", hmac_hash(SECRETS[0], TAGGED))]));
    assert!(ready(verifier.verify(TAGGED)).is_ok());
    assert!(ready(verifier.verify(TAGGED.as_bytes())).is_ok());
    assert!(ready(verifier.verify(&TAGGED.to_owned())).is_ok());
    assert!(ready(verifier.verify(&TAGGED.as_bytes().to_vec())).is_ok());
}

#[test]
fn without_a_future_the_answer_is_the_same_or_none() {
    let in_memory = verifier(store(&[record("key-1", hmac_hash(SECRETS[0], TAGGED))]));
    let verified = in_memory.verify_now(TAGGED).expect("an answer").unwrap();
    assert_eq!(*verified.id(), "key-1".into());
    for key in ["lxk_", FORGED, UNTAGGED] {
        let error = in_memory.verify_now(key).expect("an answer").unwrap_err();
        assert_eq!(error.refusal(), Some(&refusal(&in_memory, key)));
    }
    // Asked over a connection: what needs no look-up is refused, the rest is for `verify`.
    let remote = verifier(Failing);
    for key in ["lxk_", FORGED] {
        assert!(remote.verify_now(key.as_bytes()).expect("an answer").is_err());
    }
    for key in [TAGGED, UNTAGGED] {
        assert!(remote.verify_now(key).is_none());
    }
}
