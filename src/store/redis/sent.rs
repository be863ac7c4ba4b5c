//! Changes that were sent to a server in Redis shortly before another one takes its place.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::entry::Run;
use crate::store::change::Change;

/// Most changes that are kept. Beyond, `All` is kept in their place.
const CAPACITY: usize = 1000;
/// How long a change that was sent is kept, to send it again: the server may have been replaced already, by
/// one that has never received it.
const REPLAY_WINDOW: Duration = Duration::from_secs(60);

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
