//! Single flight: one load from the store beneath for each cache key, however many callers wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::future::{BoxFuture, FutureExt, Shared, WeakShared, ready};

use super::entries::Entries;
use super::log::{Loaded, Position};
use super::options::CacheOptions;
use crate::crypto::hash::{Candidates, KeyHash};
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::KeyLookup;
use crate::store::change::Change;
use crate::store::write_through::Invalidate;
use crate::util::lock::lock;

/// Entries, and the loads of those that are missing.
pub(super) struct LoadingCache {
    pub(super) entries: Entries,
    flights: Mutex<HashMap<KeyHash, Flight>>,
}

/// A load that somebody waits for.
struct Flight {
    number: u64,
    started_at: Position,
    /// Weak, so that a load that nobody waits for any more is dropped, and its connection with it.
    load: WeakShared<Load>,
}

type Load = BoxFuture<'static, Result<Loaded, Arc<StoreError>>>;

impl LoadingCache {
    pub(super) fn new(options: CacheOptions) -> Self {
        Self { entries: Entries::new(options), flights: Mutex::default() }
    }

    /// Returns the answer of the store beneath, and caches it.
    pub(super) async fn load<S: KeyLookup + 'static>(
        self: &Arc<Self>,
        cache_key: KeyHash,
        store: &Arc<S>,
        candidates: &Candidates,
    ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let asked_at = self.entries.position();
        loop {
            let (started_at, load) = self.join_or_start(cache_key, store, candidates);
            let loaded = load.await.map_err(|error| StoreError::Unavailable(error.into()))?;
            // The load may have begun long before this call, and have missed a change that was complete
            // by then. Another one that begins now does not miss it.
            if !self.entries.is_outdated(&loaded, started_at..asked_at) {
                return Ok(loaded.record);
            }
        }
    }

    /// Joins the load for a cache key, or starts one. It runs as long as somebody waits for it.
    fn join_or_start<S: KeyLookup + 'static>(
        self: &Arc<Self>,
        cache_key: KeyHash,
        store: &Arc<S>,
        candidates: &Candidates,
    ) -> (Position, Shared<Load>) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&cache_key)
            && let Some(load) = flight.load.upgrade()
        {
            return (flight.started_at, load);
        }
        let started_at = self.entries.position();
        // A load that was under way when the caller looked for an entry may have ended since.
        if let Some(record) = self.entries.peek(&cache_key) {
            return (started_at, ready(Ok(Loaded { record, is_final: true })).boxed().shared());
        }
        let number = self.entries.counters.loads.add(1);
        let guard = FlightGuard { cache: self.clone(), cache_key, number };
        let (store, candidates) = (store.clone(), candidates.clone());
        let load = async move {
            let entries = &guard.cache.entries;
            let read_at = entries.now();
            let record = store.find(&candidates).await.map_err(Arc::new)?;
            let is_final = record.as_ref().is_some_and(|found| found.hash == candidates.current());
            let loaded = Loaded { record, is_final };
            entries.insert(cache_key, &loaded, started_at, read_at);
            Ok(loaded)
        };
        let load = load.boxed().shared();
        let weak = load.downgrade().expect("it has not been polled");
        flights.insert(cache_key, Flight { number, started_at, load: weak });
        (started_at, load)
    }
}

impl Invalidate for Arc<LoadingCache> {
    fn request_invalidation(&self, changes: &[Change]) {
        changes.iter().for_each(|change| self.entries.invalidate(change.clone()));
    }
}

/// Removes a flight when its load has ended, whatever ended it.
struct FlightGuard {
    cache: Arc<LoadingCache>,
    cache_key: KeyHash,
    number: u64,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.flights);
        if flights.get(&self.cache_key).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.cache_key);
        }
    }
}
