//! This machine's clock, and the time zone of the database.

use std::time::{Duration, SystemTime};

use lexikon_auth::StoreError;
use lexikon_auth::admin::{ImpossibleUse, KeyTable};

use super::report::Finding::{self, Failed, Note, Passed};

/// How far clocks may be apart: dates of expiry and cut-off are as exact as this.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);
/// How far a zone is off at least, less the time that a last use may wait to be written, and clocks.
const LEAST_OFFSET: Duration = Duration::from_secs(14 * 60);
/// By how much an instant that was just noted may be later than it seems.
const ALLOWANCE: Duration = Duration::from_secs(60);
/// A date before which no clock that is set can be: 2026-01-01.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

pub fn check_clock(
    now: SystemTime,
    latest: &Result<Option<SystemTime>, StoreError>,
    impossible: &Result<Option<ImpossibleUse>, StoreError>,
) -> Finding {
    if now < SystemTime::UNIX_EPOCH + EPOCH {
        return Failed("this machine's clock is not set".to_owned());
    }
    let is_behind = |lead: &Duration| (CLOCK_TOLERANCE..LEAST_OFFSET).contains(lead);
    match (latest, impossible) {
        (Ok(Some(latest)), _) if *latest > now + CLOCK_TOLERANCE => {
            Failed("this machine's clock is behind the database; set both by NTP".to_owned())
        }
        (Ok(_), Ok(Some(ImpossibleUse::Ahead(lead)))) if is_behind(lead) => Failed(
            "this machine's clock is behind that of an instance, which has just used a key; set both \
             by NTP"
                .to_owned(),
        ),
        (Ok(_), _) => Passed("not behind the database".to_owned()),
        (Err(error), _) => Failed(error.to_string()),
    }
}

/// Checks whether last uses can have been where they are read: a wrong zone is off by whole quarters of an
/// hour, less the time since a key was used.
pub async fn check_zone(
    table: &KeyTable,
    now: SystemTime,
    impossible: Result<Option<ImpossibleUse>, StoreError>,
    is_sqlite: bool,
) -> Finding {
    let (impossible, kept) = match (impossible, table.kept_time_zone().await) {
        (Ok(impossible), Ok(kept)) => (impossible, kept),
        (Err(error), _) | (_, Err(error)) => return Failed(error.to_string()),
    };
    let zone = table.time_zone();
    let remedy = match (&kept, table.can_keep_time_zone()) {
        (Some(kept), _) => format!("lxk schema time-zone ZONE --replace {kept}"),
        (None, true) => "lxk schema time-zone ZONE".to_owned(),
        (None, false) => {
            "set LEXIKON_TIME_ZONE to it here, and call with_time_zone in every instance".to_owned()
        }
    };
    let remedy = format!("find out where it ran; {remedy}");
    let offset = |seconds: i64| {
        let (sign, seconds) = (if seconds < 0 { '-' } else { '+' }, seconds.abs());
        format!("UTC{sign}{:02}:{:02}", seconds / 3600, seconds / 60 % 60)
    };
    let ahead = i64::from(zone.seconds_ahead(now));
    match impossible {
        Some(ImpossibleUse::Ahead(lead)) if lead >= LEAST_OFFSET => Failed(format!(
            "a key was used {} ahead of the clock: the service ran in a zone at {} or further ahead, \
             not in {zone}; {remedy}",
            minutes(lead),
            offset(ahead + quarters(lead)),
        )),
        Some(ImpossibleUse::BeforeCreation(lead)) if lead >= LEAST_OFFSET => {
            let seen = format!(
                "a key was used {} before it was made: the service ran in a zone at {} or further \
                 behind, not in {zone}",
                minutes(lead),
                offset(ahead - quarters(lead)),
            );
            if is_sqlite {
                Failed(format!("{seen}; {remedy}"))
            } else {
                Note(format!("{seen}, or its sessions in PostgreSQL are not in UTC; {remedy}"))
            }
        }
        _ => match (kept, table.can_keep_time_zone()) {
            (Some(_), _) => Passed(format!("{zone}, kept by the database")),
            (None, true) => Note(format!(
                "{zone}; the database keeps none, so instances may differ: lxk schema time-zone {zone}"
            )),
            (None, false) => Note(format!(
                "{zone}; the database keeps none, and has no table for it: lxk schema apply"
            )),
        },
    }
}

/// Returns seconds, rounded up to quarters of an hour.
fn quarters(lead: Duration) -> i64 {
    const QUARTER: u64 = 15 * 60;
    let seconds = lead.saturating_sub(ALLOWANCE).as_secs().div_ceil(QUARTER) * QUARTER;
    seconds.cast_signed()
}

fn minutes(lead: Duration) -> String {
    format!("{}h {}min", lead.as_secs() / 3600, lead.as_secs() / 60 % 60)
}
