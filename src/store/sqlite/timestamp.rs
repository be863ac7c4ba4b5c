//! Times as SQLAlchemy writes them to SQLite: text without a time zone, taken as UTC.

use std::time::SystemTime;

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::error::StoreError;

/// What is written.
const WRITTEN: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
/// What is read: `CURRENT_TIMESTAMP` of SQLite has no fraction.
const READ: &[BorrowedFormatItem<'_>] = format_description!(
    version = 2,
    "[year]-[month]-[day] [hour]:[minute]:[second][optional [.[subsecond]]]"
);

pub(crate) fn to_text(column: &'static str, time: SystemTime) -> Result<String, StoreError> {
    let unstorable = || StoreError::Unstorable { column };
    let nanoseconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok(),
        Err(before) => i128::try_from(before.duration().as_nanos()).ok().map(|before| -before),
    };
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds.ok_or_else(unstorable)?);
    let time = time.ok().filter(|time| time.year() > 0).ok_or_else(unstorable)?;
    time.format(WRITTEN).map_err(|_| unstorable())
}

pub(crate) fn to_text_optional(
    column: &'static str,
    time: Option<SystemTime>,
) -> Result<Option<String>, StoreError> {
    time.map(|time| to_text(column, time)).transpose()
}

pub(crate) fn from_text(text: &str) -> Option<SystemTime> {
    Some(PrimitiveDateTime::parse(text, READ).ok()?.assume_utc().into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn time(seconds: u64, microseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds)
    }

    #[test]
    fn times_are_written_as_sqlalchemy_writes_them() {
        let written = |time| to_text("column", time).unwrap();
        assert_eq!(written(time(0, 0)), "1970-01-01 00:00:00.000000");
        assert_eq!(written(time(1_795_398_348, 159_298)), "2026-11-23 01:45:48.159298");
        assert_eq!(written(time(4_070_953_815, 1)), "2099-01-01 12:30:15.000001");
        assert_eq!(written(time(0, 0) - Duration::from_secs(1)), "1969-12-31 23:59:59.000000");
    }

    #[test]
    fn times_are_read_with_and_without_a_fraction() {
        assert_eq!(from_text("2026-11-23 01:45:48.159298"), Some(time(1_795_398_348, 159_298)));
        assert_eq!(from_text("2026-11-23 01:45:48.5"), Some(time(1_795_398_348, 500_000)));
        assert_eq!(from_text("2026-11-23 01:45:48"), Some(time(1_795_398_348, 0)));
    }

    #[test]
    fn anything_else_is_not_a_time() {
        let texts = [
            "",
            "never",
            "2026-11-23",
            "2026-13-01 00:00:00",
            "2026-02-30 00:00:00",
            "2026-11-23T01:45:48",
            "2026-11-23 01:45:48Z",
            "2026-11-23 01:45:48+01:00",
            "2026-11-23 24:00:00",
            "99999-01-01 00:00:00",
            "2026-11-23 01:45:48.",
            "1795398348",
        ];
        for text in texts {
            assert_eq!(from_text(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_that_no_column_can_hold_is_an_error() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 62);
        let ancient = SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 40);
        for time in [far, ancient] {
            assert!(matches!(to_text("c", time), Err(StoreError::Unstorable { column: "c" })));
        }
    }
}
