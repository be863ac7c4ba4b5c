//! Times as numbers of microseconds, the precision of databases.

use std::time::{Duration, SystemTime};

/// The last second of the year 9999, in seconds since 1970: the last that the service's columns hold and
/// that a date of HTTP can say.
pub(crate) const LAST_SECOND: u64 = 253_402_300_799;

/// The shortest time that databases tell apart.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) const MICROSECOND: Duration = Duration::from_micros(1);

/// Returns the microseconds since 1970, negative before it. A time that is more than 292,000 years away
/// counts as that far away.
pub(crate) fn to_microseconds(time: SystemTime) -> i64 {
    // The microseconds of a duration are fewer than 2^84.
    let microseconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => since.as_micros() as i128,
        Err(before) => -(before.duration().as_micros() as i128),
    };
    microseconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Returns the time so many microseconds after 1970.
pub(crate) fn from_microseconds(microseconds: i64) -> SystemTime {
    let distance = Duration::from_micros(microseconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    if microseconds < 0 { epoch - distance } else { epoch + distance }
}

/// Cuts a time to the microsecond.
pub(crate) fn cut_to_microseconds(time: SystemTime) -> SystemTime {
    from_microseconds(to_microseconds(time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_of_microseconds_is_read_back(microseconds: i64) {
            prop_assert_eq!(to_microseconds(from_microseconds(microseconds)), microseconds);
        }
    }

    #[test]
    fn a_time_too_far_away_is_the_furthest() {
        let far = Duration::from_secs(i64::MAX.unsigned_abs() / 2);
        assert_eq!(to_microseconds(SystemTime::UNIX_EPOCH + far), i64::MAX);
        assert_eq!(to_microseconds(SystemTime::UNIX_EPOCH - far), i64::MIN);
    }

    #[test]
    fn what_is_less_than_a_microsecond_is_cut_off() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_001_999);
        let cut = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_001_000);
        assert_eq!(cut_to_microseconds(time), cut);
    }
}
