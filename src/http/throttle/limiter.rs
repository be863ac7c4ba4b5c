//! The refusals of each address, and the look-ups that may become one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use quick_cache::sync::Cache;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::http::denial::Denial;
use crate::telemetry::security;
use crate::util::lock::lock;

/// Longer ones would lock out whoever gets the address next, and governor counts nanoseconds in 64 bits.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A look-up in a store for an address, until it is dropped.
pub(super) struct LookUp(Arc<LookUps>);

impl Drop for LookUp {
    fn drop(&mut self) {
        // After its refusal was counted, if it was one: whoever sees the place free sees that too.
        self.0.under_way.fetch_sub(1, Ordering::Release);
        self.0.ended.notify_one();
    }
}

/// The look-ups of one address, shared by those that are under way and those that wait.
struct LookUps {
    refusals: Arc<Refusals>,
    address: IpAddr,
    under_way: AtomicU32,
    /// Whoever holds it is the first of those that wait. It goes round in order.
    turn: tokio::sync::Mutex<()>,
    /// Told whenever a look-up ends, also when nobody waits yet.
    ended: Notify,
}

impl LookUps {
    /// Begins a look-up if one more than are under way can be refused. For the holder of the turn.
    fn begin(self: &Arc<Self>) -> Option<LookUp> {
        let next = NonZeroU32::MIN.saturating_add(self.under_way.load(Ordering::Acquire));
        let ask = Attempt { address: self.address, is_refused: false };
        // An error of the outer kind: more than may ever be refused at once.
        if !matches!(self.refusals.limiter.check_key_n(&ask, next), Ok(Ok(_))) {
            return None;
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Some(LookUp(self.clone()))
    }
}

impl Drop for LookUps {
    fn drop(&mut self) {
        let mut look_ups = lock(&self.refusals.look_ups);
        // The next of this address may have begun already.
        if look_ups.get(&self.address).is_some_and(|kept| kept.strong_count() == 0) {
            look_ups.remove(&self.address);
        }
    }
}

type ByAddress = HashMap<IpAddr, Weak<LookUps>>;

/// What is counted.
pub(super) struct Refusals {
    /// Those that are under way or wait.
    look_ups: Mutex<ByAddress>,
    limiter: RateLimiter<Attempt, Clients, SinceStart, NoOpMiddleware<Nanos>>,
    pub(super) limit: NonZeroU32,
    pub(super) window: Duration,
    pub(super) max_clients: usize,
}

impl Refusals {
    pub(super) fn new(limit: NonZeroU32, window: Duration, max_clients: usize) -> Self {
        Self::by(SinceStart::new(), limit, window, max_clients)
    }

    fn by(clock: SinceStart, limit: NonZeroU32, window: Duration, max_clients: usize) -> Self {
        let window = window.min(LONGEST_WINDOW);
        let period = (window / limit.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("longer than nothing").allow_burst(limit);
        let clients = Clients(Cache::new(max_clients));
        let limiter = RateLimiter::new(quota, clients, clock);
        Self { look_ups: Mutex::default(), limiter, limit, window, max_clients }
    }

    /// The denial, when too many keys from an address were refused.
    pub(super) fn denial(&self, address: IpAddr) -> Option<Denial> {
        let Refusals { limiter, limit, window, .. } = self;
        let not_until = limiter.check_key(&Attempt { address, is_refused: false }).err()?;
        Some(Denial::TooManyRefusals {
            retry_after: not_until.wait_time_from(limiter.clock().now()),
            limit: limit.get(),
            window: *window,
        })
    }

    /// Waits until a look-up for this address can be refused within the limit, however those end that are
    /// under way: keys that are refused all at once are no more than keys that are refused one by one.
    ///
    /// Of those that wait, the first alone is woken when a look-up ends; it hands the turn on when it has a
    /// place, is denied, or gives up.
    pub(super) async fn begin_look_up(self: &Arc<Self>, address: IpAddr) -> Result<LookUp, Denial> {
        let look_ups = self.look_ups(address);
        let _turn = look_ups.turn.lock().await;
        loop {
            if let Some(look_up) = look_ups.begin() {
                return Ok(look_up);
            }
            if let Some(denial) = self.denial(address) {
                return Err(denial);
            }
            if look_ups.under_way.load(Ordering::Acquire) == 0 {
                // There is no end to wait for: since the first look, one may be refused again.
                yield_now().await;
            } else {
                // One may be refused, but not one more than are under way: one of them will end.
                look_ups.ended.notified().await;
            }
        }
    }

    pub(super) fn count(&self, address: IpAddr) {
        let check = |is_refused| self.limiter.check_key(&Attempt { address, is_refused });
        // Over the limit, where several came at once: there is nothing left to count.
        if check(true).is_ok() && check(false).is_err() {
            security::throttled(address);
        }
    }

    fn look_ups(self: &Arc<Self>, address: IpAddr) -> Arc<LookUps> {
        let mut look_ups = lock(&self.look_ups);
        if let Some(kept) = look_ups.get(&address).and_then(Weak::upgrade) {
            return kept;
        }
        let new = Arc::new(LookUps {
            refusals: self.clone(),
            address,
            under_way: AtomicU32::new(0),
            turn: tokio::sync::Mutex::default(),
            ended: Notify::new(),
        });
        look_ups.insert(address, Arc::downgrade(&new));
        new
    }
}

/// A question to the limiter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Attempt {
    address: IpAddr,
    /// Whether it counts, or only asks.
    is_refused: bool,
}

/// The state of each client, at most so many as the cache holds.
struct Clients(Cache<IpAddr, Arc<InMemoryState>>);

impl StateStore for Clients {
    type Key = Attempt;

    fn measure_and_replace<T, F, E>(&self, attempt: &Attempt, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if attempt.is_refused {
            let state =
                self.0.get_or_insert_with(&attempt.address, || Ok::<_, E>(Arc::default()))?;
            return state.measure_and_replace(&NotKeyed::NonKey, measure);
        }
        // Only asked: the state stays as it is, by an error that carries the answer.
        let answer = |so_far| match measure(so_far) {
            Ok((allowed, _)) => Err(Ok(allowed)),
            Err(denied) => Err(Err(denied)),
        };
        let asked: Result<(), Result<T, E>> = match self.0.get(&attempt.address) {
            Some(state) => state.measure_and_replace(&NotKeyed::NonKey, |so_far| {
                answer(so_far).map(|()| ((), Nanos::default()))
            }),
            None => answer(None),
        };
        asked.expect_err("an answer is always carried by the error")
    }
}

/// Time since the throttle was made, by a clock that is never set.
#[derive(Clone)]
struct SinceStart(Arc<dyn Fn() -> Duration + Send + Sync>);

impl SinceStart {
    fn new() -> Self {
        let start = Instant::now();
        Self(Arc::new(move || start.elapsed()))
    }
}

impl Clock for SinceStart {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        (self.0)().into()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicU64;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_may_be_refused_again_between_two_looks_at_the_clock_waits_for_nobody() {
        const WINDOW: u64 = 60;
        let (seconds, step) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let clock = SinceStart({
            let (seconds, step) = (seconds.clone(), step.clone());
            Arc::new(move || {
                let passed = step.load(Ordering::Relaxed);
                Duration::from_secs(seconds.fetch_add(passed, Ordering::Relaxed))
            })
        });
        let window = Duration::from_secs(WINDOW);
        let refusals = Arc::new(Refusals::by(clock, NonZeroU32::MIN, window, 100));
        let address = Ipv4Addr::LOCALHOST.into();
        refusals.count(address);
        assert!(refusals.begin_look_up(address).await.is_err(), "it may not be refused again yet");
        // Not yet at the first look at the clock, but at the second.
        step.store(WINDOW, Ordering::Relaxed);
        let look_up = timeout(Duration::from_secs(60), refusals.begin_look_up(address)).await;
        assert!(look_up.expect("it waits for the end of another").is_ok());
    }
}
