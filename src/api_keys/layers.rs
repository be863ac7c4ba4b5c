//! A store with its caches, and the changes that they are told of.

#[cfg(feature = "cache")]
use crate::store::CachedStore;
use crate::store::DynKeyStore;
#[cfg(feature = "redis")]
use crate::store::RedisStore;
use crate::tasks::Follower;

/// A store with its caches.
pub(super) struct Layers {
    /// The outermost store.
    pub(super) store: DynKeyStore,
    /// Whether something is cached, which has to be told of changes.
    pub(super) is_cached: bool,
    #[cfg(feature = "cache")]
    pub(super) cache: Option<CachedStore<DynKeyStore>>,
    #[cfg(feature = "redis")]
    pub(super) redis: Option<RedisStore<DynKeyStore>>,
}

impl Layers {
    pub(super) fn new(store: DynKeyStore) -> Self {
        Self {
            store,
            is_cached: false,
            #[cfg(feature = "cache")]
            cache: None,
            #[cfg(feature = "redis")]
            redis: None,
        }
    }

    /// Starts to follow Redis, for a store that reports nothing. The cache in Redis is told by those who make a
    /// change, the one in memory is not.
    pub(super) async fn follow_redis(&self) -> Option<Follower> {
        #[cfg(all(feature = "cache", feature = "redis"))]
        if let (Some(_), Some(redis)) = (&self.cache, &self.redis) {
            return Some(self.follow(redis.changes()).await);
        }
        None
    }

    /// Starts to follow changes, and waits until they are reported.
    #[cfg(any(
        feature = "postgres",
        feature = "sqlite",
        all(feature = "cache", feature = "redis")
    ))]
    pub(super) async fn follow(&self, feed: impl crate::store::ChangeFeed) -> Follower {
        use std::time::Duration;

        use tokio::time::{Instant, timeout_at};

        /// How long a start waits for that.
        const LIMIT: Duration = Duration::from_secs(5);

        let deadline = Instant::now() + LIMIT;
        // Asked here once, because a follower does not say that an attempt failed: tables that report nothing,
        // for instance, are not waited for.
        let is_there = matches!(timeout_at(deadline, feed.subscribe()).await, Ok(Ok(_)));
        let follower = Follower::spawn(self.store.clone(), feed);
        if !is_there || timeout_at(deadline, follower.connected()).await.is_err() {
            // Why, the follower logs.
            tracing::warn!(
                "started before changes to keys are reported; until they are, caches keep entries for a short time"
            );
        }
        follower
    }
}
