//! The in-process cache.

mod entries;
mod counts;
mod loading;
mod log;

use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::entries::{Copies, InvalidateOnDrop, NEVER};
pub use self::counts::CacheCounts;
use self::loading::Answer;
use super::write_through::{Outcome, then_forget};
use super::{Change, FeedEvent, FeedEventKind, FormatCounts, HashChange, KeyLookup, KeyStore};
use super::{Page, SharedCache, Usage};
use crate::crypto::hash::Candidates;
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::record::KeyUpdate;
use crate::util::run_to_end::run_to_end;

/// How a [`CachedStore`] is sized, and how long it vouches for what it holds.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    max_bytes: u64,
    max_entries: u64,
    max_unknown_bytes: u64,
    max_age: Duration,
    max_age_unfollowed: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_entries: 1_000_000,
            max_unknown_bytes: 1 << 20,
            max_age: Duration::from_secs(300),
            max_age_unfollowed: Duration::from_secs(5),
        }
    }
}

impl CacheOptions {
    /// Most bytes of memory that records take, the cache's own tables included. Default 32 MiB, room
    /// for about 38,000 keys.
    pub fn max_bytes(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// Most records. Default 1,000,000.
    pub fn max_entries(self, max_entries: u64) -> Self {
        Self { max_entries: max_entries.max(1), ..self }
    }

    /// Most bytes that unknown keys take. They have a budget of their own, so that garbage does not
    /// drive out good keys. Default 1 MiB, room for about 6,000.
    pub fn max_unknown_bytes(self, max_unknown_bytes: u64) -> Self {
        Self { max_unknown_bytes, ..self }
    }

    /// How long an answer is used while a [`Follower`](crate::tasks::Follower) is connected. Default 5
    /// minutes.
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// How long an answer is used while no follower is connected, or none was ever started, or its
    /// latest sign of life is too old: how late a change made elsewhere may be noticed. Default 5
    /// seconds.
    pub fn max_age_unfollowed(self, max_age_unfollowed: Duration) -> Self {
        Self { max_age_unfollowed, ..self }
    }
}

/// A cache in memory over any store. Clones share it.
///
/// - One load for each key, however many callers wait for it; a caller that gives up does not disturb
///   the others.
/// - Changes made through the cached store are seen by every verification that begins after they
///   returned. Changes made elsewhere arrive through a [`Follower`](crate::tasks::Follower); without one,
///   after [`max_age_unfollowed`](CacheOptions::max_age_unfollowed).
/// - An answer that was on its way while its key or owner changed is not kept.
/// - A key that is added has unknown keys and legacy ones looked up again, since a row for another of
///   their candidates may be there now. That is a matter of load: the more often keys are issued, the
///   less is a cache of legacy keys worth.
/// - Errors are not cached.
///
/// ```
/// use lexikon_auth::store::{CacheOptions, CachedStore, MemoryStore};
/// let store = CachedStore::new(MemoryStore::new());
/// let small = CachedStore::with_options(MemoryStore::new(), CacheOptions::default().max_bytes(1 << 20));
/// ```
pub struct CachedStore<S> {
    store: Arc<S>,
    cache: Arc<Copies>,
}

impl<S> Clone for CachedStore<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), cache: self.cache.clone() }
    }
}

impl<S> fmt::Debug for CachedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore").field("options", &self.cache.options).finish_non_exhaustive()
    }
}

impl<S: KeyLookup> CachedStore<S> {
    /// A cache of the default size over `store`.
    pub fn new(store: S) -> Self {
        Self::with_options(store, CacheOptions::default())
    }

    /// A cache over `store`.
    pub fn with_options(store: S, options: CacheOptions) -> Self {
        Self { store: Arc::new(store), cache: Arc::new(Copies::new(options)) }
    }

    /// The store beneath.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Forgets what a change concerns. For changes made behind the back of this value that no
    /// follower reports.
    pub fn invalidate(&self, change: Change) {
        self.cache.invalidate(change);
    }

    /// Bytes that the cached records take, as the bound counts them.
    pub fn bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// How many times the store beneath was asked.
    pub fn loads(&self) -> u64 {
        self.cache.counters.loads.read()
    }

    /// What has happened so far, and what is held.
    pub fn counts(&self) -> CacheCounts {
        self.cache.counts()
    }
}

impl<S: KeyLookup + 'static> KeyLookup for CachedStore<S> {
    async fn find(&self, candidates: &Candidates) -> Answer {
        let question = candidates.identity();
        match self.cache.recall(&question) {
            Some(answer) => Ok(answer),
            None => {
                self.cache.counters.misses.add(1);
                self.load(question, candidates).await
            }
        }
    }

    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        self.cache.recall(&candidates.identity())
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        // Beneath first: nothing that is read again after the change may come from an old entry there.
        self.store.on_feed_event(event).await;
        match &event.kind {
            FeedEventKind::Connected => self.cache.vouch_from(self.cache.now()),
            FeedEventKind::Heartbeat { since, until } => self.cache.vouch(*since, *until),
            FeedEventKind::Changed(change) => self.cache.invalidate(change.clone()),
            FeedEventKind::Lost => self.cache.vouch_from(NEVER),
        }
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        self.store.register_cache(cache).await
    }
}

impl<S: KeyStore + 'static> CachedStore<S> {
    /// Runs a write to its end, and has the cache forget what it changes.
    async fn write<T: Outcome + Send + 'static, W>(
        &self,
        changes: impl Into<Vec<Change>>,
        write: impl FnOnce(Arc<S>) -> W,
    ) -> Result<T, StoreError>
    where
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        // In a box of its own: the futures of databases are large, and are moved several times here.
        let write = Box::pin(write(self.store.clone()));
        let (cache, changes) = (self.cache.clone(), changes.into());
        run_to_end(async move {
            let unfinished = InvalidateOnDrop { cache: cache.clone(), changes: changes.clone() };
            let write = async move {
                let done = write.await;
                unfinished.disarm();
                done
            };
            then_forget(write, move || {
                changes.iter().for_each(|change| cache.invalidate(change.clone()));
                ready(())
            })
            .await
        })
        .await
    }
}

impl<S: KeyStore + 'static> KeyStore for CachedStore<S> {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let record = record.clone();
        self.write([Change::Added], |store| async move { store.insert(&record).await }).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.store.find_by_id(id).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        self.store.list(owner, page).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let (id, update) = (id.clone(), update.clone());
        let changes = [Change::Key(id.clone())];
        self.write(changes, |store| async move { store.update(&id, &update).await }).await
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let (id, reason) = (id.clone(), reason.map(str::to_owned));
        let changes = [Change::Key(id.clone())];
        self.write(changes, |store| async move { store.revoke(&id, at, reason.as_deref()).await })
            .await
    }

    async fn rotate(
        &self,
        old: &KeyRecord,
        now: SystemTime,
        old_expires_at: SystemTime,
        successor: &KeyRecord,
    ) -> Result<(), StoreError> {
        let (old, successor) = (old.clone(), successor.clone());
        let changes = [Change::Key(old.id.clone()), Change::Added];
        self.write(changes, |store| async move {
            store.rotate(&old, now, old_expires_at, &successor).await
        })
        .await
    }

    async fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        self.store.expiry_before_deprecation(id).await
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        self.write([Change::All], |store| async move { store.expire(now).await }).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        // No decision depends on it.
        self.store.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let change = change.clone();
        let changes = [Change::Key(change.id.clone()), Change::Added];
        self.write(changes, |store| async move { store.replace_hash(&change).await }).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        self.store.count_by_format().await
    }
}
