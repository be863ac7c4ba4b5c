//! A store with its caches, and the changes that they are told of.

use crate::store::DynKeyStore;
use crate::tasks::Follower;

/// A store with its caches.
pub(super) struct Layers {
    pub(super) store: DynKeyStore,
    pub(super) is_cached: bool,
    /// Where both caches are there. The one in Redis is told by those who make a change, the one in memory is not.
    #[cfg(all(feature = "cache", feature = "redis"))]
    pub(super) redis_feed: Option<crate::store::RedisFeed>,
}

impl Layers {
    pub(super) fn new(store: DynKeyStore) -> Self {
        Self {
            store,
            is_cached: false,
            #[cfg(all(feature = "cache", feature = "redis"))]
            redis_feed: None,
        }
    }

    /// Starts to follow Redis, for a store that reports nothing.
    pub(super) async fn follow_redis(&self) -> Option<Follower> {
        #[cfg(all(feature = "cache", feature = "redis"))]
        if let Some(feed) = &self.redis_feed {
            return Some(self.follow(feed.clone()).await);
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
