//! What an error of the database means.

use crate::error::StoreError;

/// Returns what an error of sqlx means to a caller. SQLite's codes: <https://www.sqlite.org/rescode.html>.
pub(super) fn store_error(error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error() else {
        return StoreError::Unavailable(error.into());
    };
    if database.is_unique_violation() {
        return StoreError::Conflict;
    }
    let code = database.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default();
    // The low byte is the kind, the rest its details.
    match code & 0xff {
        8 => StoreError::ReadOnly(error.into()),
        11 | 26 => StoreError::Corrupt(error.into()),
        14 => StoreError::CannotOpen(error.into()),
        _ => StoreError::Unavailable(error.into()),
    }
}
