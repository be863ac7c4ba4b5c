//! SQLite in every bad state: no panic, a typed error that says what to do, never a wrong answer.
#![cfg(feature = "sqlite")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use lexikon_auth::admin::KeyTable;
use lexikon_auth::store::{KeyStore, SqliteStore};
use lexikon_auth::{
    KeyManager, KeyRecord, ManageError, NewKey, Refusal, SecretRing, ServerSecret, StoreError,
    Verifier, VerifyError,
};
use lexikon_auth_tests::data;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use tempfile::TempDir;

struct File {
    _folder: TempDir,
    path: PathBuf,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        Self { _folder: folder, path }
    }

    fn holding(bytes: &[u8]) -> Self {
        let file = Self::new();
        std::fs::write(&file.path, bytes).unwrap();
        file
    }

    async fn run(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(&self.pool().await).await.unwrap();
    }

    async fn pool(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(&self.path).create_if_missing(true);
        SqlitePool::connect_with(options).await.unwrap()
    }
}

fn ring() -> SecretRing {
    SecretRing::new(ServerSecret::new(&ServerSecret::generate().unwrap()).unwrap())
}

/// A database with one key, and that key.
async fn with_a_key(ring: &SecretRing) -> (File, String, KeyRecord) {
    let file = File::new();
    let store = SqliteStore::open_or_create(&file.path).await.unwrap();
    let issued = KeyManager::new(store.clone(), ring)
        .issue(NewKey::new("user-1", "key").scopes("read"))
        .await
        .unwrap();
    let key = issued.key.expose_secret().to_owned();
    store.close().await;
    (file, key, issued.record)
}

async fn open_error(path: &Path) -> StoreError {
    SqliteStore::open(path).await.expect_err("must not open")
}

#[tokio::test]
async fn an_empty_database_gets_its_tables_once() {
    for file in [File::new(), File::holding(b"")] {
        let one = SqliteStore::open_or_create(&file.path);
        let other = SqliteStore::open_or_create(&file.path);
        let (one, other) = tokio::join!(one, other);
        let ring = ring();
        let issued = KeyManager::new(one.unwrap(), &ring)
            .issue(NewKey::new("new owner", "name").scopes("read"))
            .await
            .unwrap();
        let other = other.unwrap();
        let verified = Verifier::new(other.clone(), ring).verify(issued.key.expose_secret()).await;
        assert!(verified.unwrap().allows("read"));
        let stored = other.find_by_id(&issued.record.id).await.unwrap().unwrap();
        assert_eq!(*stored, issued.record);
    }
}

#[tokio::test]
async fn a_missing_database_is_not_created_unasked() {
    let file = File::new();
    let error = open_error(&file.path).await;
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
    assert!(!file.path.exists());
    let no_folder = file.path.join("no/such/folder.db");
    let error = SqliteStore::open_or_create(&no_folder).await.unwrap_err();
    assert!(matches!(error, StoreError::CannotOpen(_)), "{error:?}");
}

#[tokio::test]
async fn a_url_or_memory_in_place_of_a_path_is_refused() {
    let file = File::new();
    let url = |scheme| format!("{scheme}{}", file.path.display());
    let others = ["", ":memory:", "sqlite::memory:", "file::memory:"].map(String::from);
    for path in ["sqlite:", "sqlite://", "file:"].map(url).into_iter().chain(others) {
        for answer in [SqliteStore::open(&path).await, SqliteStore::open_or_create(&path).await] {
            let error = answer.expect_err(&path);
            assert!(matches!(error, StoreError::CannotOpen(_)), "{path}: {error:?}");
            assert!(error.to_string().contains("use MemoryStore"), "{path}: {error}");
        }
    }
    assert!(!file.path.exists());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named_so() {
    let file = File::holding(&[b'x'; 8192]);
    let error = open_error(&file.path).await;
    assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"));
    assert_eq!(std::fs::read(&file.path).unwrap(), [b'x'; 8192], "nothing was overwritten");
}

#[tokio::test]
async fn a_damaged_database_is_unavailable_and_never_a_refusal() {
    let ring = ring();
    let (file, key, _) = with_a_key(&ring).await;
    let mut bytes = std::fs::read(&file.path).unwrap();
    // Everything behind the page that holds the schema.
    bytes[4096..].fill(0xa5);
    std::fs::write(&file.path, bytes).unwrap();
    match SqliteStore::open(&file.path).await {
        Err(error) => assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}"),
        Ok(store) => {
            let error = Verifier::new(store, ring).verify(&key).await.unwrap_err();
            let VerifyError::Unavailable(StoreError::Corrupt(_)) = error else {
                panic!("{error:?}");
            };
        }
    }
}

#[tokio::test]
async fn a_database_of_another_schema_is_refused_and_left_alone() {
    let schemas = [
        ("CREATE TABLE notes (id)", "table api_keys is missing"),
        ("CREATE TABLE api_keys (id)", "table api_keys has no column user_id"),
        (
            "CREATE TABLE api_keys (id, user_id, key_hash, name, scopes, is_active, last_used_at, \
             created_at, expires_at)",
            "table users is missing",
        ),
        (
            "CREATE TABLE users (id); CREATE TABLE api_keys (id, user_id, key_hash, name, scopes, \
             is_active, last_used_at, created_at, expires_at)",
            "table users has no column is_active",
        ),
    ];
    for (statement, problem) in schemas {
        let file = File::new();
        file.run(statement).await;
        let error = open_error(&file.path).await;
        assert!(
            matches!(&error, StoreError::Schema(found) if found.starts_with(problem)),
            "{error}"
        );
        let tables: Vec<String> = sqlx::query_scalar("SELECT sql FROM sqlite_master")
            .fetch_all(&file.pool().await)
            .await
            .unwrap();
        assert_eq!(tables.join("; "), statement);
    }
}

#[tokio::test]
async fn a_read_only_database_verifies_and_says_why_it_cannot_write() {
    let ring = ring();
    let (file, key, record) = with_a_key(&ring).await;
    let options = SqliteConnectOptions::new().filename(&file.path).read_only(true);
    let store = SqliteStore::connect(options).await.unwrap();
    let verifier = Verifier::new(store.clone(), ring.clone());
    _ = verifier.verify(&key).await.unwrap();
    let error = verifier.flush().await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
    _ = verifier.verify(&key).await.expect("a failed flush fails no verification");

    let manager = KeyManager::new(store.clone(), &ring);
    let read_only = |result: Result<(), ManageError>| {
        matches!(result, Err(ManageError::Store(StoreError::ReadOnly(_))))
    };
    assert!(read_only(manager.revoke(&record.id, None).await));
    assert!(read_only(manager.issue(NewKey::new("user-1", "n")).await.map(drop)));
    assert!(read_only(manager.expire().await.map(drop)));

    let service = File::holding(data::SQLITE);
    let options = SqliteConnectOptions::new().filename(&service.path).read_only(true);
    let service = SqliteStore::connect(options).await.unwrap();
    assert!(matches!(service.extend_schema().await, Err(StoreError::ReadOnly(_))));
}

#[tokio::test]
async fn an_empty_read_only_database_says_so() {
    let file = File::holding(b"");
    let options = SqliteConnectOptions::new().filename(&file.path).read_only(true);
    let error = SqliteStore::connect(options).await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
}

/// A store that does not wait for locks, so that the tests need not either.
async fn impatient(file: &File) -> SqliteStore {
    let options = SqliteConnectOptions::new().filename(&file.path).busy_timeout(Duration::ZERO);
    SqliteStore::from_pool(SqlitePool::connect_with(options).await.unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_locked_database_is_unavailable_and_recovers_by_itself() {
    let ring = ring();
    let (file, key, record) = with_a_key(&ring).await;
    // In a rollback journal, as the service's databases are, a writer can lock readers out.
    file.run("PRAGMA journal_mode = DELETE").await;
    let store = impatient(&file).await;
    let verifier = Verifier::new(store.clone(), ring.clone());
    let lock = file.pool().await.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    let error = verifier.verify(&key).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(StoreError::Unavailable(_))), "{error:?}");
    let error = KeyManager::new(store, &ring).revoke(&record.id, None).await.unwrap_err();
    assert!(matches!(error, ManageError::Store(StoreError::Unavailable(_))), "{error:?}");
    lock.rollback().await.unwrap();
    _ = verifier.verify(&key).await.expect("available again");
}

#[tokio::test]
async fn in_an_own_database_a_writer_does_not_lock_readers_out() {
    let ring = ring();
    let (file, key, _) = with_a_key(&ring).await;
    let verifier = Verifier::new(impatient(&file).await, ring);
    let _lock = file.pool().await.begin_with("BEGIN EXCLUSIVE").await.unwrap();
    _ = verifier.verify(&key).await.unwrap();
    let error = verifier.flush().await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn no_free_connection_is_unavailable() {
    let ring = ring();
    let (file, key, _) = with_a_key(&ring).await;
    let options = SqliteConnectOptions::new().filename(&file.path);
    let pool = SqlitePoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(1));
    let pool = pool.connect_with(options).await.unwrap();
    let store = SqliteStore::from_pool(pool.clone()).await.unwrap();
    let verifier = Verifier::new(store, ring);
    let taken = pool.acquire().await.unwrap();
    let error = verifier.verify(&key).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(StoreError::Unavailable(_))), "{error:?}");
    drop(taken);
}

#[tokio::test]
async fn a_table_that_vanishes_is_unavailable() {
    let ring = ring();
    let (file, key, _) = with_a_key(&ring).await;
    let verifier = Verifier::new(SqliteStore::open(&file.path).await.unwrap(), ring);
    file.run("DROP TABLE api_keys").await;
    let error = verifier.verify(&key).await.unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_row_that_holds_anything_unreadable_never_grants() {
    let ring = ring();
    let unreadable: [(&str, &'static str); 12] = [
        ("is_active", "UPDATE api_keys SET is_active = 2"),
        ("is_active", "UPDATE api_keys SET is_active = 'yes'"),
        ("is_active", "UPDATE api_keys SET is_active = x'01'"),
        ("users.is_active", "UPDATE users SET is_active = 'true'"),
        ("expires_at", "UPDATE api_keys SET expires_at = 'never'"),
        ("expires_at", "UPDATE api_keys SET expires_at = 4102444800"),
        ("expires_at", "UPDATE api_keys SET expires_at = ''"),
        ("created_at", "UPDATE api_keys SET created_at = '2026-02-30 00:00:00'"),
        ("name", "UPDATE api_keys SET name = x'ff'"),
        ("scopes", "UPDATE api_keys SET scopes = x'61646d696e'"),
        ("id", "UPDATE api_keys SET id = x'00'"),
        ("user_id", "PRAGMA foreign_keys = OFF; UPDATE api_keys SET user_id = x'ff'"),
    ];
    for (column, statement) in unreadable {
        let (file, key, _) = with_a_key(&ring).await;
        file.run(statement).await;
        let verifier = Verifier::new(SqliteStore::open(&file.path).await.unwrap(), ring.clone());
        match verifier.verify(&key).await.unwrap_err() {
            VerifyError::Unavailable(StoreError::InvalidRow { column: found, .. }) => {
                assert_eq!(found, column, "{statement}");
            }
            error => panic!("{statement}: {error:?}"),
        }
    }
}

#[tokio::test]
async fn a_time_of_the_table_that_is_none_is_an_error_for_who_asks() {
    let ring = ring();
    for statement in
        ["UPDATE api_keys SET created_at = x'00'", "UPDATE api_keys SET created_at = 'never'"]
    {
        let (file, _, _) = with_a_key(&ring).await;
        file.run(statement).await;
        let table = KeyTable::from(SqliteStore::open(&file.path).await.unwrap());
        assert!(table.latest_time().await.is_err(), "{statement}");
    }
}

#[tokio::test]
async fn what_no_decision_depends_on_need_not_be_readable() {
    let ring = ring();
    for statement in [
        "UPDATE api_keys SET last_used_at = x'ff'",
        "UPDATE api_keys SET last_used_at = 'yesterday'",
        "UPDATE api_keys SET hash_format = 'of a later version'",
        "UPDATE api_keys SET hash_format = 7",
    ] {
        let (file, key, _) = with_a_key(&ring).await;
        file.run(statement).await;
        let verifier = Verifier::new(SqliteStore::open(&file.path).await.unwrap(), ring.clone());
        _ = verifier.verify(&key).await.expect(statement);
        // The next use writes what can be read.
        verifier.flush().await.unwrap();
        _ = verifier.verify(&key).await.expect(statement);
    }
}

#[tokio::test]
async fn a_missing_owner_and_a_null_state_refuse() {
    let ring = ring();
    let cases = [
        ("owner_disabled", "PRAGMA foreign_keys = OFF; DELETE FROM users"),
        ("owner_disabled", "UPDATE users SET is_active = NULL"),
        ("owner_disabled", "UPDATE users SET is_active = 0"),
        ("revoked", "UPDATE api_keys SET is_active = NULL"),
        ("revoked", "UPDATE api_keys SET is_active = 0"),
        ("expired", "UPDATE api_keys SET expires_at = '2001-01-01 00:00:00'"),
    ];
    for (reason, statement) in cases {
        let (file, key, _) = with_a_key(&ring).await;
        file.run(statement).await;
        let verifier = Verifier::new(SqliteStore::open(&file.path).await.unwrap(), ring.clone());
        let error = verifier.verify(&key).await.unwrap_err();
        assert_eq!(error.refusal().map(Refusal::as_str), Some(reason), "{statement}: {error:?}");
    }
}

#[tokio::test]
async fn neither_key_nor_secret_is_in_the_file() {
    let secret = ServerSecret::generate().unwrap();
    let ring = SecretRing::new(ServerSecret::new(&secret).unwrap());
    let (file, key, _) = with_a_key(&ring).await;
    let bytes = std::fs::read(&file.path).unwrap();
    let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("user-1"), "the search works");
    assert!(!holds(&key[4..]));
    assert!(!holds(secrecy::ExposeSecret::expose_secret(&secret)));
}

#[tokio::test]
async fn a_secret_that_the_database_does_not_know_is_refused() {
    let (ring, other) = (ring(), ring());
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_or_create(folder.path().join("own.db")).await.unwrap();
    store.check_secrets(&ring).await.expect("the first one is learned");
    store.check_secrets(&ring).await.expect("and known");
    let error = store.check_secrets(&other).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownSecret { .. }), "{error:?}");
    store.add_secret(other.current()).await.unwrap();
    store.check_secrets(&other).await.expect("added");

    let file = folder.path().join("service.db");
    std::fs::write(&file, data::SQLITE).unwrap();
    let store = SqliteStore::open(&file).await.unwrap();
    store.check_secrets(&other).await.expect("the service's tables know nothing of secrets");
    let error = store.add_secret(other.current()).await.unwrap_err();
    assert!(matches!(error, StoreError::Schema(_)), "{error:?}");
    let store = store.extend_schema().await.unwrap();
    store.check_secrets(&ring).await.expect("the first one is learned");
    assert!(store.check_secrets(&other).await.is_err());
}

#[tokio::test]
async fn what_another_process_has_added_since_is_used() {
    let file = File::holding(data::SQLITE);
    let late = SqliteStore::open(&file.path).await.unwrap();
    let paris: lexikon_auth::store::TimeZone = "Europe/Paris".parse().unwrap();
    let first = SqliteStore::open(&file.path).await.unwrap().extend_schema().await.unwrap();
    let first = first.with_time_zone(paris.clone()).await.unwrap();
    first.check_secrets(&ring()).await.unwrap();
    // Nothing is missing any more.
    let late = late.extend_schema().await.unwrap();
    assert_eq!(late.time_zone(), &paris, "the zone that is kept");
    let error = late.check_secrets(&ring()).await.unwrap_err();
    assert!(matches!(error, StoreError::UnknownSecret { .. }), "{error:?}");
}

#[tokio::test]
async fn a_store_prints_its_file_and_no_statement() {
    let file = File::new();
    let store = SqliteStore::open_or_create(&file.path).await.unwrap();
    assert_eq!(format!("{store:?}"), format!("SqliteStore {{ file: {:?}, .. }}", file.path));
}
