//! Changes to many rows, with an invalidation of everything in Redis after each batch.

use std::sync::Arc;

use redis::{RedisError, RedisResult};

use super::error::unavailable;
use super::link::{Connected, Link};
use super::script::random;
use crate::error::StoreError;
use crate::store::change::Change;

/// A change to many rows that is under way, from
/// [`RedisStore::begin_bulk_change`](crate::store::RedisStore::begin_bulk_change).
///
/// While a marker is in Redis, every instance bypasses it: until the change has [finished](Self::finish).
/// If the process that changes the rows is killed, the marker stays: that costs speed, and no key is
/// accepted that was revoked. The next change that finishes removes it.
///
/// There is one marker for all changes. Each sets it anew before a batch, in its turn at the table, and it
/// may be removed only while no batch of another one is under way: with `KeyTable::in_turn`, or where
/// nobody else changes many rows.
#[must_use = "the marker stays until it is finished"]
pub struct BulkChange {
    link: Arc<Link>,
    name: String,
    token: String,
}

impl BulkChange {
    pub(super) async fn begin(link: Arc<Link>) -> Result<Self, StoreError> {
        let token = random().map_err(unavailable)?;
        let name = link.options.bulk_change_marker();
        let change = Self { link, name, token: format!("{token:016x}") };
        change.set_marker().await?;
        Ok(change)
    }

    /// Sets the marker: before each batch, because another change that finishes may have removed it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer.
    pub async fn set_marker(&self) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(&self.name).arg(&self.token);
        let mut connection = self.connected()?.connection;
        set.exec_async(&mut connection).await.map_err(|error| self.failed(error))
    }

    /// Invalidates everything in all instances: after each batch, once it is committed.
    ///
    /// # Errors
    /// Those of [`set_marker`](Self::set_marker).
    pub async fn invalidate(&self) -> Result<(), StoreError> {
        let Link { scripts, options, .. } = &*self.link;
        let Connected { mut connection, run } = self.connected()?;
        let invalidated: RedisResult<()> =
            scripts.mark(&mut connection, options, &Change::All, true).await;
        invalidated.map_err(|error| self.failed(error))?;
        match self.link.add_sent(run, &Change::All) {
            true => Ok(()),
            false => {
                Err(StoreError::Unavailable("Redis has been replaced by another server".into()))
            }
        }
    }

    /// Invalidates everything in all instances, and removes the marker, unless another change has set it
    /// since. No batch of any change may be under way: see `KeyTable::in_turn`.
    ///
    /// # Errors
    /// Those of [`set_marker`](Self::set_marker). The marker stays.
    pub async fn finish(self) -> Result<(), StoreError> {
        self.invalidate().await?;
        let mut connection = self.connected()?.connection;
        let Link { scripts, .. } = &*self.link;
        let removed = scripts.compare_and_delete(&mut connection, &self.name, &self.token).await;
        removed.map_err(|error| self.failed(error))
    }

    fn connected(&self) -> Result<Connected, StoreError> {
        let down = || StoreError::Unavailable("Redis cannot be reached".into());
        self.link.connected().ok_or_else(down)
    }

    fn failed(&self, error: RedisError) -> StoreError {
        self.link.bypass(&error);
        unavailable(error)
    }
}
