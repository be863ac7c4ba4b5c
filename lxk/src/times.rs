//! Times as they are typed and printed.

use std::time::{Duration, SystemTime};

use lexikon_auth::store::TimeZone;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;

/// Reads the name of a time zone. What reads a value does not repeat it in its error, which clap prints.
pub fn parse_zone(name: &str) -> Result<TimeZone, String> {
    name.parse()
        .map_err(|_| "write it as in the IANA database, such as Europe/Paris, or UTC".into())
}

/// Reads a span of time such as `30d`, `24h` or `90s`.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write it as 30d, 24h or 15min".to_owned())
}

/// Reads a date in UTC: `2026-12-01`, or `2026-12-01T12:00:00Z`.
pub fn parse_date(text: &str) -> Result<SystemTime, String> {
    let time = match text.len() {
        10 => humantime::parse_rfc3339(&format!("{text}T00:00:00Z")),
        _ => humantime::parse_rfc3339_weak(text),
    };
    time.map_err(|_| "write it as 2026-12-01 or 2026-12-01T12:00:00Z".to_owned())
}

/// Reads a date that has been.
pub fn parse_past_date(text: &str) -> Result<SystemTime, String> {
    match parse_date(text)? {
        date if date > SystemTime::now() => Err("is in the future; write when it was".to_owned()),
        date => Ok(date),
    }
}

/// Returns the time that lies so far back.
pub fn ago(span: Duration) -> SystemTime {
    SystemTime::now().checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Returns the time that lies so far ahead, within what databases keep.
pub fn ahead(span: Duration) -> Result<SystemTime, Failure> {
    /// A thousand years, in seconds.
    const LONGEST: Duration = Duration::from_secs(1000 * 365 * 24 * 3600);
    if span > LONGEST {
        return Err(Failure::Usage("the time is longer than 1000 years; shorten it".to_owned()));
    }
    Ok(SystemTime::now() + span)
}

/// Writes a time as RFC 3339 has it, in UTC, to the second; `None` where that has no such time, as for
/// `infinity` of PostgreSQL.
pub fn timestamp(time: SystemTime) -> Option<String> {
    let nanoseconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i128::try_from(since.as_nanos()).ok()?,
        Err(before) => -i128::try_from(before.duration().as_nanos()).ok()?,
    };
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
    time.format(&Rfc3339).ok()
}

/// Writes a time for people: to the minute, Z for UTC, or a word where there is none.
pub fn format_date(time: Option<SystemTime>, none: &str) -> String {
    let text = time.map(|time| timestamp(time).unwrap_or_else(|| "far away".to_owned()));
    match text {
        Some(text) if text.len() >= 16 => text[..16].replace('T', " ") + "Z",
        Some(text) => text,
        None => none.to_owned(),
    }
}

/// Writes a time for programs: RFC 3339, or null.
pub fn json_time(time: Option<SystemTime>) -> Value {
    time.and_then(timestamp).map_or(Value::Null, |text| json!(text))
}
