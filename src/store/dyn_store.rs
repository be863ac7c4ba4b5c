//! A store chosen at run time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use super::{FeedEvent, FormatCounts, HashChange, KeyLookup, KeyStore, Page, Succession};
use super::{SharedCache, Usage};
use crate::crypto::hash::Candidates;
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::record::KeyUpdate;

/// Any store behind one type, for callers who choose it at run time. Each call costs one allocation, but for
/// a look-up that is [answered at once](KeyLookup::find_now), as by a cache, which costs none. Clones share the
/// store.
///
/// What only one kind of store has, such as `set_owner_active`, `extend_schema` and `close`, is reached
/// through a clone of the bare store, kept from before it was wrapped; `extend_schema` comes first of all,
/// since the store that it returns is the one to wrap.
///
/// ```
/// use lexikon_auth::store::{DynKeyStore, MemoryStore};
/// let store = DynKeyStore::new(MemoryStore::new());
/// ```
#[derive(Clone)]
pub struct DynKeyStore(Arc<dyn Erased>);

impl DynKeyStore {
    /// Wraps a store.
    pub fn new(store: impl KeyStore + 'static) -> Self {
        Self(Arc::new(store))
    }
}

impl fmt::Debug for DynKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DynKeyStore")
    }
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The two store traits with boxed futures, which makes them usable behind `dyn`.
trait Erased: Send + Sync {
    fn find<'a>(&'a self, candidates: &'a Candidates) -> Answer<'a, Option<Arc<KeyRecord>>>;
    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>>;
    fn on_feed_event<'a>(
        &'a self,
        event: &'a FeedEvent,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    fn register_cache<'a>(&'a self, cache: &'a SharedCache) -> Answer<'a, ()>;
    fn insert<'a>(&'a self, record: &'a KeyRecord) -> Answer<'a, ()>;
    fn find_by_id<'a>(&'a self, id: &'a KeyId) -> Answer<'a, Option<Arc<KeyRecord>>>;
    fn list<'a>(&'a self, owner: &'a OwnerId, page: &'a Page) -> Answer<'a, Vec<Arc<KeyRecord>>>;
    fn update<'a>(&'a self, id: &'a KeyId, update: &'a KeyUpdate) -> Answer<'a, ()>;
    fn revoke<'a>(
        &'a self,
        id: &'a KeyId,
        at: SystemTime,
        reason: Option<&'a str>,
    ) -> Answer<'a, ()>;
    fn rotate<'a>(&'a self, succession: &'a Succession) -> Answer<'a, ()>;
    fn expiry_before_deprecation<'a>(
        &'a self,
        id: &'a KeyId,
    ) -> Answer<'a, Option<Option<SystemTime>>>;
    fn expire<'a>(&'a self, now: SystemTime) -> Answer<'a, u64>;
    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> Answer<'a, ()>;
    fn replace_hash<'a>(&'a self, change: &'a HashChange) -> Answer<'a, bool>;
    fn count_by_format<'a>(&'a self) -> Answer<'a, FormatCounts>;
}

impl<S: KeyStore> Erased for S {
    fn find<'a>(&'a self, candidates: &'a Candidates) -> Answer<'a, Option<Arc<KeyRecord>>> {
        Box::pin(KeyLookup::find(self, candidates))
    }

    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        KeyLookup::find_now(self, candidates)
    }

    fn on_feed_event<'a>(
        &'a self,
        event: &'a FeedEvent,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(KeyLookup::on_feed_event(self, event))
    }

    fn register_cache<'a>(&'a self, cache: &'a SharedCache) -> Answer<'a, ()> {
        Box::pin(KeyLookup::register_cache(self, cache))
    }

    fn insert<'a>(&'a self, record: &'a KeyRecord) -> Answer<'a, ()> {
        Box::pin(KeyStore::insert(self, record))
    }

    fn find_by_id<'a>(&'a self, id: &'a KeyId) -> Answer<'a, Option<Arc<KeyRecord>>> {
        Box::pin(KeyStore::find_by_id(self, id))
    }

    fn list<'a>(&'a self, owner: &'a OwnerId, page: &'a Page) -> Answer<'a, Vec<Arc<KeyRecord>>> {
        Box::pin(KeyStore::list(self, owner, page))
    }

    fn update<'a>(&'a self, id: &'a KeyId, update: &'a KeyUpdate) -> Answer<'a, ()> {
        Box::pin(KeyStore::update(self, id, update))
    }

    fn revoke<'a>(
        &'a self,
        id: &'a KeyId,
        at: SystemTime,
        reason: Option<&'a str>,
    ) -> Answer<'a, ()> {
        Box::pin(KeyStore::revoke(self, id, at, reason))
    }

    fn rotate<'a>(&'a self, succession: &'a Succession) -> Answer<'a, ()> {
        Box::pin(KeyStore::rotate(self, succession))
    }

    fn expiry_before_deprecation<'a>(
        &'a self,
        id: &'a KeyId,
    ) -> Answer<'a, Option<Option<SystemTime>>> {
        Box::pin(KeyStore::expiry_before_deprecation(self, id))
    }

    fn expire<'a>(&'a self, now: SystemTime) -> Answer<'a, u64> {
        Box::pin(KeyStore::expire(self, now))
    }

    fn record_usage<'a>(&'a self, batch: &'a [Usage]) -> Answer<'a, ()> {
        Box::pin(KeyStore::record_usage(self, batch))
    }

    fn replace_hash<'a>(&'a self, change: &'a HashChange) -> Answer<'a, bool> {
        Box::pin(KeyStore::replace_hash(self, change))
    }

    fn count_by_format<'a>(&'a self) -> Answer<'a, FormatCounts> {
        Box::pin(KeyStore::count_by_format(self))
    }
}

impl KeyLookup for DynKeyStore {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match self.0.find_now(candidates) {
            Some(answer) => Ok(answer),
            None => self.0.find(candidates).await,
        }
    }

    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        self.0.find_now(candidates)
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        self.0.on_feed_event(event).await;
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        self.0.register_cache(cache).await
    }
}

impl KeyStore for DynKeyStore {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        self.0.insert(record).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.0.find_by_id(id).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        self.0.list(owner, page).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        self.0.update(id, update).await
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.0.revoke(id, at, reason).await
    }

    async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
        self.0.rotate(succession).await
    }

    async fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        self.0.expiry_before_deprecation(id).await
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        self.0.expire(now).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        self.0.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        self.0.replace_hash(change).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        self.0.count_by_format().await
    }
}
