//! Since when, and until when, a cache may rely on a feed of changes: one rule for all caches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::change::FeedEventKind;

/// Nanoseconds since a cache was made, by a clock that is never set.
pub(super) type Nanoseconds = u64;

/// Between `since` and `until` every change is reported, so what was read since then is fresh unless a
/// change of it was reported. From `until` on there may be nobody left to report one.
pub(super) struct Freshness {
    start: Instant,
    since: AtomicU64,
    until: AtomicU64,
}

/// In place of `since`: the feed is lost.
const LOST: Nanoseconds = Nanoseconds::MAX;

impl Freshness {
    /// Returns a state in which nothing is fresh until a feed is connected.
    #[cfg(feature = "cache")]
    pub(super) fn from_connection() -> Self {
        Self::new(LOST, 0)
    }

    /// Returns a state in which everything is fresh until a feed is lost.
    #[cfg(feature = "redis")]
    pub(super) fn until_loss() -> Self {
        Self::new(0, Nanoseconds::MAX)
    }

    fn new(since: Nanoseconds, until: Nanoseconds) -> Self {
        Self { start: Instant::now(), since: since.into(), until: until.into() }
    }

    /// Returns the time now.
    #[inline]
    pub(super) fn now(&self) -> Nanoseconds {
        nanoseconds(self.start.elapsed())
    }

    /// Returns since when what was read is fresh; `None` while nobody would report a change.
    #[inline]
    pub(super) fn since(&self, now: Nanoseconds) -> Option<Nanoseconds> {
        let since = self.since.load(Ordering::Acquire);
        (since != LOST && now < self.until.load(Ordering::Acquire)).then_some(since)
    }

    /// Learns what happened to the feed. A heartbeat counts also after a loss: the loss may be that of a
    /// follower that has been replaced.
    pub(super) fn on_feed_event(&self, event: &FeedEventKind) {
        let time = |time| Instant::from_std(time).saturating_duration_since(self.start);
        let since = match event {
            FeedEventKind::Changed(_) => return,
            FeedEventKind::Connected => self.now(),
            FeedEventKind::Lost => LOST,
            FeedEventKind::Heartbeat { since, until } => {
                self.until.store(nanoseconds(time(*until)), Ordering::Release);
                nanoseconds(time(*since))
            }
        };
        self.since.store(since, Ordering::Release);
    }
}

/// Returns a duration in nanoseconds: at most 584 years, which is short of `LOST`.
#[inline]
pub(super) fn nanoseconds(duration: Duration) -> Nanoseconds {
    Nanoseconds::try_from(duration.as_nanos()).unwrap_or(LOST - 1)
}
