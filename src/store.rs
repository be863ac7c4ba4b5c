//! Where keys are kept: two traits, and the stores that implement them.
//!
//! # Writing a store
//!
//! For verification alone, implement [`KeyLookup`]: a look-up, and what it does with the events of a feed
//! of changes, which for a wrapper is to pass them on. For issuing and managing keys,
//! implement [`KeyStore`] on top. Then run the suite in `conformance` (feature
//! `conformance`) on it; it checks every sentence of these docs.
//!
//! Make the store cheap to clone, a handle on something shared: a verifier and a manager each hold one.
//! Where that does not fit, [`DynKeyStore`] shares any store.
//!
//! A store never decides whether a key is accepted. It finds rows and changes them; the
//! [`Verifier`](crate::Verifier) compares the hash again and applies expiry, state and policy.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use crate::crypto::hash::{Candidates, HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, KeyUpdate};

#[cfg(feature = "cache")]
mod cached;
pub(crate) mod change;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod database_url;
mod dyn_store;
#[cfg(any(feature = "cache", feature = "redis"))]
mod freshness;
mod memory;
mod policy_source;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
mod shared_cache;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "cache", feature = "redis"))]
mod write_through;

#[cfg(feature = "cache")]
pub use cached::{CacheCounts, CacheOptions, CachedStore};
pub use change::{Change, ChangeFeed, FeedEvent, FeedEventKind, FeedOrigin, Message, Subscription};
#[cfg(feature = "sqlite")]
pub use database_url::SqliteMode;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use database_url::{DatabaseUrl, DatabaseUrlError};
pub use dyn_store::DynKeyStore;
pub use memory::MemoryStore;
pub use policy_source::PolicySource;
#[cfg(feature = "postgres")]
pub use postgres::{PostgresFeed, PostgresStore};
#[cfg(feature = "redis")]
pub use redis::{BulkChange, RedisCounts, RedisFeed, RedisOptions, RedisStore};
pub use shared_cache::SharedCache;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use sql::store::SqlStore;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteFeed, SqliteStore};

pub use crate::record::Revocation;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use crate::time_zone::{TimeZone, TimeZoneError};
pub use crate::unsettled::Unsettled;

/// What verification needs of a store: a look-up.
///
/// A verifier over a store that is no more than this queues last uses and hash upgrades like any other,
/// but has no [`flush`](crate::Verifier::flush): they are never written. To choose a store at run time
/// or to share one, wrap it in [`DynKeyStore`].
///
/// ```
/// use std::sync::Arc;
/// use lexikon_auth::store::FeedEvent;
/// use lexikon_auth::{KeyRecord, StoreError};
/// use lexikon_auth::crypto::Candidates;
/// use lexikon_auth::store::KeyLookup;
///
/// /// A store of one key.
/// struct Single(Arc<KeyRecord>);
///
/// impl KeyLookup for Single {
///     async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
///         Ok(candidates.as_slice().contains(&self.0.hash).then(|| self.0.clone()))
///     }
///
///     async fn on_feed_event(&self, _: &FeedEvent) {} // it keeps nothing that could be too old
/// }
/// ```
#[diagnostic::on_unimplemented(
    note = "to choose a store at run time or to share one, wrap it in `DynKeyStore`"
)]
pub trait KeyLookup: Send + Sync {
    /// Returns the record stored under one of the candidates, whatever its state, with
    /// [`owner_active`](KeyRecord::owner_active) as of now. Where several rows match, the row of the
    /// earliest candidate.
    ///
    /// The look-up is one round trip. It may use an index: what it takes to find a row need not be
    /// constant time, because the verifier's comparison decides.
    ///
    /// # Errors
    /// Any error means that there is no answer, and becomes
    /// [`VerifyError::Unavailable`](crate::VerifyError::Unavailable). A missing row is `None`.
    fn find(
        &self,
        candidates: &Candidates,
    ) -> impl Future<Output = Result<Option<Arc<KeyRecord>>, StoreError>> + Send;

    /// Returns the answer of [`find`](Self::find) without a future, as stores in memory and caches have it.
    /// `None` is no answer, and `find` has to be asked.
    ///
    /// [`verify_now`](crate::Verifier::verify_now) asks this, and whatever serves a request asks it first:
    /// it returns at once if the answer is in memory. The default never answers, which is right for
    /// every store that is asked over a connection.
    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        let _ = candidates;
        None
    }

    /// Learns what a feed of changes reports. It is not the feed that calls this but a
    /// `Follower` of `tasks`, on the outermost store: each store passes the event on.
    ///
    /// - A store that wraps another, for metrics, tracing or anything else, passes every event on to the
    ///   store beneath, and returns after that has: `self.inner.on_feed_event(event).await`. Without it
    ///   the caches beneath never learn of a change, and a revoked key stays good there. The suite
    ///   proves it: `conformance::run_wrapper`.
    /// - A cache passes the event on first, and then invalidates what it affects before it returns.
    /// - A store that neither wraps another nor keeps entries of its own has nothing to do: `{}`.
    fn on_feed_event(&self, event: &FeedEvent) -> impl Future<Output = ()> + Send;

    /// Registers a cache that instances share, so that another program that changes rows knows which caches
    /// to invalidate. The cache registers itself, and renews that for as long as it is used.
    ///
    /// A store that wraps another passes it on: `self.inner.register_cache(cache).await`. The suite proves
    /// it: `conformance::run_wrapper`. The default is for stores that no other program changes.
    ///
    /// # Errors
    /// Those of a store that cannot write.
    fn register_cache(
        &self,
        cache: &SharedCache,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        let _ = cache;
        async { Ok(()) }
    }
}

/// What issuing and managing keys needs of a store.
///
/// Every method that writes returns after the write is durable, happens as a whole or not at all, and
/// is seen by every [`find`](KeyLookup::find) that begins after it returned. Only the traces of use,
/// [`last_used_at`](KeyRecord::last_used_at) and [`format`](KeyRecord::format), may be older there: no
/// decision depends on them. Times are kept to the microsecond.
///
/// A write that is not answered in time, and may still be made, is a [`StoreError::Unsettled`]. One whose
/// future is dropped half-way may be made or not. A cache invalidates its entries all the same: once a write
/// has begun, it runs to its end, whatever becomes of the caller.
///
/// To choose a store at run time or to share one, wrap it in [`DynKeyStore`].
#[diagnostic::on_unimplemented(
    note = "to choose a store at run time or to share one, wrap it in `DynKeyStore`"
)]
pub trait KeyStore: KeyLookup {
    /// Adds a record. Its [`owner_active`](KeyRecord::owner_active) is not written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a row has its id or its hash, [`StoreError::UnknownOwner`] when
    /// the store keeps owners and does not know this one.
    fn insert(&self, record: &KeyRecord) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the record with this id.
    ///
    /// # Errors
    /// Those of a store that cannot answer. A missing row is `None`.
    fn find_by_id(
        &self,
        id: &KeyId,
    ) -> impl Future<Output = Result<Option<Arc<KeyRecord>>, StoreError>> + Send;

    /// Returns the records of an owner, newest first; rows without a date come last, and rows of the same
    /// time in descending order of id. Revoked and expired keys are among them. An unknown owner has
    /// none, and nothing comes after an id that is unknown or another owner's.
    ///
    /// # Errors
    /// Those of a store that cannot answer.
    fn list(
        &self,
        owner: &OwnerId,
        page: &Page,
    ) -> impl Future<Output = Result<Vec<Arc<KeyRecord>>, StoreError>> + Send;

    /// Changes name, scopes and expiry.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn update(
        &self,
        id: &KeyId,
        update: &KeyUpdate,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Revokes a key, for good. `at` and `reason` are kept where the schema can hold them. Revoking a
    /// revoked key changes nothing, so that the first time and reason stand.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Adds the successor, and lets the old key expire at its new date unless it expires earlier. Both or
    /// neither.
    ///
    /// Where the stored key has another owner, other scopes or another expiry than the
    /// [old](Succession::old) record by now, nothing is done: the successor would bring back what was
    /// taken away.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::NotInForce`] when the old key is revoked or past its
    /// expiry; [`StoreError::Changed`] when it is not as it was read; those of
    /// [`insert`](KeyStore::insert).
    fn rotate(
        &self,
        succession: &Succession,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns the expiry that a key had before it was deprecated; `None` when it is not, or has got another
    /// expiry since. A successor of the key has it in place of the deprecation's.
    ///
    /// A store without deprecations answers `None`; a wrapper passes the question on.
    ///
    /// # Errors
    /// Those of a store that cannot answer.
    fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> impl Future<Output = Result<Option<Option<SystemTime>>, StoreError>> + Send;

    /// Revokes every key in force whose expiry is at or before `now`, with the reason `expired`, and
    /// returns how many there were.
    ///
    /// # Errors
    /// Those of a store that cannot write.
    fn expire(&self, now: SystemTime) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Writes a batch of last uses: [`last_used_at`](KeyRecord::last_used_at), and
    /// [`format`](KeyRecord::format) where the schema can hold it.
    ///
    /// A batch may be late. A time never replaces a later one, and a format never goes back from
    /// HMAC-SHA-256 to SHA-256. An id without a row is passed over.
    ///
    /// # Errors
    /// Those of a store that cannot write. The caller keeps the batch and tries again.
    fn record_usage(&self, batch: &[Usage]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Replaces the hash of a key, provided it is still the expected one: compare-and-swap. Returns
    /// whether it was replaced; `false` also when another row holds the replacement.
    ///
    /// # Errors
    /// Those of a store that cannot write.
    fn replace_hash(
        &self,
        change: &HashChange,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Counts the keys that are not revoked, by the format of their hash as far as the rows say.
    ///
    /// # Errors
    /// Those of a store that cannot answer.
    fn count_by_format(&self) -> impl Future<Output = Result<FormatCounts, StoreError>> + Send;
}

/// Which part of a list to return. A page shorter than its limit is the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Most records to return.
    pub limit: u32,
    /// The id of the last record of the page before; `None` for the first page. After an id that is
    /// unknown or another owner's comes nothing.
    pub after: Option<KeyId>,
}

impl Page {
    /// Selects the first `limit` records.
    pub fn first(limit: u32) -> Self {
        Self { limit, after: None }
    }

    /// Selects the `limit` records after the one with this id.
    pub fn after(limit: u32, id: KeyId) -> Self {
        Self { limit, after: Some(id) }
    }
}

/// One use of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The key.
    pub id: KeyId,
    /// When it was used.
    pub at: SystemTime,
    /// The format that its hash turned out to have.
    pub format: HashFormat,
}

/// A hash to be replaced by another of the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashChange {
    /// The key.
    pub id: KeyId,
    /// The hash that the row must still hold.
    pub expected: KeyHash,
    /// The hash that takes its place: HMAC-SHA-256 under the current secret.
    pub replacement: KeyHash,
}

/// A key to be replaced by a successor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// The old key, as it was read when the successor was made from it.
    pub old: KeyRecord,
    /// When the old key stops being accepted, unless it expires earlier.
    pub old_expires_at: SystemTime,
    /// The successor.
    pub successor: KeyRecord,
    /// The time by which the old key must not have expired.
    pub now: SystemTime,
}

/// How many keys are not revoked, by the format of their hash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FormatCounts {
    /// Known to be HMAC-SHA-256.
    pub hmac_sha256: u64,
    /// Known to be plain SHA-256.
    pub sha256: u64,
    /// Not known: both formats look alike, and neither the row nor a use has told yet.
    pub unknown: u64,
}
