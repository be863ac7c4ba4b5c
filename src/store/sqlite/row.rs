//! From a row to a record.

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{Decode, Row, Type};

use super::timestamp::from_text;
use crate::crypto::hash::{HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, Revocation};
use crate::time_zone::TimeZone;

/// Reads a row of a query that [`Statements`](super::Statements) made. SQLite lets any column hold
/// anything, so each value is checked.
pub(crate) fn read_record(row: &SqliteRow, zone: &TimeZone) -> Result<KeyRecord, StoreError> {
    let from_local_text = |text: &str| from_text(text).map(|local| zone.first_instant(local));
    let columns = Columns { id: row.try_get(0).unwrap_or_default(), row };
    let id = KeyId::from(columns.read::<&str>(0, "id")?);
    let owner = OwnerId::from(columns.read::<&str>(1, "user_id")?);
    let hash =
        columns.check(3, "key_hash", KeyHash::from_hex)?.ok_or(columns.invalid("key_hash"))?;

    let mut record = KeyRecord::new(id, owner, hash);
    record.owner_active = columns.flag(2, "users.is_active")?;
    record.name = columns.read::<&str>(4, "name")?.into();
    record.scopes = columns.read::<&str>(5, "scopes")?.into();
    if !columns.flag(6, "is_active")? {
        let (at, reason) =
            (columns.trace(10, from_text), columns.trace(11, |text| Some(text.into())));
        record.revocation = Some(Box::new(Revocation { at, reason }));
    }
    record.created_at = columns.check(7, "created_at", from_text)?;
    record.expires_at = columns.check(8, "expires_at", from_local_text)?;
    record.last_used_at = columns.trace(9, from_local_text);
    record.format = columns.trace(12, HashFormat::from_name);
    Ok(record)
}

struct Columns<'r> {
    id: &'r str,
    row: &'r SqliteRow,
}

impl<'r> Columns<'r> {
    fn read<T>(&self, index: usize, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
    {
        self.row.try_get(index).map_err(|_| self.invalid(column))
    }

    /// A text that `parse` understands, or NULL.
    fn check<T>(
        &self,
        index: usize,
        column: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        match self.read::<Option<&str>>(index, column)? {
            Some(text) => Ok(Some(parse(text).ok_or(self.invalid(column))?)),
            None => Ok(None),
        }
    }

    /// What no decision depends on: what cannot be read, such as a format that a later version writes,
    /// is as good as not there.
    fn trace<T>(&self, index: usize, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.row.try_get::<Option<&str>, _>(index).ok().flatten().and_then(parse)
    }

    /// A boolean as SQLAlchemy writes it; NULL counts as no.
    fn flag(&self, index: usize, column: &'static str) -> Result<bool, StoreError> {
        match self.read::<Option<i64>>(index, column)? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(_) => Err(self.invalid(column)),
        }
    }

    fn invalid(&self, column: &'static str) -> StoreError {
        StoreError::InvalidRow { id: self.id.to_owned(), column }
    }
}
