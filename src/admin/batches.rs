//! Changes to many rows, a thousand at a time.

use std::future::Future;

use super::database::Statement;
use super::filter::Condition;
use super::session::Session;
use super::table::KeyTable;
use crate::error::StoreError;
use crate::store::sql::statements::FROM;
use crate::store::sql::value::Value;

/// Rows that are changed in one transaction: a service that works on the same rows waits for one.
const BATCH: usize = 1000;

/// Who accompanies a change to many rows: shows how far it is, tells caches, or ends it.
///
/// Caches that follow no feed have to be invalidated here, each batch before the next one begins: who
/// changes rows may be interrupted at any time. For those in Redis there is
/// `store::BulkChange`, which is such an observer; `()` is one that does nothing.
///
/// ```
/// # #[cfg(feature = "sqlite")] {
/// use lexikon_auth::StoreError;
/// use lexikon_auth::admin::BatchObserver;
///
/// /// Prints how many rows have been changed so far.
/// struct Printed;
///
/// impl BatchObserver for Printed {
///     type Error = StoreError;
///
///     async fn after_batch(&mut self, changed: u64) -> Result<(), StoreError> {
///         println!("{changed}");
///         Ok(())
///     }
/// }
/// # }
/// ```
#[doc(alias = "progress")]
pub trait BatchObserver: Send {
    /// Why it ends a change, or why the change failed.
    type Error: From<StoreError> + Send;

    /// Runs before a batch is written. The future completes before any row of it is locked.
    ///
    /// # Errors
    /// An error ends the change, and the batch is not written.
    fn before_batch(&mut self) -> impl Future<Output = Result<(), Self::Error>> + Send {
        async { Ok(()) }
    }

    /// Runs once a batch is committed, also where the database did not answer the commit and its fate is
    /// not known. `changed` rows have been changed so far.
    ///
    /// It does not run where the future of the change is dropped while the batch is being committed.
    ///
    /// # Errors
    /// An error ends the change. What was changed stays changed.
    fn after_batch(
        &mut self,
        changed: u64,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = changed;
        async { Ok(()) }
    }
}

impl BatchObserver for () {
    type Error = StoreError;
}

/// Has instances bypass Redis from before the first batch on, and invalidates all of it after each. [Finish](crate::store::BulkChange::finish) it afterwards, [in a turn](KeyTable::in_turn),
/// also where the change failed.
///
/// ```no_run
/// # #[cfg(feature = "sqlite")] {
/// # use lexikon_auth::StoreError;
/// # use lexikon_auth::store::{RedisStore, SqliteStore};
/// # use lexikon_auth::admin::{KeyFilter, KeyTable};
/// # async fn run(redis: RedisStore<SqliteStore>, table: KeyTable) -> Result<(), StoreError> {
/// let mut change = redis.begin_bulk_change().await?;
/// let revoked = table.revoke_all(&KeyFilter::legacy(None), "SHA-256", &mut change).await;
/// table.in_turn(change.finish()).await?;
/// println!("{} revoked", revoked?);
/// # Ok(()) }
/// # }
/// ```
#[cfg(feature = "redis")]
impl BatchObserver for crate::store::BulkChange {
    type Error = StoreError;

    async fn before_batch(&mut self) -> Result<(), StoreError> {
        self.set_marker().await
    }

    async fn after_batch(&mut self, _: u64) -> Result<(), StoreError> {
        self.invalidate().await
    }
}

/// A statement about the rows of a batch.
pub(super) struct Step<'a> {
    /// The statement; `{ids}` stands for the ids of the batch.
    pub(super) statement: String,
    pub(super) values: Vec<Value<'a>>,
}

/// Which rows are gone through, in the order of their ids.
pub(super) struct Rows<'a> {
    /// The column with the ids.
    pub(super) id: &'static str,
    pub(super) from: &'static str,
    /// How the rows are locked, where there is more than one writer at a time.
    pub(super) lock: &'static str,
    pub(super) condition: Condition<'a>,
}

impl<'a> Rows<'a> {
    /// Selects keys.
    pub(super) fn keys(condition: Condition<'a>) -> Self {
        Self { id: "k.id", from: FROM, lock: "FOR UPDATE OF k", condition }
    }
}

impl KeyTable {
    /// Runs `work` while no batch of any change to many rows is under way, from its first row to its
    /// commit: for [`BulkChange::finish`](crate::store::BulkChange::finish), which ends the bypass
    /// of Redis, and must not do so while a batch of somebody else's is not invalidated. It waits for the
    /// batch that is under way, at most a minute, and in SQLite for as long as a connection waits for
    /// a lock.
    ///
    /// `work` must not change the database.
    ///
    /// # Errors
    /// That of `work`; [`StoreError`] when the database does not give a turn, and `work` has not begun.
    #[cfg(feature = "redis")]
    pub async fn in_turn<T, E: From<StoreError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let session = Session::maintain(&self.database).await?;
        let done = work.await;
        // Nothing was written. Where it cannot be ended, its connection is, and the lock with it.
        let _ = session.rollback().await;
        done
    }

    /// Runs the steps on every row, batch by batch, and returns how many rows the first of them changed
    /// altogether.
    pub(super) async fn in_batches<O: BatchObserver>(
        &self,
        rows: Rows<'_>,
        steps: &[Step<'_>],
        observer: &mut O,
    ) -> Result<u64, O::Error> {
        let Rows { id, from, lock, condition } = rows;
        // In SQLite there is one writer at a time.
        let lock = self.database.statement(Statement { sqlite: "", postgres: lock });
        let mut changed = 0;
        let mut last: Option<String> = None;
        loop {
            let mut session = Session::write(&self.database).await?;
            session.lock_maintenance().await?;
            // Under the lock: another change that is through by then takes no marker of this one away.
            observer.before_batch().await?;
            let mut condition = condition.clone();
            if let Some(last) = &last {
                condition.and(&format!("{id} > ?"), last.as_str().into());
            }
            let select = format!(
                "SELECT {id} {from} WHERE {} ORDER BY {id} LIMIT {BATCH} {lock}",
                condition.text
            );
            let ids = session.rows(&select, &condition.values, |row| row.string(0)).await?;
            let Some(end) = ids.last() else { return Ok(changed) };
            for (index, step) in steps.iter().enumerate() {
                let first = step.values.len() + 1;
                let places = (first..first + ids.len()).map(|number| format!("${number}"));
                let places = places.collect::<Vec<_>>().join(", ");
                let values = step.values.iter().cloned();
                let values: Vec<_> =
                    values.chain(ids.iter().map(|id| id.as_str().into())).collect();
                let statement = step.statement.replace("{ids}", &places);
                let rows = session.execute(&statement, &values).await?;
                if index == 0 {
                    changed += rows;
                }
            }
            let committed = session.commit().await;
            let observed = observer.after_batch(changed).await;
            committed?;
            observed?;
            if ids.len() < BATCH {
                return Ok(changed);
            }
            last = Some(end.clone());
        }
    }
}
