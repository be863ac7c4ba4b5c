//! What a tier in Redis counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened in a [`RedisStore`] since it was made.
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

#[derive(Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) bypassed: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) oversized: AtomicU64,
    pub(super) unwritten: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> RedisCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RedisCounts {
            hits: read(&self.hits),
            misses: read(&self.misses),
            bypassed: read(&self.bypassed),
            rejected: read(&self.rejected),
            stale: read(&self.stale),
            oversized: read(&self.oversized),
            unwritten: read(&self.unwritten),
        }
    }
}
