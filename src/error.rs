//! Errors: a refusal is a definite no, unavailable is no answer, and neither ever holds a key.

use std::error::Error as StdError;

use crate::crypto::key::MalformedKey;
use crate::crypto::secret::SecretFingerprint;
use crate::id::{KeyId, OwnerId};
use crate::scopes::InvalidScopes;
use crate::unsettled::Unsettled;
use crate::util::random::EntropyError;

/// Why a verification did not succeed.
///
/// The message of a refusal is the same for every reason, so that it can go to the caller; the reason
/// is for logs and stands in the error's source. What prints a chain of errors, such as `{:?}` of
/// anyhow, and `Debug` reveal it too: answer a caller with `Display` alone.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The key is not accepted. Over HTTP: 401.
    #[error("the API key was refused")]
    Refused(#[from] Refusal),
    /// The store could not answer; the key may be good. Over HTTP: 503.
    #[error("API keys cannot be verified right now; try again")]
    Unavailable(#[source] StoreError),
}

impl VerifyError {
    /// Returns the reason, when this is a refusal.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::Unavailable(_) => None,
        }
    }
}

/// Why a key is refused. For logs and metrics, not for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a key at all.
    #[error("malformed: {0}")]
    Malformed(#[from] MalformedKey),
    /// Carries a tag that no secret of the ring made. Nothing was looked up.
    #[error("the tag of the key was not made by any secret of the ring")]
    ForgedTag,
    /// Carries no tag, and the policy refuses such keys. Nothing was looked up.
    #[error("keys without a tag are no longer accepted")]
    UntaggedClosed,
    /// No row holds any of its hashes.
    #[error("no such key")]
    Unknown,
    /// Past its expiry.
    #[error("key {0} has expired")]
    Expired(KeyId),
    /// Revoked.
    #[error("key {0} is revoked")]
    Revoked(KeyId),
    /// Its owner is missing or not active.
    #[error("the owner of key {0} is missing or not active")]
    OwnerDisabled(KeyId),
    /// Stored as plain SHA-256, and the policy no longer accepts that.
    #[error("key {0} is stored as plain SHA-256, which is no longer accepted")]
    LegacyClosed(KeyId),
}

impl Refusal {
    /// Returns the id of the key, where one was found.
    pub fn key_id(&self) -> Option<&KeyId> {
        match self {
            Self::Expired(id)
            | Self::Revoked(id)
            | Self::OwnerDisabled(id)
            | Self::LegacyClosed(id) => Some(id),
            Self::Malformed(_) | Self::ForgedTag | Self::UntaggedClosed | Self::Unknown => None,
        }
    }

    /// Returns the reason as one stable word, for metrics and machine-readable output.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::ForgedTag => "forged_tag",
            Self::UntaggedClosed => "untagged_closed",
            Self::Unknown => "unknown",
            Self::Expired(_) => "expired",
            Self::Revoked(_) => "revoked",
            Self::OwnerDisabled(_) => "owner_disabled",
            Self::LegacyClosed(_) => "legacy_closed",
        }
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No row has this id.
    #[error("no key has the id {0}")]
    NotFound(KeyId),
    /// A row with this id or hash exists already.
    #[error("a key with the same id or hash exists already")]
    Conflict,
    /// The owner does not exist in the table of users.
    #[error("there is no owner {0}; create the user first")]
    UnknownOwner(OwnerId),
    /// The key is revoked or past its expiry, so it cannot be rotated.
    #[error("key {0} is revoked or has expired; issue a new one instead")]
    NotInForce(KeyId),
    /// The key has got another owner, other scopes or another expiry since it was read.
    #[error("key {0} was changed at the same time; try again")]
    Changed(KeyId),
    /// The store cannot be written to.
    #[error("the store is read-only; check its permissions and how it was opened")]
    ReadOnly(#[source] Box<dyn StdError + Send + Sync>),
    /// The database cannot be opened.
    #[error(
        "the database cannot be opened; check its URL, or that its path names a file that may be read \
         and written: {0}"
    )]
    CannotOpen(#[source] Box<dyn StdError + Send + Sync>),
    /// The database is damaged, or the file is none.
    #[error("the file is damaged or not a database; check the path, or restore it from a backup")]
    Corrupt(#[source] Box<dyn StdError + Send + Sync>),
    /// The database is not one that the store knows.
    #[error("the database has an unknown schema: {0}")]
    Schema(String),
    /// The database was written under other secrets: every key would be refused as unknown.
    #[error(
        "the server secret has the fingerprint {current}, and the database was written under {known}; \
         start with the right secret, or run add_secret when this one is new"
    )]
    UnknownSecret {
        /// The secret that the ring has for its current one.
        current: SecretFingerprint,
        /// The fingerprints that the database knows, oldest first, separated by commas.
        known: String,
    },
    /// The database keeps another time zone than this program was given: keys would be accepted past
    /// their date, or refused before it.
    #[error(
        "the time zone {given} was given, and the database keeps {kept}; start without one, or with \
         {kept}. Where that is wrong, stop all instances and run: lxk schema time-zone {given} --replace \
         {kept}"
    )]
    TimeZoneMismatch {
        /// The zone that was given.
        given: String,
        /// The zone that the database keeps, or that this store was given before.
        kept: String,
    },
    /// A row holds something that cannot be read.
    #[error("the row of key {id} holds something unreadable in column {column}; mend the row")]
    InvalidRow {
        /// The id of the row, empty where that is what cannot be read.
        id: String,
        /// The column.
        column: &'static str,
    },
    /// A time that no column can hold.
    #[error("the time for column {column} is outside the years 1 to 9999; choose another")]
    Unstorable {
        /// The column.
        column: &'static str,
    },
    /// The store returned a row whose hash is none of those it was asked for.
    #[error(
        "the store returned key {0}, whose hash was not asked for; this is a fault of the store"
    )]
    WrongRow(KeyId),
    /// A write was not answered in time, and may still be made.
    #[error(
        "the store did not answer in time, and the change may still be made; look whether it was, and \
         revoke again what was to be revoked: caches hear of it then"
    )]
    Unsettled(Unsettled),
    /// The store cannot answer now.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] Box<dyn StdError + Send + Sync>),
}

/// Why a key could not be issued or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManageError {
    /// A value that cannot be stored.
    #[error("{field} {problem}")]
    Invalid {
        /// What it was for.
        field: &'static str,
        /// What is wrong with it, and what would be right.
        problem: &'static str,
    },
    /// The operating system's random generator failed.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
    /// The store did not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<InvalidScopes> for ManageError {
    fn from(_: InvalidScopes) -> Self {
        Self::Invalid { field: "the scopes", problem: InvalidScopes::PROBLEM }
    }
}
