//! The connection to Redis: short timeouts, bypassed after a fault, and found again in the background.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Script};
use tokio::runtime::Handle;
use tokio::time::sleep;
use tracing::{info, warn};

use super::RedisOptions;
use super::entry::Run;
use crate::key::fill_random;
use crate::store::Change;
use crate::telemetry::{Gauge, table};

/// How long Redis is left alone before it is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a change is remembered: longer than any entry that was read before it can last.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600 + 60);

/// Instead of a time: no feed has been followed.
const UNLIMITED: u64 = u64::MAX;

/// Remembers a change with the time of the server, and tells the other instances.
const REMEMBER: &str = "
    local time = redis.call('TIME')
    if KEYS[1] ~= '' then
        redis.call('SET', KEYS[1], string.format('%d', time[1] * 1000000 + time[2]), 'PX', ARGV[1])
    end
    if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
    return 1
";

pub(super) struct Link {
    client: Client,
    options: RedisOptions,
    remember: Script,
    /// Where connections are looked for: a fault may be noticed outside the runtime.
    runtime: Handle,
    state: RwLock<State>,
    /// A change could not be remembered: what Redis holds may be older than it.
    is_distrusted: AtomicBool,
    /// A follower has lost its feed, so changes made elsewhere may not be remembered either.
    is_unfollowed: AtomicBool,
    start: Instant,
    /// When a feed that has been followed counts as lost though nobody has said so, in nanoseconds
    /// since the start.
    vouched_until: AtomicU64,
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
    /// A task is looking for a connection.
    Down,
}

impl Link {
    pub(super) async fn new(client: Client, options: RedisOptions) -> Arc<Self> {
        let link = Arc::new(Self {
            client,
            options,
            remember: Script::new(REMEMBER),
            runtime: Handle::current(),
            state: RwLock::new(State::Down),
            is_distrusted: AtomicBool::new(false),
            is_unfollowed: AtomicBool::new(false),
            start: Instant::now(),
            vouched_until: AtomicU64::new(UNLIMITED),
            gauge: Gauge::new(&table::REDIS_STATE, &[]),
        });
        match link.connect().await {
            Ok(connected) => link.enter(&mut link.state(), State::Up(connected)),
            Err(error) => {
                warn!(%error, "Redis cannot be reached; it is bypassed until it can");
                link.runtime.spawn(recover(Arc::downgrade(&link)));
            }
        }
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
        let vouched_until = self.vouched_until.load(Ordering::Acquire);
        let is_over = vouched_until != UNLIMITED && self.elapsed(Instant::now()) > vouched_until;
        is_over
            || self.is_distrusted.load(Ordering::Acquire)
            || self.is_unfollowed.load(Ordering::Acquire)
    }

    /// Nanoseconds since the link was made.
    fn elapsed(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// Sets how long the latest sign of life of the feed vouches for what Redis holds.
    pub(super) fn vouch_until(&self, time: Instant) {
        self.vouched_until.store(self.elapsed(time), Ordering::Release);
    }

    /// Sets whether the feed of changes is lost.
    pub(super) fn set_unfollowed(&self, is_unfollowed: bool) {
        self.is_unfollowed.store(is_unfollowed, Ordering::Release);
        self.report(&self.state());
    }

    /// Bypasses Redis from now on, until it answers again.
    pub(super) fn fail(self: &Arc<Self>, error: &RedisError) {
        let mut state = self.state();
        if matches!(*state, State::Up(_)) {
            warn!(%error, "Redis failed; it is bypassed until it answers again");
            self.enter(&mut state, State::Down);
            self.runtime.spawn(recover(Arc::downgrade(self)));
        }
    }

    /// Remembers a change in Redis, so that older entries are not read any more. Where that fails,
    /// Redis is bypassed until it has forgotten everything.
    pub(super) async fn remember(self: &Arc<Self>, change: &Change, tell_others: bool) {
        let unfinished = Unfinished { link: self };
        let Some(mut connected) = self.any() else { return };
        match self.write(&mut connected.connection, change, tell_others).await {
            Ok(()) => std::mem::forget(unfinished),
            Err(error) => self.fail(&error),
        }
    }

    /// What becomes of Redis when a change may have been made without being remembered.
    pub(super) fn unfinished(self: &Arc<Self>) -> Unfinished<'_> {
        Unfinished { link: self }
    }

    fn any(&self) -> Option<Connected> {
        // Nothing panics while the lock is held.
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Up(connected) => Some(connected.clone()),
            State::Down => None,
        }
    }

    fn state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: &mut State, new: State) {
        *state = new;
        self.report(state);
    }

    /// Under the lock of the state, so that the latest report is of the latest state.
    fn report(&self, state: &State) {
        let is_used = matches!(state, State::Up(_)) && !self.is_bypassed();
        self.gauge.set(|| is_used.into());
    }

    async fn connect(&self) -> RedisResult<Connected> {
        let timeout = Some(self.options.timeout);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(timeout)
            .set_response_timeout(timeout);
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await?;
        redis::cmd("PING").exec_async(&mut connection).await?;
        let run = run(&mut connection).await?;
        Ok(Connected { connection, run })
    }

    async fn write(
        &self,
        connection: &mut MultiplexedConnection,
        change: &Change,
        tell_others: bool,
    ) -> RedisResult<()> {
        let channel = if tell_others { self.options.channel() } else { String::new() };
        let mut script = self.remember.key(self.options.mark(change));
        let script = script.arg(REMEMBERED.as_millis() as u64).arg(channel).arg(change.to_text());
        script.invoke_async::<()>(connection).await
    }
}

/// Dropped before its work is done, it has Redis bypassed until everything in it is forgotten.
pub(super) struct Unfinished<'a> {
    link: &'a Arc<Link>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.link.is_distrusted.store(true, Ordering::Release);
        let reason = RedisError::from((redis::ErrorKind::Client, "a change was not remembered"));
        self.link.fail(&reason);
    }
}

/// Looks for a connection until there is one that can be trusted.
async fn recover(link: Weak<Link>) {
    loop {
        sleep(PAUSE).await;
        let Some(link) = link.upgrade() else { return };
        let Ok(mut connected) = link.connect().await else { continue };
        // Others may have read from it, and from this one, what the change made old.
        if link.is_distrusted.swap(false, Ordering::AcqRel)
            && let Err(error) = link.write(&mut connected.connection, &Change::All, true).await
        {
            warn!(%error, "Redis is still bypassed: a change cannot be written to it");
            link.is_distrusted.store(true, Ordering::Release);
            continue;
        }
        // Under the lock: a change that fails from here on finds the connection up, and starts over.
        let mut state = link.state();
        if !link.is_distrusted.load(Ordering::Acquire) {
            link.enter(&mut state, State::Up(connected));
            info!("Redis answers again");
            return;
        }
    }
}

/// Which run of a server is at the other end. One that has started again, from a snapshot or as a
/// replica, may have lost changes that it was told of, and hold entries that are older.
async fn run(connection: &mut MultiplexedConnection) -> RedisResult<Run> {
    let info = redis::cmd("INFO").arg("server").query_async::<String>(connection).await;
    if let Ok(info) = info
        && let Some(id) = info.lines().find_map(|line| line.strip_prefix("run_id:"))
        && let Some(start) = id.get(..16)
        && let Ok(run) = Run::from_str_radix(start, 16)
    {
        return Ok(run);
    }
    // It may not be asked: then this connection trusts what it has written itself.
    let mut random = [0; size_of::<Run>()];
    fill_random(&mut random).map_err(|error| RedisError::from(std::io::Error::other(error)))?;
    Ok(Run::from_le_bytes(random))
}
