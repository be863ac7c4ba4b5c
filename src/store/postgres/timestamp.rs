//! Times as PostgreSQL keeps them.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, Postgres};
use sqlx::{Decode, Encode, Type};

use crate::store::sql::timestamp::Timestamp;

/// 2000-01-01 in microseconds since 1970: where a `timestamp without time zone` counts from, as it goes over
/// the wire.
///
/// sqlx's own conversions to calendar types panic on `infinity` and on years beyond 9999, which a
/// column can hold; here they are a time far away.
const EPOCH: i64 = 946_684_800_000_000;

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
        Encode::<Postgres>::encode(self.microseconds() - EPOCH, buffer)
    }
}

impl Decode<'_, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        let microseconds: i64 = Decode::<Postgres>::decode(value)?;
        Ok(Self::from_microseconds(microseconds.saturating_add(EPOCH)))
    }
}
