//! Changes of which caches hear in any case.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::error::StoreError;
use crate::unsettled::Unsettled;

/// How often caches forget while it is not known whether a write was made.
const AGAIN: Duration = Duration::from_secs(1);

/// Makes a change and has a cache forget what it concerns: `forget` runs after the write, whether it
/// succeeded or not, and for as long as the outcome of an unsettled one is not known.
pub(super) async fn then_forget<T: Outcome, F>(
    write: impl Future<Output = Result<T, StoreError>>,
    forget: impl Fn() -> F + Send + 'static,
) -> Result<T, StoreError>
where
    F: Future<Output = ()> + Send,
{
    let done = write.await;
    if done.as_ref().is_ok_and(|outcome| !outcome.is_change()) {
        return done;
    }
    forget().await;
    match done {
        Err(StoreError::Unsettled(unsettled)) => {
            let settled = match Handle::try_current() {
                Ok(runtime) => {
                    let forgotten = runtime.spawn(async move {
                        let mut settled = pin!(unsettled.settled());
                        // It may be made at any time until then, which makes old what was read before.
                        while timeout(AGAIN, &mut settled).await.is_err() {
                            forget().await;
                        }
                        forget().await;
                    });
                    // A cache above forgets after this one, or it would read an old entry again.
                    Unsettled::new(async move {
                        let _ = forgotten.await;
                    })
                }
                // Nobody would go on with it, so whoever waits for the outcome does.
                Err(_) => Unsettled::new(async move {
                    unsettled.settled().await;
                    forget().await;
                }),
            };
            Err(StoreError::Unsettled(settled))
        }
        done => done,
    }
}

/// What a write returns.
pub(super) trait Outcome {
    /// Whether anything was changed.
    fn is_change(&self) -> bool {
        true
    }
}

impl Outcome for () {}

/// A hash that was not replaced was not the one that the cache has.
impl Outcome for bool {}

impl Outcome for u64 {
    fn is_change(&self) -> bool {
        *self > 0
    }
}
