//! The table, and what lists and counts its keys.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::database::{Database, for_either};
use super::filter::{Condition, KeyFilter};
use super::session::Session;
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::record::KeyRecord;
use crate::store::DynKeyStore;
#[cfg(feature = "postgres")]
use crate::store::PostgresStore;
#[cfg(feature = "sqlite")]
use crate::store::SqliteStore;
use crate::store::sql::row::{Row, only, read_record};
use crate::store::sql::schema::Schema;
use crate::store::sql::statements::{FROM, Statements};
use crate::store::sql::value::Value;

/// The table of keys as a whole, for those who run a service: what is in it, how far a migration is, and
/// changes to many keys at once. Requests go to the store that it is made from.
///
/// What changes many rows does so a thousand at a time, each batch in a transaction of its own, in the
/// order of their ids: a live service waits for a batch at most. It can be interrupted at any time and
/// run again, and does then what is left. Of two such changes, the batches take turns.
///
/// Caches learn of every change from a follower; without one, those in memory keep entries for their
/// short age, and those in Redis have to be told, by a [`BatchObserver`](super::BatchObserver).
///
/// Answers that may be long are handed on row by row, so that memory stays flat. Each method asks the
/// [clock](Self::with_clock) once, so that its answer is as of one moment; what the store does by itself, such as
/// noting a secret, goes by the system's.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("keys.db");
/// use lexikon_auth::StoreError;
/// use lexikon_auth::store::SqliteStore;
/// use lexikon_auth::admin::{KeyFilter, KeyTable};
/// let table = KeyTable::from(SqliteStore::open_or_create(&path).await?);
/// table.each_key(&KeyFilter::default().owner("user-1"), |key| {
///     println!("{} {}", key.record.id, key.record.name);
///     Ok::<_, StoreError>(())
/// })
/// .await?;
/// # Ok(()) }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run()).unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct KeyTable {
    pub(super) database: Database,
    pub(super) clock: Arc<dyn Clock>,
}

#[cfg(feature = "sqlite")]
impl From<SqliteStore> for KeyTable {
    fn from(store: SqliteStore) -> Self {
        Self::new(Database::Sqlite(store))
    }
}

#[cfg(feature = "postgres")]
impl From<PostgresStore> for KeyTable {
    fn from(store: PostgresStore) -> Self {
        Self::new(Database::Postgres(store))
    }
}

/// A key, and where its owner is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedKey {
    /// The record.
    pub record: KeyRecord,
    /// The owner's address, where the table of users has a column `email`.
    pub email: Option<String>,
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyTable").field("database", &self.database).finish_non_exhaustive()
    }
}

impl KeyTable {
    fn new(database: Database) -> Self {
        Self { database, clock: Arc::new(SystemClock) }
    }

    /// Sets the clock.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    pub(super) fn now(&self) -> SystemTime {
        self.clock.now()
    }

    /// Returns the store that the table was made from, behind one type.
    pub fn store(&self) -> DynKeyStore {
        for_either!(&self.database, Database<DB>(store) => DynKeyStore::new(store.clone()))
    }

    /// Hands every key that the filter selects to `take`, as of one moment: the database keeps a snapshot
    /// until it is through.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer or a row cannot be read, and what `take` returns,
    /// which ends the list.
    pub async fn each_key<E: From<StoreError>>(
        &self,
        filter: &KeyFilter,
        mut take: impl FnMut(ListedKey) -> Result<(), E>,
    ) -> Result<(), E> {
        let condition = self.condition(filter, self.now());
        let email =
            if self.schema().has("users", "email") { "u.email" } else { "CAST(NULL AS VARCHAR)" };
        let order = if filter.by_owner { "k.user_id, k.id" } else { "k.id" };
        let rest = format!("WHERE {} ORDER BY {order}", condition.text);
        let select = self.statements().select_with(email, &rest);
        let mut session = Session::read(&self.database).await?;
        session
            .each(&select, &condition.values, |row| {
                let email = row.text(13)?.map(str::to_owned);
                take(ListedKey { record: self.read(row)?, email })
            })
            .await?;
        Ok(session.rollback().await?)
    }

    /// Counts the keys that the filter selects.
    ///
    /// # Errors
    /// [`StoreError`] when the database cannot answer.
    pub async fn count(&self, filter: &KeyFilter) -> Result<u64, StoreError> {
        let condition = self.condition(filter, self.now());
        self.count_where(&condition).await
    }

    pub(super) async fn count_where(&self, condition: &Condition<'_>) -> Result<u64, StoreError> {
        let count = format!("SELECT count(*) {FROM} WHERE {}", condition.text);
        self.row(&count, &condition.values, |row| row.count(0)).await
    }

    pub(super) fn condition<'a>(&self, filter: &'a KeyFilter, now: SystemTime) -> Condition<'a> {
        Condition::of(filter, self.schema(), self.time_zone(), now)
    }

    pub(super) fn schema(&self) -> &Schema {
        for_either!(&self.database, Database<DB>(store) => &store.schema)
    }

    pub(super) fn statements(&self) -> &Statements {
        for_either!(&self.database, Database<DB>(store) => &store.statements)
    }

    pub(super) fn read(&self, row: &dyn Row) -> Result<KeyRecord, StoreError> {
        read_record(row, self.time_zone())
    }

    /// Reads all rows of an answer that is short.
    pub(super) async fn rows<T>(
        &self,
        query: &str,
        values: &[Value<'_>],
        read: impl FnMut(&dyn Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut session = Session::read(&self.database).await?;
        let rows = session.rows(query, values, read).await?;
        session.rollback().await?;
        Ok(rows)
    }

    /// Reads the row of an answer that always has one.
    pub(super) async fn row<T>(
        &self,
        query: &str,
        values: &[Value<'_>],
        read: impl FnMut(&dyn Row) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        only(self.rows(query, values, read).await?)
    }

    /// Runs one statement that writes, and returns how many rows it changed.
    pub(super) async fn execute(
        &self,
        statement: &str,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        let mut session = Session::write(&self.database).await?;
        let changed = session.execute(statement, values).await?;
        session.commit().await?;
        Ok(changed)
    }
}
