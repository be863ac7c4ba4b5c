//! A limit on refused keys for each client address.

mod limiter;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::http::Extensions;
use ::http::header::{HeaderMap, HeaderName};
use ipnet::IpNet;

use self::limiter::RefusalLimiter;
use super::denial::Denial;
use crate::telemetry::security;
use crate::util::run_to_end::run_to_end;
use crate::verify::VerifiedKey;

/// The length of the prefix of an IPv6 address that stands for one client: whoever has one address of a /64
/// has them all (RFC 6177).
const CLIENT_PREFIX: u32 = 64;

/// Limits how many keys may be refused for one client address.
///
/// An address over its limit gets 429 before anything is verified, whatever key it presents: garbage costs no
/// look-ups, and nothing can be learnt of a key. Only addresses are counted, never keys or owners: nobody can
/// lock out another's key, except from the same address. IPv6 addresses count by their /64. Clones of a layer
/// share one count.
///
/// What counts: refused keys, ill-formed requests (400), and bearer tokens that are not keys, unless
/// [other schemes are allowed](super::ApiKeyLayer::allow_other_schemes). What does not: accepted keys,
/// requests without a key, and missing scopes.
///
/// Of the keys of an address that have to be looked up in a store, no more are looked up at a time than may
/// still be refused; the others wait, first come, first served. A refusal counts even if the client has hung
/// up.
///
/// Behind a proxy, set its network with [`trusted_proxies`](Self::trusted_proxies): otherwise all clients have
/// the proxy's address, and twenty wrong keys of one deny all. The proxy has to write the header, or its own
/// address is counted.
///
/// Memory is bounded by [`max_clients`](Self::max_clients).
///
/// ```
/// use std::net::SocketAddr;
/// use std::num::NonZeroU32;
/// use std::time::Duration;
/// // use axum::extract::ConnectInfo, with Router::into_make_service_with_connect_info::<SocketAddr>()
/// # struct ConnectInfo<T>(T);
/// use lexikon_auth::http::Throttle;
///
/// let throttle = Throttle::new(|extensions| {
///     extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0.ip())
/// })
/// .refusals(NonZeroU32::new(30).unwrap(), Duration::from_secs(60))
/// .trusted_proxies(["10.0.0.0/8".parse().unwrap()]);
/// ```
#[doc(alias = "rate limit")]
#[derive(Clone)]
pub struct Throttle {
    peer: Arc<Peer>,
    trusted_proxies: Arc<[IpNet]>,
    forwarded_header: HeaderName,
    /// Whether a request without an address has been reported.
    has_warned: Arc<AtomicBool>,
    limiter: Arc<RefusalLimiter>,
}

type Peer = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

impl Throttle {
    /// Allows each address 20 refusals a minute. `peer` returns the address of a connection, from what the
    /// server has put into the extensions of its requests. A request without one is not limited.
    pub fn new(peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        let limit = NonZeroU32::new(20).expect("not zero");
        Self {
            peer: Arc::new(peer),
            trusted_proxies: Arc::new([]),
            forwarded_header: HeaderName::from_static("x-forwarded-for"),
            has_warned: Arc::default(),
            limiter: Arc::new(RefusalLimiter::new(limit, Duration::from_secs(60), 65_536)),
        }
    }

    /// Sets how many refusals are allowed in a window of at most 24 hours. They are allowed again one by one,
    /// evenly over the window.
    pub fn refusals(self, limit: NonZeroU32, window: Duration) -> Self {
        let limiter = RefusalLimiter::new(limit, window, self.limiter.max_clients);
        Self { limiter: Arc::new(limiter), ..self }
    }

    /// Sets how many addresses are remembered, about 100 bytes each; those that are seen rarely are evicted
    /// first. Default 65,536.
    pub fn max_clients(self, max_clients: usize) -> Self {
        let RefusalLimiter { limit, window, .. } = *self.limiter;
        Self { limiter: Arc::new(RefusalLimiter::new(limit, window, max_clients)), ..self }
    }

    /// Sets the networks of proxies that are trusted to name the client in a header. Default none, since
    /// anybody can write a header.
    ///
    /// The header is read from its end: the last address outside these networks is the client.
    pub fn trusted_proxies(self, networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self { trusted_proxies: networks.into_iter().map(canonical).collect(), ..self }
    }

    /// Sets the header in which proxies name the client, a list separated by commas to which each proxy
    /// appends. Default `X-Forwarded-For`.
    pub fn forwarded_header(self, name: HeaderName) -> Self {
        Self { forwarded_header: name, ..self }
    }

    /// Returns the address that a request counts for.
    pub(crate) fn client(&self, extensions: &Extensions, headers: &HeaderMap) -> Option<IpAddr> {
        let Some(peer) = (self.peer)(extensions) else {
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                security::unlimited();
            }
            return None;
        };
        Some(client_prefix(self.behind_proxies(peer.to_canonical(), headers)))
    }

    /// Returns the denial, if too many keys of a client were refused.
    pub(crate) fn denial(&self, client: IpAddr) -> Option<Denial> {
        self.limiter.denial(client)
    }

    pub(crate) fn count_refusal(&self, client: IpAddr) {
        self.limiter.count(client);
    }

    /// Returns the limit for keys of a client that have to be looked up.
    pub(crate) fn limit(&self, client: IpAddr) -> ClientLimit {
        ClientLimit { limiter: self.limiter.clone(), client }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// Returns the nearest address that is not a trusted proxy.
    fn behind_proxies(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.is_trusted(peer) {
            return peer;
        }
        let lines: Vec<_> = headers.get_all(&self.forwarded_header).iter().collect();
        let hops = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        let mut client = peer;
        for hop in hops {
            // A trusted proxy writes addresses only: the address before is the last that is known.
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
            .field("limit", &self.limiter.limit)
            .field("window", &self.limiter.window)
            .field("trusted_proxies", &self.trusted_proxies)
            .finish_non_exhaustive()
    }
}

/// The limit of one client, for a key that has to be looked up.
pub(crate) struct ClientLimit {
    limiter: Arc<RefusalLimiter>,
    client: IpAddr,
}

impl ClientLimit {
    /// Looks a key up as soon as one more key of the client may be refused, and counts its refusal.
    ///
    /// A look-up that has begun runs to its end and counts even if the caller is dropped: otherwise a client
    /// that hangs up each time could have any number of keys looked up.
    pub(crate) async fn look_up(
        self,
        verify: impl Future<Output = Result<VerifiedKey, Denial>> + Send + 'static,
    ) -> Result<VerifiedKey, Denial> {
        let Self { limiter, client } = self;
        let permit = limiter.acquire(client).await?;
        run_to_end(async move {
            let answer = verify.await;
            if let Err(Denial::Refused) = answer {
                limiter.count(client);
            }
            drop(permit);
            answer
        })
        .await
    }
}

/// Parses an address as proxies write it: bare, in brackets, or with a port.
fn parse_address(hop: &[u8]) -> Option<IpAddr> {
    let hop = str::from_utf8(hop).ok()?.trim();
    let bare = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']')).unwrap_or(hop);
    let address = bare.parse().or_else(|_| hop.parse().map(|socket: SocketAddr| socket.ip()));
    Some(address.ok()?.to_canonical())
}

/// Turns a network of IPv4-mapped IPv6 addresses into one of IPv4, as [`IpAddr::to_canonical`] does with the
/// addresses that are compared with it.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(address), Some(prefix)) if network.addr().is_ipv6() => {
            IpNet::new(address.into(), prefix).expect("a prefix of 32 at most")
        }
        _ => network,
    }
}

/// Returns the address that stands for all addresses of a client.
fn client_prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - CLIENT_PREFIX))).into()
        }
    }
}
