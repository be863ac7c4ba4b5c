//! Outcomes and times of verifications.

use std::time::SystemTime;

use super::instruments::{Counter, Histogram, Stopwatch};
use super::{metric, security};
use crate::crypto::hash::{HashFormat, Match};
use crate::error::{Refusal, VerifyError};
use crate::record::KeyRecord;

/// Counts and times the verifications of one verifier.
pub(crate) struct VerifierMetrics {
    hmac_sha256: Counter,
    sha256: Counter,
    under_retired_secret: Counter,
    shadow_refused: Counter,
    refused: Refused,
    unavailable: Counter,
    durations: Durations,
}

struct Refused {
    malformed: Counter,
    forged_tag: Counter,
    untagged_closed: Counter,
    unknown: Counter,
    expired: Counter,
    revoked: Counter,
    owner_disabled: Counter,
    legacy_closed: Counter,
}

struct Durations {
    accepted: Histogram,
    refused: Histogram,
    unavailable: Histogram,
}

impl VerifierMetrics {
    pub(crate) fn new() -> Self {
        let counter = |outcome, format, reason| {
            let labels = [("outcome", outcome), ("format", format), ("reason", reason)];
            Counter::new(&metric::VERIFICATIONS, &labels)
        };
        let refused = |reason| counter("refused", "none", reason);
        let duration =
            |outcome| Histogram::new(&metric::VERIFICATION_DURATION, &[("outcome", outcome)]);
        Self {
            hmac_sha256: counter("accepted", HashFormat::HmacSha256.as_str(), "none"),
            sha256: counter("accepted", HashFormat::Sha256.as_str(), "none"),
            under_retired_secret: Counter::new(&metric::RETIRED_SECRET, &[]),
            shadow_refused: Counter::new(&metric::SHADOW_REFUSALS, &[]),
            refused: Refused {
                malformed: refused("malformed"),
                forged_tag: refused("forged_tag"),
                untagged_closed: refused("untagged_closed"),
                unknown: refused("unknown"),
                expired: refused("expired"),
                revoked: refused("revoked"),
                owner_disabled: refused("owner_disabled"),
                legacy_closed: refused("legacy_closed"),
            },
            unavailable: counter("unavailable", "none", "none"),
            durations: Durations {
                accepted: duration("accepted"),
                refused: duration("refused"),
                unavailable: duration("unavailable"),
            },
        }
    }

    /// Reports an accepted legacy key that would have been refused.
    pub(crate) fn shadow_refused(&self, record: &KeyRecord, now: SystemTime) {
        security::shadow_refused(record, now);
        self.shadow_refused.add(1);
    }

    /// Reports an accepted key.
    pub(crate) fn accepted(&self, started: Stopwatch, matched: Match) {
        self.durations.accepted.record(started.elapsed());
        match matched.format() {
            HashFormat::HmacSha256 => self.hmac_sha256.add(1),
            HashFormat::Sha256 => self.sha256.add(1),
        }
        if matched == Match::Retired {
            self.under_retired_secret.add(1);
        }
    }

    /// Reports a key that was not accepted.
    #[inline]
    pub(crate) fn not_accepted(&self, started: Stopwatch, error: &VerifyError) {
        security::not_accepted(error);
        self.count_not_accepted(started, error);
    }

    fn count_not_accepted(&self, started: Stopwatch, error: &VerifyError) {
        let Some(refusal) = error.refusal() else {
            self.durations.unavailable.record(started.elapsed());
            return self.unavailable.add(1);
        };
        self.durations.refused.record(started.elapsed());
        let refused = &self.refused;
        let counter = match refusal {
            Refusal::Malformed(_) => &refused.malformed,
            Refusal::ForgedTag => &refused.forged_tag,
            Refusal::UntaggedClosed => &refused.untagged_closed,
            Refusal::Unknown => &refused.unknown,
            Refusal::Expired(_) => &refused.expired,
            Refusal::Revoked(_) => &refused.revoked,
            Refusal::OwnerDisabled(_) => &refused.owner_disabled,
            Refusal::LegacyClosed(_) => &refused.legacy_closed,
        };
        counter.add(1);
    }
}
