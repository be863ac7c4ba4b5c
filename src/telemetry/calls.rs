//! What the stores in databases report of their calls.

use super::{Counter, Histogram, Stopwatch, table};
use crate::error::StoreError;

/// The calls of a store that are measured: the methods of `KeyLookup` and `KeyStore`.
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

/// In the order of [`Operation`].
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

#[derive(Clone)]
pub(crate) struct Calls {
    durations: [Histogram; NAMES.len()],
    errors: [Counter; NAMES.len()],
}

impl Calls {
    pub(crate) fn new(store: &'static str) -> Self {
        let labels = |operation| [("store", store), ("operation", operation)];
        Self {
            durations: NAMES.map(|name| Histogram::new(&table::STORE_DURATION, &labels(name))),
            errors: NAMES.map(|name| Counter::new(&table::STORE_ERRORS, &labels(name))),
        }
    }

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

/// Whether a store failed, or answered that something cannot be done.
fn is_failure(error: &StoreError) -> bool {
    use StoreError::{Changed, Conflict, NotFound, NotInForce, UnknownOwner, Unstorable};
    !matches!(
        error,
        NotFound(_) | Conflict | UnknownOwner(_) | NotInForce(_) | Changed(_) | Unstorable { .. }
    )
}
