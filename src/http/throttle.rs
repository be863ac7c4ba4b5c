//! A limit on refused keys for each client address.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ::http::Extensions;
use ::http::header::{HeaderMap, HeaderName};
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use ipnet::IpNet;
use quick_cache::sync::Cache;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::denial::Denial;
use crate::run_to_end::run_to_end;
use crate::telemetry::security;
use crate::verify::VerifiedKey;

/// The part of an IPv6 address that stands for one client: whoever has one address of a /64 has them
/// all (RFC 6177).
const CLIENT_PREFIX: u32 = 64;

/// Longer ones would lock out whoever gets the address next, and governor counts nanoseconds in 64 bits.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// Limits how many keys may be refused for one client address.
///
/// An address that is over its limit is answered 429 before anything is verified, whatever key it
/// presents: so garbage costs no look-ups, and nothing can be learnt of a key. Only addresses are
/// counted, never keys or owners: nobody can have another's key locked out but from the same address.
/// Refused keys count, ill-formed requests (400), and bearer tokens that are no key where no
/// [other schemes](super::ApiKeyLayer::allow_other_schemes) may follow. Accepted keys, requests without
/// one, and missing scopes do not. Clones of a layer share one count. Of the keys of an address that have to be looked
/// up in a store, no more are looked up at a time than may still be refused; others wait for them, in the order in which they came.
/// A key that is being looked up counts also where the client has hung up.
///
/// Behind a proxy, name its network by [`trusted_proxies`](Self::trusted_proxies): otherwise all clients have
/// the proxy's address, and twenty wrong keys of one deny all. The proxy has to write the header, or
/// refusals count for itself.
///
/// Memory is bounded: [`max_clients`](Self::max_clients). IPv6 addresses count by their /64.
///
/// ```
/// use std::net::SocketAddr;
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// use axum::extract::ConnectInfo; // with Router::into_make_service_with_connect_info::<SocketAddr>()
/// use lexikon_auth::http::Throttle;
///
/// let throttle = Throttle::new(|extensions| {
///     extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
/// })
/// .refusals(NonZeroU32::new(30).unwrap(), Duration::from_secs(60))
/// .trusted_proxies(["10.0.0.0/8".parse().unwrap()]);
/// ```
#[derive(Clone)]
pub struct Throttle {
    peer: Arc<Peer>,
    proxies: Arc<[IpNet]>,
    forwarded: HeaderName,
    /// Whether it has been said that addresses are not known.
    has_warned: Arc<AtomicBool>,
    refusals: Arc<Refusals>,
}

type Peer = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

impl Throttle {
    /// Allows 20 refusals a minute to each address. `peer` says which address a connection comes from,
    /// by what the server has put into the extensions of its requests; a request for which it has no
    /// answer is not limited.
    pub fn new(peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        let limit = NonZeroU32::new(20).expect("not zero");
        Self {
            peer: Arc::new(peer),
            proxies: Arc::new([]),
            forwarded: HeaderName::from_static("x-forwarded-for"),
            has_warned: Arc::default(),
            refusals: Arc::new(Refusals::new(limit, Duration::from_secs(60), 65_536)),
        }
    }

    /// How many refusals in which time, at most 24 hours. They come back one by one, evenly over that
    /// time.
    pub fn refusals(self, limit: NonZeroU32, window: Duration) -> Self {
        let refusals = Arc::new(Refusals::new(limit, window, self.refusals.max_clients));
        Self { refusals, ..self }
    }

    /// Most addresses that are remembered, about 100 bytes each; those that are seen rarely go first.
    /// Default 65,536.
    pub fn max_clients(self, max_clients: usize) -> Self {
        let Refusals { limit, window, .. } = *self.refusals;
        Self { refusals: Arc::new(Refusals::new(limit, window, max_clients)), ..self }
    }

    /// The networks of proxies whose word is taken for the address of a client. Default none: what
    /// anybody may write into a header says nothing.
    ///
    /// The header is read from its end: past the proxies of these networks stands the client.
    pub fn trusted_proxies(self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self { proxies: networks.into_iter().map(canonical).collect(), ..self }
    }

    /// The header in which proxies name the client, a list separated by commas to which each proxy
    /// adds. Default `X-Forwarded-For`.
    pub fn forwarded_header(self, name: HeaderName) -> Self {
        Self { forwarded: name, ..self }
    }

    /// The address that a request counts for.
    pub(crate) fn address(&self, extensions: &Extensions, headers: &HeaderMap) -> Option<IpAddr> {
        let Some(peer) = (self.peer)(extensions) else {
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                security::unlimited();
            }
            return None;
        };
        let peer = peer.to_canonical();
        Some(group(self.behind_proxies(peer, headers)))
    }

    /// The denial, when too many keys from an address were refused.
    pub(crate) fn denial(&self, address: IpAddr) -> Option<Denial> {
        let Refusals { limiter, limit, window, .. } = &*self.refusals;
        let not_until = limiter.check_key(&Attempt { address, is_refused: false }).err()?;
        Some(Denial::TooManyRefusals {
            retry_after: not_until.wait_time_from(limiter.clock().now()),
            limit: limit.get(),
            window: *window,
        })
    }

    /// Looks a key up as soon as one of this address may be refused, and counts its refusal.
    ///
    /// Once it has begun it goes on and counts also where nobody waits for its answer any more: or a client
    /// that hangs up each time would have any number of keys looked up.
    pub(crate) async fn look_up(
        &self,
        address: IpAddr,
        verify: impl Future<Output = Result<VerifiedKey, Denial>> + Send + 'static,
    ) -> Result<VerifiedKey, Denial> {
        let look_up = self.begin_look_up(address).await?;
        let throttle = self.clone();
        run_to_end(async move {
            let answer = verify.await;
            if let Err(Denial::Refused) = answer {
                throttle.count_refusal(address);
            }
            drop(look_up);
            answer
        })
        .await
    }

    /// Waits until a look-up for this address can be refused within the limit, however those end that are
    /// under way: keys that are refused all at once are no more than keys that are refused one by one.
    ///
    /// Of those that wait, the first alone is woken when a look-up ends; it hands the turn on when it has a
    /// place, is denied, or gives up.
    async fn begin_look_up(&self, address: IpAddr) -> Result<LookUp, Denial> {
        let look_ups = self.refusals.look_ups(address);
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

    pub(crate) fn count_refusal(&self, address: IpAddr) {
        let check = |is_refused| self.refusals.limiter.check_key(&Attempt { address, is_refused });
        // Over the limit, where several came at once: there is nothing left to count.
        if check(true).is_ok() && check(false).is_err() {
            security::throttled(address);
        }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(&address))
    }

    /// The nearest address that is no trusted proxy.
    fn behind_proxies(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.is_trusted(peer) {
            return peer;
        }
        let lines: Vec<_> = headers.get_all(&self.forwarded).iter().collect();
        let hops = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        let mut client = peer;
        for hop in hops {
            // What is no address was not written by a proxy that can be trusted: the one before is
            // the last that is known.
            let Some(address) = parse_address(hop) else { break };
            client = address;
            if !self.is_trusted(client) {
                break;
            }
        }
        client
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle")
            .field("limit", &self.refusals.limit)
            .field("window", &self.refusals.window)
            .field("trusted_proxies", &self.proxies)
            .finish_non_exhaustive()
    }
}

/// An address, perhaps in brackets, or an address with a port, as proxies write them.
fn parse_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().or_else(|_| hop.parse().map(|socket: SocketAddr| socket.ip()));
    Some(address.ok()?.to_canonical())
}

/// A network of IPv4 addresses written as IPv6 ones, as what it is: addresses are compared so too.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(prefix)) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), prefix).expect("a prefix of 32 at most")
        }
        _ => network,
    }
}

/// The address that stands for all those of one client.
fn group(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - CLIENT_PREFIX))).into()
        }
    }
}

/// A look-up in a store for an address, until it is dropped.
struct LookUp(Arc<LookUps>);

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

fn lock(look_ups: &Mutex<ByAddress>) -> MutexGuard<'_, ByAddress> {
    // Nothing panics while the lock is held.
    look_ups.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is counted.
struct Refusals {
    /// Those that are under way or wait.
    look_ups: Mutex<ByAddress>,
    limiter: RateLimiter<Attempt, Clients, SinceStart, NoOpMiddleware<Nanos>>,
    limit: NonZeroU32,
    window: Duration,
    max_clients: usize,
}

impl Refusals {
    fn new(limit: NonZeroU32, window: Duration, max_clients: usize) -> Self {
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
        let refusals = Refusals::by(clock, NonZeroU32::MIN, Duration::from_secs(WINDOW), 100);
        let throttle = Throttle { refusals: Arc::new(refusals), ..Throttle::new(|_| None) };
        let address = Ipv4Addr::LOCALHOST.into();
        throttle.count_refusal(address);
        assert!(throttle.begin_look_up(address).await.is_err(), "it may not be refused again yet");
        // Not yet at the first look at the clock, but at the second.
        step.store(WINDOW, Ordering::Relaxed);
        let look_up = timeout(Duration::from_secs(60), throttle.begin_look_up(address)).await;
        assert!(look_up.expect("it waits for the end of another").is_ok());
    }
}
