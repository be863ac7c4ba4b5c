//! What the cache holds, when an entry is too old, and what each change takes out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use tokio::time::Instant;

use super::CacheOptions;
use super::counts::{CacheCounts, Counters, Size};
use super::loading::{Flight, Reading};
use super::log::{ChangeLog, Position};
use crate::crypto::hash::KeyHash;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::store::Change;
use crate::util::lock::lock;

#[cfg(test)]
mod tests;

/// Nanoseconds since the cache was made, by a clock that is never set.
pub(super) type Nanoseconds = u64;
/// Instead of a time: no follower is connected.
pub(super) const NEVER: Nanoseconds = Nanoseconds::MAX;

/// When an answer was read, and when it is too old whatever happens.
#[derive(Clone, Copy, Debug)]
struct Age {
    read_at: Nanoseconds,
    until: Nanoseconds,
}

#[derive(Clone)]
struct Kept {
    record: Arc<KeyRecord>,
    age: Age,
}

/// What is kept, under what the candidates of a presented key amount to.
pub(super) struct Copies {
    pub(super) options: CacheOptions,
    start: Instant,
    known: Cache<KeyHash, Kept, Weight, DefaultHashBuilder, Evicted>,
    unknown: Cache<KeyHash, Age, Weight, DefaultHashBuilder, Evicted>,
    /// Answers read since then are good until a change is reported,
    vouched_since: AtomicU64,
    /// and no later than this: by then there may be nobody left to report one.
    vouched_until: AtomicU64,
    ledger: Mutex<Ledger>,
    pub(super) flights: Mutex<HashMap<KeyHash, Flight>>,
    pub(super) counters: Counters,
    known_size: Size,
    unknown_size: Size,
}

/// What has to change together with the cache.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) changes: ChangeLog,
    by_id: HashMap<KeyId, KeyHash>,
    /// Ordered, so that the entries of an owner lie together, and one leaves a million as fast as ten.
    by_owner: BTreeSet<(OwnerId, [u8; 32])>,
    /// Questions whose answer a row that is added could change.
    provisional: HashSet<KeyHash>,
}

impl Ledger {
    /// Notes an entry, and returns the question that its key has been kept under so far.
    fn enter(&mut self, question: KeyHash, record: &KeyRecord, is_final: bool) -> Option<KeyHash> {
        self.by_owner.insert((record.owner.clone(), *question.as_bytes()));
        if !is_final {
            self.provisional.insert(question);
        }
        self.by_id.insert(record.id.clone(), question)
    }

    /// Strikes off an entry that has left the cache.
    fn strike(&mut self, question: &KeyHash, record: &KeyRecord) {
        if self.by_id.get(&record.id) == Some(question) {
            self.by_id.remove(&record.id);
        }
        self.by_owner.remove(&(record.owner.clone(), *question.as_bytes()));
        self.provisional.remove(question);
    }

    /// The entries of an owner.
    fn of_owner(&self, owner: &OwnerId) -> Vec<KeyHash> {
        let (first, last) = ((owner.clone(), [0; 32]), (owner.clone(), [u8::MAX; 32]));
        let entries = self.by_owner.range(first..=last);
        entries.map(|(_, question)| KeyHash::from_bytes(*question)).collect()
    }
}

impl Copies {
    pub(super) fn new(options: CacheOptions) -> Self {
        let cache = |bytes: u64, entries: u64, typical: u64| {
            let weight = Weight { least: bytes.div_ceil(entries) };
            let mut builder = OptionsBuilder::new();
            let expected = (bytes / typical).min(entries).max(1);
            builder.estimated_items_capacity(expected as usize).weight_capacity(bytes);
            (builder.build().expect("both are given"), weight)
        };
        let (known, weight) = cache(options.max_bytes, options.max_entries, TYPICAL);
        let known = Cache::with_options(known, weight, DefaultHashBuilder::default(), Evicted);
        let (unknown, weight) = cache(options.max_unknown_bytes, u64::MAX, UNKNOWN);
        let unknown = Cache::with_options(unknown, weight, DefaultHashBuilder::default(), Evicted);
        Self {
            options,
            start: Instant::now(),
            known,
            unknown,
            vouched_since: AtomicU64::new(NEVER),
            vouched_until: AtomicU64::new(0),
            ledger: Mutex::default(),
            flights: Mutex::default(),
            counters: Counters::new(),
            known_size: Size::of("known"),
            unknown_size: Size::of("unknown"),
        }
    }

    pub(super) fn now(&self) -> Nanoseconds {
        nanoseconds(self.start.elapsed())
    }

    /// The answer to a look-up, while it is known for sure.
    pub(super) fn recall(&self, question: &KeyHash) -> Option<Option<Arc<KeyRecord>>> {
        let answer = self.answer(question);
        match &answer {
            Some(Some(_)) => self.counters.hits.add(),
            Some(None) => self.counters.unknown_hits.add(),
            None => {}
        }
        answer
    }

    /// The same, without counting a look-up.
    pub(super) fn answer(&self, question: &KeyHash) -> Option<Option<Arc<KeyRecord>>> {
        let now = self.now();
        if let Some(kept) = self.known.get(question)
            && self.is_good(kept.age, now)
        {
            return Some(Some(kept.record));
        }
        let age = self.unknown.get(question)?;
        self.is_good(age, now).then_some(None)
    }

    fn is_good(&self, age: Age, now: Nanoseconds) -> bool {
        let since = self.vouched_since.load(Ordering::Acquire);
        if since != NEVER && now < self.vouched_until.load(Ordering::Acquire) {
            return age.read_at >= since && now < age.until;
        }
        let unfollowed = age.read_at.saturating_add(nanoseconds(self.options.max_age_unfollowed));
        now < age.until.min(unfollowed)
    }

    /// Bytes that the records take, as the bound counts them.
    pub(super) fn bytes(&self) -> u64 {
        self.known.weight()
    }

    pub(super) fn counts(&self) -> CacheCounts {
        CacheCounts {
            entries: self.known.len() as u64,
            unknown_entries: self.unknown.len() as u64,
            bytes: self.known.weight(),
            unknown_bytes: self.unknown.weight(),
            ..self.counters.read()
        }
    }

    fn report_size(&self) {
        self.known_size.set(|| self.known.len(), || self.known.weight());
        self.unknown_size.set(|| self.unknown.len(), || self.unknown.weight());
    }

    pub(super) fn vouch_from(&self, time: Nanoseconds) {
        self.vouched_since.store(time, Ordering::Release);
    }

    /// Notes that every change since `since` has been reported, and will be until `until`: also after
    /// somebody whose word no longer counts has said that a feed was lost.
    pub(super) fn vouch(&self, since: std::time::Instant, until: std::time::Instant) {
        let nanoseconds =
            |time| nanoseconds(Instant::from_std(time).saturating_duration_since(self.start));
        self.vouched_until.store(nanoseconds(until), Ordering::Release);
        self.vouch_from(nanoseconds(since));
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// Keeps an answer, unless a change since its read began concerns it.
    pub(super) fn keep(
        &self,
        question: KeyHash,
        started_at: Position,
        read_at: Nanoseconds,
        reading: &Reading,
    ) {
        let mut ledger = self.ledger();
        if ledger.changes.concerns(started_at, ledger.changes.position(), reading) {
            return;
        }
        self.forget(&mut ledger, &question);
        let mut until = read_at.saturating_add(nanoseconds(self.options.max_age));
        let Some(record) = &reading.record else {
            let mut evicted = Vec::new();
            let age = Age { read_at, until };
            self.unknown.insert_with_lifecycle(question, age, &mut evicted);
            self.counters.unknown_evictions.add(evicted.len() as u64);
            return self.report_size();
        };
        // At its expiry a key is looked up once more: it may have been prolonged.
        if let Some(expires_at) = record.expires_at
            && let Ok(left) = expires_at.duration_since(SystemTime::now())
        {
            until = until.min(self.now().saturating_add(nanoseconds(left)));
        }
        if let Some(other) = ledger.enter(question, record, reading.is_final) {
            // Asked with another ring of secrets. One entry for each key is all that is found by id.
            self.forget(&mut ledger, &other);
        }
        let kept = Kept { record: record.clone(), age: Age { read_at, until } };
        let mut evicted = Vec::new();
        self.known.insert_with_lifecycle(question, kept, &mut evicted);
        self.counters.evictions.add(evicted.len() as u64);
        self.report_size();
        for (question, kept) in evicted {
            ledger.strike(&question, &kept.record);
        }
    }

    fn forget(&self, ledger: &mut Ledger, question: &KeyHash) {
        self.unknown.remove(question);
        if let Some((_, kept)) = self.known.remove(question) {
            ledger.strike(question, &kept.record);
        }
    }

    pub(super) fn invalidate(&self, change: Change) {
        let mut ledger = self.ledger();
        match &change {
            Change::Key(id) => {
                if let Some(question) = ledger.by_id.get(id).copied() {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::Owner(owner) => {
                for question in ledger.of_owner(owner) {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::Added => {
                self.unknown.clear();
                for question in std::mem::take(&mut ledger.provisional) {
                    self.forget(&mut ledger, &question);
                }
            }
            Change::All => {
                ledger.by_id.clear();
                ledger.by_owner.clear();
                ledger.provisional.clear();
                self.known.clear();
                self.unknown.clear();
            }
        }
        self.counters.invalidated(&change);
        self.report_size();
        ledger.changes.push(change);
    }
}

/// Invalidates when it is dropped: a write may be given up where it panics, or its runtime ends.
pub(super) struct InvalidateOnDrop {
    pub(super) cache: Arc<Copies>,
    pub(super) changes: Vec<Change>,
}

impl InvalidateOnDrop {
    /// Leaves the changes to somebody else.
    pub(super) fn disarm(mut self) {
        self.changes.clear();
    }
}

impl Drop for InvalidateOnDrop {
    fn drop(&mut self) {
        for change in self.changes.drain(..) {
            self.cache.invalidate(change);
        }
    }
}

/// Bytes of the tables that an entry takes up: quick_cache's (its documentation gives the formula), with
/// a ghost for every second entry, and the index by id, both half empty at worst, and the index by owner,
/// whose nodes have at least five of eleven places taken.
const TABLES: u64 = 448;
/// Bytes that an unknown key takes up.
const UNKNOWN: u64 = 192;
/// Bytes of an entry as they usually come, to size the tables.
const TYPICAL: u64 = 768;
/// What the allocator adds to an allocation, and the two counters of an `Arc`.
const ALLOCATION: u64 = 16;

#[derive(Clone)]
struct Weight {
    /// Bounds the number of entries along with their bytes.
    least: u64,
}

impl Weighter<KeyHash, Kept> for Weight {
    fn weight(&self, _: &KeyHash, kept: &Kept) -> u64 {
        let record = &*kept.record;
        let reason = record.revocation.as_ref().map_or(0, |revocation| {
            size_of_val(&**revocation) + revocation.reason.as_ref().map_or(0, |text| text.len())
        });
        let texts = record.id.allocated()
            + record.name.len()
            + record.owner.as_str().len()
            + record.scopes.as_str().len();
        let bytes = TABLES + (size_of::<KeyRecord>() + texts + reason) as u64 + 6 * ALLOCATION;
        bytes.max(self.least)
    }
}

impl Weighter<KeyHash, Age> for Weight {
    fn weight(&self, _: &KeyHash, _: &Age) -> u64 {
        UNKNOWN.max(self.least)
    }
}

/// Reports evicted entries to whoever inserts.
#[derive(Clone)]
struct Evicted;

impl<T> Lifecycle<KeyHash, T> for Evicted {
    type RequestState = Vec<(KeyHash, T)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, question: KeyHash, entry: T) {
        evicted.push((question, entry));
    }
}

fn nanoseconds(duration: Duration) -> Nanoseconds {
    // 584 years, short of `NEVER`.
    Nanoseconds::try_from(duration.as_nanos()).unwrap_or(NEVER - 1)
}
