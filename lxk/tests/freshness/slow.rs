//! A database whose answers to look-ups take as long as the test wants: read at once, told later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use lexikon_auth::crypto::Candidates;
use lexikon_auth::store::FeedEvent;
use lexikon_auth::store::{
    DynKeyStore, FormatCounts, HashChange, KeyLookup, KeyStore, Page, Succession, Usage,
};
use lexikon_auth::{KeyId, KeyRecord, KeyUpdate, OwnerId, StoreError};
use tokio::time::sleep;

#[derive(Clone)]
pub struct Slow {
    store: DynKeyStore,
    milliseconds: Arc<AtomicU64>,
}

impl Slow {
    pub fn new(store: impl KeyStore + 'static) -> Self {
        Self { store: DynKeyStore::new(store), milliseconds: Arc::default() }
    }

    /// How late answers come from now on.
    pub fn delay(&self, delay: Duration) {
        self.milliseconds.store(delay.as_millis() as u64, Ordering::SeqCst);
    }
}

type Answer<T> = Result<T, StoreError>;

impl KeyLookup for Slow {
    async fn find(&self, candidates: &Candidates) -> Answer<Option<Arc<KeyRecord>>> {
        let answer = self.store.find(candidates).await;
        match self.milliseconds.load(Ordering::SeqCst) {
            0 => {}
            delay => sleep(Duration::from_millis(delay)).await,
        }
        answer
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        self.store.on_feed_event(event).await;
    }
}

impl KeyStore for Slow {
    async fn insert(&self, record: &KeyRecord) -> Answer<()> {
        self.store.insert(record).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Answer<Option<Arc<KeyRecord>>> {
        self.store.find_by_id(id).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Answer<Vec<Arc<KeyRecord>>> {
        self.store.list(owner, page).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Answer<()> {
        self.store.update(id, update).await
    }

    async fn revoke(&self, id: &KeyId, at: SystemTime, reason: Option<&str>) -> Answer<()> {
        self.store.revoke(id, at, reason).await
    }

    async fn rotate(&self, succession: &Succession) -> Answer<()> {
        self.store.rotate(succession).await
    }

    async fn expire(&self, now: SystemTime) -> Answer<u64> {
        self.store.expire(now).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Answer<()> {
        self.store.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Answer<bool> {
        self.store.replace_hash(change).await
    }

    async fn count_by_format(&self) -> Answer<FormatCounts> {
        self.store.count_by_format().await
    }

    async fn expiry_before_deprecation(&self, id: &KeyId) -> Answer<Option<Option<SystemTime>>> {
        self.store.expiry_before_deprecation(id).await
    }
}
