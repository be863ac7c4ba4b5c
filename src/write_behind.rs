//! Write-behind: last uses and hash upgrades are noted in memory and written in batches.
//!
//! A row written on every request would be a hot row, and a write that fails must not fail a
//! verification. So the verifier only notes; a flush writes.
//!
//! A use is noted in the record itself, which stores in memory and caches share among verifications:
//! only the first use of a key between two flushes goes through a lock.

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
use crate::telemetry::{Counter, Histogram, ReadableCounter, Stopwatch, table};
use crate::util::lock::lock;

/// Locks that notes are spread over, so that two verifications rarely meet on one.
const SHARDS: usize = 16;
/// Notes that are kept for each lock: what fits a hash table of 8192 places at its load of 7/8.
const SHARD_CAPACITY: usize = 7168;
/// Uses that are written in one batch: a transaction that keeps other writers waiting is a short one.
const WRITE_AT_ONCE: usize = 1000;
/// Hash changes that are kept between two flushes.
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
    /// Changes with every flush, and differs from that of any other verifier.
    round: AtomicU32,
    used: [Shard; SHARDS],
    hasher: RandomState,
    changes: Mutex<HashMap<KeyId, HashChange>>,
    dropped: ReadableCounter,
    telemetry: Flushes,
    #[cfg(feature = "tokio")]
    pub(crate) wake: tokio::sync::Notify,
}

/// The records with a pending use. Padded to its own cache lines, so that two locks do not share one.
#[repr(align(128))]
struct Shard(Mutex<HashSet<ById>>);

impl WriteBehind {
    pub(crate) fn new() -> Self {
        // All memory is taken here: noting a use never allocates.
        let shard = || Shard(Mutex::new(HashSet::with_capacity(SHARD_CAPACITY)));
        Self {
            round: AtomicU32::new(next_round()),
            used: std::array::from_fn(|_| shard()),
            hasher: RandomState::new(),
            changes: Mutex::new(HashMap::with_capacity(CHANGES_CAPACITY)),
            dropped: ReadableCounter::new(Counter::new(&table::DROPPED_USES, &[])),
            telemetry: Flushes::new(),
            #[cfg(feature = "tokio")]
            wake: tokio::sync::Notify::new(),
        }
    }

    /// Notes that a key was used.
    #[inline]
    pub(crate) fn note_use(&self, record: &Arc<KeyRecord>, at: SystemTime, format: HashFormat) {
        record.pending_use.note(at, format);
        // After the note: a flush that begins a new round before this load has yet to read the note.
        let round = self.round.load(Ordering::SeqCst);
        if record.pending_use.queued_in.load(Ordering::SeqCst) != round {
            self.enqueue(record, round, true);
        }
    }

    fn enqueue(&self, record: &Arc<KeyRecord>, round: u32, wakes: bool) {
        let shard = self.hasher.hash_one(&record.id) as usize % SHARDS;
        let mut used = lock(&self.used[shard].0);
        if let Some(ById(waiting)) = used.get(&record.id) {
            // Another copy of the record: this one takes its place and its use. From here on, a use of
            // the other queues it again; one that does not was noted before the read.
            waiting.pending_use.queued_in.store(NEVER, Ordering::SeqCst);
            let (at, format) = waiting.pending_use.latest();
            record.pending_use.note(at, format);
        } else if used.len() == SHARD_CAPACITY {
            self.dropped.add(1);
            return;
        }
        used.replace(ById(record.clone()));
        record.pending_use.queued_in.store(round, Ordering::SeqCst);
        if wakes && used.len() == SHARD_CAPACITY / 2 {
            self.wake_flusher();
        }
    }

    fn wake_flusher(&self) {
        #[cfg(feature = "tokio")]
        self.wake.notify_one();
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
        self.dropped.read()
    }

    /// Writes everything noted so far. What is not written, because the store failed or because the
    /// future was dropped, is kept for the next flush.
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
            let rest = batch.used.len().saturating_sub(WRITE_AT_ONCE);
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

/// What flushes report.
struct Flushes {
    written: Counter,
    failed: Counter,
    duration: Histogram,
    used: Counter,
    upgraded: Counter,
}

impl Flushes {
    fn new() -> Self {
        let flushes = |outcome| Counter::new(&table::FLUSHES, &[("outcome", outcome)]);
        Self {
            written: flushes("written"),
            failed: flushes("failed"),
            duration: Histogram::new(&table::FLUSH_DURATION, &[]),
            used: Counter::new(&table::USAGE_WRITTEN, &[]),
            upgraded: Counter::new(&table::HASHES_UPGRADED, &[]),
        }
    }
}

/// Notes on their way to the store. Those still in it when it is dropped go back.
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
        // Between the two: a record that was taken out had been queued in the round that ends here, so
        // a use that does not queue it again was noted before the reads below.
        source.round.store(next_round(), Ordering::SeqCst);
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
            record.pending_use.note(usage.at, usage.format);
            let round = self.source.round.load(Ordering::SeqCst);
            // Without waking the flusher: after a failure it waits for its time.
            self.source.enqueue(record, round, false);
        }
        for change in self.changes.drain(..) {
            self.source.note_change(change);
        }
    }
}

/// The round of a record that is not queued.
const NEVER: u32 = 0;

/// A number that no verifier has had for its round.
fn next_round() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(NEVER + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
