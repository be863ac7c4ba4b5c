//! The settings of a handle, and what it is put together from.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Mutex as AsyncMutex;

use super::keys::{ApiKeys, Close, Running, Shared};
use super::layers::Layers;
use crate::clock::{Clock, SystemClock};
use crate::crypto::secret::SecretRing;
use crate::error::StoreError;
use crate::manage::KeyManager;
use crate::policy::Policy;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use crate::store::TimeZone;
#[cfg(feature = "cache")]
use crate::store::{CacheOptions, CachedStore};
use crate::store::{DynKeyStore, KeyStore};
#[cfg(feature = "redis")]
use crate::store::{RedisOptions, RedisStore};
use crate::tasks::{DEFAULT_FLUSH_INTERVAL, Follower, PolicyFollower};
use crate::verify::Verifier;

#[cfg(feature = "redis")]
const BAD_REDIS: &str = "the URL of Redis cannot be read; write it as redis://:password@host:port/number, or \
    as rediss:// with the feature tls-rustls or tls-native-tls of lexikon-auth";
#[cfg(all(feature = "redis", feature = "tls-rustls", feature = "tls-native-tls"))]
const NO_AUTHORITY: &str = "with both features tls-rustls and tls-native-tls of lexikon-auth, Redis would trust no \
    authority; enable one of them, or give a client with certificates to redis_client";

/// The settings of [`ApiKeys`].
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # #[cfg(all(feature = "postgres", feature = "redis", feature = "cache"))] {
/// use lexikon_auth::store::CacheOptions;
/// use lexikon_auth::{ApiKeys, LegacyPolicy, Policy, SecretRing};
/// let keys = ApiKeys::options(SecretRing::from_env()?)
///     .policy(Policy::default().legacy(LegacyPolicy::Refuse))
///     .cache(CacheOptions::default().max_bytes(8 << 20))
///     .redis("redis://localhost/")
///     .open("postgres://lexikon@localhost/lexikon")
///     .await?;
/// # }
/// # Ok(()) }
/// ```
#[must_use = "settings do nothing until a database is opened with them"]
pub struct ApiKeysOptions {
    pub(super) ring: SecretRing,
    policy: Policy,
    clock: Arc<dyn Clock>,
    flush_interval: Duration,
    #[cfg(feature = "cache")]
    cache: Option<CacheOptions>,
    #[cfg(feature = "redis")]
    redis: Option<Result<redis::Client, &'static str>>,
    #[cfg(feature = "redis")]
    redis_options: RedisOptions,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) extends_schema: bool,
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(super) time_zone: Option<TimeZone>,
}

impl ApiKeys {
    /// The settings to open a database with, or to use a store with.
    pub fn options(ring: SecretRing) -> ApiKeysOptions {
        ApiKeysOptions::new(ring)
    }
}

impl ApiKeysOptions {
    fn new(ring: SecretRing) -> Self {
        Self {
            ring,
            policy: Policy::default(),
            clock: Arc::new(SystemClock),
            flush_interval: DEFAULT_FLUSH_INTERVAL,
            #[cfg(feature = "cache")]
            cache: None,
            #[cfg(feature = "redis")]
            redis: None,
            #[cfg(feature = "redis")]
            redis_options: RedisOptions::default(),
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            extends_schema: false,
            #[cfg(any(feature = "postgres", feature = "sqlite"))]
            time_zone: None,
        }
    }

    /// Sets the policy. The database may tighten what it says of legacy keys, and never loosen it, as
    /// [`Verifier::follow_policy`] has it: operators set the policy of all instances with
    /// `lxk migrate policy`.
    pub fn policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Sets the clock.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Sets how often last uses and hash upgrades are written. Default 30 seconds.
    pub fn flush_interval(self, interval: Duration) -> Self {
        Self { flush_interval: interval, ..self }
    }

    /// Puts a cache in memory over the store. A database tells it what others change, within milliseconds.
    /// What others change in another store counts after
    /// [`max_age_unfollowed`](CacheOptions::max_age_unfollowed), 5 seconds; with `redis`
    /// beneath, see [`over`](Self::over).
    #[cfg(feature = "cache")]
    pub fn cache(self, options: CacheOptions) -> Self {
        Self { cache: Some(options), ..self }
    }

    /// Puts a cache in Redis, which instances share, between the database and the cache in memory. Redis
    /// that is down, at the start too, is bypassed until it is there.
    ///
    /// A database tells it what others change. Over [another store](Self::over), what is changed through
    /// handles that share this Redis counts at once; what is changed past them counts after the life of an
    /// entry, 1 hour unless [set](Self::redis_options).
    #[cfg(feature = "redis")]
    pub fn redis(self, url: &str) -> Self {
        // The error is not told: it may hold a part of the URL.
        let client = redis::Client::open(url).map_err(|_| BAD_REDIS);
        // What redis 1.8 does with both is to use rustls, and to leave the authorities out.
        #[cfg(all(feature = "tls-rustls", feature = "tls-native-tls"))]
        let client = client.and_then(|client| match client.get_connection_info().addr() {
            redis::ConnectionAddr::TcpTls { .. } => Err(NO_AUTHORITY),
            _ => Ok(client),
        });
        Self { redis: Some(client), ..self }
    }

    /// The same for a client that the application has set up, such as with certificates of its own.
    #[cfg(feature = "redis")]
    pub fn redis_client(self, client: redis::Client) -> Self {
        Self { redis: Some(Ok(client)), ..self }
    }

    /// Sets what entries in Redis are called, and how long they live.
    #[cfg(feature = "redis")]
    pub fn redis_options(self, options: RedisOptions) -> Self {
        Self { redis_options: options, ..self }
    }

    /// Adds to the lexikon service's own tables what is missing of the extension, by
    /// `extend_schema` of the store, such as what reports changes. Without this the tables stay as they
    /// are: caches use entries for 5 seconds at most, and any secret is taken for the right one.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub fn extend_schema(self) -> Self {
        Self { extends_schema: true, ..self }
    }

    /// Sets the time zone that the lexikon service ran in, by `with_time_zone` of the store. A database
    /// that keeps one needs this no more.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub fn time_zone(self, zone: TimeZone) -> Self {
        Self { time_zone: Some(zone), ..self }
    }

    /// Uses any store. It is taken for ready: neither are its secrets checked nor its schema extended, and
    /// no changes that it may report are followed.
    ///
    /// So caches learn what this handle changes, and the rest in time:
    ///
    /// | caches | what another handle with the same Redis changes | what anybody else changes |
    /// | --- | --- | --- |
    /// | none | at once | at once |
    /// | in memory | — | after `max_age_unfollowed`, 5 seconds |
    /// | in Redis | at once | after the life of an entry, 1 hour |
    /// | both: what is told to Redis is followed | within milliseconds; without the feed, after `max_age_unfollowed` | after the life of an entry, and `max_age` in memory: 1 hour and 5 minutes |
    ///
    /// The start waits for the feed of Redis as `open` does for that of a database.
    ///
    /// # Errors
    /// [`StoreError::CannotOpen`] when the URL of Redis cannot be used.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    ///
    /// # Examples
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use lexikon_auth::{SecretRing, ServerSecret};
    /// use lexikon_auth::ApiKeys;
    /// use lexikon_auth::store::MemoryStore;
    /// # let ring = SecretRing::new(ServerSecret::new(&ServerSecret::generate()?)?);
    /// let keys = ApiKeys::options(ring).over(MemoryStore::new()).await?;
    /// # keys.shutdown().await?;
    /// # Ok(()) }
    /// ```
    pub async fn over(self, store: impl KeyStore + 'static) -> Result<ApiKeys, StoreError> {
        let layers = self.with_caches(DynKeyStore::new(store)).await?;
        let verifier = self.verifier(&layers);
        let tasks = Tasks { follower: layers.follow_redis().await, ..Tasks::default() };
        Ok(self.start(layers, verifier, tasks))
    }

    /// Puts the caches over a store.
    pub(super) async fn with_caches(&self, store: DynKeyStore) -> Result<Layers, StoreError> {
        let layers = Layers::new(store);
        #[cfg(feature = "redis")]
        let layers = self.with_redis(layers).await?;
        #[cfg(feature = "cache")]
        let layers = self.with_cache(layers);
        Ok(layers)
    }

    #[cfg(feature = "redis")]
    async fn with_redis(&self, mut layers: Layers) -> Result<Layers, StoreError> {
        let Some(client) = &self.redis else { return Ok(layers) };
        let client = client.clone().map_err(|problem| StoreError::CannotOpen(problem.into()))?;
        let options = self.redis_options.clone();
        let redis = RedisStore::new(layers.store, client, &self.ring, options).await;
        (layers.store, layers.is_cached) = (DynKeyStore::new(redis.clone()), true);
        layers.redis = Some(redis);
        Ok(layers)
    }

    #[cfg(feature = "cache")]
    fn with_cache(&self, mut layers: Layers) -> Layers {
        let Some(options) = &self.cache else { return layers };
        let cache = CachedStore::new(layers.store, options.clone());
        (layers.store, layers.is_cached) = (DynKeyStore::new(cache.clone()), true);
        layers.cache = Some(cache);
        layers
    }

    pub(super) fn verifier(&self, layers: &Layers) -> Arc<Verifier<DynKeyStore>> {
        let verifier = Verifier::new(layers.store.clone(), self.ring.clone());
        Arc::new(verifier.with_policy(self.policy).with_clock(self.clock.clone()))
    }

    pub(super) fn start(
        self,
        layers: Layers,
        verifier: Arc<Verifier<DynKeyStore>>,
        tasks: Tasks,
    ) -> ApiKeys {
        let Tasks { follower, policy_follower, close } = tasks;
        let flusher = verifier.spawn_flush(self.flush_interval);
        ApiKeys::new(Shared {
            verifier,
            manager: KeyManager::new(layers.store.clone(), &self.ring).with_clock(self.clock),
            layers,
            follower: Mutex::new(follower),
            running: AsyncMutex::new(Some(Running { flusher, policy_follower, close })),
        })
    }
}

impl fmt::Debug for ApiKeysOptions {
    /// Without the URL of Redis, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("ApiKeysOptions");
        debug.field("ring", &self.ring).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// What runs beside a database, and ends with the handle.
#[derive(Default)]
pub(super) struct Tasks {
    pub(super) follower: Option<Follower>,
    pub(super) policy_follower: Option<PolicyFollower>,
    pub(super) close: Option<Close>,
}
