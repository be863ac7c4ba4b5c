//! Times as columns hold them.

use std::ops::RangeInclusive;
use std::time::SystemTime;

use crate::error::StoreError;
use crate::util::time::{LAST_SECOND, from_microseconds, to_microseconds};

/// A time of a column without a time zone, in microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timestamp(i64);

/// The years 1 to 9999, which every other reader of the table understands.
const YEARS: RangeInclusive<i64> =
    -62_135_596_800_000_000..=LAST_SECOND.cast_signed() * 1_000_000 + 999_999;

impl Timestamp {
    /// Returns the time to be written to `column`.
    ///
    /// # Errors
    /// [`StoreError::Unstorable`].
    pub(crate) fn new(column: &'static str, time: SystemTime) -> Result<Self, StoreError> {
        let microseconds = to_microseconds(time);
        let is_storable = YEARS.contains(&microseconds);
        is_storable.then_some(Self(microseconds)).ok_or(StoreError::Unstorable { column })
    }

    /// Returns a time that was read, microseconds after 1970: it may be in any year.
    pub(crate) fn from_microseconds(microseconds: i64) -> Self {
        Self(microseconds)
    }

    pub(crate) fn microseconds(self) -> i64 {
        self.0
    }

    pub(crate) fn to_time(self) -> SystemTime {
        from_microseconds(self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_that_no_column_can_hold_is_an_error() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 62);
        let ancient = SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 40);
        for time in [far, ancient] {
            let answer = Timestamp::new("c", time);
            assert!(matches!(answer, Err(StoreError::Unstorable { column: "c" })));
        }
    }

    #[test]
    fn the_first_and_the_last_microsecond_can_be_held() {
        for microseconds in [*YEARS.start(), *YEARS.end()] {
            let time = from_microseconds(microseconds);
            assert_eq!(Timestamp::new("c", time).unwrap().to_time(), time);
            let beyond = from_microseconds(microseconds + microseconds.signum());
            assert!(Timestamp::new("c", beyond).is_err());
        }
    }
}
