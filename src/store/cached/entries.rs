//! The entries of the cache: which of them still count, and which an invalidation removes.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, OptionsBuilder};

use super::counts::{CacheCounts, Counters, Size};
use super::entry::{Entry, Evicted, TYPICAL_ENTRY, UNKNOWN_ENTRY, Validity, Weight};
use super::index::Index;
use super::log::{ChangeLog, Loaded, Position};
use super::options::CacheOptions;
use crate::crypto::hash::KeyHash;
use crate::record::KeyRecord;
use crate::store::change::Change;
use crate::store::freshness::{Freshness, Nanoseconds, nanoseconds};
use crate::util::lock::lock;

#[cfg(test)]
mod tests;

/// Answers to look-ups. The cache key is the [identity](crate::crypto::Candidates) of the candidates.
pub(super) struct Entries {
    pub(super) options: CacheOptions,
    pub(super) freshness: Freshness,
    pub(super) counters: Counters,
    known: Cache<KeyHash, Entry, Weight, DefaultHashBuilder, Evicted>,
    unknown: Cache<KeyHash, Validity, Weight, DefaultHashBuilder, Evicted>,
    state: Mutex<State>,
    known_size: Size,
    unknown_size: Size,
}

/// What changes together with the entries, under one lock.
#[derive(Default)]
struct State {
    changes: ChangeLog,
    index: Index,
}

impl Entries {
    pub(super) fn new(options: CacheOptions) -> Self {
        let cache = |bytes: u64, entries: u64, typical: u64| {
            let weight = Weight { minimum: bytes.div_ceil(entries) };
            let mut builder = OptionsBuilder::new();
            let expected = (bytes / typical).min(entries).max(1);
            builder.estimated_items_capacity(expected as usize).weight_capacity(bytes);
            (builder.build().expect("both are given"), weight)
        };
        let (known, weight) = cache(options.max_bytes, options.max_entries, TYPICAL_ENTRY);
        let known = Cache::with_options(known, weight, DefaultHashBuilder::default(), Evicted);
        let (unknown, weight) = cache(options.max_unknown_bytes, u64::MAX, UNKNOWN_ENTRY);
        let unknown = Cache::with_options(unknown, weight, DefaultHashBuilder::default(), Evicted);
        Self {
            options,
            freshness: Freshness::from_connection(),
            counters: Counters::new(),
            known,
            unknown,
            state: Mutex::default(),
            known_size: Size::of("known"),
            unknown_size: Size::of("unknown"),
        }
    }

    /// Returns the answer to a look-up if there is a fresh one, and counts a hit.
    pub(super) fn get(&self, cache_key: &KeyHash) -> Option<Option<Arc<KeyRecord>>> {
        let answer = self.peek(cache_key);
        match &answer {
            Some(Some(_)) => self.counters.hits.add(),
            Some(None) => self.counters.unknown_hits.add(),
            None => {}
        }
        answer
    }

    /// Does the same without counting.
    pub(super) fn peek(&self, cache_key: &KeyHash) -> Option<Option<Arc<KeyRecord>>> {
        let now = self.now();
        if let Some(entry) = self.known.get(cache_key)
            && self.is_fresh(entry.validity, now)
        {
            return Some(Some(entry.record));
        }
        let validity = self.unknown.get(cache_key)?;
        self.is_fresh(validity, now).then_some(None)
    }

    fn is_fresh(&self, Validity { read_at, expires_at }: Validity, now: Nanoseconds) -> bool {
        if let Some(since) = self.freshness.since(now) {
            return read_at >= since && now < expires_at;
        }
        let unfollowed = read_at.saturating_add(nanoseconds(self.options.max_age_unfollowed));
        now < expires_at.min(unfollowed)
    }

    pub(super) fn now(&self) -> Nanoseconds {
        self.freshness.now()
    }

    /// Returns how many changes there have been.
    pub(super) fn position(&self) -> Position {
        self.state().changes.end()
    }

    /// Returns whether one of these changes affects an answer.
    pub(super) fn is_outdated(&self, loaded: &Loaded, changes: Range<Position>) -> bool {
        self.state().changes.affects(changes, loaded)
    }

    /// Inserts an answer, unless a change since its load began affects it.
    pub(super) fn insert(
        &self,
        cache_key: KeyHash,
        loaded: &Loaded,
        started_at: Position,
        read_at: Nanoseconds,
    ) {
        let mut state = self.state();
        if state.changes.affects(started_at..state.changes.end(), loaded) {
            return;
        }
        self.remove(&mut state.index, &cache_key);
        let mut expires_at = read_at.saturating_add(nanoseconds(self.options.max_age));
        let Some(record) = &loaded.record else {
            let mut evicted = Vec::new();
            let validity = Validity { read_at, expires_at };
            self.unknown.insert_with_lifecycle(cache_key, validity, &mut evicted);
            self.counters.unknown_evictions.add(evicted.len() as u64);
            return self.report_size();
        };
        // At its expiry a key is looked up once more: it may have been prolonged.
        if let Some(date) = record.expires_at
            && let Ok(left) = date.duration_since(SystemTime::now())
        {
            expires_at = expires_at.min(self.now().saturating_add(nanoseconds(left)));
        }
        if let Some(other) = state.index.insert(cache_key, record, loaded.is_final) {
            // Loaded with another ring of secrets. The index by id has room for one entry of each key.
            self.remove(&mut state.index, &other);
        }
        let entry = Entry { record: record.clone(), validity: Validity { read_at, expires_at } };
        let mut evicted = Vec::new();
        self.known.insert_with_lifecycle(cache_key, entry, &mut evicted);
        self.counters.evictions.add(evicted.len() as u64);
        self.report_size();
        for (cache_key, entry) in evicted {
            state.index.remove(&cache_key, &entry.record);
        }
    }

    /// Removes the entries that a change affects, and has loads that are under way notice it.
    pub(super) fn invalidate(&self, change: Change) {
        let mut state = self.state();
        let affected = match &change {
            Change::Key(id) => state.index.of_key(id),
            Change::Owner(owner) => state.index.of_owner(owner),
            Change::Added => {
                self.unknown.clear();
                state.index.provisional()
            }
            Change::All => {
                self.unknown.clear();
                self.known.clear();
                state.index.clear();
                Vec::new()
            }
        };
        for cache_key in affected {
            self.remove(&mut state.index, &cache_key);
        }
        self.counters.invalidated(&change);
        self.report_size();
        state.changes.push(change);
    }

    fn remove(&self, index: &mut Index, cache_key: &KeyHash) {
        self.unknown.remove(cache_key);
        if let Some((_, entry)) = self.known.remove(cache_key) {
            index.remove(cache_key, &entry.record);
        }
    }

    /// Returns the bytes that the records take, as the bound counts them.
    pub(super) fn bytes(&self) -> u64 {
        self.known.weight()
    }

    pub(super) fn counts(&self) -> CacheCounts {
        CacheCounts {
            entries: self.known.len() as u64,
            unknown_entries: self.unknown.len() as u64,
            bytes: self.known.weight(),
            unknown_bytes: self.unknown.weight(),
            ..self.counters.read()
        }
    }

    fn report_size(&self) {
        self.known_size.set(|| self.known.len(), || self.known.weight());
        self.unknown_size.set(|| self.unknown.len(), || self.unknown.weight());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}
