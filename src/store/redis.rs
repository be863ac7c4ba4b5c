//! The tier in Redis: a second level of cache that instances share.

mod bulk;
mod changes;
mod counts;
pub(crate) mod entry;
mod feed;
mod link;
mod options;
mod registration;
mod script;
mod server;
mod tier;

use std::fmt;
use std::sync::Arc;

use redis::Client;

pub use self::bulk::BulkChange;
use self::counts::Counters;
pub use self::counts::RedisCounts;
pub use self::feed::RedisFeed;
use self::link::{Link, Unfinished};
pub use self::options::RedisOptions;
use self::registration::Registration;
use self::tier::{Fetched, Tier};
use super::write_through::{Invalidate, impl_key_store};
use super::{Change, FeedEvent, FeedOrigin, KeyLookup, SharedCache};
use crate::crypto::hash::Candidates;
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::record::KeyRecord;

/// A second level of cache in Redis over any store, shared by all instances with the same server
/// secret. Clones share its connection. Put a [`CachedStore`](crate::store::CachedStore) on top.
///
/// - Whoever can write to Redis can neither make keys nor change them: every entry carries a MAC under
///   a subkey of the server secret, over the name that it is stored under. They can put back an entry
///   that was there before, for as long as its life lasts.
/// - Every change is remembered with the time of the Redis server, before and after it is made, and an
///   entry counts only if the read that filled it began after the latest change of its key and owner. A
///   slow read brings nothing back. The marks of changes never expire; there are 65,537 names for them.
/// - An entry counts only in the generation that it was read in. Another one begins when everything is to
///   be forgotten, when the name of the generation is missing, as after `FLUSHALL`, and when the server's
///   clock was set back: an entry, or a mark, from the future would outweigh changes of the present.
/// - An entry counts in the run of the server alone that it was written in: one that crashed, or a
///   replica in its place, may have lost changes.
/// - A write that has begun runs to its end, also where its caller gives up, and is remembered then.
/// - Redis that is down, slow or out of memory never fails a verification. After the first fault it is
///   bypassed, and tried again in the background after 1 to 8 seconds. Changes that it could not be told
///   of, it is told of first.
/// - The server is examined when it is connected and every second: it has to be a master that can be
///   written to, the same one as before, and may not evict what never expires. Its memory policy should
///   be `volatile-ttl` or `noeviction`; under `allkeys-*`, or where `INFO` is not allowed, it is bypassed,
///   and the log says why. An examination is good for 3 seconds.
/// - Unknown keys are not stored: garbage does not reach Redis.
///
/// What remains: an instance that dies, or loses Redis, right after a write and before it could remember
/// it leaves what others read during that write good for the life of the entry, where it never comes
/// back and no follower reports the change. The same holds for a write that the network delivers to the
/// database after its connection was given up. A proxy that changes the server behind an open connection
/// hides that it is another for up to 3 seconds.
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
        let registration = Arc::new(Registration::new(options.shared_cache(&client)));
        let link = Link::new(client.clone(), options).await;
        let keys = ring.secrets().map(ServerSecret::entry_key).collect();
        let tier = Tier { client, link, keys, counters: Counters::new() };
        Self { store: Arc::new(store), tier: Arc::new(tier), registration }
    }

    /// The store beneath.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// The changes that other instances make through stores like this one, for a
    /// [`Follower`](crate::tasks::Follower). For instances that share Redis and no database that reports changes; what somebody
    /// changes in the database itself does not show here.
    pub fn changes(&self) -> RedisFeed {
        RedisFeed::new(self.tier.client.clone(), self.tier.options().clone())
    }

    /// What has happened so far.
    pub fn counts(&self) -> RedisCounts {
        self.tier.counters.read()
    }

    /// Whether Redis is being used right now. It is bypassed while it is down, and while a change may have
    /// been missed there.
    pub fn is_used(&self) -> bool {
        self.tier.link.is_trusted()
    }

    /// Why Redis is bypassed, as far as that is a fault of the server or of the way to it.
    pub fn fault(&self) -> Option<String> {
        self.tier.link.fault()
    }

    /// Has all instances forget what a change concerns. For changes made behind the back of this value
    /// that no follower reports.
    pub async fn invalidate(&self, change: Change) {
        self.tier.link.remember(&change, true).await;
    }

    /// Begins a change to many rows, made past this store: until it has finished, no instance believes
    /// what is in Redis.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer.
    pub async fn begin_bulk_change(&self) -> Result<BulkChange, StoreError> {
        BulkChange::begin(self.tier.link.clone()).await
    }

    /// Removes all entries, and returns how many there were. What has another prefix stays.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer; none of the entries is read any more
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

type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;

impl<S: KeyLookup + 'static> KeyLookup for RedisStore<S> {
    async fn find(&self, candidates: &Candidates) -> Answer {
        match self.tier.fetch(candidates).await {
            Fetched::Found(record) => Ok(Some(record)),
            Fetched::Bypassed => self.store.find(candidates).await,
            Fetched::Missing(missing) => {
                let found = self.store.find(candidates).await?;
                if let Some(record) = &found {
                    self.registration.begin(&self.store);
                    self.tier.fill(record, missing).await;
                }
                Ok(found)
            }
        }
    }

    async fn on_feed_event(&self, event: &FeedEvent) {
        self.store.on_feed_event(event).await;
        // Whoever publishes a change in Redis has remembered it there in the same step.
        if event.origin == FeedOrigin::Database {
            self.tier.link.on_feed_event(&event.kind).await;
        }
    }

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        self.store.register_cache(cache).await
    }
}

impl Invalidate for Arc<Link> {
    async fn before_write(&self, changes: &[Change]) {
        // For everything, once is enough: no key loses its life by being marked as expired.
        for change in changes.iter().filter(|change| **change != Change::All) {
            self.remember(change, false).await;
        }
    }

    async fn invalidate(&self, changes: &[Change]) {
        for change in changes {
            self.remember(change, true).await;
        }
    }

    fn invalidate_abandoned(&self, changes: &[Change]) {
        drop(Unfinished { link: self.clone(), changes: changes.to_vec() });
    }
}

impl_key_store!(RedisStore, tier.link);
