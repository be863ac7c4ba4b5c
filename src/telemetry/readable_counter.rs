//! Counts of which the crate keeps the total itself.

use std::sync::atomic::{AtomicU64, Ordering};

use super::instruments::{Counter, Labels};
use super::metric::Metric;

/// A counter that the application can read, also without the feature `metrics`.
pub(crate) struct ReadableCounter {
    total: AtomicU64,
    exported: Counter,
}

impl ReadableCounter {
    pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
        Self { total: AtomicU64::new(0), exported: Counter::new(metric, labels) }
    }

    /// Counts, and returns the count before.
    pub(crate) fn add(&self, count: u64) -> u64 {
        self.exported.add(count);
        self.total.fetch_add(count, Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}
