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

use self::limiter::Refusals;
use super::denial::Denial;
use crate::telemetry::security;
use crate::util::run_to_end::run_to_end;
use crate::verify::VerifiedKey;

/// The part of an IPv6 address that stands for one client: whoever has one address of a /64 has them
/// all (RFC 6177).
const CLIENT_PREFIX: u32 = 64;

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
        self.refusals.denial(address)
    }

    pub(crate) fn count_refusal(&self, address: IpAddr) {
        self.refusals.count(address);
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
        let look_up = self.refusals.begin_look_up(address).await?;
        let refusals = self.refusals.clone();
        run_to_end(async move {
            let answer = verify.await;
            if let Err(Denial::Refused) = answer {
                refusals.count(address);
            }
            drop(look_up);
            answer
        })
        .await
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
