//! The time zone of local dates, and whether it can be the right one.

use std::time::{Duration, SystemTime};

use super::database::{Database, Statement, for_either};
use super::session::Session;
use super::table::KeyTable;
use crate::error::StoreError;
use crate::store::sql::row::{Row, only};
use crate::store::sql::schema::SETTINGS;
use crate::store::sql::value::Value;
use crate::time_zone::TimeZone;

/// No two zones are further apart: UTC-12 and UTC+14.
const FURTHEST: Duration = Duration::from_secs(26 * 3600);

/// A last use that cannot have been, as the [time zone](KeyTable::time_zone) is; at most the 26 hours that
/// zones can be apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImpossibleUse {
    /// So long after now: the service may have run in a zone further ahead.
    Ahead(Duration),
    /// So long before the key was made: the service may have run in a zone further behind. In PostgreSQL
    /// its sessions may have been in a zone ahead of UTC instead, because they write `created_at`.
    BeforeCreation(Duration),
}

/// A time zone that a database keeps wrongly, and the one to put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZoneReplacement<'a> {
    /// The zone that the database keeps.
    pub wrong: &'a TimeZone,
    /// The zone that it has to keep.
    pub right: &'a TimeZone,
}

impl KeyTable {
    /// Returns the time zone of the columns `expires_at` and `last_used_at`.
    pub fn time_zone(&self) -> &TimeZone {
        for_either!(&self.database, Database<DB>(store) => store.time_zone())
    }

    /// Uses a time zone without having the database keep it, for an operator who looks.
    ///
    /// # Errors
    /// [`StoreError::TimeZoneMismatch`] when the database keeps another.
    pub fn with_time_zone(self, zone: &TimeZone) -> Result<Self, StoreError> {
        for_either!(&self.database, Database<DB>(store) => store.zone.agree_on(zone))?;
        Ok(self)
    }

    /// Returns the time zone that the database keeps; `None` where it keeps none yet, or has no
    /// [table](Self::can_keep_time_zone) for it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer, or keeps a zone that this version does not know.
    pub async fn kept_time_zone(&self) -> Result<Option<TimeZone>, StoreError> {
        for_either!(&self.database, Database<DB>(store) => store.stored_zone().await)
    }

    /// Returns whether the database had the table that keeps a time zone when it was opened.
    pub fn can_keep_time_zone(&self) -> bool {
        self.schema().has_table(SETTINGS)
    }

    /// Has the database keep a time zone, and uses it. Instances that run go by their own until they are
    /// started again.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema, [`StoreError::TimeZoneMismatch`] when
    /// the database keeps another.
    pub async fn keep_time_zone(&self, zone: &TimeZone) -> Result<(), StoreError> {
        self.schema().require_table(SETTINGS)?;
        for_either!(&self.database, Database<DB>(store) => store.store_zone(zone).await)
    }

    /// Has the database keep another time zone than the wrong one that it keeps. No row is changed: dates
    /// that were written in the wrong zone mean another time from then on. Open the database anew
    /// afterwards, here and in every instance: this value goes by the old zone. Where none is kept, the
    /// new one is.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema, [`StoreError::TimeZoneMismatch`] when
    /// the database keeps neither.
    pub async fn replace_time_zone(
        &self,
        ZoneReplacement { wrong, right }: ZoneReplacement<'_>,
    ) -> Result<(), StoreError> {
        self.schema().require_table(SETTINGS)?;
        let update =
            format!("UPDATE {SETTINGS} SET value = $1 WHERE name = 'time_zone' AND value = $2");
        match self.execute(&update, &[right.name().into(), wrong.name().into()]).await? {
            0 => self.keep_time_zone(right).await,
            _ => Ok(()),
        }
    }

    /// Returns the last use that is furthest from what can have been by now, ahead of the clock or else
    /// before its key was made; `None` where all can have been.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn impossible_use(&self) -> Result<Option<ImpossibleUse>, StoreError> {
        let (zone, now) = (self.time_zone(), self.now());
        let latest = "SELECT max(last_used_at) FROM api_keys WHERE last_used_at < $1";
        // As they are written. Of those that are read rightly, the local time may be behind as well.
        let before_creation = self.database.statement(Statement {
            sqlite: "SELECT created_at, last_used_at FROM api_keys \
                     WHERE last_used_at < created_at \
                     AND julianday(created_at) - julianday(last_used_at) < 26 / 24.0 \
                     ORDER BY julianday(created_at) - julianday(last_used_at) DESC LIMIT 1",
            postgres: "SELECT created_at, last_used_at FROM api_keys \
                       WHERE last_used_at < created_at \
                       AND created_at < last_used_at + interval '26 hours' \
                       ORDER BY created_at - last_used_at DESC LIMIT 1",
        });
        let mut session = Session::read(&self.database).await?;
        let limit = Value::date(zone.to_local(now + FURTHEST));
        let latest = only(session.rows(latest, &[limit], |row| row.time(0)).await?)?;
        let read = |row: &dyn Row| Ok(row.time(0)?.zip(row.time(1)?));
        let before_creation = session.rows(before_creation, &[], read).await?.pop().flatten();
        session.rollback().await?;
        let lead = |later: SystemTime, earlier| {
            later.duration_since(earlier).ok().filter(|lead| !lead.is_zero())
        };
        if let Some(lead) = latest.and_then(|local| lead(zone.first_instant(local), now)) {
            return Ok(Some(ImpossibleUse::Ahead(lead)));
        }
        let lead =
            before_creation.and_then(|(created, used)| lead(created, zone.last_instant(used)));
        Ok(lead.map(ImpossibleUse::BeforeCreation))
    }
}
