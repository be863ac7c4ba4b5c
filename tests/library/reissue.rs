//! Keys with an id of the caller's choice, and another plaintext for a key whose first one was lost.

use lexikon_auth::crypto::HashFormat;
use lexikon_auth::store::Page;
use lexikon_auth::{KeyUpdate, ManageError, NewKey, Refusal, StoreError};
use lexikon_auth_tests::{noon, ready};

use crate::desk::{Desk, SECOND};

fn new() -> NewKey {
    NewKey::new("user-1", "deploy").scopes("read").id("chosen")
}

#[test]
fn a_second_key_with_the_same_id_is_a_conflict_and_changes_nothing() {
    let Desk { manager, verifier, .. } = Desk::new();
    let issued = ready(manager.issue(new())).unwrap();
    assert_eq!(issued.record.id.to_string(), "chosen");
    let error = ready(manager.issue(new())).unwrap_err();
    assert!(matches!(error, ManageError::Store(StoreError::Conflict)), "{error}");
    let verified = ready(verifier.verify(issued.key.expose_secret())).unwrap();
    assert_eq!(verified.id().to_string(), "chosen");
    assert_eq!(ready(manager.list(&"user-1".into(), &Page::first(9))).unwrap().len(), 1);
}

#[test]
fn an_id_has_to_be_one() {
    let Desk { manager, .. } = Desk::new();
    for (id, problem) in [
        (String::new(), "the id is empty"),
        ("i".repeat(1025), "the id is longer than 1024 bytes"),
        ("i\0d".into(), "the id contains a NUL"),
    ] {
        let error = ready(manager.issue(new().id(id))).unwrap_err().to_string();
        assert!(error.starts_with(problem), "{error}");
    }
}

#[test]
fn another_plaintext_takes_the_place_of_the_first_and_all_else_stays() {
    let Desk { clock, manager, verifier, .. } = Desk::new();
    let first = ready(manager.issue(new().expires_at(noon() + 60 * SECOND))).unwrap();
    clock.advance(SECOND);
    let second = ready(manager.reissue(&first.record.id)).unwrap();
    let refused = ready(verifier.verify(first.key.expose_secret())).unwrap_err();
    assert_eq!(refused.refusal(), Some(&Refusal::Unknown));
    let verified = ready(verifier.verify(second.key.expose_secret())).unwrap();
    assert_eq!(verified.format(), HashFormat::HmacSha256);
    let stored = ready(manager.find(&first.record.id)).unwrap().unwrap();
    assert_eq!((&*stored.name, stored.scopes.as_str()), ("deploy", "read"));
    assert_eq!(stored.created_at, first.record.created_at);
    assert_eq!(stored.expires_at, first.record.expires_at);
    assert_eq!(stored.hash, second.record.hash);
    assert_eq!(second.record.id, first.record.id);
}

#[test]
fn a_key_that_is_not_in_force_gets_no_other_plaintext() {
    let Desk { clock, manager, verifier, .. } = Desk::new();
    let unknown = ready(manager.reissue(&"unknown".into())).unwrap_err();
    assert!(matches!(unknown, ManageError::Store(StoreError::NotFound(_))), "{unknown}");
    let issued = ready(manager.issue(new().expires_at(noon() + SECOND))).unwrap();
    let id = &issued.record.id;
    clock.advance(SECOND);
    let expired = ready(manager.reissue(id)).unwrap_err();
    assert!(matches!(expired, ManageError::Store(StoreError::NotInForce(_))), "{expired}");
    ready(manager.update(id, KeyUpdate::default().never_expires())).unwrap();
    ready(manager.revoke(id, None)).unwrap();
    let revoked = ready(manager.reissue(id)).unwrap_err();
    assert!(matches!(revoked, ManageError::Store(StoreError::NotInForce(_))), "{revoked}");
    let refused = ready(verifier.verify(issued.key.expose_secret())).unwrap_err();
    assert!(matches!(refused.refusal(), Some(Refusal::Revoked(_))), "the hash is as it was");
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cache_forgets_the_first_plaintext() {
    use lexikon_auth::store::{CacheOptions, CachedStore, MemoryStore};
    use lexikon_auth::{KeyManager, Verifier};
    let store = CachedStore::new(MemoryStore::new(), CacheOptions::default());
    let ring = lexikon_auth_tests::one_secret();
    let manager = KeyManager::new(store.clone(), &ring);
    let verifier = Verifier::new(store, ring);
    let first = manager.issue(new()).await.unwrap();
    _ = verifier.verify(first.key.expose_secret()).await.unwrap();
    let second = manager.reissue(&first.record.id).await.unwrap();
    assert!(verifier.verify(first.key.expose_secret()).await.is_err());
    _ = verifier.verify(second.key.expose_secret()).await.unwrap();
}
