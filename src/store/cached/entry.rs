//! One entry of the cache, and what it weighs.

use std::sync::Arc;

use quick_cache::{Lifecycle, Weighter};

use crate::crypto::hash::KeyHash;
use crate::record::KeyRecord;
use crate::store::freshness::Nanoseconds;

/// A record that is cached.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) record: Arc<KeyRecord>,
    pub(super) validity: Validity,
}

/// When an answer was read, and when it is no longer used whatever happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Validity {
    pub(super) read_at: Nanoseconds,
    pub(super) expires_at: Nanoseconds,
}

/// Bytes of an entry as they usually come, to size the tables.
pub(super) const TYPICAL_ENTRY: u64 = 768;
/// Bytes that an unknown key takes up.
pub(super) const UNKNOWN_ENTRY: u64 = 192;
/// Bytes of the tables that an entry takes up: quick_cache's (its documentation gives the formula), with
/// a ghost for every second entry, and the index by id, both half empty at worst, and the index by owner,
/// whose nodes have at least five of eleven places taken.
const TABLES: u64 = 448;
/// What the allocator adds to an allocation, and the two counters of an `Arc`.
const ALLOCATION: u64 = 16;

#[derive(Clone)]
pub(super) struct Weight {
    /// The weight of an entry that weighs less. It bounds the number of entries along with their bytes.
    pub(super) minimum: u64,
}

impl Weighter<KeyHash, Entry> for Weight {
    fn weight(&self, _: &KeyHash, entry: &Entry) -> u64 {
        let record = &*entry.record;
        let reason = record.revocation.as_ref().map_or(0, |revocation| {
            size_of_val(&**revocation) + revocation.reason.as_ref().map_or(0, |text| text.len())
        });
        let texts = record.id.allocated()
            + record.name.len()
            + record.owner.as_str().len()
            + record.scopes.as_str().len();
        let bytes = TABLES + (size_of::<KeyRecord>() + texts + reason) as u64 + 6 * ALLOCATION;
        bytes.max(self.minimum)
    }
}

impl Weighter<KeyHash, Validity> for Weight {
    fn weight(&self, _: &KeyHash, _: &Validity) -> u64 {
        UNKNOWN_ENTRY.max(self.minimum)
    }
}

/// Hands evicted entries to the caller who inserts another.
#[derive(Clone)]
pub(super) struct Evicted;

impl<T> Lifecycle<KeyHash, T> for Evicted {
    type RequestState = Vec<(KeyHash, T)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, cache_key: KeyHash, entry: T) {
        evicted.push((cache_key, entry));
    }
}
