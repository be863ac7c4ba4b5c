//! Over SQLite.

use std::path::PathBuf;

use lexikon_auth::admin::KeyTable;
use lexikon_auth::store::SqliteStore;
use lexikon_auth::{LegacyPolicy, Policy, SecretRing, StoreError, VerifyError};
use lexikon_auth_tests::{SECRETS, data, ring};
use tempfile::TempDir;

use super::*;

/// A folder for a database.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("keys.db")
    }

    fn url(&self) -> String {
        format!("sqlite:{}", self.path().display())
    }

    async fn open(&self) -> ApiKeys {
        ApiKeys::open(&self.url(), one_secret()).await.unwrap()
    }

    /// Somebody else with access to the file, who does not use this crate.
    async fn other(&self) -> sqlx::SqlitePool {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.path());
        sqlx::SqlitePool::connect_with(options).await.unwrap()
    }
}

#[tokio::test]
async fn one_call_opens_a_database_and_another_ends_it() {
    let folder = Folder::new();
    // On whatever thread there is.
    let url = folder.url();
    let opening = tokio::spawn(async move { ApiKeys::open(&url, one_secret()).await });
    let keys = opening.await.unwrap().unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy").scopes("read")).await.unwrap();
    let key = issued.key.expose_secret();
    assert!(keys.verify(key).await.unwrap().allows("read"));
    let other = keys.issue(NewKey::new("user-1", "other")).await.unwrap();
    let (first, second) = tokio::join!(keys.shutdown(), keys.shutdown());
    first.unwrap();
    second.unwrap();
    // What is not cached would have to be looked up.
    let error = keys.verify(other.key.expose_secret()).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");

    let again = ApiKeys::open(&format!("{}?mode=rw", folder.url()), one_secret()).await.unwrap();
    assert!(again.verify(key).await.is_ok());
    let record = again.manager().find(&issued.record.id).await.unwrap().unwrap();
    assert!(record.last_used_at.is_some(), "the shutdown wrote it");
    again.shutdown().await.unwrap();
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_change_that_somebody_else_makes_reaches_the_cache() {
    use lexikon_auth::store::CacheOptions;
    let folder = Folder::new();
    let hour = Duration::from_secs(3600);
    let options = CacheOptions::default().max_age(hour).max_age_unfollowed(hour);
    let keys = ApiKeys::options(one_secret()).cache(options).open(&folder.url()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    for _ in 0..3 {
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    }
    let revoke = "UPDATE api_keys SET is_active = 0";
    sqlx::query(revoke).execute(&folder.other().await).await.unwrap();
    wait_until("the key is refused", async || {
        keys.verify(issued.key.expose_secret()).await.is_err()
    })
    .await;
    keys.shutdown().await.unwrap();
    assert!(!keys.is_following());
}

#[tokio::test]
async fn a_health_endpoint_can_ask_the_database() {
    let folder = Folder::new();
    let keys = folder.open().await;
    keys.ping().await.unwrap();
    keys.shutdown().await.unwrap();
    let error = keys.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

#[cfg(feature = "cache")]
#[tokio::test]
async fn a_cache_can_be_looked_at_where_there_is_one() {
    use lexikon_auth::store::CacheOptions;
    let folder = Folder::new();
    let keys = folder.open().await;
    assert!(keys.cache().is_none());
    #[cfg(feature = "redis")]
    assert!(keys.redis().is_none());
    keys.shutdown().await.unwrap();

    let options = ApiKeys::options(one_secret()).cache(CacheOptions::default());
    let keys = options.open(&folder.url()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    for _ in 0..3 {
        assert!(keys.verify(issued.key.expose_secret()).await.is_ok());
    }
    let counts = keys.cache().unwrap().counts();
    assert!(counts.misses > 0 && counts.misses + counts.hits == 3, "{counts:?}");
    keys.ping().await.unwrap();
    assert_eq!(keys.cache().unwrap().counts().misses, counts.misses, "past the cache");
    keys.shutdown().await.unwrap();
}

#[tokio::test]
async fn another_secret_than_the_first_one_is_refused() {
    let folder = Folder::new();
    folder.open().await.shutdown().await.unwrap();
    let error = ApiKeys::open(&folder.url(), ring(&SECRETS[1..2])).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownSecret { .. }), "{error:?}");
    let both: SecretRing = ring(&SECRETS[..2]);
    ApiKeys::open(&folder.url(), both).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let folder = Folder::new();
    let url = format!("{}?mode=rw", folder.url());
    let error = ApiKeys::open(&url, one_secret()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    assert!(!folder.path().exists());
    folder.open().await.shutdown().await.unwrap();
    let error =
        ApiKeys::open(&format!("{}?mode=ro", folder.url()), one_secret()).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(error.to_string().contains("take ?mode=ro out"), "{error}");
    for url in ["sqlite::memory:", "keys.db", "mysql://root@localhost/keys"] {
        let error = ApiKeys::open(url, one_secret()).await.unwrap_err();
        assert!(matches!(error, StoreError::CannotOpen(_)), "{url}: {error:?}");
    }
}

#[tokio::test]
async fn tables_of_the_service_stay_as_they_are_unless_they_are_to_be_extended() {
    let folder = Folder::new();
    std::fs::write(folder.path(), data::SQLITE).unwrap();
    // It waits for nothing that cannot come.
    let options = ApiKeys::options(one_secret());
    #[cfg(feature = "cache")]
    let options = options.cache(lexikon_auth::store::CacheOptions::default());
    let keys = timeout(PATIENCE, options.open(&folder.url())).await.unwrap().unwrap();
    assert!(!cfg!(feature = "cache") || !keys.is_following());
    keys.shutdown().await.unwrap();
    assert_eq!(std::fs::read(folder.path()).unwrap(), data::SQLITE);

    let options = ApiKeys::options(one_secret()).time_zone("Europe/Paris".parse().unwrap());
    let keys = options.extend_schema().open(&folder.url()).await.unwrap();
    wait_until("changes are reported", async || keys.is_following()).await;
    keys.shutdown().await.unwrap();
    let table = KeyTable::from(SqliteStore::open(folder.path()).await.unwrap());
    assert!(table.is_extended());
    assert_eq!(table.time_zone().name(), "Europe/Paris");
}

#[tokio::test]
async fn a_shutdown_that_could_not_write_says_so_until_it_has_written() {
    let folder = Folder::new();
    let store = SqliteStore::open_or_create(folder.path()).await.unwrap();
    let pool = folder.other().await;
    let keys = ApiKeys::options(one_secret()).over_sqlite(store.clone()).await.unwrap();
    let issued = keys.issue(NewKey::new("user-1", "deploy")).await.unwrap();
    drop(keys.verify(issued.key.expose_secret()).await.unwrap());
    let rename = "ALTER TABLE api_keys RENAME TO elsewhere";
    sqlx::query(rename).execute(&pool).await.unwrap();
    for _ in 0..2 {
        assert!(keys.shutdown().await.is_err());
    }
    let rename = "ALTER TABLE elsewhere RENAME TO api_keys";
    sqlx::query(rename).execute(&pool).await.unwrap();
    keys.shutdown().await.unwrap();
    assert!(store.find_by_id(&issued.record.id).await.unwrap().unwrap().last_used_at.is_some());
}

#[tokio::test]
async fn the_policy_of_the_database_is_followed_and_loosens_nothing() {
    let folder = Folder::new();
    let store = SqliteStore::open_or_create(folder.path()).await.unwrap();
    let table = KeyTable::from(store.clone());
    table.set_policy(LegacyPolicy::Shadow, "alice").await.unwrap();
    let policy = Policy::default().legacy(LegacyPolicy::Refuse);

    let strict = ApiKeys::options(one_secret()).policy(policy);
    let strict = strict.over_sqlite(store.clone()).await.unwrap();
    assert_eq!(strict.verifier().legacy_policy(), LegacyPolicy::Refuse);
    let keys = ApiKeys::options(one_secret()).over_sqlite(store).await.unwrap();
    assert_eq!(keys.verifier().legacy_policy(), LegacyPolicy::Shadow);
    table.set_policy(LegacyPolicy::UpgradeOnUse, "alice").await.unwrap();
    wait_until("the policy changes", async || {
        keys.verifier().legacy_policy() == LegacyPolicy::UpgradeOnUse
    })
    .await;
    assert_eq!(strict.verifier().legacy_policy(), LegacyPolicy::Refuse);

    // The connections are the application's own.
    keys.shutdown().await.unwrap();
    table.set_policy(LegacyPolicy::Accept, "alice").await.unwrap();
}
