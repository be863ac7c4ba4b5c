//! What may still be accepted, by the table of docs/caching.md and a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lexikon_auth::{KeyId, VerifiedKey, VerifyError};

use crate::instances::{Feed, Instance, MAX_AGE_UNFOLLOWED, Place};
use crate::schedule::Fault;
use crate::stalls::Stalls;

/// For what the table gives in milliseconds, and on top of what it gives in seconds.
const SLACK: Duration = Duration::from_secs(2);
/// "after at most 3 seconds in which the loss is noticed"
const NOTICED: Duration = Duration::from_secs(3);
/// How long a fault is felt after its end: an old loss is noticed, and a new connection made.
const AFTERMATH: Duration = Duration::from_secs(4);
/// How long after its return Redis is found again by an instance that had lost it.
const FOUND_AGAIN: Duration = Duration::from_secs(8);
/// How long after a change its key is watched: longer than any bound.
pub const WATCHED: Duration = Duration::from_secs(10);

/// A key that is verified again and again.
pub struct Key {
    pub id: KeyId,
    pub text: String,
    pub owner: String,
    pub place: Place,
    fate: Mutex<Fate>,
}

#[derive(Default)]
struct Fate {
    change: Option<Change>,
    /// Nobody verifies it before.
    rests_until: Option<Instant>,
}

/// What is done to a key: at most one thing, for good.
#[derive(Debug, Clone)]
pub struct Change {
    /// It loses the scope `write`, and is accepted all the same.
    pub narrows: bool,
    /// Through which instance, where it is one of this test.
    pub instance: Option<usize>,
    /// Whether whoever makes it tells the instances that follow Redis.
    pub tells_redis: bool,
    begun: Instant,
    /// It was committed by then.
    committed: Option<Instant>,
    /// Whether the instance said so: the call returned without an error.
    returned: bool,
}

impl Change {
    pub fn new(narrows: bool, instance: Option<usize>, tells_redis: bool) -> Self {
        let begun = Instant::now();
        Self { narrows, instance, tells_redis, begun, committed: None, returned: false }
    }

    fn describe(&self) -> String {
        let author = match self.instance {
            Some(index) => format!("through instance {index}"),
            None => "from outside".to_owned(),
        };
        let took = self.committed.map(|at| at - self.begun).unwrap_or_default();
        let known = if self.returned { "returned" } else { "seen in the row" };
        format!("changed {author}, {known} after {took:.3?}")
    }
}

impl Key {
    pub fn new(id: KeyId, text: String, owner: String, place: Place) -> Self {
        Self { id, text, owner, place, fate: Mutex::default() }
    }

    /// To be called before the change begins.
    pub fn begin(&self, change: Change) {
        let change = self.fate.lock().unwrap().change.replace(change);
        assert!(change.is_none(), "one change a key");
    }

    /// To be called when the change is known to be committed.
    pub fn committed(&self, returned: bool) {
        let mut fate = self.fate.lock().unwrap();
        let change = fate.change.as_mut().expect("a change that has begun");
        if change.committed.is_none() {
            (change.committed, change.returned) = (Some(Instant::now()), returned);
        }
    }

    /// Whoever made the change said that it could not tell Redis.
    pub fn redis_was_not_told(&self) {
        if let Some(change) = &mut self.fate.lock().unwrap().change {
            change.tells_redis = false;
        }
    }

    pub fn rest(&self, until: Instant) {
        self.fate.lock().unwrap().rests_until = Some(until);
    }

    pub fn rests(&self) -> bool {
        self.fate.lock().unwrap().rests_until.is_some_and(|until| Instant::now() < until)
    }

    /// Whether nothing more is to be learned from it.
    pub fn is_done(&self) -> bool {
        let fate = self.fate.lock().unwrap();
        let over = |change: &Change| match change.committed {
            Some(committed) => committed.elapsed() > WATCHED,
            None => change.begun.elapsed() > 3 * WATCHED,
        };
        fate.change.as_ref().is_some_and(over)
    }
}

/// When an instance can tell others of a change.
enum Told {
    AtOnce,
    From(Instant),
    NotYet,
}

/// A fault, while it is in play.
struct InPlay {
    fault: Fault,
    /// The only instance concerned, where it is one.
    instance: Option<usize>,
    from: Instant,
    until: Option<Instant>,
}

impl InPlay {
    fn concerns(&self, instance: &Instance) -> bool {
        self.instance.is_none_or(|only| only == instance.index) && self.fault.delays(instance)
    }

    fn overlaps(&self, from: Instant, until: Instant) -> bool {
        self.from <= until && self.until.is_none_or(|end| end + AFTERMATH >= from)
    }
}

/// An instance that cannot reach the Redis that others reach: nobody hears of what it changes.
struct CutOff {
    instance: usize,
    from: Instant,
    until: Option<Instant>,
}

#[derive(Default)]
pub struct Counts {
    pub accepted: AtomicU64,
    pub refused: AtomicU64,
    pub unavailable: AtomicU64,
    /// Refusals where nothing was in play that could have delayed them.
    pub refused_undisturbed: AtomicU64,
}

pub struct Oracle {
    start: Instant,
    stalls: Stalls,
    faults: Mutex<Vec<InPlay>>,
    cut_off: Mutex<Vec<CutOff>>,
    pub counts: Counts,
    /// By instance and whether a fault delayed it: the latest acceptance after a commit.
    latest: Mutex<BTreeMap<(&'static str, &'static str), Duration>>,
    reported: Mutex<BTreeSet<(usize, String)>>,
    violations: Mutex<Vec<String>>,
}

impl Oracle {
    pub fn new(start: Instant, stalls: Stalls) -> Self {
        Self {
            start,
            stalls,
            faults: Mutex::default(),
            cut_off: Mutex::default(),
            counts: Counts::default(),
            latest: Mutex::default(),
            reported: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    /// Says that a fault is in play, at one instance or all, until [`end`](Self::end).
    pub fn begin(&self, fault: Fault, instance: Option<usize>) -> usize {
        let mut faults = self.faults.lock().unwrap();
        faults.push(InPlay { fault, instance, from: Instant::now(), until: None });
        faults.len() - 1
    }

    pub fn end(&self, number: usize) {
        self.faults.lock().unwrap()[number].until = Some(Instant::now());
    }

    /// Says that an instance alone cannot reach Redis, until [`reached`](Self::reached).
    pub fn cut_off(&self, instance: &Instance) {
        let (from, instance) = (Instant::now(), instance.index);
        self.cut_off.lock().unwrap().push(CutOff { instance, from, until: None });
    }

    pub fn reached(&self, instance: &Instance) {
        let mut cut_off = self.cut_off.lock().unwrap();
        let of_it = cut_off.iter_mut().filter(|cut| cut.instance == instance.index);
        of_it.for_each(|cut| cut.until = cut.until.or_else(|| Some(Instant::now())));
    }

    /// Holds an answer against the promise. What counts is when it was asked for.
    pub fn judge(
        &self,
        instance: &Instance,
        key: &Key,
        asked: Instant,
        answer: &Result<VerifiedKey, VerifyError>,
    ) {
        let answered = Instant::now();
        let change = key.fate.lock().unwrap().change.clone();
        let change = change.filter(|change| change.begun <= answered);
        match answer {
            Ok(verified) => {
                self.counts.accepted.fetch_add(1, Ordering::Relaxed);
                if let Some(change) = change
                    && (!change.narrows || verified.allows("write"))
                    && let Some(committed) = change.committed
                    && asked > committed
                {
                    self.judge_stale(instance, key, &change, committed, asked);
                }
            }
            Err(VerifyError::Refused(refusal)) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                match change {
                    Some(change) if !change.narrows => {
                        if change.committed.is_some_and(|at| !self.is_disturbed(instance, at)) {
                            self.counts.refused_undisturbed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    _ => {
                        self.violation(instance, key, &format!("a good key is refused: {refusal}"))
                    }
                }
            }
            Err(VerifyError::Unavailable(error)) => {
                self.counts.unavailable.fetch_add(1, Ordering::Relaxed);
                let waited = asked.elapsed();
                let is_excused = instance.place == Place::Postgres && self.had_outage(asked)
                    || self.stalls.since(asked - AFTERMATH) > Duration::from_secs(1);
                if !is_excused {
                    let text = format!(
                        "unavailable after {waited:.1?} though nothing was down: {error:?}"
                    );
                    self.violation(instance, key, &text);
                }
            }
        }
    }

    fn judge_stale(
        &self,
        instance: &Instance,
        key: &Key,
        change: &Change,
        committed: Instant,
        asked: Instant,
    ) {
        let Some((bound, why)) = self.bound(instance, change, committed) else { return };
        let late = asked - committed;
        {
            let mut latest = self.latest.lock().unwrap();
            let entry = latest.entry((instance.name, why)).or_default();
            *entry = late.max(*entry);
        }
        // Nothing to wait for: no busy machine excuses it.
        let bound = if bound.is_zero() { bound } else { bound + self.stalls.since(committed) };
        if late > bound {
            let text = format!(
                "accepted {late:.3?} after its change was committed ({why}: at most {bound:.3?}); {}",
                change.describe()
            );
            self.violation(instance, key, &text);
        }
    }

    /// How long after a change an instance may go by what was before it, and why. `None`: nobody has
    /// promised to tell it, or not yet.
    fn bound(
        &self,
        instance: &Instance,
        change: &Change,
        committed: Instant,
    ) -> Option<(Duration, &'static str)> {
        if change.returned && change.instance == Some(instance.index) {
            return Some((Duration::ZERO, "through this instance"));
        }
        let fallback = NOTICED + MAX_AGE_UNFOLLOWED + SLACK;
        match instance.feed {
            Feed::None => return Some((MAX_AGE_UNFOLLOWED + SLACK, "not followed")),
            Feed::Redis if !change.tells_redis => return None,
            Feed::Redis => match self.told_late(change, committed) {
                Told::AtOnce => {}
                Told::From(time) => {
                    let wait = time.saturating_duration_since(committed) + FOUND_AGAIN;
                    return Some((wait + fallback, "changed by one who was cut off"));
                }
                Told::NotYet => return None,
            },
            Feed::Database => {}
        }
        Some(match self.is_disturbed(instance, committed) {
            true => (fallback, "with a fault in play"),
            false => (SLACK, "connected"),
        })
    }

    /// Whether an instance could tell the others of its change through Redis.
    fn told_late(&self, change: &Change, committed: Instant) -> Told {
        let cut_off = self.cut_off.lock().unwrap();
        let mut of_it = cut_off.iter().filter(|cut| change.instance == Some(cut.instance));
        let meanwhile = |cut: &&CutOff| {
            let is_over = cut.until.is_some_and(|until| until + FOUND_AGAIN < change.begun);
            cut.from <= committed + SLACK && !is_over
        };
        match of_it.rfind(meanwhile).map(|cut| cut.until) {
            None => Told::AtOnce,
            Some(Some(until)) => Told::From(until),
            Some(None) => Told::NotYet,
        }
    }

    fn is_disturbed(&self, instance: &Instance, committed: Instant) -> bool {
        let faults = self.faults.lock().unwrap();
        let mut faults = faults.iter().filter(|fault| fault.concerns(instance));
        faults.any(|fault| fault.overlaps(committed, committed + SLACK))
    }

    fn had_outage(&self, asked: Instant) -> bool {
        let faults = self.faults.lock().unwrap();
        let mut faults = faults.iter().filter(|fault| fault.fault.is_outage());
        faults.any(|fault| fault.overlaps(asked, Instant::now()))
    }

    /// Once for each key and instance.
    fn violation(&self, instance: &Instance, key: &Key, text: &str) {
        if !self.reported.lock().unwrap().insert((instance.index, key.id.to_string())) {
            return;
        }
        let text = format!(
            "VIOLATION at {} ({}), key {}: {text}\n          faults: {}",
            instance.name,
            instance.describe(),
            key.id,
            self.last_faults()
        );
        self.say(&text);
        self.violations.lock().unwrap().push(text);
    }

    fn last_faults(&self) -> String {
        let faults = self.faults.lock().unwrap();
        let described = faults.iter().rev().take(6).map(|played| {
            let at = |time: Instant| format!("{:.1}", (time - self.start).as_secs_f64());
            let until = played.until.map_or_else(|| "now".to_owned(), at);
            format!("{} {} to {until}", played.fault.name(), at(played.from))
        });
        described.collect::<Vec<_>>().join(", ")
    }

    /// Prints a line of the schedule.
    pub fn say(&self, text: &str) {
        println!("{:8.3}  {text}", self.start.elapsed().as_secs_f64());
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub fn summary(&self) -> String {
        let Counts { accepted, refused, unavailable, refused_undisturbed } = &self.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let mut text = format!(
            "accepted {}, refused {} ({} with no fault in play), unavailable {}; timers were late by {:.1?}\n",
            read(accepted),
            read(refused),
            read(refused_undisturbed),
            read(unavailable),
            self.stalls.since(self.start)
        );
        for ((instance, why), late) in &*self.latest.lock().unwrap() {
            text += &format!("latest acceptance after a commit, {instance}, {why}: {late:.3?}\n");
        }
        text
    }
}
