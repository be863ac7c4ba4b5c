//! The in-process cache.

mod log;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::{FutureExt, Shared, WeakShared};
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use tokio::time::Instant;

use self::log::{ChangeLog, Position};
use super::{Change, FeedEvent, FormatCounts, HashChange, KeyLookup, KeyStore, KeyUpdate};
use super::{Page, Usage};
use crate::error::StoreError;
use crate::hash::{Candidates, KeyHash};
use crate::record::{KeyId, KeyRecord, OwnerId};

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
    /// for about 45,000 keys.
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

    /// How long an answer is used while a [`Follower`](crate::Follower) is connected. Default 5
    /// minutes.
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// How long an answer is used while no follower is connected, or none was ever started: how late
    /// a change made elsewhere may be noticed. Default 5 seconds.
    pub fn max_age_unfollowed(self, max_age_unfollowed: Duration) -> Self {
        Self { max_age_unfollowed, ..self }
    }
}

/// A cache in memory over any store. Clones share it.
///
/// - One load for each key, however many callers wait for it; a caller that gives up does not disturb
///   the others.
/// - Changes made through the cached store are seen by every verification that begins after they
///   returned. Changes made elsewhere arrive through a [`Follower`](crate::Follower); without one,
///   after [`max_age_unfollowed`](CacheOptions::max_age_unfollowed).
/// - An answer that was on its way while its key or owner changed is not kept.
/// - Errors are not cached.
///
/// ```
/// use lexikon_auth::{CacheOptions, CachedStore, MemoryStore};
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
        self.cache.known.weight()
    }

    /// How many times the store beneath was asked.
    pub fn loads(&self) -> u64 {
        self.cache.loads.load(Ordering::Relaxed)
    }
}

impl<S: KeyLookup + 'static> CachedStore<S> {
    async fn load(&self, question: KeyHash, candidates: &Candidates) -> Answer {
        let asked_at = self.cache.ledger().changes.position();
        loop {
            let (started_at, load) = self.join_or_start(question, candidates);
            let answer = load.await;
            // The load may have begun long before this call, and missed a change that was complete by
            // then. Another one that begins now does not.
            let reading = answer.map_err(|error| StoreError::Unavailable(error.into()))?;
            if !self.cache.ledger().changes.concerns(started_at, asked_at, &reading) {
                return Ok(reading.record);
            }
        }
    }

    /// Joins the load for this question, or starts one. It runs as long as somebody waits for it.
    fn join_or_start(&self, question: KeyHash, candidates: &Candidates) -> (Position, Load) {
        let mut flights = lock(&self.cache.flights);
        if let Some(flight) = flights.get(&question)
            && let Some(load) = flight.load.upgrade()
        {
            return (flight.started_at, load);
        }
        let started_at = self.cache.ledger().changes.position();
        let number = self.cache.loads.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { cache: self.cache.clone(), question, number };
        let (store, candidates) = (self.store.clone(), candidates.clone());
        let load = async move {
            let read_at = landing.cache.now();
            let record = store.find(&candidates).await.map_err(Arc::new)?;
            let is_final = record.as_ref().is_some_and(|found| found.hash == candidates.current());
            let reading = Reading { record, is_final };
            landing.cache.keep(question, started_at, read_at, &reading);
            Ok(reading)
        };
        let load = (Box::pin(load) as Pin<Box<dyn Future<Output = SharedAnswer> + Send>>).shared();
        let weak = load.downgrade().expect("it has not been polled");
        flights.insert(question, Flight { number, started_at, load: weak });
        (started_at, load)
    }
}

impl<S: KeyLookup + 'static> KeyLookup for CachedStore<S> {
    async fn find(&self, candidates: &Candidates) -> Answer {
        let question = candidates.identity();
        match self.cache.recall(&question) {
            Some(answer) => Ok(answer),
            None => self.load(question, candidates).await,
        }
    }

    async fn observe(&self, event: &FeedEvent) {
        // Beneath first: nothing that is read again after the change may come from an old copy there.
        self.store.observe(event).await;
        match event {
            FeedEvent::Connected => self.cache.vouch_from(self.cache.now()),
            FeedEvent::Changed(change) => self.cache.invalidate(change.clone()),
            FeedEvent::Lost => self.cache.vouch_from(NEVER),
        }
    }
}

impl<S: KeyStore + 'static> KeyStore for CachedStore<S> {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let _after = self.cache.invalidate_after(vec![Change::Added]);
        self.store.insert(record).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        self.store.find_by_id(id).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        self.store.list(owner, page).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let _after = self.cache.invalidate_after(vec![Change::Key(id.clone())]);
        self.store.update(id, update).await
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let _after = self.cache.invalidate_after(vec![Change::Key(id.clone())]);
        self.store.revoke(id, at, reason).await
    }

    async fn rotate(
        &self,
        old: &KeyRecord,
        now: SystemTime,
        old_expires_at: SystemTime,
        successor: &KeyRecord,
    ) -> Result<(), StoreError> {
        let _after = self.cache.invalidate_after(vec![Change::Key(old.id.clone()), Change::Added]);
        self.store.rotate(old, now, old_expires_at, successor).await
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let mut after = self.cache.invalidate_after(vec![Change::All]);
        let expired = self.store.expire(now).await?;
        if expired == 0 {
            after.changes.clear();
        }
        Ok(expired)
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        // No decision depends on it.
        self.store.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let _after = self.cache.invalidate_after(vec![Change::Key(change.id.clone())]);
        self.store.replace_hash(change).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        self.store.count_by_format().await
    }
}

type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;
type SharedAnswer = Result<Reading, Arc<StoreError>>;
type Load = Shared<Pin<Box<dyn Future<Output = SharedAnswer> + Send>>>;

/// What a load found.
#[derive(Clone)]
struct Reading {
    record: Option<Arc<KeyRecord>>,
    /// Whether no row that is added later can be preferred: the record has the first candidate.
    is_final: bool,
}

impl Reading {
    /// Whether the answer may be another one after a change.
    fn depends_on(&self, change: &Change) -> bool {
        let record = self.record.as_ref();
        match change {
            Change::Key(id) => record.is_some_and(|record| record.id == *id),
            Change::Owner(owner) => record.is_some_and(|record| record.owner == *owner),
            Change::Added => !self.is_final,
            Change::All => true,
        }
    }
}

/// A load that somebody waits for.
struct Flight {
    number: u64,
    started_at: Position,
    /// Weak, so that a load that nobody waits for any more is dropped, and its connection with it.
    load: WeakShared<Pin<Box<dyn Future<Output = SharedAnswer> + Send>>>,
}

/// Takes a flight off the list when its load has ended, however it did.
struct Landing {
    cache: Arc<Copies>,
    question: KeyHash,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.flights);
        if flights.get(&self.question).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.question);
        }
    }
}

/// Nanoseconds since the cache was made, by a clock that is never set.
type Nanoseconds = u64;
/// Instead of a time: no follower is connected.
const NEVER: Nanoseconds = Nanoseconds::MAX;

/// When an answer was read, and when it is too old whatever happens.
#[derive(Clone, Copy, Debug)]
struct Age {
    read_at: Nanoseconds,
    until: Nanoseconds,
}

#[derive(Clone)]
struct Kept {
    record: Arc<KeyRecord>,
    age: Age,
}

/// What is kept, under what the candidates of a presented key amount to.
struct Copies {
    options: CacheOptions,
    start: Instant,
    known: Cache<KeyHash, Kept, Weight, DefaultHashBuilder, Evicted>,
    unknown: Cache<KeyHash, Age, Weight>,
    /// Answers read since then are good until a change is reported.
    vouched_since: AtomicU64,
    ledger: Mutex<Ledger>,
    flights: Mutex<HashMap<KeyHash, Flight>>,
    loads: AtomicU64,
}

/// What has to change together with the cache.
#[derive(Default)]
struct Ledger {
    changes: ChangeLog,
    by_id: HashMap<KeyId, KeyHash>,
    /// Questions whose answer a row that is added could change.
    provisional: HashSet<KeyHash>,
}

impl Ledger {
    /// Strikes off an entry that has left the cache.
    fn strike(&mut self, question: &KeyHash, kept: &Kept) {
        if self.by_id.get(&kept.record.id) == Some(question) {
            self.by_id.remove(&kept.record.id);
        }
        self.provisional.remove(question);
    }
}

impl Copies {
    fn new(options: CacheOptions) -> Self {
        let cache = |bytes: u64, entries: u64, typical: u64| {
            let weight = Weight { least: bytes.div_ceil(entries) };
            let mut builder = OptionsBuilder::new();
            let expected = (bytes / typical).min(entries).max(1);
            builder.estimated_items_capacity(expected as usize).weight_capacity(bytes);
            (builder.build().expect("both are given"), weight)
        };
        let (known, weight) = cache(options.max_bytes, options.max_entries, TYPICAL);
        let known = Cache::with_options(known, weight, DefaultHashBuilder::default(), Evicted);
        let (unknown, weight) = cache(options.max_unknown_bytes, u64::MAX, UNKNOWN);
        let (hasher, lifecycle) = (DefaultHashBuilder::default(), Default::default());
        let unknown = Cache::with_options(unknown, weight, hasher, lifecycle);
        Self {
            options,
            start: Instant::now(),
            known,
            unknown,
            vouched_since: AtomicU64::new(NEVER),
            ledger: Mutex::default(),
            flights: Mutex::default(),
            loads: AtomicU64::new(0),
        }
    }

    fn now(&self) -> Nanoseconds {
        nanoseconds(self.start.elapsed())
    }

    /// The answer to a question, while it is known for sure.
    fn recall(&self, question: &KeyHash) -> Option<Option<Arc<KeyRecord>>> {
        let now = self.now();
        if let Some(kept) = self.known.get(question)
            && self.is_good(kept.age, now)
        {
            return Some(Some(kept.record));
        }
        let age = self.unknown.get(question)?;
        self.is_good(age, now).then_some(None)
    }

    fn is_good(&self, age: Age, now: Nanoseconds) -> bool {
        let unfollowed = age.read_at.saturating_add(nanoseconds(self.options.max_age_unfollowed));
        match self.vouched_since.load(Ordering::Acquire) {
            NEVER => now < age.until.min(unfollowed),
            since => age.read_at >= since && now < age.until,
        }
    }

    fn vouch_from(&self, time: Nanoseconds) {
        self.vouched_since.store(time, Ordering::Release);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Keeps an answer, unless a change since its read began concerns it.
    fn keep(
        &self,
        question: KeyHash,
        started_at: Position,
        read_at: Nanoseconds,
        reading: &Reading,
    ) {
        let mut ledger = self.ledger();
        if ledger.changes.concerns(started_at, ledger.changes.position(), reading) {
            return;
        }
        self.forget(&mut ledger, &question);
        let mut until = read_at.saturating_add(nanoseconds(self.options.max_age));
        let Some(record) = &reading.record else {
            return self.unknown.insert(question, Age { read_at, until });
        };
        // At its expiry a key is looked up once more: it may have been prolonged.
        if let Some(expires_at) = record.expires_at
            && let Ok(left) = expires_at.duration_since(SystemTime::now())
        {
            until = until.min(self.now().saturating_add(nanoseconds(left)));
        }
        if let Some(other) = ledger.by_id.insert(record.id.clone(), question) {
            // Asked with another ring of secrets. One entry for each key is all that is found by id.
            self.forget(&mut ledger, &other);
        }
        if !reading.is_final {
            ledger.provisional.insert(question);
        }
        let kept = Kept { record: record.clone(), age: Age { read_at, until } };
        let mut evicted = Vec::new();
        self.known.insert_with_lifecycle(question, kept, &mut evicted);
        for (question, kept) in evicted {
            ledger.strike(&question, &kept);
        }
    }

    fn forget(&self, ledger: &mut Ledger, question: &KeyHash) {
        self.unknown.remove(question);
        if let Some((_, kept)) = self.known.remove(question) {
            ledger.strike(question, &kept);
        }
    }

    fn invalidate(&self, change: Change) {
        let mut ledger = self.ledger();
        match &change {
            Change::Key(id) => {
                if let Some(question) = ledger.by_id.get(id).copied() {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::Owner(owner) => {
                let kept = self.known.iter();
                let kept: Vec<_> = kept.filter(|(_, kept)| kept.record.owner == *owner).collect();
                for (question, _) in kept {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::Added => {
                self.unknown.clear();
                for question in std::mem::take(&mut ledger.provisional) {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::All => {
                ledger.by_id.clear();
                ledger.provisional.clear();
                self.known.clear();
                self.unknown.clear();
            }
        }
        ledger.changes.push(change);
    }

    /// Invalidates when the value is dropped: after a write, whether it succeeded, failed with the
    /// outcome unknown, or was given up half-way.
    fn invalidate_after(&self, changes: Vec<Change>) -> InvalidateAfter<'_> {
        InvalidateAfter { cache: self, changes }
    }
}

struct InvalidateAfter<'a> {
    cache: &'a Copies,
    changes: Vec<Change>,
}

impl Drop for InvalidateAfter<'_> {
    fn drop(&mut self) {
        for change in self.changes.drain(..) {
            self.cache.invalidate(change);
        }
    }
}

/// Bytes of the tables that an entry takes up: quick_cache's (its documentation gives the formula), with
/// a ghost for every second entry, and the index by id, both half empty at worst.
const TABLES: u64 = 320;
/// Bytes that an unknown key takes up.
const UNKNOWN: u64 = 192;
/// Bytes of an entry as they usually come, to size the tables.
const TYPICAL: u64 = 640;
/// What the allocator adds to an allocation, and the two counters of an `Arc`.
const ALLOCATION: u64 = 16;

#[derive(Clone)]
struct Weight {
    /// Bounds the number of entries along with their bytes.
    least: u64,
}

impl Weighter<KeyHash, Kept> for Weight {
    fn weight(&self, _: &KeyHash, kept: &Kept) -> u64 {
        let record = &*kept.record;
        let reason = record.revocation.as_ref().map_or(0, |revocation| {
            size_of_val(&**revocation) + revocation.reason.as_ref().map_or(0, |text| text.len())
        });
        let texts = record.name.len() + record.owner.as_str().len() + record.scopes.as_str().len();
        let bytes = TABLES + (size_of::<KeyRecord>() + texts + reason) as u64 + 6 * ALLOCATION;
        bytes.max(self.least)
    }
}

impl Weighter<KeyHash, Age> for Weight {
    fn weight(&self, _: &KeyHash, _: &Age) -> u64 {
        UNKNOWN.max(self.least)
    }
}

/// Reports evicted entries to whoever inserts.
#[derive(Clone)]
struct Evicted;

impl Lifecycle<KeyHash, Kept> for Evicted {
    type RequestState = Vec<(KeyHash, Kept)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, question: KeyHash, kept: Kept) {
        evicted.push((question, kept));
    }
}

fn nanoseconds(duration: Duration) -> Nanoseconds {
    // 584 years, short of `NEVER`.
    Nanoseconds::try_from(duration.as_nanos()).unwrap_or(NEVER - 1)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock is held across anything that panics half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
