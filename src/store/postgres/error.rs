//! What an error of the database means.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::error::StoreError;

/// Returns what an error of sqlx means to a caller. PostgreSQL's codes:
/// <https://www.postgresql.org/docs/15/errcodes-appendix.html>.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|database| database.code()).as_deref() {
        // unique_violation
        Some("23505") => StoreError::Conflict,
        // read_only_sql_transaction, insufficient_privilege
        Some("25006" | "42501") => StoreError::ReadOnly(error.into()),
        // data_corrupted, index_corrupted
        Some("XX001" | "XX002") => StoreError::Corrupt(error.into()),
        _ => StoreError::Unavailable(error.into()),
    }
}

/// Returns whether the connection is of no more use, as far as the answer tells.
pub(super) fn is_broken<T>(answer: &sqlx::Result<T>) -> bool {
    answer.as_ref().is_err_and(|error| !is_undone(error))
}

/// Returns whether a write that failed may have been made all the same.
pub(super) fn is_unknown<T>(done: &Result<T, StoreError>) -> bool {
    let Err(StoreError::Unavailable(error)) = done else { return false };
    !error.downcast_ref::<sqlx::Error>().is_some_and(is_undone)
}

/// Returns whether the server says that nothing was done. It goes on after an `ERROR`; with anything worse
/// it ends the session.
fn is_undone(error: &sqlx::Error) -> bool {
    let error = error.as_database_error().and_then(|error| error.try_downcast_ref());
    error.is_some_and(|error: &PgDatabaseError| error.severity() == PgSeverity::Error)
}
