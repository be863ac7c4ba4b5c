//! The counters of a cache in Redis.

use crate::telemetry::{Histogram, ReadableCounter, metric};

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
        let rejections =
            |reason| ReadableCounter::new(&metric::REDIS_REJECTIONS, &[("reason", reason)]);
        Self {
            hits: ReadableCounter::new(&metric::REDIS_HITS, &[]),
            misses: ReadableCounter::new(&metric::REDIS_MISSES, &[]),
            bypassed: ReadableCounter::new(&metric::REDIS_BYPASSED, &[]),
            rejected: rejections("tampered"),
            stale: rejections("stale"),
            oversized: rejections("oversized"),
            unwritten: rejections("unwritten"),
            scan_duration: Histogram::new(&metric::REDIS_SCAN_DURATION, &[]),
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
