//! The security events. Cold: a verification that has nothing to tell does not carry their code along.

use std::fmt::{self, Display, Write};
use std::time::SystemTime;

use tracing::{debug, error, info, warn};

use super::SECURITY_TARGET;
use crate::error::{Refusal, StoreError, VerifyError};
use crate::record::KeyRecord;

/// A text as it is, but for control characters, which are escaped: ids and owners are whatever stands in
/// the table, and a line break in one would make a line of the log that nobody wrote.
struct Printable<'a, T>(&'a T);

impl<T: Display> Display for Printable<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.to_string().chars() {
            match character.is_control() {
                true => character.escape_default().fmt(f)?,
                false => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// A legacy key was accepted.
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

/// A legacy key was accepted that the policy `refuse` would have refused.
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

/// A verification did not succeed.
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
        // Whoever sends garbage does not fill the log.
        Refusal::Malformed(_) | Refusal::ForgedTag | Refusal::UntaggedClosed | Refusal::Unknown => {
            debug!(target: SECURITY_TARGET, reason, "a key was refused")
        }
    }
}

/// An entry of Redis does not carry the MAC of an instance with this secret.
#[cfg(feature = "redis")]
#[cold]
pub(crate) fn entry_tampered() {
    warn!(
        target: SECURITY_TARGET,
        "an entry in Redis was not written by an instance with this secret; it is ignored"
    );
}

/// A request has no key that could be verified.
#[cfg(feature = "tower")]
#[cold]
pub(crate) fn bad_credential(problem: impl Display) {
    debug!(target: SECURITY_TARGET, %problem, "a request does not say which key is meant");
}

/// From now on an address is denied, until it has waited.
#[cfg(feature = "throttle")]
#[cold]
pub(crate) fn throttled(address: std::net::IpAddr) {
    info!(target: SECURITY_TARGET, %address, "too many keys from one address were refused");
}

/// The server does not say where requests come from.
#[cfg(feature = "throttle")]
#[cold]
pub(crate) fn unlimited() {
    warn!(
        target: SECURITY_TARGET,
        "the address of a request is not known, so refused keys are not limited"
    );
}
