//! The indexes by which an invalidation finds entries.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::crypto::hash::KeyHash;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;

/// The cache keys of all entries with a record.
#[derive(Default)]
pub(super) struct Index {
    pub(super) by_id: HashMap<KeyId, KeyHash>,
    /// Ordered, so that the entries of an owner lie together, and one leaves a million as fast as ten.
    pub(super) by_owner: BTreeSet<(OwnerId, [u8; 32])>,
    /// Those whose answer may be another one when a row is added.
    pub(super) provisional: HashSet<KeyHash>,
}

impl Index {
    /// Adds an entry, and returns the cache key of another entry with the same record.
    pub(super) fn insert(
        &mut self,
        cache_key: KeyHash,
        record: &KeyRecord,
        is_final: bool,
    ) -> Option<KeyHash> {
        self.by_owner.insert((record.owner.clone(), *cache_key.as_bytes()));
        if !is_final {
            self.provisional.insert(cache_key);
        }
        self.by_id.insert(record.id.clone(), cache_key)
    }

    /// Removes an entry that has left the cache.
    pub(super) fn remove(&mut self, cache_key: &KeyHash, record: &KeyRecord) {
        if self.by_id.get(&record.id) == Some(cache_key) {
            self.by_id.remove(&record.id);
        }
        self.by_owner.remove(&(record.owner.clone(), *cache_key.as_bytes()));
        self.provisional.remove(cache_key);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn of_key(&self, id: &KeyId) -> Vec<KeyHash> {
        self.by_id.get(id).copied().into_iter().collect()
    }

    pub(super) fn of_owner(&self, owner: &OwnerId) -> Vec<KeyHash> {
        let (first, last) = ((owner.clone(), [0; 32]), (owner.clone(), [u8::MAX; 32]));
        let entries = self.by_owner.range(first..=last);
        entries.map(|(_, cache_key)| KeyHash::from_bytes(*cache_key)).collect()
    }

    pub(super) fn provisional(&self) -> Vec<KeyHash> {
        self.provisional.iter().copied().collect()
    }
}
