//! Counts the refusals of each client, and limits look-ups that may become refusals.

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

/// A longer window would lock out whoever gets the address next, and governor counts nanoseconds in 64 bits.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// Limits the refusals of each client.
pub(super) struct RefusalLimiter {
    look_ups: Mutex<ByClient>,
    limiter: RateLimiter<Query, ClientStates, MonotonicClock, NoOpMiddleware<Nanos>>,
    pub(super) limit: NonZeroU32,
    pub(super) window: Duration,
    pub(super) max_clients: usize,
}

/// The look-ups that are in flight or wait. Those of a client go with the last of them.
type ByClient = HashMap<IpAddr, Weak<LookUps>>;

impl RefusalLimiter {
    pub(super) fn new(limit: NonZeroU32, window: Duration, max_clients: usize) -> Self {
        Self::with_clock(MonotonicClock::new(), limit, window, max_clients)
    }

    fn with_clock(
        clock: MonotonicClock,
        limit: NonZeroU32,
        window: Duration,
        max_clients: usize,
    ) -> Self {
        let window = window.min(LONGEST_WINDOW);
        let period = (window / limit.get()).max(Duration::from_nanos(1));
        let quota = Quota::with_period(period).expect("longer than nothing").allow_burst(limit);
        let states = ClientStates(Cache::new(max_clients));
        let limiter = RateLimiter::new(quota, states, clock);
        Self { look_ups: Mutex::default(), limiter, limit, window, max_clients }
    }

    /// Returns the denial, if too many keys of a client were refused.
    pub(super) fn denial(&self, client: IpAddr) -> Option<Denial> {
        let Self { limiter, limit, window, .. } = self;
        let not_until = limiter.check_key(&Query { client, is_refusal: false }).err()?;
        Some(Denial::TooManyRefusals {
            retry_after: not_until.wait_time_from(limiter.clock().now()),
            limit: limit.get(),
            window: *window,
        })
    }

    /// Counts a refusal.
    pub(super) fn count(&self, client: IpAddr) {
        let check = |is_refusal| self.limiter.check_key(&Query { client, is_refusal });
        // Beyond the limit, where several were refused at once, there is nothing left to count.
        if check(true).is_ok() && check(false).is_err() {
            security::throttled(client);
        }
    }

    /// Waits until one more look-up of this client may be refused, even if all that are in flight are
    /// refused: keys that are presented at once are limited like keys that are presented one by one.
    pub(super) async fn acquire(self: &Arc<Self>, client: IpAddr) -> Result<LookUpPermit, Denial> {
        let look_ups = self.look_ups(client);
        let _first = look_ups.queue.lock().await;
        loop {
            if let Some(permit) = look_ups.try_acquire() {
                return Ok(permit);
            }
            if let Some(denial) = self.denial(client) {
                return Err(denial);
            }
            if look_ups.in_flight.load(Ordering::Acquire) == 0 {
                // No look-up will end: the time for another refusal came between the two checks. Try again.
                yield_now().await;
            } else {
                // One may be refused, but not one more than are in flight: wait for one of them to end.
                look_ups.released.notified().await;
            }
        }
    }

    fn look_ups(self: &Arc<Self>, client: IpAddr) -> Arc<LookUps> {
        let mut by_client = lock(&self.look_ups);
        if let Some(look_ups) = by_client.get(&client).and_then(Weak::upgrade) {
            return look_ups;
        }
        let look_ups = Arc::new(LookUps {
            limiter: self.clone(),
            client,
            in_flight: AtomicU32::new(0),
            queue: tokio::sync::Mutex::default(),
            released: Notify::new(),
        });
        by_client.insert(client, Arc::downgrade(&look_ups));
        look_ups
    }
}

/// The permit for one look-up, released when it is dropped.
pub(super) struct LookUpPermit(Arc<LookUps>);

impl Drop for LookUpPermit {
    fn drop(&mut self) {
        // `Release`: whoever sees the permit released also sees the refusal that was counted before.
        self.0.in_flight.fetch_sub(1, Ordering::Release);
        self.0.released.notify_one();
    }
}

/// The look-ups of one client, shared by those that are in flight and those that wait.
struct LookUps {
    limiter: Arc<RefusalLimiter>,
    client: IpAddr,
    in_flight: AtomicU32,
    /// Held by the first of those that wait. The mutex of tokio is fair: the next one gets it when the
    /// first has a permit, is denied or is dropped.
    queue: tokio::sync::Mutex<()>,
    /// Notified whenever a permit is released; remembers it if nobody waits yet.
    released: Notify,
}

impl LookUps {
    /// Acquires a permit if one more than are in flight may be refused. To be called by the first in the
    /// queue only.
    fn try_acquire(self: &Arc<Self>) -> Option<LookUpPermit> {
        let next = NonZeroU32::MIN.saturating_add(self.in_flight.load(Ordering::Acquire));
        let query = Query { client: self.client, is_refusal: false };
        // The outer error: more than may ever be refused in one burst.
        if !matches!(self.limiter.limiter.check_key_n(&query, next), Ok(Ok(_))) {
            return None;
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Some(LookUpPermit(self.clone()))
    }
}

impl Drop for LookUps {
    fn drop(&mut self) {
        let mut by_client = lock(&self.limiter.look_ups);
        // Others of this client may have replaced them already.
        if by_client.get(&self.client).is_some_and(|look_ups| look_ups.strong_count() == 0) {
            by_client.remove(&self.client);
        }
    }
}

/// A query to governor, which otherwise counts whatever it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Query {
    client: IpAddr,
    /// Whether it counts as a refusal, or only asks if one is allowed.
    is_refusal: bool,
}

/// The state of each client, for as many as the cache holds.
struct ClientStates(Cache<IpAddr, Arc<InMemoryState>>);

impl StateStore for ClientStates {
    type Key = Query;

    fn measure_and_replace<T, F, E>(&self, query: &Query, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if query.is_refusal {
            let state = self.0.get_or_insert_with(&query.client, || Ok::<_, E>(Arc::default()))?;
            return state.measure_and_replace(&NotKeyed::NonKey, measure);
        }
        // The state must not change: governor leaves it as it is on an error, which carries the answer.
        let answer = |so_far| match measure(so_far) {
            Ok((allowed, _)) => Err(Ok(allowed)),
            Err(denied) => Err(Err(denied)),
        };
        let answer: Result<(), Result<T, E>> = match self.0.get(&query.client) {
            Some(state) => state.measure_and_replace(&NotKeyed::NonKey, |so_far| {
                answer(so_far).map(|()| ((), Nanos::default()))
            }),
            None => answer(None),
        };
        answer.expect_err("an answer is always carried by the error")
    }
}

/// Time since the limiter was made. Setting the system's clock does not change it.
#[derive(Clone)]
struct MonotonicClock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl MonotonicClock {
    fn new() -> Self {
        let start = Instant::now();
        Self(Arc::new(move || start.elapsed()))
    }
}

impl Clock for MonotonicClock {
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
        let clock = MonotonicClock({
            let (seconds, step) = (seconds.clone(), step.clone());
            Arc::new(move || {
                let passed = step.load(Ordering::Relaxed);
                Duration::from_secs(seconds.fetch_add(passed, Ordering::Relaxed))
            })
        });
        let window = Duration::from_secs(WINDOW);
        let limiter = Arc::new(RefusalLimiter::with_clock(clock, NonZeroU32::MIN, window, 100));
        let client = Ipv4Addr::LOCALHOST.into();
        limiter.count(client);
        assert!(limiter.acquire(client).await.is_err(), "it may not be refused again yet");
        // Not yet at the first look at the clock, but at the second.
        step.store(WINDOW, Ordering::Relaxed);
        let permit = timeout(Duration::from_secs(60), limiter.acquire(client)).await;
        assert!(permit.expect("it waits for the end of another").is_ok());
    }
}
