//! The store, and what its methods share.

use std::sync::Arc;
use std::time::SystemTime;

use sqlx::SqlStr;

use super::dialect::Dialect;
use super::row::read_record;
use super::schema::Schema;
use super::statements::{INSERT_OWNER, SET_OWNER_ACTIVE, Statements, UPSERT_OWNER};
use super::value::Value;
use crate::crypto::hash::HashFormat;
use crate::error::StoreError;
use crate::id::OwnerId;
use crate::record::KeyRecord;
use crate::telemetry::StoreMetrics;
use crate::time_zone::SharedZone;

/// Keys in a SQL database: what `SqliteStore` and `PostgresStore` have in common. Clones share its
/// connections.
#[expect(private_bounds, reason = "nobody else can add a database")]
pub struct SqlStore<DB: Dialect> {
    pub(crate) connections: DB::Connections,
    pub(crate) schema: Schema,
    pub(crate) statements: Arc<Statements>,
    pub(crate) zone: SharedZone,
    pub(super) metrics: StoreMetrics,
}

#[expect(private_bounds, reason = "nobody else can add a database")]
impl<DB: Dialect> SqlStore<DB> {
    /// Disables or enables an owner: the keys of a disabled one are refused. Caches over this store
    /// learn of it from a [`Follower`](crate::tasks::Follower) of its changes, or by their `invalidate`.
    ///
    /// # Errors
    /// [`StoreError::UnknownOwner`] in a database of the lexikon service, where users are the
    /// service's to create.
    pub async fn set_owner_active(&self, owner: &OwnerId, active: bool) -> Result<(), StoreError> {
        let set = if self.schema.owns_users() { UPSERT_OWNER } else { SET_OWNER_ACTIVE };
        match self.execute(set, &[owner.as_str().into(), active.into()]).await? {
            0 => Err(StoreError::UnknownOwner(owner.clone())),
            _ => Ok(()),
        }
    }

    /// Closes all connections, once the calls that are under way have ended.
    pub async fn close(&self) {
        DB::pool(&self.connections).close().await;
    }

    pub(crate) fn new(connections: DB::Connections, schema: Schema, zone: SharedZone) -> Self {
        let statements = Arc::new(Statements::new::<DB>(&schema));
        Self { connections, schema, statements, zone, metrics: StoreMetrics::new(DB::STORE) }
    }

    /// Adds a record, and its owner where owners are this store's to create.
    pub(crate) async fn insert_on(
        &self,
        connection: &mut DB::Connection,
        record: &KeyRecord,
    ) -> Result<(), StoreError> {
        self.create_owner(connection, &record.owner, true).await?;
        let revocation = record.revocation.as_deref().cloned().unwrap_or_default();
        let values = [
            Value::from(&record.id),
            record.owner.as_str().into(),
            Value::from(&record.hash),
            Value::from(&*record.name),
            record.scopes.as_str().into(),
            Value::Flag(!record.is_revoked()),
            Value::Time("created_at", record.created_at),
            self.local("expires_at", record.expires_at),
            self.local("last_used_at", record.last_used_at),
            Value::Time("revoked_at", revocation.at),
            revocation.reason.as_deref().into(),
            record.format.map(HashFormat::as_str).into(),
        ];
        match DB::execute_on(connection, self.statements.insert.clone(), &values).await? {
            0 => Err(StoreError::UnknownOwner(record.owner.clone())),
            _ => Ok(()),
        }
    }

    /// Adds an owner who is not there, where owners are this store's to create.
    pub(crate) async fn create_owner(
        &self,
        connection: &mut DB::Connection,
        owner: &OwnerId,
        active: bool,
    ) -> Result<(), StoreError> {
        if self.schema.owns_users() {
            let values = [owner.as_str().into(), active.into()];
            DB::execute_on(connection, INSERT_OWNER, &values).await?;
        }
        Ok(())
    }

    pub(super) fn fetch(
        &self,
        query: SqlStr,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<DB::Row>, StoreError>> + Send {
        DB::fetch(&self.connections, query, values)
    }

    pub(super) async fn execute(
        &self,
        statement: SqlStr,
        values: &[Value<'_>],
    ) -> Result<u64, StoreError> {
        DB::execute(&self.connections, statement, DB::arguments(values)?).await
    }

    /// Returns whether a table is there by now: an operator may add it while this runs.
    pub(super) async fn has_table(&self, name: &'static str) -> Result<bool, StoreError> {
        Ok(!self.fetch(DB::SELECT_COLUMNS, &[name.into()]).await?.is_empty())
    }

    /// Returns a time to be written to a column of local times.
    pub(super) fn local(&self, column: &'static str, time: Option<SystemTime>) -> Value<'static> {
        Value::Time(column, time.map(|time| self.zone.zone().to_local(time)))
    }

    pub(super) fn read(&self, row: &DB::Row) -> Result<KeyRecord, StoreError> {
        read_record(row, self.zone.zone())
    }
}

// Not derived, which would ask for a clone of the database's name.
impl<DB: Dialect> Clone for SqlStore<DB> {
    fn clone(&self) -> Self {
        Self {
            connections: self.connections.clone(),
            schema: self.schema.clone(),
            statements: self.statements.clone(),
            zone: self.zone.clone(),
            metrics: self.metrics.clone(),
        }
    }
}
