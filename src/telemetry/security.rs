//! The security events. Their functions are cold, which keeps their code out of the hot path.

use std::fmt::{self, Display, Write};
use std::time::SystemTime;

use tracing::{debug, error, info, warn};

use crate::error::{Refusal, StoreError, VerifyError};
use crate::record::KeyRecord;

/// The target of the `tracing` events that concern security: uses of legacy keys, refusals, stores that
/// do not answer or answer wrongly, and entries of Redis that were tampered with.
///
/// They name keys by id and never hold a key, a hash or a secret. A filter such as
/// `lexikon_auth::security=debug` also shows the refusals of keys that are none, which anybody can cause
/// in any number.
pub const SECURITY_TARGET: &str = "lexikon_auth::security";

/// Displays a text with its control characters escaped. Ids and owners are whatever stands in the table, and
/// a line break in one would forge a line of the log.
struct Printable<'a, T>(&'a T);

impl<T: Display> Display for Printable<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            if character.is_control() {
                character.escape_default().fmt(f)?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Reports that a legacy key was accepted.
#[cold]
#[inline(never)]
pub(crate) fn legacy_accepted(record: &KeyRecord, now: SystemTime) {
    warn!(
        target: SECURITY_TARGET,
        key_id = %Printable(&record.id),
        owner = %Printable(&record.owner),
        age_days = age_days(record, now),
        "a key stored as plain SHA-256 was accepted"
    );
}

/// Reports that a legacy key was accepted that the policy `refuse` would have refused.
#[cold]
pub(crate) fn shadow_refused(record: &KeyRecord, now: SystemTime) {
    warn!(
        target: SECURITY_TARGET,
        key_id = %Printable(&record.id),
        owner = %Printable(&record.owner),
        age_days = age_days(record, now),
        "a key stored as plain SHA-256 was accepted that would be refused"
    );
}

fn age_days(record: &KeyRecord, now: SystemTime) -> Option<u64> {
    let age = record.created_at.and_then(|created_at| now.duration_since(created_at).ok());
    age.map(|age| age.as_secs() / (24 * 3600))
}

/// Reports that a verification did not succeed.
#[cold]
#[inline(never)]
pub(crate) fn not_accepted(error: &VerifyError) {
    match error {
        VerifyError::Refused(refusal) => refused(refusal),
        VerifyError::Unavailable(StoreError::WrongRow(id)) => error!(
            target: SECURITY_TARGET,
            key_id = %Printable(id),
            "the store returned a row that was not asked for"
        ),
        VerifyError::Unavailable(error) => {
            warn!(target: SECURITY_TARGET, error = %Printable(error), "a key could not be verified");
        }
    }
}

fn refused(refusal: &Refusal) {
    let reason = refusal.as_str();
    match refusal {
        Refusal::Expired(id)
        | Refusal::Revoked(id)
        | Refusal::OwnerDisabled(id)
        | Refusal::LegacyClosed(id) => {
            info!(target: SECURITY_TARGET, key_id = %Printable(id), reason, "a key was refused");
        }
        // Anybody can cause these in any number: at debug they do not fill the log.
        Refusal::Malformed(_) | Refusal::ForgedTag | Refusal::UntaggedClosed | Refusal::Unknown => {
            debug!(target: SECURITY_TARGET, reason, "a key was refused")
        }
    }
}

/// Reports an entry of Redis that does not carry the MAC of an instance with this secret.
#[cfg(feature = "redis")]
#[cold]
pub(crate) fn entry_tampered() {
    warn!(
        target: SECURITY_TARGET,
        "an entry in Redis was not written by an instance with this secret; it is ignored"
    );
}

/// Reports a request that does not say which key is meant.
#[cfg(feature = "tower")]
#[cold]
pub(crate) fn bad_credential(problem: impl Display) {
    debug!(target: SECURITY_TARGET, %problem, "a request does not say which key is meant");
}

/// Reports that an address has reached its limit, and is denied from now on.
#[cfg(feature = "throttle")]
#[cold]
pub(crate) fn throttled(address: std::net::IpAddr) {
    info!(target: SECURITY_TARGET, %address, "too many keys from one address were refused");
}

/// Reports that the server does not say where requests come from.
#[cfg(feature = "throttle")]
#[cold]
pub(crate) fn unlimited() {
    warn!(
        target: SECURITY_TARGET,
        "the address of a request is not known, so refused keys are not limited"
    );
}
