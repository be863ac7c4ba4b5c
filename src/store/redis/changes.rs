//! Changes that a server in Redis has to be told of, for the first time or again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::entry::Run;
use crate::store::Change;

/// Most changes that are kept until Redis can be told. Beyond, it forgets everything.
const MAX_MISSED: usize = 1000;
/// How long a change that was told is kept, to tell it again: the server may have been replaced already,
/// by one that has never heard of it.
const TOLD_AGAIN: Duration = Duration::from_secs(60);

/// Changes that Redis could not be told of.
pub(super) enum Missed {
    Some(Vec<Change>),
    /// More than are kept.
    All,
}

impl Missed {
    pub(super) fn none() -> Self {
        Self::Some(Vec::new())
    }

    pub(super) fn is_none(&self) -> bool {
        matches!(self, Self::Some(changes) if changes.is_empty())
    }

    pub(super) fn add(&mut self, change: Change) {
        match self {
            Self::Some(changes) if changes.len() < MAX_MISSED && change != Change::All => {
                if !changes.contains(&change) {
                    changes.push(change);
                }
            }
            _ => *self = Self::All,
        }
    }

    pub(super) fn changes(self) -> Vec<Change> {
        match self {
            Self::Some(changes) => changes,
            Self::All => vec![Change::All],
        }
    }
}

/// The changes that the present server was told of in the last minute.
#[derive(Default)]
pub(super) struct Told {
    /// The run of the server; none was connected yet.
    run: Option<Run>,
    latest: VecDeque<(Instant, Change)>,
}

impl Told {
    /// Notes a change that a server was told of; `false` where it is not the present one.
    pub(super) fn add(&mut self, run: Run, change: Change) -> bool {
        if self.run != Some(run) {
            return false;
        }
        if self.latest.len() == MAX_MISSED {
            self.latest.clear();
            self.latest.push_back((Instant::now(), Change::All));
        }
        self.latest.push_back((Instant::now(), change));
        while self.latest.front().is_some_and(|(time, _)| time.elapsed() > TOLD_AGAIN) {
            self.latest.pop_front();
        }
        true
    }

    /// What another server has to be told of again.
    pub(super) fn again(&mut self, run: Run) -> Vec<Change> {
        match self.run.replace(run) {
            Some(before) if before != run => {
                let latest = self.latest.drain(..).filter(|(time, _)| time.elapsed() <= TOLD_AGAIN);
                latest.map(|(_, change)| change).collect()
            }
            _ => Vec::new(),
        }
    }
}
