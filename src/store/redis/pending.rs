//! Changes that a server in Redis has yet to be told of, for the first time or again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::entry::Run;
use crate::store::change::Change;

/// Most changes that are kept until they can be sent. Beyond, everything in Redis is invalidated.
const CAPACITY: usize = 1000;
/// How long a change that was sent is kept, to send it again: the server may have been replaced already, by
/// one that has never received it.
const REPLAY_WINDOW: Duration = Duration::from_secs(60);

/// Changes that could not be sent.
pub(super) enum Pending {
    Changes(Vec<Change>),
    /// More than are kept.
    All,
}

impl Pending {
    pub(super) fn none() -> Self {
        Self::Changes(Vec::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Changes(changes) if changes.is_empty())
    }

    pub(super) fn add(&mut self, change: Change) {
        match self {
            Self::Changes(changes) if changes.len() < CAPACITY && change != Change::All => {
                if !changes.contains(&change) {
                    changes.push(change);
                }
            }
            _ => *self = Self::All,
        }
    }

    pub(super) fn into_changes(self) -> Vec<Change> {
        match self {
            Self::Changes(changes) => changes,
            Self::All => vec![Change::All],
        }
    }
}

/// The changes that were sent to the present server in the last minute.
#[derive(Default)]
pub(super) struct Sent {
    /// The run of the server; `None` before the first connection.
    run: Option<Run>,
    latest: VecDeque<(Instant, Change)>,
}

impl Sent {
    /// Adds a change that was sent to a server; `false` if that is not the present one.
    pub(super) fn add(&mut self, run: Run, change: Change) -> bool {
        if self.run != Some(run) {
            return false;
        }
        if self.latest.len() == CAPACITY {
            self.latest.clear();
            self.latest.push_back((Instant::now(), Change::All));
        }
        self.latest.push_back((Instant::now(), change));
        while self.latest.front().is_some_and(|(time, _)| time.elapsed() > REPLAY_WINDOW) {
            self.latest.pop_front();
        }
        true
    }

    /// Makes the server with this run the present one, and returns what has to be sent to it again.
    pub(super) fn replay_to(&mut self, run: Run) -> Vec<Change> {
        match self.run.replace(run) {
            Some(before) if before != run => {
                let latest =
                    self.latest.drain(..).filter(|(time, _)| time.elapsed() <= REPLAY_WINDOW);
                latest.map(|(_, change)| change).collect()
            }
            _ => Vec::new(),
        }
    }
}
