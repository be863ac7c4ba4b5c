//! The ids of keys and of their owners.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::util::random::{EntropyError, fill_random};

/// The public name of a key, safe to log.
///
/// New ids are version 4 UUIDs, as the lexikon service makes them; any other text that stands in a
/// table is kept as it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyId(Repr);

/// A UUID in its usual form takes no allocation; a million keys make that count.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Repr {
    Uuid(Uuid),
    Text(Arc<str>),
}

impl KeyId {
    /// Makes a new random id: a version 4 UUID.
    ///
    /// # Errors
    /// [`EntropyError`] when the operating system's random generator fails.
    pub fn random() -> Result<Self, EntropyError> {
        let mut bytes = [0; 16];
        fill_random(&mut bytes)?;
        Ok(Self(Repr::Uuid(uuid::Builder::from_random_bytes(bytes).into_uuid())))
    }

    /// Bytes that are allocated for the id.
    #[cfg(feature = "cache")]
    pub(crate) fn allocated(&self) -> usize {
        match &self.0 {
            Repr::Uuid(_) => 0,
            Repr::Text(text) => text.len(),
        }
    }
}

/// The order of the texts, as a database sorts them.
impl Ord for KeyId {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            // The text of a UUID sorts as its bytes do.
            (Repr::Uuid(one), Repr::Uuid(another)) => one.cmp(another),
            (Repr::Text(one), Repr::Text(another)) => one.cmp(another),
            _ => self.to_string().cmp(&other.to_string()),
        }
    }
}

impl PartialOrd for KeyId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<&str> for KeyId {
    fn from(text: &str) -> Self {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(text) {
            // Only the form that prints back to the same text: the id has to find its row again.
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut buffer) == text => {
                Self(Repr::Uuid(uuid))
            }
            _ => Self(Repr::Text(text.into())),
        }
    }
}

impl From<String> for KeyId {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for KeyId {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Repr::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Repr::Text(text) => f.pad(text),
        }
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Who a key belongs to: the `id` of a user, whatever text that is.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(Arc<str>);

impl OwnerId {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for OwnerId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for OwnerId {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&String> for OwnerId {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnerId({self})")
    }
}
