//! What the verifier does with keys that are on their way out.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::util::time::{from_microseconds, to_microseconds};

/// What happens to a key that is stored as plain SHA-256. The default is [`Accept`](Self::Accept).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LegacyPolicy {
    /// Accepted, and logged as a warning with the key's id.
    #[default]
    Accept,
    /// Accepted before the date, refused from that instant on. A use before the date does not replace
    /// the hash; only [`UpgradeOnUse`](Self::UpgradeOnUse) does.
    AcceptUntil(SystemTime),
    /// Accepted, and its hash replaced by the HMAC-SHA-256 one at the next flush. Code that knows
    /// only SHA-256 stops accepting the key then.
    UpgradeOnUse,
    /// Accepted, while every key that [`Refuse`](Self::Refuse) would refuse is counted and logged: a
    /// rehearsal.
    Shadow,
    /// Refused.
    Refuse,
}

impl LegacyPolicy {
    /// Returns whether a legacy key is accepted at `now`.
    pub(crate) fn accepts(self, now: SystemTime) -> bool {
        match self {
            Self::Accept | Self::UpgradeOnUse | Self::Shadow => true,
            Self::AcceptUntil(date) => now < date,
            Self::Refuse => false,
        }
    }

    /// Returns what applies where `self` stands in the code and `shared` in a database, which may tighten a
    /// policy and never loosen it: whoever can write there could add a legacy key of their own.
    #[cfg(feature = "tokio")]
    pub(crate) fn tightened_by(self, shared: Self) -> Self {
        match (self, shared) {
            (Self::Refuse, _) => Self::Refuse,
            (Self::AcceptUntil(date), Self::AcceptUntil(other)) => {
                Self::AcceptUntil(date.min(other))
            }
            (Self::AcceptUntil(_), Self::Refuse) => Self::Refuse,
            (Self::AcceptUntil(_), _) => self,
            (_, shared) => shared,
        }
    }

    /// Returns the policy as one word: `accept`, `accept-until`, `upgrade`, `shadow` or `refuse`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::AcceptUntil(_) => "accept-until",
            Self::UpgradeOnUse => "upgrade",
            Self::Shadow => "shadow",
            Self::Refuse => "refuse",
        }
    }

    /// Returns the policy of a name, as [`as_str`](Self::as_str) gives it; `None` where there is no such
    /// policy, or it needs a date and there is none.
    #[cfg(any(feature = "postgres", feature = "sqlite"))]
    pub(crate) fn from_name(name: &str, accept_until: Option<SystemTime>) -> Option<Self> {
        let others = [Self::Accept, Self::UpgradeOnUse, Self::Shadow, Self::Refuse];
        let mut policies = others.into_iter().chain(accept_until.map(Self::AcceptUntil));
        policies.find(|policy| policy.as_str() == name)
    }
}

/// A legacy policy that may change while verifications read it. Dates are kept to the microsecond, as in
/// databases.
pub(crate) struct CurrentLegacyPolicy(AtomicU64);

/// The low bits say which policy it is, the others hold the date, in microseconds since 1970.
const KIND_BITS: u32 = 3;

impl CurrentLegacyPolicy {
    pub(crate) fn new(policy: LegacyPolicy) -> Self {
        let current = Self(AtomicU64::new(0));
        current.set(policy);
        current
    }

    /// Returns whether it was another.
    pub(crate) fn set(&self, policy: LegacyPolicy) -> bool {
        let word = match policy {
            LegacyPolicy::Accept => 0,
            LegacyPolicy::UpgradeOnUse => 1,
            LegacyPolicy::Shadow => 2,
            LegacyPolicy::Refuse => 3,
            LegacyPolicy::AcceptUntil(date) => {
                let microseconds = to_microseconds(date).max(0).cast_unsigned();
                microseconds.min(u64::MAX >> KIND_BITS) << KIND_BITS | 4
            }
        };
        self.0.swap(word, Ordering::Relaxed) != word
    }

    /// Returns the policy of now. One word, so that nobody sees half of a change; nothing else depends on it.
    pub(crate) fn read(&self) -> LegacyPolicy {
        let word = self.0.load(Ordering::Relaxed);
        match word & ((1 << KIND_BITS) - 1) {
            0 => LegacyPolicy::Accept,
            1 => LegacyPolicy::UpgradeOnUse,
            2 => LegacyPolicy::Shadow,
            4 => LegacyPolicy::AcceptUntil(from_microseconds((word >> KIND_BITS).cast_signed())),
            _ => LegacyPolicy::Refuse,
        }
    }
}

impl fmt::Debug for CurrentLegacyPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

/// What happens to a key whose hash is under a retired secret. The default is
/// [`Accept`](Self::Accept).
///
/// Either way a retired secret has to stay in the ring: a key carries the tag of the secret it was
/// issued under, and is refused without that secret, also when its hash has moved. It can go when every
/// key issued under it has been rotated or revoked, or has expired; they are among those whose
/// [`created_at`](crate::KeyRecord::created_at) is before the last instance changed its secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RetiredPolicy {
    /// Accepted.
    #[default]
    Accept,
    /// Accepted, and its hash replaced by the one under the current secret at the next flush.
    ///
    /// Set it only when every instance has the new secret as its current one: an instance that does
    /// not know that secret refuses the keys whose hashes have moved. On several instances, first give
    /// each the new secret as `API_KEY_SECRET_PREVIOUS`, then swap the two on each, then set this.
    UpgradeOnUse,
}

/// What happens to a key without a tag, as the lexikon service issued them. The default is
/// [`Accept`](Self::Accept).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum UntaggedPolicy {
    /// Looked up in every format.
    #[default]
    Accept,
    /// Refused without a look-up, for a table that holds none any more.
    Refuse,
}

/// The policies of a verifier. The default accepts every key that the lexikon service accepts.
///
/// ```
/// use lexikon_auth::{LegacyPolicy, Policy, RetiredPolicy};
/// let policy = Policy::default().legacy(LegacyPolicy::UpgradeOnUse).retired(RetiredPolicy::UpgradeOnUse);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    pub(crate) legacy: LegacyPolicy,
    pub(crate) retired: RetiredPolicy,
    pub(crate) untagged: UntaggedPolicy,
}

impl Policy {
    /// Sets what happens to keys stored as plain SHA-256.
    pub fn legacy(self, legacy: LegacyPolicy) -> Self {
        Self { legacy, ..self }
    }

    /// Sets what happens to keys whose hash is under a retired secret.
    pub fn retired(self, retired: RetiredPolicy) -> Self {
        Self { retired, ..self }
    }

    /// Sets what happens to keys without a tag.
    pub fn untagged(self, untagged: UntaggedPolicy) -> Self {
        Self { untagged, ..self }
    }
}

#[cfg(all(test, feature = "tokio"))]
mod tests {
    use std::time::Duration;

    use super::LegacyPolicy::{Accept, AcceptUntil, Refuse, Shadow, UpgradeOnUse};
    use super::*;

    #[test]
    fn a_database_tightens_a_policy_and_never_loosens_it() {
        let day = |count: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(count * 86_400);
        let all = [Accept, UpgradeOnUse, Shadow, AcceptUntil(day(2)), Refuse];
        for shared in all {
            assert_eq!(Refuse.tightened_by(shared), Refuse, "{shared:?}");
            for code in [Accept, UpgradeOnUse, Shadow] {
                assert_eq!(code.tightened_by(shared), shared, "{code:?}, {shared:?}");
            }
        }
        for (code, shared, expected) in [
            (1, AcceptUntil(day(2)), AcceptUntil(day(1))),
            (3, AcceptUntil(day(2)), AcceptUntil(day(2))),
            (1, Refuse, Refuse),
            (1, Accept, AcceptUntil(day(1))),
            (1, UpgradeOnUse, AcceptUntil(day(1))),
            (1, Shadow, AcceptUntil(day(1))),
        ] {
            let effective = AcceptUntil(day(code)).tightened_by(shared);
            assert_eq!(effective, expected, "until day {code}, {shared:?}");
        }
        // Whatever the two are, nothing is accepted that the code refuses.
        for code in all {
            for shared in all {
                for now in [1, 2, 3].map(day) {
                    let is_accepted = code.tightened_by(shared).accepts(now);
                    assert!(code.accepts(now) || !is_accepted, "{code:?}, {shared:?}");
                }
            }
        }
    }
}
