//! Write-behind: last uses and hash upgrades are noted in memory and written in batches.
//!
//! A row written on every request would be a hot row, and a write that fails must not fail a
//! verification. So the verifier only notes; a flush writes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::error::StoreError;
use crate::hash::HashFormat;
use crate::record::KeyId;
use crate::store::{HashChange, KeyStore, Usage};

/// Locks that notes are spread over, so that two verifications rarely meet on one.
const SHARDS: usize = 16;
/// Notes that are kept for each lock: what fits a hash table of 4096 places at its load of 7/8.
const SHARD_CAPACITY: usize = 3584;
/// Upgrades that are kept between two flushes.
const CHANGES_CAPACITY: usize = 3584;

/// What a flush wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Keys whose last use was written.
    pub used: usize,
    /// Hashes that were replaced by HMAC-SHA-256 under the current secret.
    pub upgraded: usize,
}

/// Notes that wait to be written. Bounded: what does not fit is dropped and counted.
pub(crate) struct WriteBehind {
    shards: [Shard; SHARDS],
    hasher: RandomState,
    changes: Mutex<HashMap<KeyId, HashChange>>,
    dropped: AtomicU64,
    #[cfg(feature = "tokio")]
    pub(crate) wake: tokio::sync::Notify,
}

/// Padded to its own cache lines, so that two locks do not share one.
#[repr(align(128))]
struct Shard(Mutex<Notes>);

type Notes = HashMap<KeyId, (SystemTime, HashFormat)>;

impl WriteBehind {
    pub(crate) fn new() -> Self {
        // All memory is taken here: noting a use never allocates.
        let shard = || Shard(Mutex::new(HashMap::with_capacity(SHARD_CAPACITY)));
        Self {
            shards: std::array::from_fn(|_| shard()),
            hasher: RandomState::new(),
            changes: Mutex::new(HashMap::with_capacity(CHANGES_CAPACITY)),
            dropped: AtomicU64::new(0),
            #[cfg(feature = "tokio")]
            wake: tokio::sync::Notify::new(),
        }
    }

    /// Notes that a key was used.
    pub(crate) fn note_use(&self, id: &KeyId, at: SystemTime, format: HashFormat) {
        let shard = self.hasher.hash_one(id) as usize % SHARDS;
        let mut notes = lock(&self.shards[shard].0);
        let full = notes.len() >= SHARD_CAPACITY;
        match notes.entry(id.clone()) {
            Entry::Occupied(mut entry) => entry.get_mut().0 = at.max(entry.get().0),
            Entry::Vacant(entry) if !full => {
                entry.insert((at, format));
                #[cfg(feature = "tokio")]
                if notes.len() == SHARD_CAPACITY / 2 {
                    self.wake.notify_one();
                }
            }
            Entry::Vacant(_) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Notes that a hash is to be replaced. Where there is no room, the next use notes it again.
    pub(crate) fn note_change(&self, change: HashChange) {
        let mut changes = lock(&self.changes);
        if changes.len() < CHANGES_CAPACITY {
            changes.insert(change.id.clone(), change);
        }
    }

    /// How many uses were dropped because there was no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes everything noted so far. What is not written, because the store failed or because the
    /// future was dropped, is kept for the next flush.
    pub(crate) async fn flush(&self, store: &impl KeyStore) -> Result<Flushed, StoreError> {
        let mut batch = Batch::take(self);
        if !batch.used.is_empty() {
            store.record_usage(&batch.used).await?;
        }
        let used = mem::take(&mut batch.used).len();
        let mut upgraded = 0;
        while let Some(change) = batch.changes.last() {
            upgraded += usize::from(store.replace_hash(change).await?);
            batch.changes.pop();
        }
        Ok(Flushed { used, upgraded })
    }
}

/// Notes on their way to the store. Those still in it when it is dropped go back.
struct Batch<'a> {
    source: &'a WriteBehind,
    used: Vec<Usage>,
    changes: Vec<HashChange>,
}

impl<'a> Batch<'a> {
    fn take(source: &'a WriteBehind) -> Self {
        let mut used = Vec::new();
        for Shard(notes) in &source.shards {
            if lock(notes).is_empty() {
                continue;
            }
            let empty = HashMap::with_capacity(SHARD_CAPACITY);
            let notes = mem::replace(&mut *lock(notes), empty);
            used.extend(notes.into_iter().map(|(id, (at, format))| Usage { id, at, format }));
        }
        let changes = lock(&source.changes).drain().map(|(_, change)| change).collect();
        Self { source, used, changes }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for Usage { id, at, format } in self.used.drain(..) {
            self.source.note_use(&id, at, format);
        }
        for change in self.changes.drain(..) {
            self.source.note_change(change);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No lock is held across anything that can leave half a note.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
