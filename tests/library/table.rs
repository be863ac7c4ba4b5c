//! The table of keys as a whole, on SQLite and on PostgreSQL.
#![cfg(all(feature = "cache", feature = "postgres", feature = "sqlite"))]

mod batches;
mod deprecation;
mod policy;
mod queries;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lexikon_auth::admin::{BatchObserver, DeprecatedKeys, KeyFilter, KeyTable, KnownFormat};
use lexikon_auth::clock::ManualClock;
use lexikon_auth::crypto::{HashFormat, KeyHash};
use lexikon_auth::store::{
    CacheOptions, CachedStore, DynKeyStore, KeyStore, PolicySource, PostgresStore, SqliteStore,
    TimeZone,
};
use lexikon_auth::{KeyId, KeyManager, KeyRecord, LegacyPolicy, Rotation, StoreError, Verifier};
use lexikon_auth_tests::{SECRETS, clock_at_noon, noon, one_secret, postgres, ring, secret};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::sleep;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The same table, a day later.
fn a_day_later(table: &KeyTable) -> KeyTable {
    table.clone().with_clock(Arc::new(ManualClock::new(noon() + DAY)))
}

/// An empty table in each database, at noon.
async fn tables() -> Vec<(KeyTable, DynKeyStore, Option<TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open_or_create(folder.path().join("keys.db")).await.unwrap();
    let postgres = PostgresStore::connect(postgres::database().await).await.unwrap();
    let table = KeyTable::from(postgres).with_clock(clock_at_noon());
    let store = table.store();
    let sqlite = KeyTable::from(sqlite).with_clock(clock_at_noon());
    vec![(sqlite.clone(), sqlite.store(), Some(folder)), (table, store, None)]
}

/// A key whose hash is made of its number.
fn numbered(number: u32) -> KeyRecord {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    let id = KeyId::from(format!("key-{number:06}"));
    let mut record = KeyRecord::new(id, "user-1".into(), KeyHash::from_bytes(hash));
    record.created_at = Some(noon() - 30 * DAY);
    record
}

fn legacy(number: u32) -> KeyRecord {
    let mut record = numbered(number);
    record.format = Some(HashFormat::Sha256);
    record
}

async fn add(store: &DynKeyStore, records: &[KeyRecord]) {
    for record in records {
        store.insert(record).await.unwrap();
    }
}

async fn expiry(store: &DynKeyStore, number: u32) -> Option<SystemTime> {
    store.find_by_id(&numbered(number).id).await.unwrap().unwrap().expires_at
}

async fn expiries(store: &DynKeyStore, numbers: &[u32]) -> Vec<Option<SystemTime>> {
    let mut all = Vec::new();
    for number in numbers {
        all.push(expiry(store, *number).await);
    }
    all
}

async fn ids(table: &KeyTable, filter: &KeyFilter) -> Vec<String> {
    let mut ids = Vec::new();
    let listed = table.each_key(filter, |key| {
        ids.push(key.record.id.to_string());
        Ok::<_, StoreError>(())
    });
    listed.await.unwrap();
    assert_eq!(table.count(filter).await.unwrap(), ids.len() as u64);
    ids
}
