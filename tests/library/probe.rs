//! A memory store whose writes can fail, and a verifier over it.

use std::future::{pending, poll_fn};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::{
    FormatCounts, HashChange, KeyLookup, KeyStore, MemoryStore, Page, Succession, Usage,
};
use lexikon_auth::tasks::Flushed;
use lexikon_auth::{
    KeyId, KeyRecord, KeyUpdate, LegacyPolicy, OwnerId, Policy, StoreError, Verifier,
};
use lexikon_auth_tests::{SECRETS, TAGGED, UNTAGGED, hmac_hash, legacy_hash, ready, record};

pub const SECOND: Duration = Duration::from_secs(1);

/// How the store answers look-ups.
#[derive(Clone, Copy, PartialEq)]
pub enum Rows {
    /// As the memory store does: all verifications share a record, until a write replaces it.
    Shared,
    /// As a cache does: all verifications share a record, whatever is written.
    Cached,
    /// As a database does: a new copy for each look-up.
    Copied,
    /// As a store of endless keys: another one for each look-up.
    Endless,
}

/// What the store does with a write.
#[derive(Clone, Copy, PartialEq)]
pub enum Writes {
    Work,
    Fail,
    FailAfterOne,
    FailForHashes,
    Hang,
    HangForHashes,
    Panic,
    /// Works, and takes a second.
    #[cfg_attr(
        not(feature = "tokio"),
        expect(dead_code, reason = "a timer has to go on meanwhile")
    )]
    Slow,
}

/// A memory store whose writes can be made to fail, and that remembers the uses written to it.
#[derive(Clone)]
pub struct Probe {
    pub keys: MemoryStore,
    rows: Rows,
    writes: Arc<Mutex<Writes>>,
    written: Arc<Mutex<Vec<Usage>>>,
    lookups: Arc<AtomicU64>,
    /// How often a write was tried.
    pub attempts: Arc<AtomicU64>,
    /// Lets the next look-up wait once, with its row in hand.
    pub pause_next_lookup: Arc<AtomicBool>,
}

impl Probe {
    /// Holds [`TAGGED`] as `tagged`, and [`UNTAGGED`] in the legacy format as `legacy`.
    pub fn new(rows: Rows) -> Self {
        let keys = MemoryStore::new();
        ready(keys.insert(&record("tagged", hmac_hash(SECRETS[0], TAGGED)))).unwrap();
        ready(keys.insert(&record("legacy", legacy_hash(UNTAGGED)))).unwrap();
        Self {
            keys,
            rows,
            writes: Arc::new(Mutex::new(Writes::Work)),
            written: Arc::default(),
            lookups: Arc::default(),
            attempts: Arc::default(),
            pause_next_lookup: Arc::default(),
        }
    }

    pub fn set(&self, writes: Writes) {
        *self.writes.lock().unwrap() = writes;
    }

    /// The uses written since the last call.
    pub fn written(&self) -> Vec<Usage> {
        std::mem::take(&mut self.written.lock().unwrap())
    }

    pub fn stored(&self, id: &str) -> Arc<KeyRecord> {
        ready(self.keys.find_by_id(&id.into())).unwrap().expect("a record")
    }

    async fn write(&self, is_hash: bool) -> Result<(), StoreError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        let writes = *self.writes.lock().unwrap();
        match writes {
            Writes::Fail => Err(StoreError::ReadOnly(io::Error::other("disk full").into())),
            Writes::FailForHashes if is_hash => Err(StoreError::Conflict),
            Writes::Hang => pending().await,
            Writes::HangForHashes if is_hash => pending().await,
            Writes::Panic => panic!("the store panics"),
            Writes::Slow => {
                tokio::time::sleep(SECOND).await;
                Ok(())
            }
            Writes::FailAfterOne => {
                self.set(Writes::Fail);
                Ok(())
            }
            Writes::Work | Writes::FailForHashes | Writes::HangForHashes => Ok(()),
        }
    }
}

impl KeyLookup for Probe {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let number = self.lookups.fetch_add(1, Ordering::Relaxed);
        let row = match self.rows {
            Rows::Shared | Rows::Cached => self.keys.find(candidates).await?,
            Rows::Copied => self.keys.find(candidates).await?.map(|row| Arc::new((*row).clone())),
            Rows::Endless => Some(record(&number.to_string(), candidates.as_slice()[0]).into()),
        };
        poll_fn(|_| match self.pause_next_lookup.swap(false, Ordering::SeqCst) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
        Ok(row)
    }

    async fn on_feed_event(&self, _: &lexikon_auth::store::FeedEvent) {}
}

/// A flush writes uses and hashes; what else it called would be a mistake.
impl KeyStore for Probe {
    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        self.write(false).await?;
        self.written.lock().unwrap().extend_from_slice(batch);
        if self.rows == Rows::Cached {
            return Ok(());
        }
        self.keys.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        self.write(true).await?;
        self.keys.replace_hash(change).await
    }

    async fn insert(&self, _: &KeyRecord) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn find_by_id(&self, _: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        unreachable!()
    }

    async fn list(&self, _: &OwnerId, _: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        unreachable!()
    }

    async fn update(&self, _: &KeyId, _: &KeyUpdate) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn revoke(&self, _: &KeyId, _: SystemTime, _: Option<&str>) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn rotate(&self, _: &Succession) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn expire(&self, _: SystemTime) -> Result<u64, StoreError> {
        unreachable!()
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        unreachable!()
    }

    async fn expiry_before_deprecation(
        &self,
        _: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        Ok(None)
    }
}

/// A verifier at noon that upgrades legacy keys.
pub fn verifier(store: &Probe) -> Verifier<Probe> {
    lexikon_auth_tests::verifier(store.clone())
        .with_policy(Policy::default().legacy(LegacyPolicy::UpgradeOnUse))
}

pub fn verify(verifier: &Verifier<Probe>, key: &str) {
    _ = ready(verifier.verify(key)).expect("a good key");
}

pub fn used(used: usize) -> Flushed {
    Flushed { used, upgraded: 0 }
}
