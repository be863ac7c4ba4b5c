//! What a store that wraps another has to pass on.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use crate::crypto::hash::Candidates;
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::{Change, FeedEvent, FeedEventKind, KeyLookup, SharedCache};
use crate::util::lock::lock;

/// Runs the checks of a store that wraps another: every event of a feed, and every shared cache that is
/// noted, reaches the store beneath, as it is and once, before the wrapper returns. A wrapper that is a store of its own passes
/// [`run`](super::run) as well.
///
/// ```
/// use std::sync::Arc;
/// use lexikon_auth::conformance;
/// use lexikon_auth::store::{FeedEvent, SharedCache};
/// use lexikon_auth::{KeyRecord, StoreError};
/// use lexikon_auth::crypto::Candidates;
/// use lexikon_auth::store::KeyLookup;
///
/// /// Counts look-ups, for instance.
/// struct Counted<S>(S);
///
/// impl<S: KeyLookup> KeyLookup for Counted<S> {
///     async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
///         self.0.find(candidates).await
///     }
///
///     async fn on_feed_event(&self, event: &FeedEvent) {
///         self.0.on_feed_event(event).await;
///     }
///
///     async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
///         self.0.register_cache(cache).await
///     }
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// conformance::run_wrapper(async |beneath| Counted(beneath)).await;
/// # });
/// ```
///
/// # Panics
/// When an event or a cache does not arrive.
pub async fn run_wrapper<W: KeyLookup>(wrap: impl AsyncFnOnce(Beneath) -> W) {
    let beneath = Beneath::default();
    let wrapper = wrap(beneath.clone()).await;
    let now = Instant::now();
    let kinds = [
        FeedEventKind::Lost,
        FeedEventKind::Connected,
        FeedEventKind::Heartbeat { since: now, until: now + Duration::from_secs(3) },
        FeedEventKind::Changed(Change::Key("key-1".into())),
        FeedEventKind::Changed(Change::Owner("owner-a".into())),
        FeedEventKind::Changed(Change::Added),
        FeedEventKind::Changed(Change::All),
    ];
    for kind in kinds {
        for event in [FeedEvent::of_database(kind.clone()), FeedEvent::of_shared_cache(kind)] {
            wrapper.on_feed_event(&event).await;
            let arrived = take(&beneath.events);
            assert_eq!(arrived, [event], "every event is passed on, once, before it returns");
        }
    }
    let cache = SharedCache::stored("prefix:".to_owned(), "0123456789abcdef".to_owned());
    wrapper.register_cache(&cache).await.expect("the store beneath takes note");
    assert_eq!(take(&beneath.caches), [cache], "a shared cache is passed on, once");
}

/// The store beneath a wrapper: it has no keys, and writes down what reaches it.
#[derive(Clone, Debug, Default)]
pub struct Beneath {
    events: Arc<Mutex<Vec<FeedEvent>>>,
    caches: Arc<Mutex<Vec<SharedCache>>>,
}

fn take<T>(arrived: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *lock(arrived))
}

impl KeyLookup for Beneath {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(None)
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        // Whoever does not wait returns before it has arrived.
        yield_now().await;
        lock(&self.events).push(event.clone());
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        lock(&self.caches).push(cache.clone());
        Ok(())
    }
}
