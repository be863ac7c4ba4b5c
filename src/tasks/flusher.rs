//! The background task that flushes a verifier on a timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use crate::error::StoreError;
use crate::store::KeyStore;
use crate::verify::Verifier;
use crate::write_behind::Flushed;

/// How often last uses and hash upgrades are written unless another interval is wanted: every 30 seconds.
pub const DEFAULT_FLUSH_INTERVAL: Duration = Duration::from_secs(30);
/// A shorter interval would keep the task busy for nothing.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

impl<S: KeyStore + 'static> Verifier<S> {
    /// Starts a task on the current Tokio runtime that flushes every `interval`, at least 10 ms, and
    /// earlier when much is waiting. A flush that fails is logged and tried again the next time.
    ///
    /// The task ends when the [`Flusher`] is dropped: keep it for as long as the verifier is in use.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use lexikon_auth::{SecretRing, ServerSecret, Verifier};
    /// # use lexikon_auth::store::MemoryStore;
    /// # use lexikon_auth::tasks::DEFAULT_FLUSH_INTERVAL;
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// let verifier = Arc::new(Verifier::new(MemoryStore::new(), ring));
    /// let flusher = verifier.spawn_flush(DEFAULT_FLUSH_INTERVAL);
    /// // ... serve requests with `verifier` ...
    /// flusher.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub fn spawn_flush(self: &Arc<Self>, interval: Duration) -> Flusher<S> {
        let stopping = Arc::new(AtomicBool::new(false));
        let interval = interval.max(SHORTEST_INTERVAL);
        let task = tokio::spawn(run(self.clone(), interval, stopping.clone()));
        Flusher { verifier: self.clone(), stopping, task: Some(task) }
    }
}

async fn run<S: KeyStore>(
    verifier: Arc<Verifier<S>>,
    interval: Duration,
    stopping: Arc<AtomicBool>,
) {
    loop {
        // An elapsed timeout is the ordinary case: the interval is over.
        let _ = timeout(interval, verifier.flush_wanted()).await;
        // Before the flush: what is queued while one runs is left for another.
        let is_last = stopping.load(Ordering::Acquire);
        if let Err(error) = verifier.flush().await {
            warn!(%error, "last uses and hash upgrades could not be written; they are kept");
        }
        if is_last {
            return;
        }
    }
}

/// A running flush task. Call [`shutdown`](Self::shutdown) before the process ends; a value that is
/// merely dropped lets the task flush once more, if the runtime lives long enough.
#[derive(Debug)]
#[must_use = "dropping it stops the flush"]
pub struct Flusher<S> {
    verifier: Arc<Verifier<S>>,
    stopping: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl<S: KeyStore> Flusher<S> {
    /// Stops the task and writes what is still waiting.
    ///
    /// # Errors
    /// [`StoreError`] when the store could not write. They stay queued, and
    /// [`Verifier::flush`] can try again.
    pub async fn shutdown(mut self) -> Result<Flushed, StoreError> {
        if let Some(task) = self.task.take() {
            // A flush that is cut off half-way queues again what it has not written, for the flush below.
            task.abort();
            let _ = task.await;
        }
        self.verifier.flush().await
    }
}

impl<S> Drop for Flusher<S> {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        self.verifier.request_flush();
    }
}
