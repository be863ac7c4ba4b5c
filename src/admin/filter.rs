//! Which keys are meant.

use std::fmt::Write;
use std::time::SystemTime;

use crate::crypto::hash::HashFormat;
use crate::id::OwnerId;
use crate::store::sql::schema::Schema;
use crate::store::sql::value::Value;
use crate::time_zone::TimeZone;

/// What is known of the format of a key's hash: both look alike, so a row that nobody has marked does not
/// tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KnownFormat {
    /// HMAC-SHA-256.
    HmacSha256,
    /// Plain SHA-256: a legacy key.
    Sha256,
    /// Not known.
    Unknown,
}

impl KnownFormat {
    /// Returns the format as one word: `hmac-sha256`, `sha256` or `unknown`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::HmacSha256 => HashFormat::HmacSha256.as_str(),
            Self::Sha256 => HashFormat::Sha256.as_str(),
            Self::Unknown => "unknown",
        }
    }
}

/// Which keys are meant: those that meet every condition that is set. The default means all.
///
/// A format is known where the column `hash_format` says it, which is written when a key is issued, when
/// it is first used and when its hash is upgraded; and for keys made before
/// [`first_deployed`](Self::first_deployed), when there was only SHA-256.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    owner: Option<OwnerId>,
    format: Option<KnownFormat>,
    pub(super) first_deployed: Option<SystemTime>,
    in_force: bool,
    usable: bool,
    unrevoked: bool,
    used_since: Option<SystemTime>,
    unused_since: Option<SystemTime>,
    expiring_before: Option<SystemTime>,
    made_before: Option<SystemTime>,
    bound_to_secret_before: Option<SystemTime>,
    pub(super) by_owner: bool,
}

impl KeyFilter {
    /// Selects legacy keys.
    pub fn legacy(first_deployed: Option<SystemTime>) -> Self {
        Self::default().format(KnownFormat::Sha256).first_deployed(first_deployed)
    }

    /// Selects the keys of an owner.
    pub fn owner(self, owner: impl Into<OwnerId>) -> Self {
        Self { owner: Some(owner.into()), ..self }
    }

    /// Selects the keys of a format.
    pub fn format(self, format: KnownFormat) -> Self {
        Self { format: Some(format), ..self }
    }

    /// Says since when keys may be HMAC-SHA-256: keys made before that, and not marked otherwise, count as
    /// SHA-256.
    pub fn first_deployed(self, date: Option<SystemTime>) -> Self {
        Self { first_deployed: date, ..self }
    }

    /// Selects keys that are in force: neither revoked nor expired, and of an active owner.
    pub fn in_force(self) -> Self {
        Self { in_force: true, ..self }
    }

    /// Selects keys that are not revoked.
    pub fn unrevoked(self) -> Self {
        Self { unrevoked: true, ..self }
    }

    /// Selects keys that are neither revoked nor expired, whatever the state of their owners, who may be
    /// enabled again.
    pub fn usable(self) -> Self {
        Self { usable: true, ..self }
    }

    /// Selects keys that were used at the time or later, as far as that has been written.
    pub fn used_since(self, time: SystemTime) -> Self {
        Self { used_since: Some(time), ..self }
    }

    /// Selects keys that were not used at the time or later, and were made before it. Those without a date
    /// are among them.
    pub fn unused_since(self, time: SystemTime) -> Self {
        Self { unused_since: Some(time), ..self }
    }

    /// Selects keys that expire before the time, or have done so.
    pub fn expiring_before(self, time: SystemTime) -> Self {
        Self { expiring_before: Some(time), ..self }
    }

    /// Selects keys that were made before the time. Those without a date are not among them.
    pub fn made_before(self, time: SystemTime) -> Self {
        Self { made_before: Some(time), ..self }
    }

    /// Selects keys that may have been issued under a secret that was current before the time: not legacy,
    /// and made before it, or at a time that is not known.
    pub fn bound_to_secret_before(self, time: SystemTime) -> Self {
        Self { bound_to_secret_before: Some(time), ..self }
    }

    /// Lists keys in the order of their owners, instead of their ids.
    pub fn by_owner(self) -> Self {
        Self { by_owner: true, ..self }
    }
}

/// A condition on the rows of [`FROM`](crate::store::sql::statements::FROM), with the values that it binds.
#[derive(Clone)]
pub(super) struct Condition<'a> {
    pub(super) text: String,
    pub(super) values: Vec<Value<'a>>,
}

impl<'a> Condition<'a> {
    pub(super) fn of(
        filter: &'a KeyFilter,
        schema: &Schema,
        zone: &TimeZone,
        now: SystemTime,
    ) -> Self {
        // Whether a date has passed is exact; a last use in an hour that occurs twice may be taken for one
        // an hour earlier.
        let reached = |time| Value::date(zone.reached(time));
        let local = |time| Value::date(zone.to_local(time));
        let mut condition = Self { text: "TRUE".to_owned(), values: Vec::new() };
        if let Some(owner) = &filter.owner {
            condition.and("k.user_id = ?", owner.as_str().into());
        }
        if let Some(format) = filter.format {
            let known = condition.format(schema, filter.first_deployed);
            match format {
                KnownFormat::Unknown => write!(condition.text, " AND {known} IS NULL"),
                format => write!(condition.text, " AND {known} = '{}'", format.as_str()),
            }
            .expect("a String takes everything");
        }
        if filter.in_force {
            condition.and(IN_FORCE, reached(now));
        }
        if filter.unrevoked {
            condition.text += " AND k.is_active";
        }
        if filter.usable {
            let usable = "k.is_active AND (k.expires_at IS NULL OR k.expires_at > ?)";
            condition.and(usable, reached(now));
        }
        if let Some(time) = filter.used_since {
            condition.and("k.last_used_at >= ?", local(time));
        }
        if let Some(time) = filter.unused_since {
            condition.and("(k.last_used_at IS NULL OR k.last_used_at < ?)", local(time));
            condition.and("(k.created_at IS NULL OR k.created_at < ?)", Value::date(time));
        }
        if let Some(time) = filter.expiring_before {
            condition.and("k.is_active AND k.expires_at < ?", reached(time));
        }
        if let Some(time) = filter.made_before {
            condition.and("k.created_at < ?", Value::date(time));
        }
        if let Some(time) = filter.bound_to_secret_before {
            let known = condition.format(schema, filter.first_deployed);
            let bound = format!(
                "(k.created_at IS NULL OR k.created_at < ?) AND coalesce({known}, '') <> '{}'",
                HashFormat::Sha256
            );
            condition.and(&bound, Value::date(time));
        }
        condition
    }

    /// Adds what has to be met too; `?` stands for the value, as often as it is there.
    pub(super) fn and(&mut self, text: &str, value: Value<'a>) {
        let place = self.bind(value);
        self.text += " AND ";
        self.text += &text.replace('?', &place);
    }

    /// Binds a value, and returns the place that stands for it.
    pub(super) fn bind(&mut self, value: Value<'a>) -> String {
        self.values.push(value);
        format!("${}", self.values.len())
    }

    /// Returns the expression for what is known of a key's format; NULL where nothing is.
    pub(super) fn format(&mut self, schema: &Schema, first_deployed: Option<SystemTime>) -> String {
        let by_date = match first_deployed {
            Some(date) => {
                let place = self.bind(Value::date(date));
                format!(" WHEN k.created_at < {place} THEN '{}'", HashFormat::Sha256)
            }
            None => String::new(),
        };
        format!("(CASE {}{by_date} END)", recorded_format(schema))
    }
}

/// Whether a key is in force; `?` is the local time [reached](TimeZone::reached) now.
pub(super) const IN_FORCE: &str =
    "k.is_active AND u.is_active AND (k.expires_at IS NULL OR k.expires_at > ?)";

/// Returns the part of a `CASE` for the format that the row says.
pub(super) fn recorded_format(schema: &Schema) -> String {
    if schema.has_extra_columns() {
        let (hmac_sha256, sha256) = (HashFormat::HmacSha256, HashFormat::Sha256);
        format!("WHEN k.hash_format IN ('{hmac_sha256}', '{sha256}') THEN k.hash_format")
    } else {
        "WHEN FALSE THEN ''".to_owned()
    }
}
