//! From a row to a record, and times as PostgreSQL keeps them.

use std::time::{Duration, SystemTime};

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgRow, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Row, Type};

use crate::crypto::hash::{HashFormat, KeyHash};
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::{KeyRecord, Revocation};
use crate::time_zone::TimeZone;

/// A `timestamp without time zone`: microseconds since 2000-01-01, as it goes over the wire.
///
/// sqlx's own conversions to calendar types panic on `infinity` and on years beyond 9999, which a
/// column can hold; here they are a time far away.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp(i64);

/// 2000-01-01 in seconds since 1970.
const EPOCH: Duration = Duration::from_secs(946_684_800);

impl Timestamp {
    pub(crate) fn new(column: &'static str, time: SystemTime) -> Result<Self, StoreError> {
        let microseconds = |duration: Duration| i64::try_from(duration.as_micros()).ok();
        let microseconds = match time.duration_since(SystemTime::UNIX_EPOCH + EPOCH) {
            Ok(since) => microseconds(since),
            Err(before) => microseconds(before.duration()).map(|before| -before),
        };
        /// The years 1 to 9999, which every other reader of the table understands.
        const YEARS: std::ops::RangeInclusive<i64> =
            -63_082_281_600_000_000..=252_455_615_999_999_999;
        let microseconds = microseconds.filter(|microseconds| YEARS.contains(microseconds));
        microseconds.map(Self).ok_or(StoreError::Unstorable { column })
    }

    pub(crate) fn optional(
        column: &'static str,
        time: Option<SystemTime>,
    ) -> Result<Option<Self>, StoreError> {
        time.map(|time| Self::new(column, time)).transpose()
    }

    pub(crate) fn to_time(self) -> SystemTime {
        let distance = Duration::from_micros(self.0.unsigned_abs());
        let epoch = SystemTime::UNIX_EPOCH + EPOCH;
        if self.0 < 0 { epoch - distance } else { epoch + distance }
    }
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1114))
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(1115))
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.0, buffer)
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        Decode::<Postgres>::decode(value).map(Self)
    }
}

/// Reads a row of a query that [`Statements`](super::Statements) made.
pub(crate) fn read_record(row: &PgRow, zone: &TimeZone) -> Result<KeyRecord, StoreError> {
    let columns = Columns { id: row.try_get(0).unwrap_or_default(), row };
    let id = KeyId::from(columns.read::<&str>(0, "id")?);
    let owner = OwnerId::from(columns.read::<&str>(1, "user_id")?);
    let hash =
        KeyHash::from_hex(columns.read(3, "key_hash")?).ok_or(columns.invalid("key_hash"))?;

    let mut record = KeyRecord::new(id, owner, hash);
    record.owner_active = columns.read::<Option<bool>>(2, "users.is_active")?.unwrap_or(false);
    record.name = columns.read::<&str>(4, "name")?.into();
    record.scopes = columns.read::<&str>(5, "scopes")?.into();
    if !columns.read::<Option<bool>>(6, "is_active")?.unwrap_or(false) {
        let at = columns.time(10, "revoked_at")?;
        let reason = columns.read::<Option<&str>>(11, "revoked_reason")?.map(Into::into);
        record.revocation = Some(Box::new(Revocation { at, reason }));
    }
    let from_local = |local| zone.first_instant(local);
    record.created_at = columns.time(7, "created_at")?;
    record.expires_at = columns.time(8, "expires_at")?.map(from_local);
    record.last_used_at = columns.time(9, "last_used_at")?.map(from_local);
    // No decision depends on it: a name that a later version writes is as good as none.
    record.format =
        columns.read::<Option<&str>>(12, "hash_format")?.and_then(HashFormat::from_name);
    Ok(record)
}

struct Columns<'r> {
    id: &'r str,
    row: &'r PgRow,
}

impl<'r> Columns<'r> {
    fn read<T>(&self, index: usize, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Postgres> + Type<Postgres>,
    {
        self.row.try_get(index).map_err(|_| self.invalid(column))
    }

    fn time(&self, index: usize, column: &'static str) -> Result<Option<SystemTime>, StoreError> {
        Ok(self.read::<Option<Timestamp>>(index, column)?.map(Timestamp::to_time))
    }

    fn invalid(&self, column: &'static str) -> StoreError {
        StoreError::InvalidRow { id: self.id.to_owned(), column }
    }
}
