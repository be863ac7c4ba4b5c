//! Writes that were not answered in time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

/// A write that was not answered in time and may still be made, in a
/// [`StoreError::Unsettled`](crate::StoreError::Unsettled).
///
/// A cache has to be invalidated twice: at once, and when the outcome is known.
pub struct Unsettled {
    // In a mutex only because an error has to be `Sync`.
    settled: Mutex<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Unsettled {
    /// Makes one whose outcome is known when `settled` completes. It may never be polled: what brings the
    /// outcome about has to go on by itself, as a task does.
    pub fn new(settled: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { settled: Mutex::new(Box::pin(settled)) }
    }

    /// Waits until the outcome is known: the write has been made, or never will be.
    pub async fn settled(self) {
        // Nothing is done while the lock is held.
        self.settled.into_inner().unwrap_or_else(PoisonError::into_inner).await;
    }
}

impl fmt::Debug for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unsettled")
    }
}
