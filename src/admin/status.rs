//! How far a migration is.

use std::time::{Duration, SystemTime};

use super::database::Statement;
use super::filter::{Condition, IN_FORCE, recorded_format};
use super::filter::{KeyFilter, KnownFormat};
use super::session::Session;
use super::table::KeyTable;
use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::store::sql::row::{Row, only};
use crate::store::sql::statements::FROM;
use crate::store::sql::value::Value;

/// The class of the keys whose format the date of the first deployment tells.
const BY_DATE: &str = "by date";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How far the migration from SHA-256 is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationStatus {
    /// The keys that are not revoked, by what is known of their format.
    pub classes: Vec<ClassCounts>,
    /// What would break if legacy keys were refused now.
    pub impact: LegacyImpact,
}

/// Keys whose format is known in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassCounts {
    /// The format.
    pub format: KnownFormat,
    /// Whether it is known from the date of the first deployment alone, and not from the row.
    pub by_date: bool,
    /// Keys that are not revoked.
    pub keys: u64,
    /// Of them, keys that are in force.
    pub in_force: u64,
    /// Of these, keys that were used in the last 24 hours.
    pub used_in_day: u64,
    /// Of these, keys that were used in the last 7 days.
    pub used_in_week: u64,
    /// The owners of the keys in force.
    pub owners: u64,
}

/// Legacy keys in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegacyImpact {
    /// How many there are.
    pub keys: u64,
    /// How many of them were used in the last 7 days.
    pub used_in_week: u64,
    /// How many owners have them.
    pub owners: u64,
    /// Keys in force that may be legacy too, because nothing tells their format.
    pub unknown: u64,
}

/// Keys that were used for the last time on one day.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastUses {
    /// The day, as `YYYY-MM-DD` in the [time zone](KeyTable::time_zone) of the table.
    pub day: String,
    /// How many keys there are.
    pub keys: u64,
}

impl KeyTable {
    /// Counts how far the migration is. Keys made before `first_deployed` that nothing else tells of are
    /// known to be legacy.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # use lexikon_auth::store::SqliteStore;
    /// # use lexikon_auth::admin::KeyTable;
    /// # let store = SqliteStore::open_or_create(folder.path().join("keys.db")).await?;
    /// let status = KeyTable::from(store).migration_status(None).await?;
    /// println!("{} legacy keys in force", status.impact.keys);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    pub async fn migration_status(
        &self,
        first_deployed: Option<SystemTime>,
    ) -> Result<MigrationStatus, StoreError> {
        let now = self.now();
        let zone = self.time_zone();
        let mut condition = Condition { text: String::new(), values: Vec::new() };
        let in_force = IN_FORCE.replace('?', &condition.bind(Value::date(zone.reached(now))));
        let day = condition.bind(Value::date(zone.to_local(now - DAY)));
        let week = condition.bind(Value::date(zone.to_local(now - 7 * DAY)));
        let class = match first_deployed {
            Some(date) => {
                let place = condition.bind(Value::date(date));
                format!(" WHEN k.created_at < {place} THEN '{BY_DATE}'")
            }
            None => String::new(),
        };
        let class = format!("CASE {}{class} ELSE 'unknown' END", recorded_format(self.schema()));
        let select = format!(
            "SELECT {class}, count(*), count(*) FILTER (WHERE {in_force}), \
             count(*) FILTER (WHERE {in_force} AND k.last_used_at >= {day}), \
             count(*) FILTER (WHERE {in_force} AND k.last_used_at >= {week}), \
             count(DISTINCT CASE WHEN {in_force} THEN k.user_id END) \
             {FROM} WHERE k.is_active GROUP BY 1"
        );
        let mut session = Session::read(&self.database).await?;
        let mut classes = session.rows(&select, &condition.values, read_class).await?;
        classes.sort_by_key(|class| (class.format, class.by_date));
        // Once more, because an owner may have keys that are known in both ways.
        let legacy = KeyFilter::legacy(first_deployed).in_force();
        let condition = self.condition(&legacy, now);
        let owners = format!("SELECT count(DISTINCT k.user_id) {FROM} WHERE {}", condition.text);
        let owners = only(session.rows(&owners, &condition.values, |row| row.count(0)).await?)?;
        session.rollback().await?;
        let sum = |format, count: fn(&ClassCounts) -> u64| {
            classes.iter().filter(|class| class.format == format).map(count).sum()
        };
        let impact = LegacyImpact {
            keys: sum(KnownFormat::Sha256, |class| class.in_force),
            used_in_week: sum(KnownFormat::Sha256, |class| class.used_in_week),
            owners,
            unknown: sum(KnownFormat::Unknown, |class| class.in_force),
        };
        Ok(MigrationStatus { classes, impact })
    }

    /// Counts the keys that the filter selects by the day of their last use, in ascending order. Days
    /// without any are left out, and so are keys that have not been used.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn last_uses_by_day(&self, filter: &KeyFilter) -> Result<Vec<LastUses>, StoreError> {
        let day = self.database.statement(Statement {
            sqlite: "substr(k.last_used_at, 1, 10)",
            postgres: "to_char(k.last_used_at, 'YYYY-MM-DD')",
        });
        let condition = self.condition(filter, self.now());
        let select = format!(
            "SELECT {day}, count(*) {FROM} WHERE {} AND k.last_used_at IS NOT NULL \
             GROUP BY 1 ORDER BY 1",
            condition.text
        );
        let read = |row: &dyn Row| Ok(LastUses { day: row.string(0)?, keys: row.count(1)? });
        self.rows(&select, &condition.values, read).await
    }
}

fn read_class(row: &dyn Row) -> Result<ClassCounts, StoreError> {
    let class = row.string(0)?;
    let by_date = class == BY_DATE;
    let format = match HashFormat::from_name(&class) {
        Some(HashFormat::HmacSha256) => KnownFormat::HmacSha256,
        Some(HashFormat::Sha256) => KnownFormat::Sha256,
        None if by_date => KnownFormat::Sha256,
        None => KnownFormat::Unknown,
    };
    Ok(ClassCounts {
        format,
        by_date,
        keys: row.count(1)?,
        in_force: row.count(2)?,
        used_in_day: row.count(3)?,
        used_in_week: row.count(4)?,
        owners: row.count(5)?,
    })
}
