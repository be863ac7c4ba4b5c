//! Values that statements bind.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::crypto::hash::{HashFormat, KeyHash};
use crate::id::KeyId;

/// A value that a statement binds.
#[derive(Clone)]
pub(crate) enum Value<'a> {
    Text(Option<Cow<'a, str>>),
    Flag(bool),
    Count(u64),
    /// A time, and the column that an error names. For a column of local times it is what
    /// [`TimeZone`](crate::time_zone::TimeZone) makes of the time.
    Time(&'static str, Option<SystemTime>),
}

impl Value<'_> {
    /// Returns a value of a date that an operator chose.
    pub(crate) fn date(date: SystemTime) -> Self {
        Self::Time("a date", Some(date))
    }
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::Text(text.map(Cow::Borrowed))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Some(text).into()
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Some(text.into()))
    }
}

impl From<&KeyId> for Value<'_> {
    fn from(id: &KeyId) -> Self {
        id.to_string().into()
    }
}

impl From<&KeyHash> for Value<'_> {
    fn from(hash: &KeyHash) -> Self {
        hash.to_hex().into()
    }
}

impl From<HashFormat> for Value<'_> {
    fn from(format: HashFormat) -> Self {
        format.as_str().into()
    }
}

impl From<bool> for Value<'_> {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<u32> for Value<'_> {
    fn from(count: u32) -> Self {
        Self::Count(count.into())
    }
}
