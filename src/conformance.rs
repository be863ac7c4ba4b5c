//! The suite that every store must pass: one check for each promise in the docs of
//! [`KeyLookup`] and [`KeyStore`].
//!
//! Say how to make an empty store by implementing [`Subject`], and call [`run`] from a test on a
//! multi-threaded Tokio runtime. A broken promise is a panic that names it. For a store that wraps another,
//! call [`run_wrapper`] too.
//!
//! ```
//! use lexikon_auth::conformance::{self, Subject};
//! use lexikon_auth::OwnerId;
//! use lexikon_auth::store::MemoryStore;
//!
//! struct Memory;
//!
//! impl Subject for Memory {
//!     type Store = MemoryStore;
//!
//!     async fn empty(&self) -> MemoryStore {
//!         MemoryStore::new()
//!     }
//!
//!     async fn set_owner_active(&self, store: &MemoryStore, owner: &OwnerId, active: bool) {
//!         store.set_owner_active(owner, active);
//!     }
//!
//!     fn keeps_owners(&self) -> bool {
//!         false
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! conformance::run(&Memory).await;
//! # });
//! ```

mod concurrency;
mod lookup;
mod management;
mod wrapper;

use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

pub use self::wrapper::{Beneath, run_wrapper};
use crate::crypto::hash::Candidates;
use crate::crypto::key::PresentedKey;
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::store::{KeyLookup, KeyStore, Page, Succession};

/// The owners that an empty store has to know, where it keeps owners.
pub const OWNERS: [&str; 2] = ["owner-a", "owner-b"];

/// What the suite has to know of the store under test.
pub trait Subject: Send + Sync {
    /// The store. Clones share the same keys.
    type Store: KeyStore + Clone + 'static;

    /// Returns a store without keys that knows the [`OWNERS`], all active.
    fn empty(&self) -> impl Future<Output = Self::Store> + Send;

    /// Disables or enables an owner, as the application does that owns them.
    fn set_owner_active(
        &self,
        store: &Self::Store,
        owner: &OwnerId,
        active: bool,
    ) -> impl Future<Output = ()> + Send;

    /// Returns whether the store can hold the time and reason of a revocation and the format of a hash.
    fn keeps_details(&self) -> bool {
        true
    }

    /// Returns whether a key for an owner that was never created is refused.
    fn keeps_owners(&self) -> bool {
        true
    }
}

/// Runs every check, each on an empty store.
///
/// # Panics
/// When the store breaks a promise, and outside a Tokio runtime.
pub async fn run(subject: &impl Subject) {
    lookup::run(subject).await;
    management::run(subject).await;
    concurrency::run(subject).await;
}

/// A ring of two secrets, so that a key has a candidate of every kind.
static RING: LazyLock<SecretRing> = LazyLock::new(|| {
    let secret = |text: &str| ServerSecret::new(&text.into()).expect("a strong secret");
    SecretRing::new(secret("conformance current 0123456789abcdef"))
        .with_retired(secret("conformance retired 0123456789abcdef"))
        .expect("two different secrets")
});

/// Returns the untagged key with a number.
fn key(number: u32) -> String {
    format!("lxk_{number:0>43}")
}

/// Returns the candidates of the key with a number: current, retired, legacy.
fn candidates(number: u32) -> Candidates {
    let key = key(number);
    let key = PresentedKey::parse(&key).expect("well-formed");
    Candidates::compute(&key, &RING).expect("no tag to be wrong")
}

/// Returns a record for the key with a number, stored under the given one of its candidates.
fn record(number: u32, candidate: usize) -> KeyRecord {
    let id = KeyId::from(&*format!("00000000-0000-4000-8000-{number:012}"));
    let mut record = KeyRecord::new(id, OWNERS[0].into(), candidates(number).as_slice()[candidate]);
    record.name = "name".into();
    record.scopes = "read,write".into();
    record.created_at = Some(at(1_000_000));
    record
}

/// Positions of the candidates.
const CURRENT: usize = 0;
const RETIRED: usize = 1;
const LEGACY: usize = 2;

/// The precision that times are kept to.
const MICROSECOND: Duration = Duration::from_micros(1);

/// Makes a succession ten seconds after 1970.
fn succession(old: &KeyRecord, old_expires_at: SystemTime, successor: &KeyRecord) -> Succession {
    let (old, successor) = (old.clone(), successor.clone());
    Succession { old, old_expires_at, successor, now: at(10) }
}

/// Makes a time, in seconds since 1970.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Returns what `find` answers, which is also what `find_now` does, if anything.
async fn find(store: &impl KeyLookup, candidates: &Candidates) -> Option<Arc<KeyRecord>> {
    let before = store.find_now(candidates);
    let found = store.find(candidates).await.expect("find answers");
    for now in [before, store.find_now(candidates)].into_iter().flatten() {
        assert_eq!(now, found, "find_now answers as find does, or not at all");
    }
    found
}

/// Returns the record of the key with a number, which has to be there, and the same however it is read.
async fn stored(store: &impl KeyStore, number: u32) -> KeyRecord {
    let found = find(store, &candidates(number)).await.expect("find finds a stored key");
    let by_id = store.find_by_id(&found.id).await.expect("find_by_id answers");
    let by_id = by_id.expect("find_by_id finds what find does");
    // The traces of use may be older in what `find` returns.
    let (last_used_at, format) = (by_id.last_used_at, by_id.format);
    let found = KeyRecord { last_used_at, format, ..(*found).clone() };
    assert_eq!(*by_id, found, "find_by_id returns what find does");
    let listed = store.list(&found.owner, &Page::first(100)).await.expect("list answers");
    let listed: Vec<_> = listed.iter().filter(|record| record.id == found.id).collect();
    assert_eq!(listed, [&by_id], "list holds, once, what find_by_id returns");
    found
}

/// Inserts a record and returns it.
async fn inserted(store: &impl KeyStore, record: KeyRecord) -> KeyRecord {
    store.insert(&record).await.expect("insert succeeds");
    record
}
