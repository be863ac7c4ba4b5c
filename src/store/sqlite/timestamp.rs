//! Times as SQLAlchemy writes them to SQLite: text without a time zone, taken as UTC.

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use crate::store::sql::timestamp::Timestamp;

/// What is written.
const WRITTEN: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
/// What is read: `CURRENT_TIMESTAMP` of SQLite has no fraction.
const READ: &[BorrowedFormatItem<'_>] = format_description!(
    version = 2,
    "[year]-[month]-[day] [hour]:[minute]:[second][optional [.[subsecond]]]"
);

pub(super) fn to_text(time: Timestamp) -> String {
    let nanoseconds = i128::from(time.microseconds()) * 1000;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds);
    time.ok().and_then(|time| time.format(WRITTEN).ok()).expect("it is in the years 1 to 9999")
}

pub(super) fn from_text(text: &str) -> Option<Timestamp> {
    let time = PrimitiveDateTime::parse(text, READ).ok()?.assume_utc();
    let microseconds = time.unix_timestamp_nanos().div_euclid(1000);
    microseconds.try_into().ok().map(Timestamp::from_microseconds)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn time(seconds: u64, microseconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(microseconds)
    }

    #[test]
    fn times_are_written_as_sqlalchemy_writes_them() {
        let written = |time| to_text(Timestamp::new("column", time).unwrap());
        assert_eq!(written(time(0, 0)), "1970-01-01 00:00:00.000000");
        assert_eq!(written(time(1_795_398_348, 159_298)), "2026-11-23 01:45:48.159298");
        assert_eq!(written(time(4_070_953_815, 1)), "2099-01-01 12:30:15.000001");
        assert_eq!(written(time(0, 0) - Duration::from_secs(1)), "1969-12-31 23:59:59.000000");
    }

    #[test]
    fn times_are_read_with_and_without_a_fraction() {
        let read = |text| from_text(text).map(Timestamp::to_time);
        assert_eq!(read("2026-11-23 01:45:48.159298"), Some(time(1_795_398_348, 159_298)));
        assert_eq!(read("2026-11-23 01:45:48.5"), Some(time(1_795_398_348, 500_000)));
        assert_eq!(read("2026-11-23 01:45:48"), Some(time(1_795_398_348, 0)));
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
}
