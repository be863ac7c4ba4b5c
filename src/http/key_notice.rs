//! Response headers that warn of the end of a key.

use std::time::{Duration, SystemTime};

use ::http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::crypto::hash::HashFormat;
use crate::policy::LegacyPolicy;
use crate::util::time::LAST_SECOND;
use crate::verify::VerifiedKey;

const NOTICE: HeaderName = HeaderName::from_static("api-key-notice");
const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Warns callers, in the header `API-Key-Notice` of the response, that their key will stop being accepted.
///
/// The header is a list of [RFC 9651](https://www.rfc-editor.org/rfc/rfc9651):
///
/// ```text
/// API-Key-Notice: legacy;until=@1798761600, expires;until=@1796083200
/// ```
///
/// - `legacy`: the key is stored as plain SHA-256, and will not be accepted as it is from the date on,
///   if [`LegacyPolicy::AcceptUntil`] sets one. Left out while keys are upgraded on use.
/// - `expires`: the key expires soon.
///
/// Dates are seconds since 1970.
#[doc(alias = "deprecation")]
#[doc(alias = "expiry")]
#[doc(alias = "sunset")]
#[derive(Debug, Clone)]
pub struct ApiKeyNotice {
    expires_within: Duration,
    deprecated_since: Option<SystemTime>,
}

impl Default for ApiKeyNotice {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self { expires_within: Duration::from_secs(14 * DAY), deprecated_since: None }
    }
}

impl ApiKeyNotice {
    /// Sets how long before its expiry a key is said to expire. Default 14 days; zero never says so.
    pub fn expires_within(self, expires_within: Duration) -> Self {
        Self { expires_within, ..self }
    }

    /// Adds `Deprecation` with this date ([RFC 9745](https://www.rfc-editor.org/rfc/rfc9745)) to responses for
    /// legacy keys and, if there is a date from which the key is not accepted, `Sunset`
    /// ([RFC 8594](https://www.rfc-editor.org/rfc/rfc8594)). Generic clients understand both, but as said of
    /// the resource as a whole: therefore they are off by default.
    pub fn deprecated_since(self, date: SystemTime) -> Self {
        Self { deprecated_since: Some(date), ..self }
    }

    /// Returns the headers for a key that was verified at `now`.
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
            let refused_from = match policy {
                LegacyPolicy::AcceptUntil(date) => Some(date),
                _ => None,
            };
            let until = refused_from.into_iter().chain(key.expires_at()).min();
            notices.push(notice("legacy", until));
            if let Some(since) = self.deprecated_since {
                headers.push(DEPRECATION, format!("@{}", unix_seconds(since)));
                if let Some(until) = until {
                    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds(until));
                    headers.push(SUNSET, httpdate::fmt_http_date(until));
                }
            }
        }
        let remaining = key.expires_at().and_then(|date| date.duration_since(now).ok());
        if remaining.is_some_and(|remaining| remaining < self.expires_within) {
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
        Some(date) => format!("{name};until=@{}", unix_seconds(date)),
        None => name.to_owned(),
    }
}

/// Returns seconds since 1970, up to the last date that HTTP can express.
fn unix_seconds(date: SystemTime) -> u64 {
    date.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs().min(LAST_SECOND))
}

/// Headers to add to a response. Without any, nothing is allocated.
#[derive(Debug, Default)]
pub(crate) struct NoticeHeaders(Vec<(HeaderName, HeaderValue)>);

impl NoticeHeaders {
    fn push(&mut self, name: HeaderName, value: String) {
        self.0.push((name, HeaderValue::try_from(value).expect("digits, letters and signs")));
    }

    /// Adds the headers that the service has not set itself.
    pub(crate) fn add_to(&mut self, headers: &mut HeaderMap) {
        for (name, value) in self.0.drain(..) {
            headers.entry(name).or_insert(value);
        }
    }
}
