//! The store in memory: lock-free look-ups, one lock for writers.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use super::{FeedEvent, FormatCounts, HashChange, KeyLookup, KeyStore, Page, Succession, Usage};
use crate::crypto::hash::{Candidates, HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::{ById, KeyRecord, KeyUpdate, Revocation};
use crate::util::lock::lock;

/// Keys in memory, for tests, for services that load their keys at start, and as the yardstick of
/// speed. Clones share the same keys.
///
/// An owner is known from its first key on, and active unless
/// [`set_owner_active`](Self::set_owner_active) says otherwise.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// What look-ups read. Written only under the lock of `index`.
    by_hash: papaya::HashMap<KeyHash, Arc<KeyRecord>, BuildHasherDefault<DigestHasher>>,
    /// Counts hashes that were replaced, so that a look-up notices that one was replaced meanwhile.
    rehash_epoch: AtomicU64,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    by_id: HashSet<ById>,
    owners: HashMap<OwnerId, Owner>,
}

#[derive(Debug)]
struct Owner {
    active: bool,
    keys: Vec<KeyId>,
}

impl MemoryStore {
    /// Makes an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Disables or enables an owner: the keys of a disabled one are refused.
    pub fn set_owner_active(&self, owner: &OwnerId, active: bool) {
        let mut index = self.index();
        let entry = index.owners.entry(owner.clone()).or_insert(Owner { active, keys: Vec::new() });
        entry.active = active;
        for id in entry.keys.clone() {
            let record = index.record(&id).expect("the index of owners names stored keys");
            self.put(&mut index, KeyRecord { owner_active: active, ..(*record).clone() });
        }
    }

    fn look_up(&self, candidates: &Candidates) -> Option<Arc<KeyRecord>> {
        let by_hash = self.shared.by_hash.pin();
        loop {
            let epoch = self.shared.rehash_epoch.load(Ordering::Acquire);
            let found = candidates.as_slice().iter().find_map(|hash| by_hash.get(hash));
            // A miss counts only if no hash was replaced meanwhile: the new one may have been inserted after
            // its candidate was looked up, and the old one removed before its own was. See `replace_hash`.
            if found.is_some() || self.shared.rehash_epoch.load(Ordering::Acquire) == epoch {
                return found.cloned();
            }
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A poisoned lock is no harm: each record is replaced as a whole, so a writer that panicked left none
        // half changed.
        lock(&self.shared.index)
    }

    /// Replaces the record with the same id and hash.
    fn put(&self, index: &mut Index, record: KeyRecord) {
        let record = Arc::new(record);
        index.by_id.replace(ById(record.clone()));
        self.shared.by_hash.pin().insert(record.hash, record);
    }

    /// Changes the record with this id; nothing when `change` fails.
    fn change<T>(
        &self,
        index: &mut Index,
        id: &KeyId,
        change: impl FnOnce(&mut KeyRecord) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let record = index.record(id).ok_or_else(|| StoreError::NotFound(id.clone()))?;
        let mut record = (*record).clone();
        let answer = change(&mut record)?;
        self.put(index, record);
        Ok(answer)
    }

    fn add(&self, index: &mut Index, record: &KeyRecord) -> Result<(), StoreError> {
        let mut record = record.clone();
        if index.by_id.contains(&record.id) || self.shared.by_hash.pin().contains_key(&record.hash)
        {
            return Err(StoreError::Conflict);
        }
        // The owner's own text is shared among its keys.
        if let Some((owner, _)) = index.owners.get_key_value(&record.owner) {
            record.owner = owner.clone();
        }
        let new = || Owner { active: true, keys: Vec::new() };
        let owner = index.owners.entry(record.owner.clone()).or_insert_with(new);
        owner.keys.push(record.id.clone());
        record.owner_active = owner.active;
        self.put(index, record);
        Ok(())
    }
}

impl KeyLookup for MemoryStore {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(self.look_up(candidates))
    }

    fn find_now(&self, candidates: &Candidates) -> Option<Option<Arc<KeyRecord>>> {
        Some(self.look_up(candidates))
    }

    async fn on_feed_event(&self, _: &FeedEvent) {}
}

impl KeyStore for MemoryStore {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        self.add(&mut self.index(), record)
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        Ok(self.index().record(id))
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        let index = self.index();
        let keys = index.owners.get(owner).map_or(&[][..], |owner| &owner.keys);
        let mut records: Vec<_> = keys.iter().filter_map(|id| index.record(id)).collect();
        drop(index);
        records.sort_unstable_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        let start = match &page.after {
            None => 0,
            Some(id) => match records.iter().position(|record| record.id == *id) {
                Some(position) => position + 1,
                None => return Ok(Vec::new()),
            },
        };
        Ok(records.into_iter().skip(start).take(page.limit as usize).collect())
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        self.change(&mut self.index(), id, |record| {
            let KeyUpdate { name, scopes, expires_at } = update.clone();
            record.name = name.unwrap_or_else(|| record.name.clone());
            record.scopes = scopes.unwrap_or_else(|| record.scopes.clone());
            record.expires_at = expires_at.unwrap_or(record.expires_at);
            Ok(())
        })
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        self.change(&mut self.index(), id, |record| {
            if !record.is_revoked() {
                let reason = reason.map(Into::into);
                record.revocation = Some(Box::new(Revocation { at: Some(at), reason }));
            }
            Ok(())
        })
    }

    async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
        let Succession { old, old_expires_at, successor, now } = succession;
        let mut index = self.index();
        let id = &old.id;
        let stored = index.record(id).ok_or_else(|| StoreError::NotFound(id.clone()))?;
        stored.check_rotation(old, *now)?;
        self.add(&mut index, successor)?;
        self.change(&mut index, id, |record| {
            let expires_at =
                record.expires_at.map_or(*old_expires_at, |date| date.min(*old_expires_at));
            record.expires_at = Some(expires_at);
            Ok(())
        })
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let mut index = self.index();
        let due = |record: &&ById| !record.0.is_revoked() && record.0.is_expired(now);
        let due: Vec<_> = index.by_id.iter().filter(due).map(|record| record.0.clone()).collect();
        for record in &due {
            let revocation = Revocation { at: Some(now), reason: Some("expired".into()) };
            let revocation = Some(Box::new(revocation));
            self.put(&mut index, KeyRecord { revocation, ..(**record).clone() });
        }
        Ok(due.len() as u64)
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        for Usage { id, at, format } in batch {
            let change = |record: &mut KeyRecord| {
                record.last_used_at = record.last_used_at.max(Some(*at));
                // A hash moves to HMAC and never back.
                if record.format.is_none() || *format == HashFormat::HmacSha256 {
                    record.format = Some(*format);
                }
                Ok(())
            };
            match self.change(&mut self.index(), id, change) {
                Ok(()) | Err(StoreError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let mut index = self.index();
        let by_hash = self.shared.by_hash.pin();
        let Some(record) = index.record(&change.id) else { return Ok(false) };
        if record.hash != change.expected || by_hash.contains_key(&change.replacement) {
            return Ok(false);
        }
        let format = Some(HashFormat::HmacSha256);
        self.put(&mut index, KeyRecord { hash: change.replacement, format, ..(*record).clone() });
        // Between the two: a look-up that misses the old hash has to see the epoch change, and one that begins
        // in the new epoch has to find the new hash.
        self.shared.rehash_epoch.fetch_add(1, Ordering::Release);
        by_hash.remove(&change.expected);
        Ok(true)
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        let mut counts = FormatCounts::default();
        for ById(record) in self.index().by_id.iter().filter(|record| !record.0.is_revoked()) {
            match record.format {
                Some(HashFormat::HmacSha256) => counts.hmac_sha256 += 1,
                Some(HashFormat::Sha256) => counts.sha256 += 1,
                None => counts.unknown += 1,
            }
        }
        Ok(counts)
    }

    async fn expiry_before_deprecation(
        &self,
        _: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        Ok(None)
    }
}

impl Index {
    fn record(&self, id: &KeyId) -> Option<Arc<KeyRecord>> {
        self.by_id.get(id).map(|record| record.0.clone())
    }
}

/// Takes the first word of a digest for its hash: a digest is uniform already, and nobody can choose
/// the ones that are stored.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (word, _) = bytes.split_first_chunk().expect("a digest is 32 bytes long");
        self.0 = u64::from_ne_bytes(*word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
