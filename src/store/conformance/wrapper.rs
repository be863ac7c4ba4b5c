//! What a store that wraps another has to pass on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use crate::error::StoreError;
use crate::hash::Candidates;
use crate::record::KeyRecord;
use crate::store::{Change, FeedEvent, FeedEventKind, KeyLookup};

/// Runs the checks of a store that wraps another: every event of a feed reaches the store beneath, as it
/// is and once, before the wrapper returns. A wrapper that is a store of its own passes
/// [`run`](super::run) as well.
///
/// ```
/// use std::sync::Arc;
/// use lexikon_auth::store::{FeedEvent, conformance};
/// use lexikon_auth::{Candidates, KeyLookup, KeyRecord, StoreError};
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
/// }
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// conformance::run_wrapper(async |beneath| Counted(beneath)).await;
/// # });
/// ```
///
/// # Panics
/// When an event does not arrive.
pub async fn run_wrapper<W: KeyLookup>(wrap: impl AsyncFnOnce(Beneath) -> W) {
    let beneath = Beneath::default();
    let wrapper = wrap(beneath.clone()).await;
    let now = Instant::now();
    let kinds = [
        FeedEventKind::Lost,
        FeedEventKind::Connected,
        FeedEventKind::Alive { since: now, until: now + Duration::from_secs(3) },
        FeedEventKind::Changed(Change::Key("key-1".into())),
        FeedEventKind::Changed(Change::Owner("owner-a".into())),
        FeedEventKind::Changed(Change::Added),
        FeedEventKind::Changed(Change::All),
    ];
    for kind in kinds {
        for event in [FeedEvent::of_database(kind.clone()), FeedEvent::of_shared_cache(kind)] {
            wrapper.on_feed_event(&event).await;
            let arrived = beneath.take();
            assert_eq!(arrived, [event], "every event is passed on, once, before it returns");
        }
    }
}

/// The store beneath a wrapper: it has no keys, and writes down which events reach it.
#[derive(Clone, Debug, Default)]
pub struct Beneath(Arc<Mutex<Vec<FeedEvent>>>);

impl Beneath {
    fn take(&self) -> Vec<FeedEvent> {
        // Nothing panics while the lock is held.
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl KeyLookup for Beneath {
    async fn find(&self, _: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(None)
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        // Whoever does not wait returns before it has arrived.
        yield_now().await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}
