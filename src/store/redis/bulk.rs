//! Changes to many rows, which Redis is told of batch by batch.

use std::sync::Arc;

use redis::{RedisError, RedisResult};

use super::feed::unavailable;
use super::link::{Connected, Link};
use super::script::random;
use crate::error::StoreError;
use crate::store::Change;

/// A change to many rows that is under way, from
/// [`RedisStore::begin_bulk_change`](super::RedisStore::begin_bulk_change).
///
/// A marker in Redis keeps every instance from believing what is there until the change has
/// [finished](Self::finish). Where whoever changes the rows is killed, it stays: that costs speed, and no
/// key is accepted that was revoked. The next change that finishes takes it away.
///
/// One marker serves all changes. Each sets it anew before a batch, in its turn at the table, and it may
/// be taken away only while no batch of another one is under way: with `KeyTable::in_turn`, or where
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
        change.mark().await?;
        Ok(change)
    }

    /// Sets the marker: before each batch, because another change that finishes may have taken it away.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis does not answer.
    pub async fn mark(&self) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(&self.name).arg(&self.token);
        let mut connection = self.connected()?.connection;
        set.exec_async(&mut connection).await.map_err(|error| self.failed(error))
    }

    /// Has all instances forget everything: after each batch, once it is committed.
    ///
    /// # Errors
    /// Those of [`mark`](Self::mark).
    pub async fn forget(&self) -> Result<(), StoreError> {
        let Link { scripts, options, .. } = &*self.link;
        let Connected { mut connection, run } = self.connected()?;
        let forgotten: RedisResult<()> =
            scripts.remember(&mut connection, options, &Change::All, true).await;
        forgotten.map_err(|error| self.failed(error))?;
        match self.link.note_told(run, &Change::All) {
            true => Ok(()),
            false => {
                Err(StoreError::Unavailable("Redis has been replaced by another server".into()))
            }
        }
    }

    /// Has all instances forget everything, and takes the marker away, unless another change has set it
    /// since. No batch of any change may be under way: see `KeyTable::in_turn`.
    ///
    /// # Errors
    /// Those of [`mark`](Self::mark). The marker stays.
    pub async fn finish(self) -> Result<(), StoreError> {
        self.forget().await?;
        let mut connection = self.connected()?.connection;
        let unmarked = self.link.scripts.unmark(&mut connection, &self.name, &self.token).await;
        unmarked.map_err(|error| self.failed(error))
    }

    fn connected(&self) -> Result<Connected, StoreError> {
        let down = || StoreError::Unavailable("Redis cannot be reached".into());
        self.link.any().ok_or_else(down)
    }

    fn failed(&self, error: RedisError) -> StoreError {
        self.link.fail(&error);
        unavailable(error)
    }
}
