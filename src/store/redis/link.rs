//! The connection to Redis, and when it is used: not after a fault, not while changes may be unknown there.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::entry::Run;
use super::options::RedisOptions;
use super::script::Scripts;
use super::sent::Sent;
use super::server::examine;
use crate::store::change::{Change, FeedEventKind};
use crate::store::freshness::{Freshness, nanoseconds};
use crate::store::write_through::{Invalidate, InvalidateOnDrop};
use crate::telemetry::{Gauge, metric};
use crate::util::lock::{lock, read, write};

/// How long an examination of the server is good for: the next one is due after a second, and may take two.
const EXAMINATION_VALIDITY: Duration = Duration::from_secs(3);

/// Most changes that are pending. Beyond, everything in Redis is invalidated instead.
const MAX_PENDING: usize = 1000;

pub(super) struct Link {
    pub(super) options: RedisOptions,
    pub(super) scripts: Scripts,
    state: RwLock<State>,
    /// Changes that could not be sent.
    pending: Mutex<Vec<Change>>,
    /// Whether there are pending changes, so that entries in Redis may be outdated.
    has_pending: AtomicBool,
    /// Notified of the first pending change, so that it is sent soon.
    pub(super) first_pending: Arc<Notify>,
    sent: Mutex<Sent>,
    /// Many rows are being changed, or that was interrupted.
    is_bulk_changing: AtomicBool,
    /// While a feed is lost, changes made elsewhere may not be marked in Redis either.
    freshness: Freshness,
    /// When the latest examination of the server expires, on the clock of `freshness`.
    examined_until: AtomicU64,
    /// The latest fault that was logged, until Redis is used again.
    logged: Mutex<Option<String>>,
    /// Whether Redis is used.
    gauge: Gauge,
}

/// A connection to Redis.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    /// The run of the server at its other end.
    pub(super) run: Run,
}

enum State {
    Up(Connected),
    Down,
}

impl Link {
    pub(super) fn new(options: RedisOptions) -> Self {
        Self {
            options,
            scripts: Scripts::new(),
            state: RwLock::new(State::Down),
            pending: Mutex::default(),
            has_pending: AtomicBool::new(false),
            first_pending: Arc::default(),
            sent: Mutex::default(),
            is_bulk_changing: AtomicBool::new(false),
            freshness: Freshness::until_loss(),
            examined_until: AtomicU64::new(0),
            logged: Mutex::new(None),
            gauge: Gauge::new(&metric::REDIS_STATE, &[]),
        }
    }

    /// Returns a connection to read from and write to, unless Redis is to be bypassed.
    pub(super) fn trusted(&self) -> Option<Connected> {
        if self.is_bypassed() { None } else { self.connected() }
    }

    /// Returns the connection, if there is one. What is read from it may be outdated.
    pub(super) fn connected(&self) -> Option<Connected> {
        match &*read(&self.state) {
            State::Up(connected) => Some(connected.clone()),
            State::Down => None,
        }
    }

    fn is_bypassed(&self) -> bool {
        let now = self.freshness.now();
        self.freshness.since(now).is_none()
            || now > self.examined_until.load(Ordering::Acquire)
            || self.has_pending()
    }

    /// Marks a change in Redis, so that older entries are not read any more. Where that fails, Redis is
    /// bypassed until it has been done.
    pub(super) async fn mark(self: &Arc<Self>, change: &Change) {
        self.send(change, false).await;
    }

    /// Does the same, and publishes the change to the other instances.
    pub(super) async fn mark_and_publish(self: &Arc<Self>, change: &Change) {
        self.send(change, true).await;
    }

    async fn send(self: &Arc<Self>, change: &Change, publish: bool) {
        let guard = InvalidateOnDrop { cache: self.clone(), changes: vec![change.clone()] };
        let Some(Connected { mut connection, run }) = self.connected() else { return };
        match self.scripts.mark(&mut connection, &self.options, change, publish).await {
            Ok(()) if self.add_sent(run, change) => guard.disarm(),
            // The server has a successor by now.
            Ok(()) => {}
            Err(error) => self.bypass(&error),
        }
    }

    /// Remembers that a change was sent to a server; `false` if another one is used by now.
    pub(super) fn add_sent(&self, run: Run, change: &Change) -> bool {
        lock(&self.sent).add(run, change.clone())
    }

    /// Learns what happened to a feed of the database.
    pub(super) async fn on_feed_event(self: &Arc<Self>, event: &FeedEventKind) {
        match event {
            FeedEventKind::Changed(change) => return self.mark(change).await,
            // No feed may have been followed when the entries that are there became outdated.
            FeedEventKind::Connected => self.mark(&Change::All).await,
            FeedEventKind::Heartbeat { .. } | FeedEventKind::Lost => {}
        }
        self.freshness.on_feed_event(event);
        self.report();
    }

    /// Bypasses Redis from now on, until it answers again.
    pub(super) fn bypass(&self, error: &RedisError) {
        let mut state = self.state();
        if matches!(*state, State::Up(_)) {
            self.log_fault(error);
            *state = State::Down;
            self.report_state(&state);
        }
    }

    /// Returns the fault that was logged last, for as long as it lasts.
    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.logged).clone()
    }

    /// Logs a fault, once for as long as it lasts.
    pub(super) fn log_fault(&self, error: &RedisError) {
        let text = error.to_string();
        let mut logged = lock(&self.logged);
        if logged.as_ref() != Some(&text) {
            warn!(%error, "Redis is bypassed until it can be used");
            *logged = Some(text);
        }
    }

    fn log_recovery(&self) {
        if lock(&self.logged).take().is_some() {
            info!("Redis is used again");
        }
    }

    /// Learns that Redis is bypassed because many rows are being changed.
    pub(super) fn on_bulk_change(&self) {
        if !self.is_bulk_changing.swap(true, Ordering::AcqRel) {
            let problem = "many keys are being changed, or that was interrupted: where it was, run it \
                 again, or lxk cache clear --all";
            self.log_fault(&RedisError::from((ErrorKind::Client, problem)));
            self.report();
        }
    }

    /// Looks whether that has ended.
    pub(super) async fn check_bulk_change(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<()> {
        if self.is_bulk_changing.load(Ordering::Acquire) {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(self.options.bulk_change_marker());
            let is_marked: bool = exists.query_async(connection).await?;
            self.is_bulk_changing.store(is_marked, Ordering::Release);
            if !is_marked {
                self.log_recovery();
            }
        }
        Ok(())
    }

    /// Examines the server, and proves that it can be written to.
    pub(super) async fn examine(&self, connection: &mut MultiplexedConnection) -> RedisResult<Run> {
        let until = self.freshness.now() + nanoseconds(EXAMINATION_VALIDITY);
        let run = examine(connection).await.inspect_err(|error| {
            // A server that is not fit may lose marks of changes before it is fit again.
            if error.kind() == ErrorKind::Client {
                self.defer([Change::All]);
            }
        })?;
        self.scripts.touch(connection, &self.options).await?;
        self.examined_until.store(until, Ordering::Release);
        Ok(run)
    }

    /// Has Redis bypassed until the changes were sent.
    pub(super) fn defer(&self, changes: impl IntoIterator<Item = Change>) {
        let mut pending = lock(&self.pending);
        for change in changes {
            if pending.len() == MAX_PENDING || change == Change::All {
                *pending = vec![Change::All];
            } else if !pending.contains(&Change::All) && !pending.contains(&change) {
                pending.push(change);
            }
        }
        if !pending.is_empty() && !self.has_pending.swap(true, Ordering::AcqRel) {
            self.first_pending.notify_one();
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.has_pending.load(Ordering::Acquire)
    }

    /// Takes the pending changes, to send them. Those that are left when the value is dropped are pending
    /// again.
    pub(super) fn take_pending(self: &Arc<Self>) -> InvalidateOnDrop<Arc<Self>> {
        InvalidateOnDrop { cache: self.clone(), changes: mem::take(&mut *lock(&self.pending)) }
    }

    /// Has a server that was connected receive what was sent to another one shortly before.
    pub(super) fn replay_to(&self, run: Run) {
        let changes = lock(&self.sent).replay_to(run);
        self.defer(changes);
    }

    /// Uses a connection, unless there are pending changes: then it returns `false`.
    pub(super) fn set_connected(&self, connected: &Connected) -> bool {
        // Under the lock: a change that becomes pending from here on finds the connection in use, and has
        // it bypassed.
        let pending = lock(&self.pending);
        if !pending.is_empty() {
            return false;
        }
        self.has_pending.store(false, Ordering::Release);
        let mut state = self.state();
        *state = State::Up(connected.clone());
        self.report_state(&state);
        self.log_recovery();
        true
    }

    fn state(&self) -> RwLockWriteGuard<'_, State> {
        write(&self.state)
    }

    /// Sets the gauge.
    pub(super) fn report(&self) {
        self.report_state(&self.state());
    }

    /// Does the same under the lock of the state, so that an older report does not overwrite a newer one.
    fn report_state(&self, state: &State) {
        let is_used = matches!(state, State::Up(_))
            && !self.is_bypassed()
            && !self.is_bulk_changing.load(Ordering::Acquire);
        self.gauge.set(|| is_used.into());
    }
}

impl Invalidate for Arc<Link> {
    /// Marks the changes already: if this process dies during the write, no entry counts any more that was
    /// read before it.
    async fn before_write(&self, changes: &[Change]) {
        // `All` can wait: it is the change of `expire` alone, and what that revokes is refused already.
        for change in changes.iter().filter(|change| **change != Change::All) {
            self.mark(change).await;
        }
    }

    async fn invalidate(&self, changes: &[Change]) {
        for change in changes {
            self.mark_and_publish(change).await;
        }
    }

    /// Redis is bypassed until it is done.
    fn request_invalidation(&self, changes: &[Change]) {
        self.defer(changes.iter().cloned());
        let problem = "a change could not be remembered";
        self.bypass(&RedisError::from((ErrorKind::Client, problem)));
    }
}
