//! The methods of a store, each one statement or one transaction.

use std::sync::Arc;
use std::time::SystemTime;

use sqlx::FromRow;

use super::PostgresStore;
use super::connection::unavailable;
use super::row::Timestamp;
use crate::crypto::hash::Candidates;
use crate::error::StoreError;
use crate::id::{KeyId, OwnerId};
use crate::record::KeyRecord;
use crate::record::KeyUpdate;
use crate::store::sql::{
    CACHES, REGISTER_CACHE, SELECT_EXPIRY_BEFORE, Statements, counts, earliest, found,
    rotated_expiry,
};
use crate::store::{
    FormatCounts, HashChange, KeyLookup, KeyStore, Page, SharedCache, Succession, Usage,
};
use crate::telemetry::Operation;

impl KeyLookup for PostgresStore {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let hashes = candidates.as_slice();
            let find = || {
                let find = sqlx::query(self.find[hashes.len() - 1].clone());
                hashes.iter().fold(find, |find, hash| find.bind(hash.to_hex()))
            };
            let rows = self.fetch(find).await?;
            let records = rows.iter().map(|row| self.read(row)).collect::<Result<Vec<_>, _>>()?;
            Ok(earliest(hashes, records).map(Arc::new))
        };
        self.calls.measure(Operation::Find, call).await
    }

    async fn on_feed_event(&self, _: &crate::store::FeedEvent) {}

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        let now = Timestamp::new("last_seen_at", SystemTime::now())?;
        // Asked for each time, because an operator may add the table while this runs.
        let is_there = "SELECT 1 WHERE to_regclass($1) IS NOT NULL";
        if self.fetch(|| sqlx::query(is_there).bind(CACHES)).await?.is_empty() {
            return Ok(());
        }
        let SharedCache { prefix, address } = cache.clone();
        let register = sqlx::query(REGISTER_CACHE).bind(prefix).bind(address).bind(now);
        self.execute(register).await.map(drop)
    }
}

impl KeyStore for PostgresStore {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let (store, record) = (self.clone(), record.clone());
        let call = self.connections.write(|mut lease| async move {
            let mut transaction = lease.begin_write().await?;
            store.insert_in(&mut transaction, &record).await?;
            transaction.commit().await.map_err(unavailable)?;
            lease.end();
            Ok(())
        });
        self.calls.measure(Operation::Insert, call).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let query = || sqlx::query(self.statements.find_by_id.clone()).bind(id.to_string());
            let rows = self.fetch(query).await?;
            Ok(rows.first().map(|row| self.read(row)).transpose()?.map(Arc::new))
        };
        self.calls.measure(Operation::FindById, call).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        let call = async {
            let Statements { list, list_after, .. } = &*self.statements;
            let list = if page.after.is_some() { list_after } else { list };
            let query = || {
                let query = sqlx::query(list.clone());
                let query = query.bind(owner.as_str()).bind(i64::from(page.limit));
                match &page.after {
                    Some(id) => query.bind(id.to_string()),
                    None => query,
                }
            };
            let rows = self.fetch(query).await?;
            rows.iter().map(|row| self.read(row).map(Arc::new)).collect()
        };
        self.calls.measure(Operation::List, call).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let call = async {
            let expires_at = update.expires_at.unwrap_or_default();
            let query = sqlx::query(self.statements.update.clone())
                .bind(id.to_string())
                .bind(update.name.as_deref().map(str::to_owned))
                .bind(update.scopes.as_ref().map(|scopes| scopes.as_str().to_owned()))
                .bind(update.expires_at.is_some())
                .bind(self.local_optional("expires_at", expires_at)?);
            found(id, self.execute(query).await?)
        };
        self.calls.measure(Operation::Update, call).await
    }

    async fn revoke(
        &self,
        id: &KeyId,
        at: SystemTime,
        reason: Option<&str>,
    ) -> Result<(), StoreError> {
        let call = async {
            let mut query = sqlx::query(self.statements.revoke.clone()).bind(id.to_string());
            if self.schema.has_details {
                query = query.bind(Timestamp::new("revoked_at", at)?);
                query = query.bind(reason.map(str::to_owned));
            }
            found(id, self.execute(query).await?)
        };
        self.calls.measure(Operation::Revoke, call).await
    }

    async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
        let store = self.clone();
        let Succession { old, old_expires_at, successor, now } = succession.clone();
        let call = self.connections.write(move |mut lease| async move {
            let mut transaction = lease.begin_write().await?;
            // Two rotations of one key take turns, and the second sees what the first did.
            let stored = sqlx::query(store.statements.select("WHERE k.id = $1 FOR UPDATE OF k"))
                .bind(old.id.to_string())
                .fetch_optional(&mut *transaction)
                .await
                .map_err(unavailable)?;
            let stored = stored.ok_or_else(|| StoreError::NotFound(old.id.clone()))?;
            store.read(&stored)?.check_rotation(&old, now)?;
            store.insert_in(&mut transaction, &successor).await?;
            let is_deprecated = store.schema.has_deprecations
                && sqlx::query(SELECT_EXPIRY_BEFORE)
                    .bind(old.id.to_string())
                    .fetch_optional(&mut *transaction)
                    .await
                    .map_err(unavailable)?
                    .is_some();
            let expires_at = rotated_expiry(&old, old_expires_at, is_deprecated);
            sqlx::query(store.statements.set_expiry.clone())
                .bind(old.id.to_string())
                .bind(store.local("expires_at", expires_at)?)
                .execute(&mut *transaction)
                .await
                .map_err(unavailable)?;
            transaction.commit().await.map_err(unavailable)?;
            lease.end();
            Ok(())
        });
        self.calls.measure(Operation::Rotate, call).await
    }

    async fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        if !self.schema.has_deprecations {
            return Ok(None);
        }
        let query = || sqlx::query(SELECT_EXPIRY_BEFORE).bind(id.to_string());
        let rows = self.fetch(query).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let (before,): (Option<Timestamp>,) = FromRow::from_row(row).map_err(unavailable)?;
        Ok(Some(before.map(|local| self.time_zone().first_instant(local.to_time()))))
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let call = async {
            let reached = Timestamp::new("expires_at", self.time_zone().reached(now))?;
            let mut query = sqlx::query(self.statements.expire.clone()).bind(reached);
            if self.schema.has_details {
                query = query.bind(Timestamp::new("revoked_at", now)?);
            }
            self.execute(query).await
        };
        self.calls.measure(Operation::Expire, call).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        let call = async {
            let ids: Vec<_> = batch.iter().map(|usage| usage.id.to_string()).collect();
            let times = batch.iter().map(|usage| self.local("last_used_at", usage.at));
            let times = times.collect::<Result<Vec<_>, _>>()?;
            let formats: Vec<_> = batch.iter().map(|usage| usage.format.as_str()).collect();
            let query = sqlx::query(self.record_usage.clone()).bind(ids).bind(times).bind(formats);
            self.execute(query).await.map(drop)
        };
        self.calls.measure(Operation::RecordUsage, call).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let call = async {
            let query = sqlx::query(self.statements.replace_hash.clone())
                .bind(change.id.to_string())
                .bind(change.expected.to_hex())
                .bind(change.replacement.to_hex());
            match self.execute(query).await {
                Ok(changed) => Ok(changed == 1),
                Err(StoreError::Conflict) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.calls.measure(Operation::ReplaceHash, call).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        let call = async {
            let query = || sqlx::query(self.statements.count_by_format.clone());
            let rows = self.fetch(query).await?;
            let row = rows.first().ok_or(sqlx::Error::RowNotFound).and_then(FromRow::from_row);
            row.map(counts).map_err(unavailable)
        };
        self.calls.measure(Operation::CountByFormat, call).await
    }
}
