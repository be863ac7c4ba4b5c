//! The secrets that keys were issued under.

use std::time::SystemTime;

use super::database::{Database, for_either};
use super::table::KeyTable;
use crate::crypto::secret::{SecretRing, ServerSecret};
use crate::error::StoreError;
use crate::store::sql::row::Row;
use crate::store::sql::schema::{CURRENT_SINCE, SECRETS};
use crate::store::sql::value::Value;

/// A secret that the database knows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownSecret {
    /// Its [fingerprint](crate::crypto::SecretFingerprint), as text.
    pub fingerprint: String,
    /// When the database learned of it.
    pub added_at: Option<SystemTime>,
    /// Since when every instance has had it as its current one, as an operator said.
    pub current_since: Option<SystemTime>,
}

impl KeyTable {
    /// Returns the secrets that the database knows, oldest first. None without the extension of the
    /// schema, or before a service has started with it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn secrets(&self) -> Result<Vec<KnownSecret>, StoreError> {
        let schema = self.schema();
        if !schema.has_table(SECRETS) {
            return Ok(Vec::new());
        }
        let since = if schema.has(SECRETS, CURRENT_SINCE) {
            CURRENT_SINCE
        } else {
            "CAST(NULL AS TIMESTAMP)"
        };
        let select = format!(
            "SELECT fingerprint, added_at, {since} FROM {SECRETS} ORDER BY added_at, fingerprint"
        );
        let read = |row: &dyn Row| {
            Ok(KnownSecret {
                fingerprint: row.string(0)?,
                added_at: row.time(1)?,
                current_since: row.time(2)?,
            })
        };
        self.rows(&select, &[], read).await
    }

    /// Refuses a current secret that the database does not know; see `check_secrets` of the stores.
    ///
    /// # Errors
    /// [`StoreError::UnknownSecret`].
    pub async fn check_secrets(&self, ring: &SecretRing) -> Result<(), StoreError> {
        for_either!(&self.database, Database<DB>(store) => store.check_secrets(ring).await)
    }

    /// Lets the database know a secret, so that services may start with it.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema.
    pub async fn add_secret(&self, secret: &ServerSecret) -> Result<(), StoreError> {
        for_either!(&self.database, Database<DB>(store) => store.add_secret(secret).await)
    }

    /// Notes that every instance has this secret as its current one: what is issued from now on does not
    /// need the others. What was noted before stands. Returns whether the database knows the secret.
    ///
    /// # Errors
    /// [`StoreError::Schema`] without the extension of the schema.
    #[doc(alias = "rotate")]
    pub async fn switch_to_secret(&self, secret: &ServerSecret) -> Result<bool, StoreError> {
        self.schema().require_column(SECRETS, CURRENT_SINCE)?;
        let update = format!(
            "UPDATE {SECRETS} SET current_since = coalesce(current_since, $1) WHERE fingerprint = $2"
        );
        let values = [Value::date(self.now()), secret.fingerprint().to_string().into()];
        Ok(self.execute(&update, &values).await? == 1)
    }

    /// Lets the database forget a secret: services that start with it are refused. Whether a key still
    /// needs it, [`KeyFilter::bound_to_secret_before`](super::KeyFilter::bound_to_secret_before) tells.
    /// Returns whether the database knew it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot write.
    pub async fn forget_secret(&self, fingerprint: &str) -> Result<bool, StoreError> {
        self.schema().require_table(SECRETS)?;
        let delete = format!("DELETE FROM {SECRETS} WHERE fingerprint = $1");
        Ok(self.execute(&delete, &[fingerprint.into()]).await? == 1)
    }
}
