//! Every key that the lexikon service wrote gets the answer that the service gave.
#![cfg(feature = "sqlite")]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::{Candidates, HashFormat, KeyHash, PresentedKey};
use lexikon_auth::store::{KeyStore, Page, SqliteStore};
use lexikon_auth::{
    KeyId, KeyManager, LegacyPolicy, NewKey, OwnerId, Policy, Refusal, Rotation, SecretRing,
    ServerSecret, Verifier, VerifyError,
};
use lexikon_auth_tests::data;
use serde_json::Value;
use sqlx::Row;
use sqlx::sqlite::SqlitePool;
use tempfile::TempDir;

const CASES: &str = data::SQLITE_CASES;
const VECTORS: &str = data::HASH_VECTORS;

/// A copy of the service's database, which the tests may change.
struct Copy {
    _folder: TempDir,
    path: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lexikon.sqlite");
        std::fs::write(&path, data::SQLITE).unwrap();
        Self { _folder: folder, path }
    }

    async fn store(&self) -> SqliteStore {
        SqliteStore::open(&self.path).await.unwrap()
    }

    /// A connection beside the store's own, as the service would have one.
    async fn beside(&self) -> SqlitePool {
        SqlitePool::connect(&format!("sqlite://{}", self.path.display())).await.unwrap()
    }
}

fn cases() -> Vec<Value> {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    cases["cases"].as_array().unwrap().clone()
}

fn key_of(case: &str) -> String {
    let case = cases().into_iter().find(|known| known["case"] == case).expect("a known case");
    case["key"].as_str().unwrap().to_owned()
}

fn ring() -> SecretRing {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    let secret = cases["api_key_secret"].as_str().unwrap();
    SecretRing::new(ServerSecret::new(&secret.into()).unwrap())
}

#[tokio::test]
async fn every_key_gets_the_answer_of_the_service() {
    for extended in [false, true] {
        let copy = Copy::new();
        let mut store = copy.store().await;
        if extended {
            store = store.extend_schema().await.unwrap();
        }
        let verifier = Verifier::new(store, ring());
        let cases = cases();
        assert_eq!(cases.len(), 25);
        for case in cases {
            let name = case["case"].as_str().unwrap();
            let answer = verifier.verify(case["key"].as_str().unwrap()).await;
            assert_eq!(case["service_answer"] == "accepted", answer.is_ok(), "{name}: {answer:?}");
            match answer {
                Ok(verified) => {
                    assert_eq!(case["format"], verified.format().as_str(), "{name}");
                    assert_eq!(case["owner"], verified.owner().as_str(), "{name}");
                    assert_eq!(case["id"], verified.id().to_string(), "{name}");
                    let listed = case["scopes"].as_str().unwrap();
                    assert_eq!(verified.scopes().as_str(), listed, "{name}");
                    // The service does not trim: a space is part of a name.
                    for scope in ["read", "write", " write", "admin"] {
                        let granted =
                            listed.split(',').any(|name| [scope, "admin"].contains(&name));
                        assert_eq!(granted, verified.allows(scope), "{name}: {scope}");
                    }
                }
                Err(error) => {
                    let reason = error.refusal().expect("a refusal, not an error").as_str();
                    let expected = match name.split_once(' ').map_or("", |(_, rest)| rest) {
                        "expired" => "expired",
                        "revoked" | "is_active null" => "revoked",
                        "owner disabled" | "owner is_active null" => "owner_disabled",
                        "missing" => "malformed",
                        _ => "unknown",
                    };
                    assert_eq!(reason, expected, "{name}");
                }
            }
        }
    }
}

#[test]
fn every_vector_with_a_usable_secret_and_key_matches() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let text = |vector: &Value, field: &str| vector[field].as_str().unwrap().to_owned();
    let mut checked = 0;
    for vector in vectors["vectors"].as_array().unwrap() {
        let (secret, key) = (text(vector, "secret"), text(vector, "key"));
        let Ok(secret) = ServerSecret::new(&secret.into()) else { continue };
        let Ok(presented) = PresentedKey::parse(&key) else { continue };
        let Some(candidates) = Candidates::compute(&presented, &SecretRing::new(secret)) else {
            assert_eq!(
                key.len(),
                55,
                "only a key of the length of tagged ones can be a forged one"
            );
            continue;
        };
        let hashes: Vec<_> = candidates.as_slice().iter().map(KeyHash::to_hex).collect();
        assert_eq!(hashes, [text(vector, "hmac_sha256"), text(vector, "sha256")]);
        checked += 1;
    }
    assert!(checked >= 50, "{checked}");
}

#[tokio::test]
async fn verification_changes_no_byte_of_the_database() {
    let copy = Copy::new();
    let store = copy.store().await;
    let verifier = Verifier::new(store.clone(), ring());
    for case in cases() {
        let _ = verifier.verify(case["key"].as_str().unwrap()).await;
    }
    store.close().await;
    assert!(std::fs::read(&copy.path).unwrap() == data::SQLITE);
}

#[tokio::test]
async fn a_legacy_key_is_upgraded_on_use_and_the_row_is_what_the_service_expects() {
    let copy = Copy::new();
    let upgrade = Policy::default().legacy(LegacyPolicy::UpgradeOnUse);
    let verifier = Verifier::new(copy.store().await, ring()).with_policy(upgrade);
    let key = key_of("sha256 read,write");

    assert_eq!(verifier.verify(&key).await.unwrap().format(), HashFormat::Sha256);
    let flushed = verifier.flush().await.unwrap();
    assert_eq!((flushed.used, flushed.upgraded), (1, 1));
    assert_eq!(verifier.verify(&key).await.unwrap().format(), HashFormat::HmacSha256);

    let refuse = Policy::default().legacy(LegacyPolicy::Refuse);
    let strict = Verifier::new(copy.store().await, ring()).with_policy(refuse);
    assert!(strict.verify(&key).await.is_ok());
    let error = strict.verify(&key_of("sha256 plain read")).await.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::LegacyClosed(_))), "{error:?}");

    let row =
        sqlx::query("SELECT * FROM api_keys WHERE id = 'dd0464d9-887c-4ff7-84c7-cdbf5726b178'")
            .fetch_one(&copy.beside().await)
            .await
            .unwrap();
    let candidates = Candidates::compute(&PresentedKey::parse(&key).unwrap(), &ring()).unwrap();
    assert_eq!(row.get::<&str, _>("key_hash"), candidates.as_slice()[0].to_hex());
    assert_eq!(row.get::<&str, _>("scopes"), "read,write");
    assert_eq!(row.get::<i64, _>("is_active"), 1);
    assert_eq!(row.get::<&str, _>("created_at"), "2026-11-23 01:45:48");
}

#[tokio::test]
async fn keys_are_managed_on_the_tables_of_the_service_as_they_are() {
    let copy = Copy::new();
    let store = copy.store().await;
    let manager = KeyManager::new(store.clone(), &ring());
    let verifier = Verifier::new(store.clone(), ring());

    let expiry = SystemTime::now() + Duration::from_secs(3600);
    let issued = manager
        .issue(NewKey::new("user-1", "new").scopes("read").expires_at(expiry))
        .await
        .unwrap();
    assert_eq!(
        verifier.verify(issued.key.expose_secret()).await.unwrap().owner().as_str(),
        "user-1"
    );
    let next = manager.rotate(&issued.record.id, Rotation::default()).await.unwrap();
    let old = verifier.verify(issued.key.expose_secret()).await.unwrap_err();
    assert!(matches!(old.refusal(), Some(Refusal::Expired(_))), "{old:?}");
    manager.revoke(&next.record.id, Some("has no column to go to")).await.unwrap();
    let revoked = verifier.verify(next.key.expose_secret()).await.unwrap_err();
    assert!(matches!(revoked.refusal(), Some(Refusal::Revoked(_))), "{revoked:?}");

    let error = manager.issue(NewKey::new("nobody", "new")).await.unwrap_err();
    assert_eq!(error.to_string(), "there is no owner nobody; create the user first");

    let names = |columns: Vec<sqlx::sqlite::SqliteRow>| {
        columns.iter().map(|row| row.get::<String, _>("name")).collect::<Vec<_>>()
    };
    let query = "SELECT name FROM pragma_table_info('api_keys')";
    let columns = sqlx::query(query).fetch_all(&copy.beside().await).await.unwrap();
    assert_eq!(names(columns).len(), 9, "nothing was added to the service's table");
}

#[tokio::test]
async fn the_extension_is_additive_and_can_run_twice_and_from_two_processes() {
    let copy = Copy::new();
    let (one, other) = (copy.store().await, copy.store().await);
    let before = one.clone();
    let (one, other) = tokio::join!(one.extend_schema(), other.extend_schema());
    let one = one.unwrap().extend_schema().await.unwrap();

    let id = KeyId::from("ef4eb8aa-4d1f-493e-8ac6-2257a6a956b5");
    let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_123_456);
    one.revoke(&id, at, Some("lost")).await.unwrap();
    let record = other.unwrap().find_by_id(&id).await.unwrap().unwrap();
    let revocation = record.revocation.as_deref().unwrap();
    assert_eq!((revocation.at, revocation.reason.as_deref()), (Some(at), Some("lost")));
    let seen_before = before.find_by_id(&id).await.unwrap().unwrap();
    assert!(seen_before.is_revoked(), "an instance that opened the old schema goes on");
    assert_eq!(before.list(&OwnerId::from("user-1"), &Page::first(100)).await.unwrap().len(), 12);

    // The insert of a service that knows nothing of the new columns.
    let query = "INSERT INTO api_keys (id, user_id, key_hash, name, scopes, is_active) \
                 VALUES ('new', 'user-2', 'h', 'n', 'read', 1)";
    sqlx::query(query).execute(&copy.beside().await).await.unwrap();
}

#[tokio::test]
async fn a_wrong_secret_refuses_hmac_keys_and_still_knows_legacy_ones() {
    let copy = Copy::new();
    let other = SecretRing::new(ServerSecret::new(&ServerSecret::generate().unwrap()).unwrap());
    let verifier = Verifier::new(copy.store().await, other);
    let error = verifier.verify(&key_of("hmac-sha256 admin")).await.unwrap_err();
    assert!(matches!(error, VerifyError::Refused(Refusal::Unknown)), "{error:?}");
    assert!(verifier.verify(&key_of("sha256 admin")).await.is_ok());
}
