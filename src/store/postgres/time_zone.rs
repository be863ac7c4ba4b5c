//! The time zone of `expires_at` and `last_used_at`.

use std::time::SystemTime;

use sqlx::FromRow;
use sqlx::postgres::PgRow;

use super::PostgresStore;
use super::connection::unavailable;
use super::row::{Timestamp, read_record};
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::sql::{self, INSERT_TIME_ZONE, SELECT_TIME_ZONE};
use crate::time_zone::{self, TimeZone};

impl PostgresStore {
    /// Reads and writes `expires_at` and `last_used_at` in the time zone that the lexikon service ran in,
    /// for this store and its clones. Call it before the store is used.
    ///
    /// A database with the [extension](Self::extend_schema) keeps the first zone that it is given, and a
    /// store that is given none uses the one that is kept. Without the extension this setting alone
    /// counts: give it to every instance.
    ///
    /// # Errors
    /// [`StoreError::TimeZoneMismatch`] when the database keeps another, or a clone was given another.
    ///
    /// # Examples
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use lexikon_auth::store::PostgresStore;
    /// let store = PostgresStore::connect("postgres://lexikon@localhost/lexikon".parse()?).await?;
    /// let store = store.with_time_zone("Europe/Paris".parse()?).await?;
    /// # Ok(()) }
    /// ```
    pub async fn with_time_zone(self, zone: TimeZone) -> Result<Self, StoreError> {
        self.keep_zone(&zone).await?;
        Ok(self)
    }

    /// The time zone in force.
    pub fn time_zone(&self) -> &TimeZone {
        self.zone.zone()
    }

    /// The zone that the database keeps.
    pub(crate) async fn kept_zone(&self) -> Result<Option<TimeZone>, StoreError> {
        if !self.schema.has_settings {
            return Ok(None);
        }
        let rows = self.fetch(|| sqlx::query(SELECT_TIME_ZONE)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (kept,): (String,) = FromRow::from_row(row).map_err(unavailable)?;
        sql::time_zone(&kept).map(Some)
    }

    /// Uses the zone that the database keeps, if it does.
    pub(super) async fn follow_kept_zone(&self) -> Result<(), StoreError> {
        let kept = self.kept_zone().await?;
        kept.map_or(Ok(()), |kept| self.zone.agree_on(&kept))
    }

    /// Uses a zone, and has the database keep it. Of several, the first one that it is given decides.
    pub(crate) async fn keep_zone(&self, zone: &TimeZone) -> Result<(), StoreError> {
        time_zone::check(zone, self.zone.given())?;
        if self.schema.has_settings {
            if self.kept_zone().await?.is_none() {
                self.execute(sqlx::query(INSERT_TIME_ZONE).bind(zone.name())).await?;
            }
            time_zone::check(zone, self.kept_zone().await?.as_ref())?;
        }
        self.zone.agree_on(zone)
    }

    pub(super) fn read(&self, row: &PgRow) -> Result<KeyRecord, StoreError> {
        read_record(row, self.time_zone())
    }

    pub(super) fn local(
        &self,
        column: &'static str,
        time: SystemTime,
    ) -> Result<Timestamp, StoreError> {
        Timestamp::new(column, self.time_zone().to_local(time))
    }

    pub(super) fn local_optional(
        &self,
        column: &'static str,
        time: Option<SystemTime>,
    ) -> Result<Option<Timestamp>, StoreError> {
        time.map(|time| self.local(column, time)).transpose()
    }
}
