//! Writes through a cache to the store beneath. A write and the invalidations that belong to it cannot be
//! split, neither by cancellation nor by a fault.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::change::Change;
use crate::error::StoreError;
use crate::unsettled::Unsettled;
use crate::util::run_to_end::run_to_end;

/// How often a cache is invalidated while it is not known whether a write was made.
const INVALIDATION_INTERVAL: Duration = Duration::from_secs(1);

/// A handle on a cache that has to be invalidated by the writes through it.
pub(super) trait Invalidate: Clone + Send + Sync + 'static {
    /// Prepares for a write: what should hold even if this process dies before the write has returned.
    fn before_write(&self, changes: &[Change]) -> impl Future<Output = ()> + Send {
        let _ = changes;
        async {}
    }

    /// Invalidates what the changes affect.
    fn invalidate(&self, changes: &[Change]) -> impl Future<Output = ()> + Send {
        self.request_invalidation(changes);
        async {}
    }

    /// Invalidates what the changes affect, at once or as soon as the cache can. Nobody waits for it: the
    /// write panicked, or its runtime has ended.
    fn request_invalidation(&self, changes: &[Change]);
}

/// Runs a write to its end, also where the caller gives up waiting for it, and invalidates what it changes:
/// whether it succeeded or not, and for as long as the outcome of an unsettled one is not known.
pub(super) async fn write_through<S, T: Outcome + Send + 'static, W>(
    store: &Arc<S>,
    cache: &impl Invalidate,
    changes: impl Into<Vec<Change>>,
    write: impl FnOnce(Arc<S>) -> W,
) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    // In a box of its own: the futures of databases are large, and are moved several times here.
    let write = Box::pin(write(store.clone()));
    let (cache, changes) = (cache.clone(), changes.into());
    run_to_end(async move {
        cache.before_write(&changes).await;
        let guard = InvalidateOnDrop { cache: cache.clone(), changes: changes.clone() };
        let result = write.await;
        if !result.as_ref().is_ok_and(|outcome| !outcome.is_change()) {
            cache.invalidate(&changes).await;
        }
        guard.disarm();
        result.map_err(|error| match error {
            StoreError::Unsettled(unsettled) => {
                StoreError::Unsettled(invalidate_until_settled(cache, changes, unsettled))
            }
            error => error,
        })
    })
    .await
}

/// What a write returns.
pub(super) trait Outcome {
    /// Returns whether anything was changed.
    fn is_change(&self) -> bool {
        true
    }
}

impl Outcome for () {}

/// Whether a hash was replaced. If not, the one in the cache is out of date.
impl Outcome for bool {}

/// How many rows were changed.
impl Outcome for u64 {
    fn is_change(&self) -> bool {
        *self > 0
    }
}

/// Changes that are being made, or invalidated. If they are dropped before that is done, the cache is
/// requested to invalidate them.
pub(super) struct InvalidateOnDrop<C: Invalidate> {
    pub(super) cache: C,
    pub(super) changes: Vec<Change>,
}

impl<C: Invalidate> InvalidateOnDrop<C> {
    pub(super) fn disarm(mut self) {
        self.changes.clear();
    }
}

impl<C: Invalidate> Drop for InvalidateOnDrop<C> {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            self.cache.request_invalidation(&self.changes);
        }
    }
}

/// Returns what settles when the write has settled and the cache was invalidated after that: a cache above
/// that was invalidated earlier would read an old entry again.
fn invalidate_until_settled(
    cache: impl Invalidate,
    changes: Vec<Change>,
    unsettled: Unsettled,
) -> Unsettled {
    let Ok(runtime) = Handle::try_current() else {
        // No task can be spawned, so the caller who waits for the outcome invalidates.
        return Unsettled::new(async move {
            unsettled.settled().await;
            cache.invalidate(&changes).await;
        });
    };
    let task = runtime.spawn(async move {
        let mut settled = pin!(unsettled.settled());
        // The write may be made at any time until then, and what was read before is out of date.
        while timeout(INVALIDATION_INTERVAL, &mut settled).await.is_err() {
            cache.invalidate(&changes).await;
        }
        cache.invalidate(&changes).await;
    });
    Unsettled::new(async move {
        let _ = task.await;
    })
}

/// Implements [`KeyStore`](crate::store::KeyStore) for a cache over a store, given the type and its field
/// that is [`Invalidate`]: reads are passed on to the field `store`, and writes go [through](write_through)
/// the cache.
macro_rules! impl_key_store {
    ($type:ident, $($cache:ident).+) => {
        const _: () = {
            use std::sync::Arc;
            use std::time::SystemTime;

            use $crate::error::StoreError;
            use $crate::id::{KeyId, OwnerId};
            use $crate::record::{KeyRecord, KeyUpdate};
            use $crate::store::write_through::{Outcome, write_through};
            use $crate::store::{
                Change, FormatCounts, HashChange, KeyStore, Page, Succession, Usage,
            };

            impl<S: KeyStore + 'static> $type<S> {
                async fn write<T: Outcome + Send + 'static, W>(
                    &self,
                    changes: impl Into<Vec<Change>>,
                    write: impl FnOnce(Arc<S>) -> W,
                ) -> Result<T, StoreError>
                where
                    W: Future<Output = Result<T, StoreError>> + Send + 'static,
                {
                    write_through(&self.store, &self.$($cache).+, changes, write).await
                }
            }

            impl<S: KeyStore + 'static> KeyStore for $type<S> {
                async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
                    let record = record.clone();
                    let changes = [Change::Added];
                    self.write(changes, |store| async move { store.insert(&record).await }).await
                }

                async fn find_by_id(
                    &self,
                    id: &KeyId,
                ) -> Result<Option<Arc<KeyRecord>>, StoreError> {
                    self.store.find_by_id(id).await
                }

                async fn list(
                    &self,
                    owner: &OwnerId,
                    page: &Page,
                ) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
                    self.store.list(owner, page).await
                }

                async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
                    let (id, update) = (id.clone(), update.clone());
                    let changes = [Change::Key(id.clone())];
                    self.write(changes, |store| async move {
                        store.update(&id, &update).await
                    })
                    .await
                }

                async fn revoke(
                    &self,
                    id: &KeyId,
                    at: SystemTime,
                    reason: Option<&str>,
                ) -> Result<(), StoreError> {
                    let (id, reason) = (id.clone(), reason.map(str::to_owned));
                    let changes = [Change::Key(id.clone())];
                    self.write(changes, |store| async move {
                        store.revoke(&id, at, reason.as_deref()).await
                    })
                    .await
                }

                async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
                    let succession = succession.clone();
                    let changes = [Change::Key(succession.old.id.clone()), Change::Added];
                    self.write(changes, |store| async move {
                        store.rotate(&succession).await
                    })
                    .await
                }

                async fn expiry_before_deprecation(
                    &self,
                    id: &KeyId,
                ) -> Result<Option<Option<SystemTime>>, StoreError> {
                    self.store.expiry_before_deprecation(id).await
                }

                async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
                    self.write([Change::All], |store| async move { store.expire(now).await }).await
                }

                async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
                    // Nothing is invalidated: no decision depends on it.
                    self.store.record_usage(batch).await
                }

                async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
                    let change = change.clone();
                    let changes = [Change::Key(change.id.clone()), Change::Added];
                    self.write(changes, |store| async move {
                        store.replace_hash(&change).await
                    })
                    .await
                }

                async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
                    self.store.count_by_format().await
                }
            }
        };
    };
}

pub(super) use impl_key_store;

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use tokio::runtime::Builder;
    use tokio::sync::Notify;

    use super::*;
    use crate::util::lock::lock;

    /// A cache whose invalidation never ends.
    #[derive(Clone, Default)]
    struct Stuck {
        has_begun: Arc<Notify>,
        abandoned: Arc<Mutex<Vec<Change>>>,
    }

    impl Invalidate for Stuck {
        async fn invalidate(&self, _: &[Change]) {
            self.has_begun.notify_one();
            pending().await
        }

        fn request_invalidation(&self, changes: &[Change]) {
            lock(&self.abandoned).extend_from_slice(changes);
        }
    }

    #[test]
    fn a_runtime_that_ends_during_the_invalidations_leaves_none_out() {
        let (store, cache) = (Arc::new(()), Stuck::default());
        let changes = [Change::Key("key-1".into()), Change::Added];
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on({
            let (cache, changes) = (cache.clone(), changes.clone());
            async move {
                let has_begun = cache.has_begun.clone();
                tokio::spawn(async move {
                    write_through(&store, &cache, changes, |_| async { Ok(()) }).await
                });
                has_begun.notified().await;
            }
        });
        drop(runtime);
        assert_eq!(*lock(&cache.abandoned), changes);
    }
}
