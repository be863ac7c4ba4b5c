//! The cache in Redis: a second tier that instances share.

mod bulk;
mod counts;
pub(crate) mod entry;
mod error;
mod feed;
mod link;
mod options;
mod registration;
mod script;
mod sent;
mod server;
mod supervisor;
mod tier;

use std::fmt;
use std::sync::Arc;

use redis::Client;

pub use self::bulk::BulkChange;
use self::counts::Counters;
pub use self::counts::RedisCounts;
pub use self::feed::RedisFeed;
pub use self::options::RedisOptions;
use self::registration::Registration;
use self::tier::{Lookup, Tier};
use super::KeyLookup;
use super::change::{Change, FeedEvent, FeedOrigin};
use super::shared_cache::SharedCache;
use super::write_through::impl_key_store;
use crate::crypto::hash::Candidates;
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::record::KeyRecord;

/// A second level of cache in Redis over any store, shared by all instances with the same server
/// secret. Clones share its connection. Put a `CachedStore` on top.
///
/// - Whoever can write to Redis can neither make keys nor change them: every entry carries a MAC under
///   a subkey of the server secret, over the name that it is stored under. They can put back an entry
///   that was there before, until it expires.
/// - Every change is marked in Redis, before and after it is made, with the time of the Redis server. An
///   entry counts only if the read that filled it began after the latest change of its key and owner, so a
///   slow read brings nothing back. Marks never expire; there are 65,537 names for them.
/// - An entry counts only in the generation that it was read in. Another one begins when everything is
///   invalidated, when the name of the generation is missing, as after `FLUSHALL`, and when the server's
///   clock was set back: an entry, or a mark, from the future would be taken for newer than the changes of
///   the present.
/// - An entry counts only in the run of the server that it was written in: a server that crashed, or a
///   replica in its place, may have lost changes.
/// - A write that has begun runs to its end, also if its caller gives up, and is marked then.
/// - Redis that is down, slow or out of memory never fails a verification. After the first fault it is
///   bypassed, and tried again in the background after 1 to 8 seconds. Changes that could not be marked
///   meanwhile are marked before it is used again.
/// - The server is examined when it is connected and every second: it has to be a master that can be
///   written to, the same one as before, and may not evict what never expires. Its memory policy should
///   be `volatile-ttl` or `noeviction`; under `allkeys-*`, or where `INFO` is not allowed, it is bypassed,
///   and the log says why. An examination is good for 3 seconds.
/// - Unknown keys are not stored: garbage does not reach Redis.
///
/// Three cases remain in which an outdated entry counts:
///
/// - An instance dies, or loses Redis, after a write and before it could mark it the second time, and never
///   comes back. What another instance read during the write counts until the entry expires, unless a
///   follower reports the change.
/// - The network delivers a write to the database after its connection was given up: likewise.
/// - A proxy puts another server behind an open connection: up to 3 seconds, until the next examination.
pub struct RedisStore<S> {
    store: Arc<S>,
    tier: Arc<Tier>,
    registration: Arc<Registration>,
}

impl<S> Clone for RedisStore<S> {
    fn clone(&self) -> Self {
        let (store, tier) = (self.store.clone(), self.tier.clone());
        Self { store, tier, registration: self.registration.clone() }
    }
}

impl<S> fmt::Debug for RedisStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("options", self.tier.options()).finish_non_exhaustive()
    }
}

impl<S: KeyLookup> RedisStore<S> {
    /// Puts a tier in Redis over `store`. A Redis that cannot be reached is bypassed until it can.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use lexikon_auth::SecretRing;
    /// use lexikon_auth::store::{MemoryStore, RedisOptions, RedisStore};
    /// let ring = SecretRing::from_env()?;
    /// let client = redis::Client::open("redis://localhost/")?;
    /// let store = RedisStore::new(MemoryStore::new(), client, &ring, RedisOptions::default()).await;
    /// # Ok(()) }
    /// ```
    pub async fn new(store: S, client: Client, ring: &SecretRing, options: RedisOptions) -> Self {
        #[cfg(feature = "tls-rustls")]
        if matches!(client.get_connection_info().addr(), redis::ConnectionAddr::TcpTls { .. }) {
            crate::util::tls::choose_provider();
        }
        let registration = Arc::new(Registration::new(options.shared_cache(&client)));
        let link = supervisor::start(client.clone(), options).await;
        let keys = ring.secrets().map(ServerSecret::entry_key).collect();
        let tier = Tier { client, link, keys, counters: Counters::new() };
        Self { store: Arc::new(store), tier: Arc::new(tier), registration }
    }

    /// Returns the store beneath.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Returns the feed of the changes that other instances make through stores like this one, for a
    /// [`Follower`](crate::tasks::Follower). It is for instances that share Redis and no database that
    /// reports changes: what is changed in the database itself is not in this feed.
    pub fn changes(&self) -> RedisFeed {
        RedisFeed::new(self.tier.client.clone(), self.tier.options().clone())
    }

    /// Returns what has happened so far.
    pub fn counts(&self) -> RedisCounts {
        self.tier.counters.read()
    }

    /// Returns whether Redis is used right now. It is bypassed while it is down, and while a change may not
    /// be marked there.
    pub fn is_used(&self) -> bool {
        self.tier.link.trusted().is_some()
    }

    /// Returns why Redis is bypassed, if that is a fault of the server or of the way to it.
    pub fn fault(&self) -> Option<String> {
        self.tier.link.fault()
    }

    /// Invalidates what a change affects, in all instances. For changes that are not made through this
    /// value and that no follower reports.
    pub async fn invalidate(&self, change: Change) {
        self.tier.link.mark_and_publish(&change).await;
    }

    /// Begins a change to many rows that is not made through this store: until it has finished, every
    /// instance bypasses Redis.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer.
    pub async fn begin_bulk_change(&self) -> Result<BulkChange, StoreError> {
        BulkChange::begin(self.tier.link.clone()).await
    }

    /// Removes all entries, and returns how many there were. What has another prefix stays.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer. None of the entries is read any more
    /// once it does.
    pub async fn clear(&self) -> Result<u64, StoreError> {
        self.invalidate(Change::All).await;
        self.tier.clear(None).await
    }

    /// Removes the entries of an owner, and returns how many there were.
    ///
    /// # Errors
    /// Those of [`clear`](Self::clear).
    pub async fn clear_owner(&self, owner: &OwnerId) -> Result<u64, StoreError> {
        self.invalidate(Change::Owner(owner.clone())).await;
        self.tier.clear(Some(owner)).await
    }
}

impl<S: KeyLookup + 'static> KeyLookup for RedisStore<S> {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        match self.tier.fetch(candidates).await {
            Lookup::Hit(record) => Ok(Some(record)),
            Lookup::Bypassed => self.store.find(candidates).await,
            Lookup::Miss(miss) => {
                let found = self.store.find(candidates).await?;
                if let Some(record) = &found {
                    self.registration.begin(&self.store);
                    self.tier.fill(record, miss).await;
                }
                Ok(found)
            }
        }
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        self.store.on_feed_event(event).await;
        // A change that was published in Redis was marked there by the same script.
        if event.origin == FeedOrigin::Database {
            self.tier.link.on_feed_event(&event.kind).await;
        }
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        self.store.register_cache(cache).await
    }
}

impl_key_store!(RedisStore, tier.link);
