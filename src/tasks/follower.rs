//! The background task that follows a feed of changes on behalf of caches.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::error::StoreError;
use crate::store::KeyLookup;
use crate::store::change::{
    ChangeFeed, FeedEvent, FeedEventKind, FeedOrigin, Message, Subscription,
};
use crate::telemetry::{Gauge, Histogram, metric};

/// How often a heartbeat is sent.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a heartbeat may take to arrive, and an attempt to connect.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait before another attempt to connect.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// Follows a [`ChangeFeed`] on behalf of a store with caches, for as long as it is held.
///
/// A heartbeat is sent through the feed every second. A feed through which it does not arrive within 2
/// seconds counts as lost, which is noticed after 3 seconds at most. Each heartbeat says until when it
/// counts, so caches notice the loss also where the task of the follower has panicked, has lost its
/// runtime, or is kept from running.
///
/// One follower for each store: of two, the loss of one feed would go unnoticed behind the other.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(all(feature = "postgres", feature = "cache"))] {
/// use lexikon_auth::store::{CacheOptions, CachedStore, PostgresStore};
/// use lexikon_auth::tasks::Follower;
/// let database = PostgresStore::connect("postgres://lexikon@localhost/lexikon".parse()?).await?;
/// let database = database.extend_schema().await?; // installs the triggers that report changes
/// let store = CachedStore::new(database.clone(), CacheOptions::default());
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
    /// Starts a task on the current Tokio runtime that passes on to `store` what `feed` reports.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn spawn(store: impl KeyLookup + 'static, feed: impl ChangeFeed) -> Self {
        let (sender, connected) = watch::channel(false);
        let status = Status::new(sender);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let target = Target { store, origin: feed.origin() };
            tokio::select! {
                () = follow(&target, &feed, &status) => {}
                _ = stopped.changed() => {}
            }
            target.send(FeedEventKind::Lost).await;
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

    /// Ends the task, and returns when the store has learnt that the feed is lost.
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

/// The state of the feed, for the application and for metrics.
struct Status {
    connected: watch::Sender<bool>,
    gauge: Gauge,
    lag: Histogram,
}

impl Status {
    fn new(connected: watch::Sender<bool>) -> Self {
        let gauge = Gauge::new(&metric::FOLLOWER_CONNECTED, &[]);
        Self { connected, gauge, lag: Histogram::new(&metric::INVALIDATION_LAG, &[]) }
    }

    fn set_connected(&self, is_connected: bool) {
        self.gauge.set(|| is_connected.into());
        self.connected.send_replace(is_connected);
    }
}

impl Drop for Status {
    /// Whatever ends the task, a panic too.
    fn drop(&mut self) {
        self.set_connected(false);
    }
}

/// The store that receives the events, and the origin that they name.
struct Target<S> {
    store: S,
    origin: FeedOrigin,
}

impl<S: KeyLookup> Target<S> {
    async fn send(&self, kind: FeedEventKind) {
        self.store.on_feed_event(&FeedEvent { origin: self.origin, kind }).await;
    }
}

async fn follow(target: &Target<impl KeyLookup>, feed: &impl ChangeFeed, status: &Status) {
    // Whatever a cache holds from an earlier time, no feed has been followed since.
    target.send(FeedEventKind::Lost).await;
    // The same error in a row is logged once.
    let mut logged = String::new();
    loop {
        let error = match timeout(TIMEOUT, feed.subscribe()).await {
            Ok(Ok(mut subscription)) => {
                let error = listen(target, &mut subscription, status).await;
                target.send(FeedEventKind::Lost).await;
                status.set_connected(false);
                logged.clear();
                error
            }
            Ok(Err(error)) => error,
            Err(elapsed) => StoreError::Unavailable(elapsed.into()),
        };
        let text = error.to_string();
        if text != logged {
            warn!(%error, "changes to keys are not being reported; caches keep entries for a short time");
            logged = text;
        }
        sleep(RETRY_DELAY).await;
    }
}

/// Passes on what the feed reports until it is lost, and returns why it is.
async fn listen(
    target: &Target<impl KeyLookup>,
    subscription: &mut impl Subscription,
    status: &Status,
) -> StoreError {
    let since = Instant::now();
    let mut sent_at = since;
    let mut has_arrived = true;
    target.send(FeedEventKind::Connected).await;
    target.send(heartbeat(since, sent_at)).await;
    status.set_connected(true);
    info!("changes to keys are being reported");
    loop {
        let deadline = sent_at + if has_arrived { HEARTBEAT_INTERVAL } else { TIMEOUT };
        // Before every message, so that a feed that lags far behind counts as lost too.
        if Instant::now() >= deadline {
            if !has_arrived {
                return StoreError::Unavailable("the feed of changes went silent".into());
            }
            (sent_at, has_arrived) = (Instant::now(), false);
            match timeout(TIMEOUT, subscription.heartbeat()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error,
                Err(elapsed) => return StoreError::Unavailable(elapsed.into()),
            }
        }
        match timeout_at(deadline, subscription.receive()).await {
            Ok(Ok(Message::Changed(change))) => {
                target.send(FeedEventKind::Changed(change)).await;
            }
            Ok(Ok(Message::Heartbeat)) => {
                has_arrived = true;
                status.lag.record(sent_at.elapsed());
                target.send(heartbeat(since, sent_at)).await;
            }
            Ok(Ok(Message::Other)) | Err(_) => {}
            Ok(Err(error)) => return error,
        }
    }
}

/// Returns the event of a heartbeat that has arrived. The feed worked when it was sent, and by `until` the
/// next one has arrived or the feed is lost.
fn heartbeat(since: Instant, sent_at: Instant) -> FeedEventKind {
    let until = sent_at + HEARTBEAT_INTERVAL + TIMEOUT;
    FeedEventKind::Heartbeat { since: since.into_std(), until: until.into_std() }
}
