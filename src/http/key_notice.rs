//! Headers that tell a caller that the key is on its way out.

use std::time::{Duration, SystemTime};

use ::http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::crypto::hash::HashFormat;
use crate::policy::LegacyPolicy;
use crate::verify::VerifiedKey;

const NOTICE: HeaderName = HeaderName::from_static("api-key-notice");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Which callers are told, by headers of the response, that their key will stop being accepted.
///
/// The header is `API-Key-Notice`, a list of [RFC 9651](https://www.rfc-editor.org/rfc/rfc9651):
///
/// ```text
/// API-Key-Notice: legacy;until=@1798761600, expires;until=@1796083200
/// ```
///
/// - `legacy`: the key is stored as plain SHA-256, and will not be accepted as it is from the date on,
///   where [`LegacyPolicy::AcceptUntil`] has set one. Not said while keys are upgraded on use.
/// - `expires`: the key expires soon.
///
/// Dates are seconds since 1970.
#[derive(Debug, Clone)]
pub struct Notices {
    expires_within: Duration,
    deprecated_since: Option<SystemTime>,
}

impl Default for Notices {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self { expires_within: Duration::from_secs(14 * DAY), deprecated_since: None }
    }
}

impl Notices {
    /// How long before its expiry a key is said to expire. Default 14 days; zero never says so.
    pub fn expires_within(self, time: Duration) -> Self {
        Self { expires_within: time, ..self }
    }

    /// Has responses to requests with a legacy key also carry `Deprecation` with this date
    /// ([RFC 9745](https://www.rfc-editor.org/rfc/rfc9745)) and, where a date is set from which the
    /// key is not accepted, `Sunset` ([RFC 8594](https://www.rfc-editor.org/rfc/rfc8594)). Generic
    /// clients understand these, but for the resource as a whole: that is why it has to be asked for.
    pub fn deprecated_since(self, date: SystemTime) -> Self {
        Self { deprecated_since: Some(date), ..self }
    }

    /// The headers for a key that was verified at `now`.
    pub(crate) fn headers(
        &self,
        key: &VerifiedKey,
        policy: LegacyPolicy,
        now: SystemTime,
    ) -> NoticeHeaders {
        let mut headers = NoticeHeaders::default();
        let mut notices = Vec::new();
        let is_legacy = key.format() == HashFormat::Sha256;
        if is_legacy && policy != LegacyPolicy::UpgradeOnUse {
            let closes = match policy {
                LegacyPolicy::AcceptUntil(date) => Some(date),
                _ => None,
            };
            let until = closes.into_iter().chain(key.expires_at()).min();
            notices.push(notice("legacy", until));
            if let Some(since) = self.deprecated_since {
                headers.push(DEPRECATION, format!("@{}", seconds(since)));
                if let Some(until) = until {
                    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(until));
                    headers.push(SUNSET, httpdate::fmt_http_date(until));
                }
            }
        }
        let left = key.expires_at().and_then(|date| date.duration_since(now).ok());
        if left.is_some_and(|left| left < self.expires_within) {
            notices.push(notice("expires", key.expires_at()));
        }
        if !notices.is_empty() {
            headers.push(NOTICE, notices.join(", "));
        }
        headers
    }
}

fn notice(name: &str, until: Option<SystemTime>) -> String {
    match until {
        Some(date) => format!("{name};until=@{}", seconds(date)),
        None => name.to_owned(),
    }
}

/// Seconds since 1970, within what a date of HTTP can say.
fn seconds(date: SystemTime) -> u64 {
    /// The end of the year 9999.
    const LAST: u64 = 253_402_300_799;
    date.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs().min(LAST))
}

/// Headers to be added to a response.
#[derive(Debug, Default)]
pub(crate) struct NoticeHeaders(Vec<(HeaderName, HeaderValue)>);

impl NoticeHeaders {
    fn push(&mut self, name: HeaderName, value: String) {
        self.0.push((name, HeaderValue::try_from(value).expect("digits, letters and signs")));
    }

    /// What the service itself says of a resource stands.
    pub(crate) fn add_to(&mut self, headers: &mut HeaderMap) {
        for (name, value) in self.0.drain(..) {
            headers.entry(name).or_insert(value);
        }
    }
}
