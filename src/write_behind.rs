//! Write-behind: last uses and hash upgrades are queued in memory and written in batches.
//!
//! A row written on every request would be a hot row, and a write that fails must not fail a
//! verification. So the verifier only queues; a flush writes.
//!
//! A use is recorded in the record of the key itself, which stores in memory and caches share among
//! verifications: only the first use of a key between two flushes goes through a lock.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::id::KeyId;
use crate::record::{ById, KeyRecord};
use crate::store::{HashChange, KeyStore, Usage};
use crate::telemetry::{Counter, Histogram, ReadableCounter, Stopwatch, metric};
use crate::util::lock::lock;

/// Locks that the queue is spread over, so that two verifications rarely meet on one.
const SHARDS: usize = 16;
/// Most records that are queued under each lock: what fits a hash table of 8192 places at its load of 7/8.
const SHARD_CAPACITY: usize = 7168;
/// Uses that are written in one transaction: short, since other writers wait for it.
const BATCH: usize = 1000;
/// Most hash changes that are queued between two flushes.
const CHANGES_CAPACITY: usize = 3584;

/// What a flush wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Keys whose last use was written.
    pub used: usize,
    /// Hashes that were replaced by HMAC-SHA-256 under the current secret.
    pub upgraded: usize,
}

/// Uses and hash changes that wait to be written. Bounded: a use that does not fit is dropped and counted.
pub(crate) struct WriteBehind {
    /// Changes with every flush, and differs from that of any other verifier.
    generation: AtomicU32,
    used: [Shard; SHARDS],
    hasher: RandomState,
    changes: Mutex<HashMap<KeyId, HashChange>>,
    dropped: ReadableCounter,
    telemetry: FlushMetrics,
    #[cfg(feature = "tokio")]
    pub(crate) wake: tokio::sync::Notify,
}

/// The records with a pending use. Padded to its own cache lines, so that two locks do not share one.
#[repr(align(128))]
struct Shard(Mutex<HashSet<ById>>);

impl WriteBehind {
    pub(crate) fn new() -> Self {
        // All memory is allocated here: to record a use never allocates.
        let shard = || Shard(Mutex::new(HashSet::with_capacity(SHARD_CAPACITY)));
        Self {
            generation: AtomicU32::new(next_generation()),
            used: std::array::from_fn(|_| shard()),
            hasher: RandomState::new(),
            changes: Mutex::new(HashMap::with_capacity(CHANGES_CAPACITY)),
            dropped: ReadableCounter::new(&metric::DROPPED_USES, &[]),
            telemetry: FlushMetrics::new(),
            #[cfg(feature = "tokio")]
            wake: tokio::sync::Notify::new(),
        }
    }

    /// Records that a key was used.
    #[inline]
    pub(crate) fn record_use(&self, record: &Arc<KeyRecord>, at: SystemTime, format: HashFormat) {
        record.pending_use.record(at, format);
        // After the use was recorded: a flush that begins a generation before this load reads the use later.
        let generation = self.generation.load(Ordering::SeqCst);
        if record.pending_use.generation.load(Ordering::SeqCst) != generation
            && self.enqueue(record, generation)
        {
            self.wake_flusher();
        }
    }

    fn wake_flusher(&self) {
        #[cfg(feature = "tokio")]
        self.wake.notify_one();
    }

    /// Queues a record, and returns whether its shard has become half full.
    fn enqueue(&self, record: &Arc<KeyRecord>, generation: u32) -> bool {
        let shard = self.hasher.hash_one(&record.id) as usize % SHARDS;
        let mut used = lock(&self.used[shard].0);
        if let Some(ById(waiting)) = used.get(&record.id) {
            // Another copy of the record: this one replaces it and takes over its use. From here on, a use of
            // the other queues it again; a use that does not was recorded before the read below.
            waiting.pending_use.generation.store(UNQUEUED, Ordering::SeqCst);
            let (at, format) = waiting.pending_use.latest();
            record.pending_use.record(at, format);
        } else if used.len() == SHARD_CAPACITY {
            self.dropped.add(1);
            return false;
        }
        used.replace(ById(record.clone()));
        record.pending_use.generation.store(generation, Ordering::SeqCst);
        used.len() == SHARD_CAPACITY / 2
    }

    /// Queues the replacement of a hash. If there is no room, the next use queues it again.
    pub(crate) fn queue_change(&self, change: HashChange) {
        let mut changes = lock(&self.changes);
        if changes.len() < CHANGES_CAPACITY {
            changes.insert(change.id.clone(), change);
        }
    }

    /// Returns how many uses were dropped because there was no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.read()
    }

    /// Writes everything queued so far. What is not written, because the store failed or because the
    /// future was dropped, is queued again.
    pub(crate) async fn flush(&self, store: &impl KeyStore) -> Result<Flushed, StoreError> {
        let started = Stopwatch::start();
        let flushed = self.write(store).await;
        self.telemetry.duration.record(started.elapsed());
        match flushed {
            Ok(_) => self.telemetry.written.add(1),
            Err(_) => self.telemetry.failed.add(1),
        }
        flushed
    }

    async fn write(&self, store: &impl KeyStore) -> Result<Flushed, StoreError> {
        let mut batch = Batch::take(self);
        let used = batch.used.len();
        while !batch.used.is_empty() {
            let rest = batch.used.len().saturating_sub(BATCH);
            store.record_usage(&batch.used[rest..]).await?;
            self.telemetry.used.add((batch.used.len() - rest) as u64);
            batch.used.truncate(rest);
        }
        let mut upgraded = 0;
        while let Some(change) = batch.changes.last() {
            let replaced = store.replace_hash(change).await?;
            self.telemetry.upgraded.add(replaced.into());
            upgraded += usize::from(replaced);
            batch.changes.pop();
        }
        Ok(Flushed { used, upgraded })
    }
}

/// The metrics of flushes.
struct FlushMetrics {
    written: Counter,
    failed: Counter,
    duration: Histogram,
    used: Counter,
    upgraded: Counter,
}

impl FlushMetrics {
    fn new() -> Self {
        let flushes = |outcome| Counter::new(&metric::FLUSHES, &[("outcome", outcome)]);
        Self {
            written: flushes("written"),
            failed: flushes("failed"),
            duration: Histogram::new(&metric::FLUSH_DURATION, &[]),
            used: Counter::new(&metric::USAGE_WRITTEN, &[]),
            upgraded: Counter::new(&metric::HASHES_UPGRADED, &[]),
        }
    }
}

/// What a flush has taken from the queue. What is left in it when it is dropped is queued again.
struct Batch<'a> {
    source: &'a WriteBehind,
    records: Vec<Arc<KeyRecord>>,
    used: Vec<Usage>,
    changes: Vec<HashChange>,
}

impl<'a> Batch<'a> {
    fn take(source: &'a WriteBehind) -> Self {
        let mut records = Vec::new();
        for Shard(used) in &source.used {
            records.extend(lock(used).drain().map(|ById(record)| record));
        }
        // Between the two: a record that was taken out had been queued in the generation that ends here, so
        // a use that does not queue it again was recorded before the reads below.
        source.generation.store(next_generation(), Ordering::SeqCst);
        let usage = |record: &Arc<KeyRecord>| {
            let (at, format) = record.pending_use.latest();
            Usage { id: record.id.clone(), at, format }
        };
        let used = records.iter().map(usage).collect();
        let changes = lock(&source.changes).drain().map(|(_, change)| change).collect();
        Self { source, records, used, changes }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for (record, usage) in self.records.iter().zip(self.used.drain(..)) {
            record.pending_use.record(usage.at, usage.format);
            let generation = self.source.generation.load(Ordering::SeqCst);
            // The flusher is not woken: after a failure it waits for its next time.
            self.source.enqueue(record, generation);
        }
        for change in self.changes.drain(..) {
            self.source.queue_change(change);
        }
    }
}

/// The generation of a record that is not queued.
const UNQUEUED: u32 = 0;

/// Returns a generation that no verifier has had.
fn next_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(UNQUEUED + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
