//! From a row to a record.

use std::time::SystemTime;

use crate::crypto::hash::{HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, Revocation};
use crate::time_zone::TimeZone;

/// A row of an answer. Each method reads a column by its place, and fails where the column has another
/// type.
pub(crate) trait Row {
    fn text(&self, index: usize) -> Result<Option<&str>, StoreError>;

    fn flag(&self, index: usize) -> Result<Option<bool>, StoreError>;

    fn count(&self, index: usize) -> Result<u64, StoreError>;

    /// Reads a time; from a column of local times it takes a [`TimeZone`] to make a time of it.
    fn time(&self, index: usize) -> Result<Option<SystemTime>, StoreError>;

    /// Reads a text, and NULL as an empty one.
    fn string(&self, index: usize) -> Result<String, StoreError> {
        Ok(self.text(index)?.unwrap_or_default().to_owned())
    }
}

/// Reads a row of a query that [`Statements`](super::statements::Statements) made.
pub(crate) fn read_record(
    row: &(impl Row + ?Sized),
    zone: &TimeZone,
) -> Result<KeyRecord, StoreError> {
    let columns = Columns { id: row.text(0).ok().flatten().unwrap_or_default(), row };
    let id = KeyId::from(columns.text(0, "id")?);
    let owner = OwnerId::from(columns.text(1, "user_id")?);
    let hash = KeyHash::from_hex(columns.text(3, "key_hash")?);
    let hash = hash.ok_or_else(|| columns.invalid("key_hash"))?;
    let from_local = |local| zone.first_instant(local);

    let mut record = KeyRecord::new(id, owner, hash);
    record.owner_active = columns.flag(2, "users.is_active")?;
    record.name = columns.text(4, "name")?.into();
    record.scopes = columns.text(5, "scopes")?.into();
    if !columns.flag(6, "is_active")? {
        let at = columns.optional_time(10);
        let reason = columns.optional_text(11).map(Into::into);
        record.revocation = Some(Box::new(Revocation { at, reason }));
    }
    record.created_at = columns.time(7, "created_at")?;
    record.expires_at = columns.time(8, "expires_at")?.map(from_local);
    record.last_used_at = columns.optional_time(9).map(from_local);
    record.format = columns.optional_text(12).and_then(HashFormat::from_name);
    Ok(record)
}

struct Columns<'r, R: ?Sized> {
    id: &'r str,
    row: &'r R,
}

impl<'r, R: Row + ?Sized> Columns<'r, R> {
    fn text(&self, index: usize, column: &'static str) -> Result<&'r str, StoreError> {
        self.row.text(index).ok().flatten().ok_or_else(|| self.invalid(column))
    }

    /// Reads a text that no decision depends on: what cannot be read, such as a format that a later version
    /// writes, is as good as not there.
    fn optional_text(&self, index: usize) -> Option<&'r str> {
        self.row.text(index).ok().flatten()
    }

    /// Reads a boolean; NULL counts as no.
    fn flag(&self, index: usize, column: &'static str) -> Result<bool, StoreError> {
        Ok(self.row.flag(index).map_err(|_| self.invalid(column))?.unwrap_or(false))
    }

    fn time(&self, index: usize, column: &'static str) -> Result<Option<SystemTime>, StoreError> {
        self.row.time(index).map_err(|_| self.invalid(column))
    }

    /// Reads a time that no decision depends on.
    fn optional_time(&self, index: usize) -> Option<SystemTime> {
        self.row.time(index).ok().flatten()
    }

    fn invalid(&self, column: &'static str) -> StoreError {
        StoreError::InvalidRow { id: self.id.to_owned(), column }
    }
}

/// Returns the row of an answer that always has one.
pub(crate) fn only<R>(rows: Vec<R>) -> Result<R, StoreError> {
    let row = rows.into_iter().next();
    row.ok_or_else(|| StoreError::Unavailable(sqlx::Error::RowNotFound.into()))
}
