//! The connection to Redis: short timeouts, bypassed after a fault, and found again in the background.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard, Weak};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;
use tracing::{info, warn};

use super::RedisOptions;
use super::changes::{Missed, Told};
use super::entry::{Generation, Run, ServerTime};
use super::script::Scripts;
use super::server::examine;
use crate::store::change::{Change, FeedEventKind};
use crate::store::freshness::{Freshness, nanoseconds};
use crate::telemetry::{Gauge, table};
use crate::util::lock::{lock, read, write};

/// How often the server is examined, and how long it is left alone after a fault; twice as long after
/// each attempt that fails,
const HEARTBEAT: Duration = Duration::from_secs(1);
/// and no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// How long an examination is good for: the next one is due after a second, and may take two.
const TRUSTED: Duration = Duration::from_secs(3);
/// How long it is left alone at most while there are changes that it has to be told of.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Link {
    pub(super) options: RedisOptions,
    pub(super) scripts: Scripts,
    client: Client,
    /// Where connections are looked for: a fault may be noticed outside the runtime.
    runtime: Handle,
    state: RwLock<State>,
    missed: Mutex<Missed>,
    told: Mutex<Told>,
    /// Told when there is a first missed change, so that Redis is told soon.
    first_missed: Arc<Notify>,
    /// Whether there are missed changes: what Redis holds may be older than they are.
    is_distrusted: AtomicBool,
    /// Many rows are being changed, or that was interrupted.
    is_changing: AtomicBool,
    /// While a feed is lost, changes made elsewhere may not be remembered in Redis either.
    freshness: Freshness,
    /// When the latest examination of the server expires, in nanoseconds of `freshness`.
    examined_until: AtomicU64,
    /// The latest fault that was logged, until Redis is used again.
    logged: Mutex<Option<String>>,
    /// Whether Redis is used, for whoever watches.
    gauge: Gauge,
}

/// A connection to Redis.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    /// Of the server at its other end.
    pub(super) run: Run,
}

enum State {
    Up(Connected),
    Down,
}

impl Link {
    pub(super) async fn new(client: Client, options: RedisOptions) -> Arc<Self> {
        let link = Arc::new(Self {
            options,
            scripts: Scripts::new(),
            client,
            runtime: Handle::current(),
            state: RwLock::new(State::Down),
            missed: Mutex::new(Missed::none()),
            told: Mutex::default(),
            first_missed: Arc::default(),
            is_distrusted: AtomicBool::new(false),
            is_changing: AtomicBool::new(false),
            freshness: Freshness::until_loss(),
            examined_until: AtomicU64::new(0),
            logged: Mutex::new(None),
            gauge: Gauge::new(&table::REDIS_STATE, &[]),
        });
        if let Err(error) = link.connect().await {
            link.log(&error);
        }
        link.runtime.spawn(supervise(Arc::downgrade(&link)));
        link
    }

    /// A connection to read from and write to, unless Redis is to be bypassed.
    pub(super) fn trusted(&self) -> Option<Connected> {
        if self.is_bypassed() { None } else { self.any() }
    }

    /// Whether there is such a connection.
    pub(super) fn is_trusted(&self) -> bool {
        self.trusted().is_some()
    }

    fn is_bypassed(&self) -> bool {
        let now = self.freshness.now();
        self.freshness.since(now).is_none()
            || now > self.examined_until.load(Ordering::Acquire)
            || self.is_distrusted.load(Ordering::Acquire)
    }

    /// Learns what happened to a feed of the database.
    pub(super) async fn on_feed_event(self: &Arc<Self>, event: &FeedEventKind) {
        match event {
            FeedEventKind::Changed(change) => return self.remember(change, false).await,
            // Nobody may have been listening when the entries that are there became outdated.
            FeedEventKind::Connected => self.remember(&Change::All, false).await,
            FeedEventKind::Heartbeat { .. } | FeedEventKind::Lost => {}
        }
        self.freshness.on_feed_event(event);
        self.report(&self.state());
    }

    /// Bypasses Redis from now on, until it answers again.
    pub(super) fn fail(&self, error: &RedisError) {
        let mut state = self.state();
        if matches!(*state, State::Up(_)) {
            self.log(error);
            self.enter(&mut state, State::Down);
        }
    }

    /// The fault that was logged last, for as long as it lasts.
    pub(super) fn fault(&self) -> Option<String> {
        lock(&self.logged).clone()
    }

    /// Logs a fault, once for as long as it lasts.
    fn log(&self, error: &RedisError) {
        let text = error.to_string();
        let mut logged = lock(&self.logged);
        if logged.as_ref() != Some(&text) {
            warn!(%error, "Redis is bypassed until it can be used");
            *logged = Some(text);
        }
    }

    /// Notes that Redis is bypassed because many rows are being changed.
    pub(super) fn set_changing(&self) {
        if !self.is_changing.swap(true, Ordering::AcqRel) {
            let problem = "many keys are being changed, or that was interrupted: where it was, run it \
                 again, or lxk cache clear --all";
            self.log(&RedisError::from((ErrorKind::Client, problem)));
            self.report(&self.state());
        }
    }

    /// Notes the end of that.
    async fn look_for_marker(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        if self.is_changing.load(Ordering::Acquire) {
            let mut exists = redis::cmd("EXISTS");
            exists.arg(self.options.bulk_change_marker());
            self.is_changing.store(exists.query_async(connection).await?, Ordering::Release);
            if !self.is_changing.load(Ordering::Acquire) {
                self.log_recovery();
            }
        }
        Ok(())
    }

    fn log_recovery(&self) {
        if lock(&self.logged).take().is_some() {
            info!("Redis is used again");
        }
    }

    /// Remembers a change in Redis, so that older entries are not read any more. Where that fails,
    /// Redis is bypassed until it has been told.
    pub(super) async fn remember(self: &Arc<Self>, change: &Change, tell_others: bool) {
        let unfinished = Unfinished { link: self.clone(), changes: vec![change.clone()] };
        let Some(Connected { mut connection, run }) = self.any() else { return };
        let remember = self.scripts.remember(&mut connection, &self.options, change, tell_others);
        match remember.await {
            Ok(()) if self.note_told(run, change) => unfinished.disarm(),
            // Told to a server that has a successor by now.
            Ok(()) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// Notes that a server was told of a change; `false` where another one is used by now.
    pub(super) fn note_told(&self, run: Run, change: &Change) -> bool {
        lock(&self.told).add(run, change.clone())
    }

    /// The present generation and time of the server; another generation where it had none, or its clock
    /// was set back.
    pub(super) async fn touch(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> RedisResult<(Generation, ServerTime)> {
        self.scripts.touch(connection, &self.options).await
    }

    pub(super) fn any(&self) -> Option<Connected> {
        match &*read(&self.state) {
            State::Up(connected) => Some(connected.clone()),
            State::Down => None,
        }
    }

    fn state(&self) -> RwLockWriteGuard<'_, State> {
        write(&self.state)
    }

    fn enter(&self, state: &mut State, new: State) {
        *state = new;
        self.report(state);
    }

    /// Sets the gauge, under the lock of the state: of two reports the later one stands.
    fn report(&self, state: &State) {
        let is_used = matches!(state, State::Up(_))
            && !self.is_bypassed()
            && !self.is_changing.load(Ordering::Acquire);
        self.gauge.set(|| is_used.into());
    }

    /// Has Redis bypassed until it has been told of the changes.
    fn miss(&self, changes: impl IntoIterator<Item = Change>) {
        let mut missed = lock(&self.missed);
        changes.into_iter().for_each(|change| missed.add(change));
        if !self.is_distrusted.swap(true, Ordering::AcqRel) {
            self.first_missed.notify_one();
        }
    }

    /// Looks for a connection that can be trusted.
    async fn connect(self: &Arc<Self>) -> RedisResult<()> {
        let timeout = Some(self.options.timeout);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(timeout)
            .set_response_timeout(timeout);
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let run = self.examine(&mut connection).await?;
        let again = lock(&self.told).again(run);
        if !again.is_empty() {
            self.miss(again);
        }
        while !self.trust(&connection, run) {
            // Others may have read from it, and from this one, what the changes made old.
            let changes = mem::replace(&mut *lock(&self.missed), Missed::none()).changes();
            let mut missed = Unfinished { link: self.clone(), changes };
            while let Some(change) = missed.changes.last() {
                self.scripts.remember(&mut connection, &self.options, change, true).await?;
                self.note_told(run, change);
                missed.changes.pop();
            }
        }
        Ok(())
    }

    /// Uses a connection, unless there are changes that Redis has to be told of first.
    fn trust(&self, connection: &MultiplexedConnection, run: Run) -> bool {
        // Under the lock: a change that is missed from here on finds the connection in use, and has it
        // bypassed.
        let missed = lock(&self.missed);
        if !missed.is_none() {
            return false;
        }
        self.is_distrusted.store(false, Ordering::Release);
        let connected = Connected { connection: connection.clone(), run };
        self.enter(&mut self.state(), State::Up(connected));
        self.log_recovery();
        true
    }

    /// Examines the server: a sign of life, which is a write.
    async fn examine(&self, connection: &mut MultiplexedConnection) -> RedisResult<Run> {
        let until = self.freshness.now() + nanoseconds(TRUSTED);
        let run = examine(connection).await.inspect_err(|error| {
            // Marks of changes may be gone when it is of use again.
            if error.kind() == ErrorKind::Client {
                self.miss([Change::All]);
            }
        })?;
        self.touch(connection).await?;
        self.examined_until.store(until, Ordering::Release);
        Ok(run)
    }

    /// Examines the server that is used, or looks for one.
    async fn check(self: &Arc<Self>) -> RedisResult<()> {
        let Some(Connected { mut connection, run }) = self.any() else {
            return self.connect().await;
        };
        if self.examine(&mut connection).await? == run {
            self.look_for_marker(&mut connection).await?;
            self.report(&self.state());
            return Ok(());
        }
        Err(RedisError::from((
            ErrorKind::Client,
            "another server answers in place of the one before",
        )))
    }
}

/// Keeps an eye on Redis for as long as somebody uses the link.
async fn supervise(link: Weak<Link>) {
    let mut pause = HEARTBEAT;
    loop {
        let Some(strong) = link.upgrade() else { return };
        let first_missed = strong.first_missed.clone();
        drop(strong);
        let _ = timeout(pause, first_missed.notified()).await;
        let Some(link) = link.upgrade() else { return };
        pause = match link.check().await {
            Ok(()) => HEARTBEAT,
            Err(error) => {
                link.fail(&error);
                link.log(&error);
                let is_waited_for = link.is_distrusted.load(Ordering::Acquire);
                let longest = if is_waited_for { SHORT_PAUSE } else { LONGEST_PAUSE };
                longest.min(2 * pause)
            }
        };
    }
}

/// Changes that are being made or remembered. Where it is dropped before that is done, Redis is bypassed
/// until it has been told of them.
pub(super) struct Unfinished {
    pub(super) link: Arc<Link>,
    pub(super) changes: Vec<Change>,
}

impl Unfinished {
    /// Leaves the changes to somebody else.
    pub(super) fn disarm(mut self) {
        self.changes.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            self.link.miss(self.changes.drain(..));
            let problem = "a change could not be remembered";
            self.link.fail(&RedisError::from((ErrorKind::Client, problem)));
        }
    }
}
