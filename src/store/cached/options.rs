//! How much a cache in memory holds, and for how long.

use std::time::Duration;

/// How much a [`CachedStore`](crate::store::CachedStore) holds, and for how long it uses what it holds.
#[derive(Debug, Clone)]
pub struct CacheOptions {
    pub(super) max_bytes: u64,
    pub(super) max_entries: u64,
    pub(super) max_unknown_bytes: u64,
    pub(super) max_age: Duration,
    pub(super) max_age_unfollowed: Duration,
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
    /// latest heartbeat is too old: how late a change made elsewhere may be noticed. Default 5
    /// seconds.
    pub fn max_age_unfollowed(self, max_age_unfollowed: Duration) -> Self {
        Self { max_age_unfollowed, ..self }
    }
}
