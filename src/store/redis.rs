//! The tier in Redis: a second level of cache that instances share.

pub(crate) mod entry;
mod feed;
mod link;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use redis::aio::MultiplexedConnection;
use redis::{Client, ErrorKind, RedisError, RedisResult, Value};
use tracing::{debug, warn};

use self::entry::{Entry, ServerTime};
pub use self::feed::RedisFeed;
use self::feed::unavailable;
use self::link::Link;
use super::{Change, FeedEvent, FormatCounts, HashChange, KeyLookup, KeyStore, KeyUpdate};
use super::{Page, Usage};
use crate::error::StoreError;
use crate::hash::{Candidates, KeyHash};
use crate::hmac::HmacKey;
use crate::record::{KeyId, KeyRecord, OwnerId};
use crate::secret::{SecretRing, ServerSecret};

/// Shortest and longest life of an entry.
const TTL_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
/// Keys that one step of a clearing looks at.
const BATCH: usize = 500;

/// What a [`RedisStore`] calls its entries, how long it keeps them, and how long it waits for Redis.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    prefix: String,
    ttl: Duration,
    max_value_bytes: usize,
    timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            prefix: "lexikon:".to_owned(),
            ttl: Duration::from_secs(3600),
            max_value_bytes: 64 << 10,
            timeout: Duration::from_millis(100),
        }
    }
}

impl RedisOptions {
    /// What every name in Redis begins with. Default `lexikon:`.
    pub fn prefix(self, prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..self }
    }

    /// How long an entry lives, from 1 second to 24 hours; what is outside becomes the nearer of the
    /// two, with a warning in the log. Default 1 hour.
    pub fn ttl(self, ttl: Duration) -> Self {
        let clamped = ttl.clamp(TTL_BOUNDS.0, TTL_BOUNDS.1);
        if clamped != ttl {
            warn!(?ttl, ?clamped, "the life of entries in Redis is from 1 second to 24 hours");
        }
        Self { ttl: clamped, ..self }
    }

    /// Longest entry that is stored, in bytes. Default 65,536.
    pub fn max_value_bytes(self, max_value_bytes: usize) -> Self {
        Self { max_value_bytes, ..self }
    }

    /// How long to wait for a connection, and for an answer. Default 100 ms.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    fn entry(&self, hash: &KeyHash) -> String {
        format!("{}auth:key:{}", self.prefix, hash.to_hex())
    }

    /// The name under which the time of the latest such change is remembered.
    fn mark(&self, change: &Change) -> String {
        format!("{}auth:changed:{}", self.prefix, change.to_text())
    }

    fn channel(&self) -> String {
        format!("{}auth:changes", self.prefix)
    }

    /// A pattern that all entries match, and nothing with another prefix.
    fn pattern(&self) -> String {
        let mut pattern = String::new();
        for character in self.prefix.chars() {
            if r"*?[]^\".contains(character) {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern + "auth:key:*"
    }
}

/// What has happened in a [`RedisStore`] since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisCounts {
    /// Look-ups that Redis answered.
    pub hits: u64,
    /// Look-ups that went on to the store beneath, though Redis was asked.
    pub misses: u64,
    /// Look-ups for which Redis was not asked, because it was down or not to be trusted.
    pub bypassed: u64,
    /// Entries that were not what an instance of this service wrote under that name: altered, moved,
    /// truncated, or of another version.
    pub rejected: u64,
    /// Entries that were older than a change of their key or owner.
    pub stale: u64,
    /// Entries that were not stored because they were too long.
    pub oversized: u64,
    /// Entries that Redis did not take, for instance because its memory was full.
    pub unwritten: u64,
}

#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    bypassed: AtomicU64,
    rejected: AtomicU64,
    stale: AtomicU64,
    oversized: AtomicU64,
    unwritten: AtomicU64,
}

/// A second level of cache in Redis over any store, shared by all instances with the same server
/// secret. Clones share its connection. Put a [`CachedStore`](crate::CachedStore) on top.
///
/// - Whoever can write to Redis can neither make keys nor change them: every entry carries a MAC under
///   a subkey of the server secret, over the hash that it is stored under. They can put back an entry
///   that was there before, for as long as its life lasts.
/// - Every change is remembered with the time of the Redis server, and an entry counts only if the read
///   that filled it began after the latest change of its key and owner. A slow read brings nothing
///   back.
/// - Redis that is down, slow or out of memory never fails a verification. After the first fault it is
///   bypassed, and tried again every second in the background. A change that it could not be told makes
///   it forget everything first.
/// - Unknown keys are not stored: garbage does not reach Redis.
///
/// The memory policy of the server should be `noeviction` or `volatile-ttl`: entries have shorter lives
/// than the times of changes, and so go first.
pub struct RedisStore<S> {
    store: Arc<S>,
    tier: Arc<Tier>,
}

struct Tier {
    options: RedisOptions,
    client: Client,
    link: Arc<Link>,
    /// Of each secret in the ring, current first.
    keys: Vec<HmacKey>,
    counters: Counters,
}

impl<S> Clone for RedisStore<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), tier: self.tier.clone() }
    }
}

impl<S> fmt::Debug for RedisStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("options", &self.tier.options).finish_non_exhaustive()
    }
}

impl<S: KeyLookup> RedisStore<S> {
    /// Puts a tier in Redis over `store`. A Redis that cannot be reached is bypassed until it can.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use lexikon_auth::{MemoryStore, RedisOptions, RedisStore, SecretRing};
    /// let ring = SecretRing::from_env()?;
    /// let client = redis::Client::open("redis://localhost/")?;
    /// let store = RedisStore::new(MemoryStore::new(), client, &ring, RedisOptions::default()).await;
    /// # Ok(()) }
    /// ```
    pub async fn new(store: S, client: Client, ring: &SecretRing, options: RedisOptions) -> Self {
        let link = Link::new(client.clone(), options.clone()).await;
        let keys = ring.secrets().map(ServerSecret::entry_key).collect();
        let tier = Tier { options, client, link, keys, counters: Counters::default() };
        Self { store: Arc::new(store), tier: Arc::new(tier) }
    }

    /// The store beneath.
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// The changes that other instances make through stores like this one, for a
    /// [`Follower`](crate::Follower). For instances that share Redis and no PostgreSQL; what somebody
    /// changes in the database itself does not show here.
    pub fn changes(&self) -> RedisFeed {
        RedisFeed::new(self.tier.client.clone(), &self.tier.options.channel())
    }

    /// What has happened so far.
    pub fn counts(&self) -> RedisCounts {
        let counters = &self.tier.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RedisCounts {
            hits: read(&counters.hits),
            misses: read(&counters.misses),
            bypassed: read(&counters.bypassed),
            rejected: read(&counters.rejected),
            stale: read(&counters.stale),
            oversized: read(&counters.oversized),
            unwritten: read(&counters.unwritten),
        }
    }

    /// Has all instances forget what a change concerns. For changes made behind the back of this value
    /// that no follower reports.
    pub async fn invalidate(&self, change: Change) {
        self.tier.link.remember(&change, true).await;
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

/// What Redis has to say to a question.
enum Fetched {
    Found(Arc<KeyRecord>),
    /// Nothing; a read that begins now begins at this time.
    Missing(ServerTime),
    Bypassed,
}

impl Tier {
    async fn fetch(&self, candidates: &Candidates) -> Fetched {
        let Some(mut connection) = self.link.trusted() else {
            self.counters.bypassed.fetch_add(1, Ordering::Relaxed);
            return Fetched::Bypassed;
        };
        match self.ask(&mut connection, candidates).await {
            Ok(Ok(record)) => {
                self.counters.hits.fetch_add(1, Ordering::Relaxed);
                Fetched::Found(record)
            }
            Ok(Err(now)) => {
                self.counters.misses.fetch_add(1, Ordering::Relaxed);
                Fetched::Missing(now)
            }
            Err(error) => {
                self.counters.bypassed.fetch_add(1, Ordering::Relaxed);
                self.link.fail(&error);
                Fetched::Bypassed
            }
        }
    }

    /// The record, or the time of the server when there is none that counts.
    async fn ask(
        &self,
        connection: &mut MultiplexedConnection,
        candidates: &Candidates,
    ) -> RedisResult<Result<Arc<KeyRecord>, ServerTime>> {
        let hashes = candidates.as_slice();
        let mut pipe = redis::pipe();
        pipe.ignore_errors().cmd("TIME");
        for hash in hashes {
            self.read_entry(pipe.cmd("GETRANGE").arg(self.options.entry(hash)));
        }
        let mut answers =
            pipe.query_async::<Vec<RedisResult<Value>>>(connection).await?.into_iter();
        let time = answers.next().ok_or_else(incomplete)??;
        let (seconds, microseconds): (u64, u64) = redis::from_redis_value(time)?;
        let now = seconds.saturating_mul(1_000_000).saturating_add(microseconds);

        let entries = hashes.iter().zip(answers).map(|(hash, answer)| self.decode(hash, answer));
        let found = entries.enumerate().find_map(|(candidate, entry)| Some((candidate, entry?)));
        let Some((candidate, entry)) = found else { return Ok(Err(now)) };
        if entry.valid_until <= now {
            return Ok(Err(now));
        }

        let record = entry.record;
        let mut marks = redis::cmd("MGET");
        marks.arg(self.options.mark(&Change::All));
        marks.arg(self.options.mark(&Change::Key(record.id.clone())));
        marks.arg(self.options.mark(&Change::Owner(record.owner.clone())));
        if candidate > 0 {
            // A row that was added since might be preferred to this one.
            marks.arg(self.options.mark(&Change::Added));
        }
        let marks = marks.query_async::<Vec<Option<String>>>(connection).await?;
        // A mark that is no number says nothing: the entry does not count.
        let is_older = |mark: &String| mark.parse().is_ok_and(|mark: u64| mark < entry.read_at);
        if !marks.iter().flatten().all(is_older) {
            self.counters.stale.fetch_add(1, Ordering::Relaxed);
            return Ok(Err(now));
        }
        Ok(Ok(Arc::new(record)))
    }

    /// Never more than one byte over the limit, whatever stands there.
    fn read_entry(&self, getrange: &mut redis::Pipeline) {
        getrange.arg(0).arg(self.options.max_value_bytes);
    }

    fn decode(&self, hash: &KeyHash, answer: RedisResult<Value>) -> Option<Entry> {
        let bytes = answer.and_then(|value| Ok(redis::from_redis_value::<Vec<u8>>(value)?));
        if bytes.as_ref().is_ok_and(Vec::is_empty) {
            return None;
        }
        let entry = bytes.ok().and_then(|bytes| Entry::decode(&bytes, hash, &self.keys));
        if entry.is_none() {
            self.counters.rejected.fetch_add(1, Ordering::Relaxed);
            warn!(
                "an entry in Redis was not written by an instance with this secret; it is ignored"
            );
        }
        entry
    }

    async fn fill(&self, record: &KeyRecord, read_at: ServerTime) {
        let Some(mut connection) = self.link.trusted() else { return };
        let left = record.expires_at.and_then(|date| date.duration_since(SystemTime::now()).ok());
        let ttl = self.options.ttl.min(left.unwrap_or(Duration::MAX));
        let valid_until = read_at.saturating_add(ttl.as_micros() as u64);
        let entry = Entry { record: record.clone(), read_at, valid_until }.encode(&self.keys[0]);
        if entry.len() > self.options.max_value_bytes {
            self.counters.oversized.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut set = redis::cmd("SET");
        set.arg(self.options.entry(&record.hash)).arg(entry);
        set.arg("PX").arg((ttl.as_millis() as u64).max(1));
        if let Err(error) = set.exec_async(&mut connection).await {
            self.counters.unwritten.fetch_add(1, Ordering::Relaxed);
            match error.kind() {
                // Full memory, for instance: reading goes on.
                ErrorKind::Server(_) | ErrorKind::Extension => {
                    debug!(%error, "Redis did not store an entry")
                }
                _ => self.link.fail(&error),
            }
        }
    }

    /// Removes the entries of an owner, or all.
    async fn clear(&self, owner: Option<&OwnerId>) -> Result<u64, StoreError> {
        let down = || StoreError::Unavailable("Redis is bypassed after a fault".into());
        let mut connection = self.link.trusted().ok_or_else(down)?;
        let pattern = self.options.pattern();
        let (mut cursor, mut removed) = (0_u64, 0);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(BATCH);
            let (next, names): (u64, Vec<Vec<u8>>) =
                scan.query_async(&mut connection).await.map_err(unavailable)?;
            // A step can return more than it was asked for.
            for names in names.chunks(BATCH) {
                let batch = match owner {
                    Some(owner) => self.of_owner(&mut connection, names, owner).await?,
                    None => names.to_vec(),
                };
                if !batch.is_empty() {
                    let mut unlink = redis::cmd("UNLINK");
                    let count = unlink.arg(batch).query_async::<u64>(&mut connection).await;
                    removed += count.map_err(unavailable)?;
                }
            }
            cursor = next;
            if cursor == 0 {
                return Ok(removed);
            }
        }
    }

    /// Those of the names whose entry belongs to an owner.
    async fn of_owner(
        &self,
        connection: &mut MultiplexedConnection,
        names: &[Vec<u8>],
        owner: &OwnerId,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut pipe = redis::pipe();
        pipe.ignore_errors();
        for name in names {
            self.read_entry(pipe.cmd("GETRANGE").arg(name));
        }
        let answers = pipe.query_async::<Vec<RedisResult<Value>>>(connection).await;
        let answers = names.iter().zip(answers.map_err(unavailable)?);
        let is_of = |(name, answer): &(&Vec<u8>, RedisResult<Value>)| {
            let hex = name.rsplit(|&byte| byte == b':').next().unwrap_or_default();
            let hash = str::from_utf8(hex).ok().and_then(KeyHash::from_hex);
            let entry = hash.and_then(|hash| self.decode(&hash, answer.clone()));
            entry.is_some_and(|entry| entry.record.owner == *owner)
        };
        Ok(answers.filter(is_of).map(|(name, _)| name.clone()).collect())
    }

    /// Remembers changes when it is [finished](After::finish): after a write, whether it succeeded or
    /// failed with the outcome unknown.
    fn remember_after(&self, changes: Vec<Change>) -> After<'_> {
        After { link: &self.link, unfinished: self.link.unfinished(), changes }
    }
}

/// Dropped because the write was given up half-way, it leaves Redis distrusted.
struct After<'a> {
    link: &'a Arc<Link>,
    unfinished: link::Unfinished<'a>,
    changes: Vec<Change>,
}

impl After<'_> {
    async fn finish(self) {
        for change in &self.changes {
            self.link.remember(change, true).await;
        }
        std::mem::forget(self.unfinished);
    }
}

fn incomplete() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "an answer is missing"))
}

type Answer = Result<Option<Arc<KeyRecord>>, StoreError>;

impl<S: KeyLookup> KeyLookup for RedisStore<S> {
    async fn find(&self, candidates: &Candidates) -> Answer {
        match self.tier.fetch(candidates).await {
            Fetched::Found(record) => Ok(Some(record)),
            Fetched::Bypassed => self.store.find(candidates).await,
            Fetched::Missing(read_at) => {
                let found = self.store.find(candidates).await?;
                if let Some(record) = &found {
                    self.tier.fill(record, read_at).await;
                }
                Ok(found)
            }
        }
    }

    async fn observe(&self, event: &FeedEvent) {
        self.store.observe(event).await;
        match event {
            FeedEvent::Lost => self.tier.link.set_unfollowed(true),
            FeedEvent::Changed(change) => self.tier.link.remember(change, false).await,
            FeedEvent::Connected => {
                // Nobody may have been listening when the entries that are there became old.
                self.tier.link.remember(&Change::All, false).await;
                self.tier.link.set_unfollowed(false);
            }
        }
    }
}

impl<S: KeyStore> KeyStore for RedisStore<S> {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let after = self.tier.remember_after(vec![Change::Added]);
        let done = self.store.insert(record).await;
        after.finish().await;
        done
    }

    async fn find_by_id(&self, id: &KeyId) -> Answer {
        self.store.find_by_id(id).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        self.store.list(owner, page).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let after = self.tier.remember_after(vec![Change::Key(id.clone())]);
        let done = self.store.update(id, update).await;
        after.finish().await;
        done
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let after = self.tier.remember_after(vec![Change::Key(id.clone())]);
        let done = self.store.revoke(id, at, reason).await;
        after.finish().await;
        done
    }

    async fn rotate(
        &self,
        old: &KeyRecord,
        now: SystemTime,
        old_expires_at: SystemTime,
        successor: &KeyRecord,
    ) -> Result<(), StoreError> {
        let after = self.tier.remember_after(vec![Change::Key(old.id.clone()), Change::Added]);
        let done = self.store.rotate(old, now, old_expires_at, successor).await;
        after.finish().await;
        done
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let mut after = self.tier.remember_after(vec![Change::All]);
        let done = self.store.expire(now).await;
        if let Ok(0) = done {
            after.changes.clear();
        }
        after.finish().await;
        done
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        // No decision depends on it.
        self.store.record_usage(batch).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let after = self.tier.remember_after(vec![Change::Key(change.id.clone())]);
        let done = self.store.replace_hash(change).await;
        after.finish().await;
        done
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        self.store.count_by_format().await
    }
}
