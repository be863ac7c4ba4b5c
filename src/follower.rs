//! The background task that follows a feed of changes and tells the caches.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::error::StoreError;
use crate::store::KeyLookup;
use crate::store::change::{ChangeFeed, FeedEvent, Message, Subscription};

/// How often a sign of life is asked for.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long it may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows a [`ChangeFeed`] on behalf of a store with caches, for as long as it is held.
///
/// A feed that brings nothing back within 2 seconds, asked every second, counts as lost: it takes at
/// most 3 seconds to notice.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(all(feature = "postgres", feature = "cache"))] {
/// use lexikon_auth::{CachedStore, Follower, PostgresStore};
/// let database = PostgresStore::connect("postgres://lexikon@localhost/lexikon".parse()?).await?;
/// let database = database.extend_schema().await?; // installs the triggers that report changes
/// let store = CachedStore::new(database.clone());
/// let follower = Follower::spawn(store.clone(), database.changes());
/// follower.connected().await;
/// # }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "dropping it ends the task, and caches fall back to their short age"]
pub struct Follower {
    connected: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Starts a task on the current Tokio runtime that tells `store` what `feed` reports.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn spawn(store: impl KeyLookup + 'static, feed: impl ChangeFeed) -> Self {
        let (report, connected) = watch::channel(false);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = follow(&store, &feed, &report) => {}
                _ = stopped.changed() => {}
            }
            store.observe(&FeedEvent::Lost).await;
            report.send_replace(false);
        });
        Self { connected, stop, task }
    }

    /// Whether changes are being reported right now.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Waits until changes are reported.
    pub async fn connected(&self) {
        // The sender lives as long as the task, which outlives this borrow.
        let _ = self.connected.clone().wait_for(|connected| *connected).await;
    }

    /// Waits until changes are no longer reported.
    pub async fn lost(&self) {
        let _ = self.connected.clone().wait_for(|connected| !connected).await;
    }

    /// Ends the task, and returns when the store has been told.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn follow(store: &impl KeyLookup, feed: &impl ChangeFeed, report: &watch::Sender<bool>) {
    loop {
        let error = match timeout(PATIENCE, feed.subscribe()).await {
            Ok(Ok(mut subscription)) => {
                let error = listen(store, &mut subscription, report).await;
                store.observe(&FeedEvent::Lost).await;
                report.send_replace(false);
                error
            }
            Ok(Err(error)) => error,
            Err(elapsed) => StoreError::Unavailable(elapsed.into()),
        };
        warn!(%error, "changes to keys are not being reported; caches keep entries for a short time");
        sleep(PAUSE).await;
    }
}

/// Returns when the feed is lost, and why.
async fn listen(
    store: &impl KeyLookup,
    subscription: &mut impl Subscription,
    report: &watch::Sender<bool>,
) -> StoreError {
    store.observe(&FeedEvent::Connected).await;
    report.send_replace(true);
    info!("changes to keys are being reported");
    let mut asked = Instant::now();
    let mut answered = true;
    loop {
        let due = asked + if answered { HEARTBEAT } else { PATIENCE };
        // Looked at before every message, so that a feed that lags far behind counts as lost too.
        if Instant::now() >= due {
            if !answered {
                return StoreError::Unavailable("the feed of changes went silent".into());
            }
            (asked, answered) = (Instant::now(), false);
            match timeout(PATIENCE, subscription.beat()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(elapsed) => return StoreError::Unavailable(elapsed.into()),
            }
        }
        match timeout_at(due, subscription.receive()).await {
            Ok(Ok(Message::Changed(change))) => store.observe(&FeedEvent::Changed(change)).await,
            Ok(Ok(Message::Beat)) => answered = true,
            Ok(Ok(Message::Other)) | Err(_) => {}
            Ok(Err(error)) => return error,
        }
    }
}
