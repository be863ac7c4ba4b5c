//! The background task that follows a feed of changes and tells the caches.

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

/// How often a sign of life is asked for.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long it may take to come back.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(500);

/// Follows a [`ChangeFeed`] on behalf of a store with caches, for as long as it is held.
///
/// A feed that brings nothing back within 2 seconds, asked every second, counts as lost: it takes at
/// most 3 seconds to notice. Caches go by what the feed has brought back, not by the follower's word, so
/// this holds also where its task has panicked, has lost its runtime, or is kept from running.
///
/// One follower for each store: of two, the loss of one feed would go unnoticed behind the other.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(all(feature = "postgres", feature = "cache"))] {
/// use lexikon_auth::store::{CachedStore, PostgresStore};
/// use lexikon_auth::tasks::Follower;
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
        let (state, connected) = watch::channel(false);
        let report = Report::new(state);
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let listeners = Listeners { store, origin: feed.origin() };
            tokio::select! {
                () = follow(&listeners, &feed, &report) => {}
                _ = stopped.changed() => {}
            }
            listeners.tell(FeedEventKind::Lost).await;
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

/// Whom the task tells of its feed.
struct Report {
    state: watch::Sender<bool>,
    gauge: Gauge,
    lag: Histogram,
}

impl Report {
    fn new(state: watch::Sender<bool>) -> Self {
        let gauge = Gauge::new(&metric::FOLLOWER_CONNECTED, &[]);
        Self { state, gauge, lag: Histogram::new(&metric::INVALIDATION_LAG, &[]) }
    }

    fn connected(&self, is_connected: bool) {
        self.gauge.set(|| is_connected.into());
        self.state.send_replace(is_connected);
    }
}

impl Drop for Report {
    /// However the task ends, by a panic too.
    fn drop(&mut self) {
        self.connected(false);
    }
}

/// The store that is told, and whose changes it is told of.
struct Listeners<S> {
    store: S,
    origin: FeedOrigin,
}

impl<S: KeyLookup> Listeners<S> {
    async fn tell(&self, kind: FeedEventKind) {
        self.store.on_feed_event(&FeedEvent { origin: self.origin, kind }).await;
    }
}

async fn follow(listeners: &Listeners<impl KeyLookup>, feed: &impl ChangeFeed, report: &Report) {
    // Nobody has listened so far, whatever a store beneath holds from another time.
    listeners.tell(FeedEventKind::Lost).await;
    // Logged once for as long as it lasts.
    let mut logged = String::new();
    loop {
        let error = match timeout(PATIENCE, feed.subscribe()).await {
            Ok(Ok(mut subscription)) => {
                let error = listen(listeners, &mut subscription, report).await;
                listeners.tell(FeedEventKind::Lost).await;
                report.connected(false);
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
        sleep(PAUSE).await;
    }
}

/// Returns when the feed is lost, and why.
async fn listen(
    listeners: &Listeners<impl KeyLookup>,
    subscription: &mut impl Subscription,
    report: &Report,
) -> StoreError {
    let since = Instant::now();
    let mut asked = since;
    let mut answered = true;
    listeners.tell(FeedEventKind::Connected).await;
    listeners.tell(alive(since, asked)).await;
    report.connected(true);
    info!("changes to keys are being reported");
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
            Ok(Ok(Message::Changed(change))) => {
                listeners.tell(FeedEventKind::Changed(change)).await;
            }
            Ok(Ok(Message::Beat)) => {
                answered = true;
                report.lag.record(asked.elapsed());
                listeners.tell(alive(since, asked)).await;
            }
            Ok(Ok(Message::Other)) | Err(_) => {}
            Ok(Err(error)) => return error,
        }
    }
}

/// What it means that the feed worked when it was asked: the next answer is here by then, or none comes.
fn alive(since: Instant, asked: Instant) -> FeedEventKind {
    let until = asked + HEARTBEAT + PATIENCE;
    FeedEventKind::Alive { since: since.into_std(), until: until.into_std() }
}
