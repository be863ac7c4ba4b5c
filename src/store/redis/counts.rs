//! The counters of a cache in Redis.

use crate::telemetry::{Counter, Histogram, ReadableCounter, table};

/// What has happened in a [`RedisStore`](crate::store::RedisStore) since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisCounts {
    /// Look-ups that Redis answered.
    pub hits: u64,
    /// Look-ups that went on to the store beneath, though Redis was asked.
    pub misses: u64,
    /// Look-ups for which Redis was not asked, because it was down or not to be trusted.
    pub bypassed: u64,
    /// Entries that were not what an instance of this service wrote under that name: altered, moved,
    /// truncated, or of another version.
    pub rejected: u64,
    /// Entries that were older than a change of their key or owner.
    pub stale: u64,
    /// Entries that were not stored because they were too long.
    pub oversized: u64,
    /// Entries that Redis did not take, for instance because its memory was full.
    pub unwritten: u64,
}

pub(super) struct Counters {
    pub(super) hits: ReadableCounter,
    pub(super) misses: ReadableCounter,
    pub(super) bypassed: ReadableCounter,
    pub(super) rejected: ReadableCounter,
    pub(super) stale: ReadableCounter,
    pub(super) oversized: ReadableCounter,
    pub(super) unwritten: ReadableCounter,
    pub(super) scan_duration: Histogram,
}

impl Counters {
    pub(super) fn new() -> Self {
        let counter = |metric| ReadableCounter::new(Counter::new(metric, &[]));
        let rejections = |reason| {
            ReadableCounter::new(Counter::new(&table::REDIS_REJECTIONS, &[("reason", reason)]))
        };
        Self {
            hits: counter(&table::REDIS_HITS),
            misses: counter(&table::REDIS_MISSES),
            bypassed: counter(&table::REDIS_BYPASSED),
            rejected: rejections("tampered"),
            stale: rejections("stale"),
            oversized: rejections("oversized"),
            unwritten: rejections("unwritten"),
            scan_duration: Histogram::new(&table::REDIS_SCAN_DURATION, &[]),
        }
    }

    pub(super) fn read(&self) -> RedisCounts {
        RedisCounts {
            hits: self.hits.read(),
            misses: self.misses.read(),
            bypassed: self.bypassed.read(),
            rejected: self.rejected.read(),
            stale: self.stale.read(),
            oversized: self.oversized.read(),
            unwritten: self.unwritten.read(),
        }
    }
}
