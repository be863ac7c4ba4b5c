//! What a database keeps for all instances: the secrets, the legacy policy and the time zone.

use std::time::SystemTime;

use super::dialect::Dialect;
use super::row::Row;
use super::schema::{POLICIES, SECRETS, SETTINGS, Schema};
use super::statements::{
    INSERT_SECRET, INSERT_TIME_ZONE, SELECT_POLICY, SELECT_SECRETS, SELECT_TIME_ZONE,
};
use super::store::SqlStore;
use super::value::Value;
use crate::crypto::secret::{SecretFingerprint, SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::policy::LegacyPolicy;
use crate::store::PolicySource;
use crate::time_zone::{TimeZone, require_same};

#[expect(private_bounds, reason = "nobody else can add a database")]
impl<DB: Dialect> SqlStore<DB> {
    /// Refuses a current secret that the database does not know; call it when the service starts. A
    /// database that knows none yet learns this one. Tables without the extension know nothing, and refuse
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError::UnknownSecret`].
    pub async fn check_secrets(&self, ring: &SecretRing) -> Result<(), StoreError> {
        let current = ring.current().fingerprint();
        if !self.schema.has_table(SECRETS)
            || is_known(current, &self.fetch(SELECT_SECRETS, &[]).await?)?
        {
            return Ok(());
        }
        DB::write(&self.connections, move |connection| {
            Box::pin(async move {
                // Of several instances that start with different secrets, the first one decides.
                DB::lock_maintenance(connection).await?;
                let known = DB::fetch_on(connection, SELECT_SECRETS, &[]).await?;
                if !is_known(current, &known)? {
                    DB::execute_on(connection, INSERT_SECRET, &secret_row(current)).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Lets the database know a new secret, so that services may start with it.
    ///
    /// # Errors
    /// [`StoreError::Schema`] when the tables are without the extension.
    pub async fn add_secret(&self, secret: &ServerSecret) -> Result<(), StoreError> {
        self.schema.require_table(SECRETS)?;
        self.execute(INSERT_SECRET, &secret_row(secret.fingerprint())).await.map(drop)
    }

    /// Reads and writes `expires_at` and `last_used_at` in the time zone that the lexikon service ran in,
    /// for this store and its clones. Call it before the store is used.
    ///
    /// A database with the extension keeps the first zone that it is given, and a store that is given none
    /// uses the one that is kept. Without the extension this setting alone counts: give it to every
    /// instance.
    ///
    /// # Errors
    /// [`StoreError::TimeZoneMismatch`] when the database keeps another, or a clone was given another.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "sqlite")] {
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("keys.db");
    /// use lexikon_auth::store::SqliteStore;
    /// let store = SqliteStore::open_or_create(&path).await?;
    /// let store = store.with_time_zone("Europe/Paris".parse()?).await?;
    /// # store.close().await;
    /// # Ok(()) }
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
    /// # }
    /// ```
    pub async fn with_time_zone(self, zone: TimeZone) -> Result<Self, StoreError> {
        self.store_zone(&zone).await?;
        Ok(self)
    }

    /// Returns the time zone in force.
    pub fn time_zone(&self) -> &TimeZone {
        self.zone.zone()
    }

    /// Returns the zone that the database keeps.
    pub(crate) async fn stored_zone(&self) -> Result<Option<TimeZone>, StoreError> {
        if !self.schema.has_table(SETTINGS) {
            return Ok(None);
        }
        let rows = self.fetch(SELECT_TIME_ZONE, &[]).await?;
        rows.first().map(read_time_zone).transpose()
    }

    /// Uses the zone that the database keeps, if it does.
    pub(crate) async fn use_stored_zone(&self) -> Result<(), StoreError> {
        let stored = self.stored_zone().await?;
        stored.map_or(Ok(()), |zone| self.zone.agree_on(&zone))
    }

    /// Uses a zone, and has the database keep it. Of several, the first one that it is given decides.
    pub(crate) async fn store_zone(&self, zone: &TimeZone) -> Result<(), StoreError> {
        require_same(zone, self.zone.given())?;
        if self.schema.has_table(SETTINGS) {
            if self.stored_zone().await?.is_none() {
                self.execute(INSERT_TIME_ZONE, &[zone.name().into()]).await?;
            }
            require_same(zone, self.stored_zone().await?.as_ref())?;
        }
        self.zone.agree_on(zone)
    }

    /// Returns the store of a database whose schema was extended. The database keeps the zone that the
    /// store was given.
    pub(crate) async fn extended(self, schema: Schema) -> Result<Self, StoreError> {
        let store = Self::new(self.connections, schema, self.zone);
        match store.zone.given().cloned() {
            Some(zone) => store.store_zone(&zone).await?,
            None => store.use_stored_zone().await?,
        }
        Ok(store)
    }
}

impl<DB: Dialect> PolicySource for SqlStore<DB> {
    async fn legacy_policy(&self) -> Result<Option<LegacyPolicy>, StoreError> {
        if !self.has_table(POLICIES).await? {
            return Ok(None);
        }
        self.fetch(SELECT_POLICY, &[]).await?.first().map(read_policy).transpose()
    }
}

/// Reads a row of the table of policies that begins as the answer to [`SELECT_POLICY`] does.
pub(crate) fn read_policy(row: &(impl Row + ?Sized)) -> Result<LegacyPolicy, StoreError> {
    let name = row.string(0)?;
    LegacyPolicy::from_name(&name, row.time(1)?).ok_or_else(|| {
        StoreError::Schema(format!(
            "table {POLICIES} holds the policy {name:?}, which this version does not know; update \
             this program, or set another policy"
        ))
    })
}

/// Reads the answer to [`SELECT_TIME_ZONE`].
fn read_time_zone(row: &impl Row) -> Result<TimeZone, StoreError> {
    let name = row.string(0)?;
    name.parse().map_err(|_| {
        StoreError::Schema(format!(
            "table {SETTINGS} holds the time zone {name:?}, which this version does not know; update \
             this program, or mend the row"
        ))
    })
}

/// Returns whether the database knows a secret, from the answer to [`SELECT_SECRETS`].
///
/// # Errors
/// [`StoreError::UnknownSecret`] where it knows others.
fn is_known(current: SecretFingerprint, known: &[impl Row]) -> Result<bool, StoreError> {
    let known = known.iter().map(|row| row.string(0)).collect::<Result<Vec<_>, _>>()?;
    match &*known {
        [] => Ok(false),
        _ if known.contains(&current.to_string()) => Ok(true),
        _ => Err(StoreError::UnknownSecret { current, known: known.join(", ") }),
    }
}

/// Returns the values of [`INSERT_SECRET`].
fn secret_row(secret: SecretFingerprint) -> [Value<'static>; 2] {
    let now = Value::Time("added_at", Some(SystemTime::now()));
    [secret.to_string().into(), now]
}
