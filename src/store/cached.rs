//! The in-process cache.

mod counts;
mod entries;
mod entry;
mod index;
mod loading;
mod log;
mod options;

use std::fmt;
use std::sync::Arc;

pub use self::counts::CacheCounts;
use self::loading::LoadingCache;
pub use self::options::CacheOptions;
use super::KeyLookup;
use super::change::{Change, FeedEvent, FeedEventKind};
use super::shared_cache::SharedCache;
use super::write_through::impl_key_store;
use crate::crypto::hash::Candidates;
use crate::error::StoreError;
use crate::record::KeyRecord;

/// A cache in memory over any store. Clones share it.
///
/// - One load for each key, however many callers wait for it; a caller that gives up does not disturb
///   the others.
/// - Changes made through the cached store are seen by every verification that begins after they
///   returned. Changes made elsewhere arrive through a [`Follower`](crate::tasks::Follower); without one,
///   after [`max_age_unfollowed`](CacheOptions::max_age_unfollowed).
/// - An answer is not cached if its key or owner changed while it was being loaded.
/// - When a key is added, unknown keys and legacy ones are looked up again, since there may be a row for
///   another of their candidates now. The more often keys are issued, the less a cache of legacy keys
///   is worth.
/// - Errors are not cached.
///
/// ```
/// use lexikon_auth::store::{CacheOptions, CachedStore, MemoryStore};
/// let store = CachedStore::new(MemoryStore::new(), CacheOptions::default());
/// let small = CachedStore::new(MemoryStore::new(), CacheOptions::default().max_bytes(1 << 20));
/// ```
pub struct CachedStore<S> {
    store: Arc<S>,
    cache: Arc<LoadingCache>,
}

impl<S> Clone for CachedStore<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), cache: self.cache.clone() }
    }
}

impl<S> fmt::Debug for CachedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore")
            .field("options", &self.cache.entries.options)
            .finish_non_exhaustive()
    }
}

impl<S: KeyLookup> CachedStore<S> {
    /// Makes a cache over `store`.
    pub fn new(store: S, options: CacheOptions) -> Self {
        Self { store: Arc::new(store), cache: Arc::new(LoadingCache::new(options)) }
    }

    /// Returns the store beneath.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Invalidates what a change affects. For changes that are not made through this value and that no
    /// follower reports.
    pub fn invalidate(&self, change: Change) {
        self.cache.entries.invalidate(change);
    }

    /// Returns the bytes that the cached records take, as the bound counts them.
    pub fn bytes(&self) -> u64 {
        self.cache.entries.bytes()
    }

    /// Returns how many times the store beneath was asked.
    pub fn loads(&self) -> u64 {
        self.cache.entries.counters.loads.read()
    }

    /// Returns what has happened so far, and what is held.
    pub fn counts(&self) -> CacheCounts {
        self.cache.entries.counts()
    }
}

impl<S: KeyLookup + 'static> KeyLookup for CachedStore<S> {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let cache_key = candidates.identity();
        match self.cache.entries.get(&cache_key) {
            Some(answer) => Ok(answer),
            None => {
                self.cache.entries.counters.misses.add(1);
                self.cache.load(cache_key, &self.store, candidates).await
            }
        }
    }

    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        self.cache.entries.get(&candidates.identity())
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        // Beneath first: nothing that is read again after the change may come from an old entry there.
        self.store.on_feed_event(event).await;
        if let FeedEventKind::Changed(change) = &event.kind {
            self.invalidate(change.clone());
        }
        self.cache.entries.freshness.on_feed_event(&event.kind);
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        self.store.register_cache(cache).await
    }
}

impl_key_store!(CachedStore, cache);
