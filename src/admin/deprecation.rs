//! The steps that retire legacy keys.

use std::time::SystemTime;

use super::batches::{BatchObserver, Rows, Step};
use super::filter::Condition;
use super::filter::KeyFilter;
use super::table::KeyTable;
use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::store::sql::row::Row;
use crate::store::sql::schema::{DEPRECATIONS, Schema};
use crate::store::sql::value::Value;

/// Keys whose expiry was set by a [deprecation](KeyTable::deprecate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeprecatedKeys {
    /// All of them.
    All,
    /// Those whose hash has been upgraded to HMAC-SHA-256 since.
    Upgraded,
}

/// The dates that keys were given by [deprecations](KeyTable::deprecate).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeprecationDates {
    /// The first one.
    pub earliest: SystemTime,
    /// The last one.
    pub latest: SystemTime,
}

impl KeyTable {
    /// Sets the expiry of the keys that the filter selects to `date`, and remembers what it was. Keys
    /// that are revoked, or expire by then anyway, stay as they are. Returns how many there were.
    ///
    /// Instances of every version obey an expiry. Doing it again with an earlier date moves the expiry,
    /// and still remembers the first one.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema; others when the database cannot
    /// write. What was changed by then stays changed, and can be undone.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # use std::time::{Duration, SystemTime};
    /// # use lexikon_auth::store::SqliteStore;
    /// use lexikon_auth::admin::{DeprecatedKeys, KeyFilter, KeyTable};
    /// # let store = SqliteStore::open_or_create(folder.path().join("keys.db")).await?;
    /// let table = KeyTable::from(store);
    /// let in_a_week = SystemTime::now() + Duration::from_secs(7 * 24 * 3600);
    /// let count = table.deprecate(&KeyFilter::legacy(None), in_a_week, &mut ()).await?;
    /// assert_eq!(table.undo_deprecation(DeprecatedKeys::All, &mut ()).await?, count);
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    #[doc(alias = "migrate")]
    pub async fn deprecate<O: BatchObserver>(
        &self,
        filter: &KeyFilter,
        date: SystemTime,
        observer: &mut O,
    ) -> Result<u64, O::Error> {
        self.schema().require_table(DEPRECATIONS)?;
        let now = self.now();
        let local_date = Value::date(self.time_zone().to_local(date));
        let steps = [
            Step {
                // What is remembered is the text of `expires_at` itself, so that it goes back as it was.
                statement: format!(
                    "INSERT INTO {DEPRECATIONS} \
                     (key_id, expires_at_before, expires_at_set, deprecated_at) \
                     SELECT k.id, k.expires_at, $1, $2 FROM api_keys k WHERE k.id IN ({{ids}}) \
                     ON CONFLICT (key_id) DO UPDATE SET \
                     expires_at_before = CASE \
                         WHEN excluded.expires_at_before = {DEPRECATIONS}.expires_at_set \
                         THEN {DEPRECATIONS}.expires_at_before ELSE excluded.expires_at_before END, \
                     expires_at_set = excluded.expires_at_set, \
                     deprecated_at = excluded.deprecated_at"
                ),
                values: vec![local_date.clone(), Value::date(now)],
            },
            Step {
                statement: "UPDATE api_keys SET expires_at = $1 WHERE id IN ({ids})".to_owned(),
                values: vec![local_date],
            },
        ];
        let condition = self.deprecatable(filter, date, now);
        self.in_batches(Rows::keys(condition), &steps, observer).await
    }

    /// Counts the keys that [`deprecate`](Self::deprecate) would change.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn count_deprecatable(
        &self,
        filter: &KeyFilter,
        date: SystemTime,
    ) -> Result<u64, StoreError> {
        self.count_where(&self.deprecatable(filter, date, self.now())).await
    }

    /// Gives keys back the expiry that they had before [`deprecate`](Self::deprecate). An expiry that
    /// somebody has changed since stays. Returns how many keys were changed.
    ///
    /// A key that has been revoked since stays revoked.
    ///
    /// # Errors
    /// Those of [`deprecate`](Self::deprecate).
    pub async fn undo_deprecation<O: BatchObserver>(
        &self,
        keys: DeprecatedKeys,
        observer: &mut O,
    ) -> Result<u64, O::Error> {
        self.schema().require_table(DEPRECATIONS)?;
        let steps = [
            Step {
                statement: format!(
                    "UPDATE api_keys SET expires_at = (SELECT d.expires_at_before \
                     FROM {DEPRECATIONS} d WHERE d.key_id = api_keys.id) \
                     WHERE id IN ({{ids}}) AND EXISTS (SELECT 1 FROM {DEPRECATIONS} d \
                     WHERE d.key_id = api_keys.id AND d.expires_at_set = api_keys.expires_at)"
                ),
                values: Vec::new(),
            },
            Step {
                statement: format!("DELETE FROM {DEPRECATIONS} WHERE key_id IN ({{ids}})"),
                values: Vec::new(),
            },
        ];
        let rows = deprecated(keys, self.schema());
        self.in_batches(rows, &steps, observer).await
    }

    /// Returns the dates that keys in the table were given by a deprecation and still have; `None` when
    /// there are none, or all have been revoked.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn deprecation_dates(&self) -> Result<Option<DeprecationDates>, StoreError> {
        if !self.schema().has_table(DEPRECATIONS) {
            return Ok(None);
        }
        let select = format!(
            "SELECT min(d.expires_at_set), max(d.expires_at_set) FROM {DEPRECATIONS} d \
             JOIN api_keys k ON k.id = d.key_id AND k.expires_at = d.expires_at_set AND k.is_active"
        );
        let read = |row: &dyn Row| {
            Ok(row.time(0)?.zip(row.time(1)?).map(|(earliest, latest)| DeprecationDates {
                earliest: self.time_zone().first_instant(earliest),
                latest: self.time_zone().first_instant(latest),
            }))
        };
        self.row(&select, &[], read).await
    }

    /// Counts the keys that [`undo_deprecation`](Self::undo_deprecation) would change.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn count_deprecated(&self, keys: DeprecatedKeys) -> Result<u64, StoreError> {
        self.schema().require_table(DEPRECATIONS)?;
        let Rows { from, condition, .. } = deprecated(keys, self.schema());
        let count = format!(
            "SELECT count(*) {from} WHERE {} AND k.expires_at = d.expires_at_set",
            condition.text
        );
        self.row(&count, &condition.values, |row| row.count(0)).await
    }

    /// Revokes the keys that the filter selects, for good, and returns how many there were. Keys that are
    /// revoked already stay as they are.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot write. What was revoked by then stays revoked.
    pub async fn revoke_all<O: BatchObserver>(
        &self,
        filter: &KeyFilter,
        reason: &str,
        observer: &mut O,
    ) -> Result<u64, O::Error> {
        let now = self.now();
        self.revoke_where(self.condition(filter, now), now, reason, observer).await
    }

    /// Marks every key past its expiry as revoked, as
    /// [`KeyStore::expire`](crate::store::KeyStore::expire) does, in batches. Returns how many there were.
    ///
    /// # Errors
    /// Those of [`revoke_all`](Self::revoke_all).
    pub async fn expire<O: BatchObserver>(&self, observer: &mut O) -> Result<u64, O::Error> {
        let now = self.now();
        self.revoke_where(self.expired(now), now, "expired", observer).await
    }

    /// Counts the keys that [`expire`](Self::expire) would mark.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn count_expired(&self) -> Result<u64, StoreError> {
        let mut condition = self.expired(self.now());
        condition.text += " AND k.is_active";
        self.count_where(&condition).await
    }

    async fn revoke_where<O: BatchObserver>(
        &self,
        mut condition: Condition<'_>,
        at: SystemTime,
        reason: &str,
        observer: &mut O,
    ) -> Result<u64, O::Error> {
        condition.text += " AND k.is_active";
        let step = if self.schema().has_extra_columns() {
            Step {
                statement: "UPDATE api_keys SET is_active = FALSE, revoked_at = $1, \
                     revoked_reason = $2 WHERE id IN ({ids})"
                    .to_owned(),
                values: vec![Value::date(at), reason.into()],
            }
        } else {
            let statement = "UPDATE api_keys SET is_active = FALSE WHERE id IN ({ids})".to_owned();
            Step { statement, values: Vec::new() }
        };
        self.in_batches(Rows::keys(condition), &[step], observer).await
    }

    /// Selects the keys past their expiry.
    fn expired(&self, now: SystemTime) -> Condition<'static> {
        let mut condition = Condition { text: "TRUE".to_owned(), values: Vec::new() };
        condition.and("k.expires_at <= ?", Value::date(self.time_zone().reached(now)));
        condition
    }

    /// Selects the keys that a deprecation changes.
    fn deprecatable<'a>(
        &self,
        filter: &'a KeyFilter,
        date: SystemTime,
        now: SystemTime,
    ) -> Condition<'a> {
        let mut condition = self.condition(filter, now);
        let later = "k.is_active AND (k.expires_at IS NULL OR k.expires_at > ?)";
        condition.and(later, Value::date(self.time_zone().to_local(date)));
        condition
    }
}

/// Selects the deprecations that an undoing takes back.
fn deprecated(keys: DeprecatedKeys, schema: &Schema) -> Rows<'static> {
    let text = match keys {
        DeprecatedKeys::All => "TRUE".to_owned(),
        DeprecatedKeys::Upgraded if schema.has_extra_columns() => {
            format!("k.hash_format = '{}'", HashFormat::HmacSha256)
        }
        DeprecatedKeys::Upgraded => "FALSE".to_owned(),
    };
    Rows {
        id: "d.key_id",
        from: "FROM lexikon_auth_deprecations d JOIN api_keys k ON k.id = d.key_id",
        lock: "FOR UPDATE OF d, k",
        condition: Condition { text, values: Vec::new() },
    }
}
