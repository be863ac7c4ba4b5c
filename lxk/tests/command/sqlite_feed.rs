//! What the command changes in a SQLite database, and how it reaches the cache of another process.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lexikon_auth::store::{CacheOptions, CachedStore, SqliteStore};
use lexikon_auth::tasks::Follower;
use lexikon_auth::{KeyManager, NewKey, Refusal, Verifier};
use lexikon_auth_tests::{data, one_secret};
use tokio::time::sleep;

/// Only a report of a change can end an entry's life within the test.
const LONG: Duration = Duration::from_secs(3600);
/// How long the test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_process_refuses_what_another_has_revoked() {
    // A database of this crate's own has a write-ahead log, the service's a rollback journal.
    for bytes in [&[], data::SQLITE] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.db");
        std::fs::write(&path, bytes).unwrap();
        let database = SqliteStore::open(&path).await.unwrap().extend_schema().await.unwrap();
        // Another instance, which tells the first one nothing.
        let manager = KeyManager::new(SqliteStore::open(&path).await.unwrap(), &one_secret());
        let cache = CacheOptions::default().max_age(LONG).max_age_unfollowed(LONG);
        let store = CachedStore::new(database.clone(), cache);
        let follower = Follower::spawn(store.clone(), database.changes());
        follower.connected().await;
        let verifier = Verifier::new(store, one_secret());
        for _ in 0..3 {
            let issued = manager.issue(NewKey::new("user-1", "name").scopes("read")).await.unwrap();
            let revoked = Refusal::Revoked(issued.record.id.clone());
            let refusal = async || {
                let answer = verifier.verify(issued.key.expose_secret()).await;
                answer.err().map(|error| error.refusal().expect("available").clone())
            };
            let until = async |expected: Option<&Refusal>| {
                let start = Instant::now();
                while refusal().await.as_ref() != expected {
                    assert!(start.elapsed() < PATIENCE, "still not {expected:?}");
                    sleep(Duration::from_millis(5)).await;
                }
            };
            until(None).await;
            let status = Command::new(env!("CARGO_BIN_EXE_lxk"))
                .args(["revoke", &issued.record.id.to_string()])
                .env("DATABASE_URL", format!("sqlite://{}", path.display()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status();
            assert!(status.unwrap().success());
            until(Some(&revoked)).await;
        }
    }
}
