//! The latest changes, so that an answer that was on its way while one happened is recognised.

use std::collections::VecDeque;

use super::loading::Reading;
use crate::store::Change;

/// Changes that are remembered. A load that takes longer than so many is not trusted.
const REMEMBERED: usize = 1024;

/// How many changes there have been.
pub(super) type Position = u64;

#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    position: Position,
    latest: VecDeque<Change>,
}

impl ChangeLog {
    pub(super) fn position(&self) -> Position {
        self.position
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.latest.len() == REMEMBERED {
            self.latest.pop_front();
        }
        self.latest.push_back(change);
        self.position += 1;
    }

    /// Whether a change after `from`, and not after `to`, concerns an answer; also when it is not known
    /// any more.
    pub(super) fn concerns(&self, from: Position, to: Position, answer: &Reading) -> bool {
        let forgotten = self.position - self.latest.len() as u64;
        if from < forgotten {
            return from < to;
        }
        let latest = self.latest.iter().skip((from - forgotten) as usize);
        latest.take(to.saturating_sub(from) as usize).any(|change| answer.depends_on(change))
    }
}
