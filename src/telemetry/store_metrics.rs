//! Times and failures of the calls of a store in a database.

use super::instruments::{Counter, Histogram, Stopwatch};
use super::metric;
use crate::error::StoreError;

/// A measured call: a method of `KeyLookup` or `KeyStore`.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    Find,
    Insert,
    FindById,
    List,
    Update,
    Revoke,
    Rotate,
    Expire,
    RecordUsage,
    ReplaceHash,
    CountByFormat,
}

/// The labels of the operations, in the order of [`Operation`].
const NAMES: [&str; 11] = [
    "find",
    "insert",
    "find_by_id",
    "list",
    "update",
    "revoke",
    "rotate",
    "expire",
    "record_usage",
    "replace_hash",
    "count_by_format",
];

/// Measures the calls of one store.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    durations: [Histogram; NAMES.len()],
    errors: [Counter; NAMES.len()],
}

impl StoreMetrics {
    pub(crate) fn new(store: &'static str) -> Self {
        let labels = |operation| [("store", store), ("operation", operation)];
        Self {
            durations: NAMES.map(|name| Histogram::new(&metric::STORE_DURATION, &labels(name))),
            errors: NAMES.map(|name| Counter::new(&metric::STORE_ERRORS, &labels(name))),
        }
    }

    /// Measures how long a call takes, and counts it if it failed.
    pub(crate) async fn measure<T>(
        &self,
        operation: Operation,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let started = Stopwatch::start();
        let answer = call.await;
        self.durations[operation as usize].record(started.elapsed());
        if answer.as_ref().is_err_and(is_failure) {
            self.errors[operation as usize].add(1);
        }
        answer
    }
}

/// Returns whether the store itself failed. The other errors are answers of a store that works.
fn is_failure(error: &StoreError) -> bool {
    use StoreError::{Changed, Conflict, NotFound, NotInForce, UnknownOwner, Unstorable};
    !matches!(
        error,
        NotFound(_) | Conflict | UnknownOwner(_) | NotInForce(_) | Changed(_) | Unstorable { .. }
    )
}
