//! Checks before a service is trusted with a database.

use std::time::SystemTime;

use super::database::{Database, Statement};
use super::session::Session;
use super::table::KeyTable;
use crate::crypto::hash::KeyHash;
use crate::crypto::secret::SecretRing;
use crate::error::{ManageError, StoreError, VerifyError};
use crate::id::OwnerId;
use crate::manage::{IssuedKey, KeyManager, NewKey};
use crate::record::KeyRecord;
use crate::store::sql::schema::{CURRENT_SINCE, DEPRECATIONS, POLICIES, SECRETS, SETTINGS};
use crate::store::{KeyStore, MemoryStore};
use crate::verify::Verifier;

impl KeyTable {
    /// Returns what [`extend_schema`](Self::extend_schema) would run, in this order; nothing where all is
    /// there. The time zone that it has the database keep is not among it.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn missing_schema(&self) -> Result<Vec<&'static str>, StoreError> {
        let mut session = Session::read(&self.database).await?;
        let missing = session.missing_schema().await?;
        session.rollback().await?;
        Ok(missing)
    }

    /// Returns whether the database had the extension of the schema when it was opened.
    pub fn is_extended(&self) -> bool {
        let schema = self.schema();
        schema.has_extra_columns()
            && schema.has(SECRETS, CURRENT_SINCE)
            && [POLICIES, DEPRECATIONS, SETTINGS].iter().all(|table| schema.has_table(table))
    }

    /// Adds what is missing of the extension of the schema; see `extend_schema` of the stores.
    ///
    /// # Errors
    /// Those of the stores.
    #[doc(alias = "migrate")]
    pub async fn extend_schema(self) -> Result<Self, StoreError> {
        let database = match self.database {
            #[cfg(feature = "sqlite")]
            Database::Sqlite(store) => Database::Sqlite(store.extend_schema().await?),
            #[cfg(feature = "postgres")]
            Database::Postgres(store) => Database::Postgres(store.extend_schema().await?),
        };
        Ok(Self { database, ..self })
    }

    /// Returns whether an index that is valid begins with the column `key_hash`: without one, every
    /// verification reads the whole table.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn has_hash_index(&self) -> Result<bool, StoreError> {
        let count = self.database.statement(Statement {
            sqlite: "SELECT count(*) FROM pragma_index_list('api_keys') l, \
                     pragma_index_info(l.name) i \
                     WHERE i.seqno = 0 AND i.name = 'key_hash' AND l.partial = 0",
            postgres: "SELECT count(*) FROM pg_index i JOIN pg_attribute a \
                       ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
                       WHERE i.indrelid = to_regclass('api_keys') AND i.indisvalid \
                       AND i.indpred IS NULL AND a.attname = 'key_hash'",
        });
        Ok(self.row(count, &[], |row| row.count(0)).await? > 0)
    }

    /// Returns what time the database has: that of its server's clock, or in SQLite, which has none, the
    /// latest time that a key was made; `None` where there is none.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn latest_time(&self) -> Result<Option<SystemTime>, StoreError> {
        let select = self.database.statement(Statement {
            sqlite: "SELECT max(created_at) FROM api_keys",
            postgres: "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
        });
        self.row(select, &[], |row| row.time(0)).await
    }

    /// Issues a key, verifies it from what the database gives back, revokes it, and sees it refused: in
    /// a transaction that is rolled back, so that nothing is left and nobody else sees anything.
    ///
    /// # Errors
    /// [`ManageError::Store`] when the database does not do its part, with
    /// [`StoreError::UnknownOwner`] where it has no active owner to try it with.
    pub async fn try_round_trip(&self, ring: &SecretRing) -> Result<(), ManageError> {
        let mut session = Session::write(&self.database).await?;
        let owner = self.some_owner(&mut session).await?;
        let manager = KeyManager::new(MemoryStore::new(), ring);
        let IssuedKey { key, record } = manager.issue(NewKey::new(owner, "preflight")).await?;
        session.insert(&record).await?;
        let verify = async |record: KeyRecord| {
            let store = MemoryStore::new();
            store.set_owner_active(&record.owner, record.owner_active);
            store.insert(&record).await.map_err(VerifyError::Unavailable)?;
            Verifier::new(store, ring.clone()).verify(key.expose_secret()).await.map(drop)
        };
        let failed = |problem: &str| StoreError::Unavailable(problem.into());
        let stored = self.stored(&mut session, &record.hash).await?;
        let stored = stored.ok_or_else(|| failed("a key that was just written is not there"))?;
        let verified = verify(stored).await;
        verified.map_err(|error| match error {
            VerifyError::Unavailable(error) => error,
            VerifyError::Refused(refusal) => StoreError::Unavailable(refusal.into()),
        })?;
        let revoke = "UPDATE api_keys SET is_active = FALSE WHERE id = $1";
        session.execute(revoke, &[(&record.id).into()]).await?;
        let stored = self.stored(&mut session, &record.hash).await?;
        let stored = stored.ok_or_else(|| failed("a key that was just revoked is not there"))?;
        if !matches!(verify(stored).await, Err(VerifyError::Refused(_))) {
            return Err(failed("a revoked key is accepted").into());
        }
        Ok(session.rollback().await?)
    }

    async fn some_owner(&self, session: &mut Session) -> Result<OwnerId, StoreError> {
        let none = OwnerId::from("preflight");
        if self.schema().owns_users() {
            return Ok(none);
        }
        let select = "SELECT id FROM users WHERE is_active LIMIT 1";
        let owner = session.rows(select, &[], |row| row.string(0)).await?.pop();
        owner.map(OwnerId::from).ok_or(StoreError::UnknownOwner(none))
    }

    async fn stored(
        &self,
        session: &mut Session,
        hash: &KeyHash,
    ) -> Result<Option<KeyRecord>, StoreError> {
        let select = self.statements().select_with("NULL", "WHERE k.key_hash = $1");
        Ok(session.rows(&select, &[hash.into()], |row| self.read(row)).await?.pop())
    }
}
