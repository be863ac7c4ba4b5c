//! The latest changes, so that an answer is recognised that was being loaded while it changed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::record::KeyRecord;
use crate::store::change::Change;

/// Changes that are kept. A load during which more of them happen is not trusted.
const CAPACITY: usize = 1024;

/// How many changes there have been.
pub(super) type Position = u64;

#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    end: Position,
    latest: VecDeque<Change>,
}

impl ChangeLog {
    pub(super) fn end(&self) -> Position {
        self.end
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.latest.len() == CAPACITY {
            self.latest.pop_front();
        }
        self.latest.push_back(change);
        self.end += 1;
    }

    /// Returns whether one of these changes affects an answer; also where some are no longer kept.
    pub(super) fn affects(&self, changes: Range<Position>, loaded: &Loaded) -> bool {
        let start = self.end - self.latest.len() as u64;
        if changes.start < start {
            return !changes.is_empty();
        }
        let latest = self.latest.iter().skip((changes.start - start) as usize);
        let mut latest = latest.take(changes.end.saturating_sub(changes.start) as usize);
        latest.any(|change| loaded.is_affected_by(change))
    }
}

/// An answer of the store beneath.
#[derive(Clone)]
pub(super) struct Loaded {
    pub(super) record: Option<Arc<KeyRecord>>,
    /// Whether no row that is added later can be preferred: the record has the first candidate.
    pub(super) is_final: bool,
}

impl Loaded {
    fn is_affected_by(&self, change: &Change) -> bool {
        let record = self.record.as_ref();
        match change {
            Change::Key(id) => record.is_some_and(|record| record.id == *id),
            Change::Owner(owner) => record.is_some_and(|record| record.owner == *owner),
            Change::Added => !self.is_final,
            Change::All => true,
        }
    }
}
