//! The counters of a cache in memory.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::store::change::Change;
use crate::telemetry::{Counter, Gauge, ReadableCounter, metric};

/// What has happened in a [`CachedStore`](crate::store::CachedStore) since it was made, and what it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheCounts {
    /// Look-ups that an entry answered with a record.
    pub hits: u64,
    /// Look-ups that an entry answered with "no such key".
    pub unknown_hits: u64,
    /// Look-ups that no entry answered.
    pub misses: u64,
    /// Look-ups in the store beneath, each on behalf of all misses that wait for it.
    pub loads: u64,
    /// Records that had to make room for others.
    pub evictions: u64,
    /// Unknown keys that had to make room for others.
    pub unknown_evictions: u64,
    /// Changes for which the cache was invalidated, made by this process or reported by a feed.
    pub invalidations: u64,
    /// Records that are held.
    pub entries: u64,
    /// Unknown keys that are held.
    pub unknown_entries: u64,
    /// Bytes of the records that are held, as the bound counts them.
    pub bytes: u64,
    /// Bytes of the unknown keys that are held, as their bound counts them.
    pub unknown_bytes: u64,
}

pub(super) struct Counters {
    pub(super) hits: Hits,
    pub(super) unknown_hits: Hits,
    pub(super) misses: ReadableCounter,
    pub(super) loads: ReadableCounter,
    pub(super) evictions: ReadableCounter,
    pub(super) unknown_evictions: ReadableCounter,
    keys: ReadableCounter,
    owners: ReadableCounter,
    added: ReadableCounter,
    all: ReadableCounter,
}

impl Counters {
    pub(super) fn new() -> Self {
        let of_kind = |metric, kind| ReadableCounter::new(metric, &[("kind", kind)]);
        let invalidations =
            |change| ReadableCounter::new(&metric::CACHE_INVALIDATIONS, &[("change", change)]);
        Self {
            hits: Hits::new("known"),
            unknown_hits: Hits::new("unknown"),
            misses: ReadableCounter::new(&metric::CACHE_MISSES, &[]),
            loads: ReadableCounter::new(&metric::CACHE_LOADS, &[]),
            evictions: of_kind(&metric::CACHE_EVICTIONS, "known"),
            unknown_evictions: of_kind(&metric::CACHE_EVICTIONS, "unknown"),
            keys: invalidations("key"),
            owners: invalidations("owner"),
            added: invalidations("added"),
            all: invalidations("all"),
        }
    }

    pub(super) fn invalidated(&self, change: &Change) {
        let invalidations = match change {
            Change::Key(_) => &self.keys,
            Change::Owner(_) => &self.owners,
            Change::Added => &self.added,
            Change::All => &self.all,
        };
        invalidations.add(1);
    }

    /// Returns what has happened; what is held is left at zero.
    pub(super) fn read(&self) -> CacheCounts {
        let invalidations = [&self.keys, &self.owners, &self.added, &self.all];
        CacheCounts {
            hits: self.hits.read(),
            unknown_hits: self.unknown_hits.read(),
            misses: self.misses.read(),
            loads: self.loads.read(),
            evictions: self.evictions.read(),
            unknown_evictions: self.unknown_evictions.read(),
            invalidations: invalidations.map(ReadableCounter::read).iter().sum(),
            ..CacheCounts::default()
        }
    }
}

/// How many counters threads are spread over, so that two of them rarely meet on one.
const LANES: usize = 16;

thread_local! {
    static LANE: usize = {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        THREADS.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

/// A counter that is spread over lanes: with one for all, the hits of two threads took up to a half longer.
pub(super) struct Hits {
    lanes: [Lane; LANES],
    exported: Counter,
}

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Lane(AtomicU64);

impl Hits {
    fn new(kind: &'static str) -> Self {
        let exported = Counter::new(&metric::CACHE_HITS, &[("kind", kind)]);
        Self { lanes: Default::default(), exported }
    }

    #[inline]
    pub(super) fn add(&self) {
        self.lanes[LANE.with(usize::clone)].0.fetch_add(1, Ordering::Relaxed);
        self.exported.add(1);
    }

    fn read(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.0.load(Ordering::Relaxed)).sum()
    }
}

/// Gauges of how much the cache holds.
pub(super) struct Size {
    entries: Gauge,
    bytes: Gauge,
}

impl Size {
    pub(super) fn of(kind: &'static str) -> Self {
        let gauge = |metric| Gauge::new(metric, &[("kind", kind)]);
        Self { entries: gauge(&metric::CACHE_ENTRIES), bytes: gauge(&metric::CACHE_BYTES) }
    }

    pub(super) fn set(&self, entries: impl FnOnce() -> usize, bytes: impl FnOnce() -> u64) {
        self.entries.set(|| entries() as f64);
        self.bytes.set(|| bytes() as f64);
    }
}
