//! The methods of a store, each one statement or one transaction.

use std::sync::Arc;
use std::time::SystemTime;

use super::timestamp::{from_text, to_text};
use super::{SqliteStore, schema, unavailable};
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

impl KeyLookup for SqliteStore {
    async fn find(&self, candidates: &Candidates) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            self.file.require()?;
            let hashes = candidates.as_slice();
            let mut query = sqlx::query(self.find[hashes.len() - 1].clone());
            for hash in hashes {
                query = query.bind(hash.to_hex());
            }
            let rows = query.fetch_all(&self.pool).await.map_err(unavailable)?;
            let records = rows.iter().map(|row| self.read(row)).collect::<Result<Vec<_>, _>>()?;
            Ok(earliest(hashes, records).map(Arc::new))
        };
        self.calls.measure(Operation::Find, call).await
    }

    async fn on_feed_event(&self, _: &crate::store::FeedEvent) {}

    async fn register_cache(&self, cache: &SharedCache) -> Result<(), StoreError> {
        let now = to_text("last_seen_at", SystemTime::now())?;
        // Asked for each time, because an operator may add the table while this runs.
        let mut connection = self.pool.acquire().await.map_err(unavailable)?;
        if schema::columns(&mut connection, CACHES).await?.is_empty() {
            return Ok(());
        }
        let register = sqlx::query(REGISTER_CACHE).bind(&cache.prefix).bind(&cache.address);
        register.bind(now).execute(&mut *connection).await.map_err(unavailable).map(drop)
    }
}

impl KeyStore for SqliteStore {
    async fn insert(&self, record: &KeyRecord) -> Result<(), StoreError> {
        let call = async {
            self.file.require()?;
            let mut transaction =
                self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
            self.insert_in(&mut transaction, record).await?;
            transaction.commit().await.map_err(unavailable)
        };
        self.calls.measure(Operation::Insert, call).await
    }

    async fn find_by_id(&self, id: &KeyId) -> Result<Option<Arc<KeyRecord>>, StoreError> {
        let call = async {
            self.file.require()?;
            let query = sqlx::query(self.statements.find_by_id.clone()).bind(id.to_string());
            let row = query.fetch_optional(&self.pool).await.map_err(unavailable)?;
            Ok(row.as_ref().map(|row| self.read(row)).transpose()?.map(Arc::new))
        };
        self.calls.measure(Operation::FindById, call).await
    }

    async fn list(&self, owner: &OwnerId, page: &Page) -> Result<Vec<Arc<KeyRecord>>, StoreError> {
        let call = async {
            self.file.require()?;
            let Statements { list, list_after, .. } = &*self.statements;
            let query = sqlx::query(if page.after.is_some() { list_after } else { list }.clone())
                .bind(owner.as_str())
                .bind(page.limit);
            let query = match &page.after {
                Some(id) => query.bind(id.to_string()),
                None => query,
            };
            let rows = query.fetch_all(&self.pool).await.map_err(unavailable)?;
            rows.iter().map(|row| self.read(row).map(Arc::new)).collect()
        };
        self.calls.measure(Operation::List, call).await
    }

    async fn update(&self, id: &KeyId, update: &KeyUpdate) -> Result<(), StoreError> {
        let call = async {
            self.file.require()?;
            let expires_at = update.expires_at.unwrap_or_default();
            let changed = sqlx::query(self.statements.update.clone())
                .bind(id.to_string())
                .bind(update.name.as_deref())
                .bind(update.scopes.as_ref().map(|scopes| scopes.as_str()))
                .bind(update.expires_at.is_some())
                .bind(self.local_text_optional("expires_at", expires_at)?)
                .execute(&self.pool)
                .await
                .map_err(unavailable)?;
            found(id, changed.rows_affected())
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
            self.file.require()?;
            let mut query = sqlx::query(self.statements.revoke.clone()).bind(id.to_string());
            if self.schema.has_details {
                query = query.bind(to_text("revoked_at", at)?).bind(reason);
            }
            let changed = query.execute(&self.pool).await.map_err(unavailable)?;
            found(id, changed.rows_affected())
        };
        self.calls.measure(Operation::Revoke, call).await
    }

    async fn rotate(&self, succession: &Succession) -> Result<(), StoreError> {
        let Succession { old, old_expires_at, successor, now } = succession;
        let call = async {
            self.file.require()?;
            let mut transaction =
                self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
            let stored = sqlx::query(self.statements.find_by_id.clone())
                .bind(old.id.to_string())
                .fetch_optional(&mut *transaction)
                .await
                .map_err(unavailable)?;
            let stored = stored.ok_or_else(|| StoreError::NotFound(old.id.clone()))?;
            self.read(&stored)?.check_rotation(old, *now)?;
            self.insert_in(&mut transaction, successor).await?;
            let is_deprecated = self.schema.has_deprecations
                && sqlx::query(SELECT_EXPIRY_BEFORE)
                    .bind(old.id.to_string())
                    .fetch_optional(&mut *transaction)
                    .await
                    .map_err(unavailable)?
                    .is_some();
            let expires_at = rotated_expiry(old, *old_expires_at, is_deprecated);
            sqlx::query(self.statements.set_expiry.clone())
                .bind(old.id.to_string())
                .bind(self.local_text("expires_at", expires_at)?)
                .execute(&mut *transaction)
                .await
                .map_err(unavailable)?;
            transaction.commit().await.map_err(unavailable)
        };
        self.calls.measure(Operation::Rotate, call).await
    }

    async fn expiry_before_deprecation(
        &self,
        id: &KeyId,
    ) -> Result<Option<Option<SystemTime>>, StoreError> {
        if !self.schema.has_deprecations {
            return Ok(None);
        }
        let query = sqlx::query_scalar(SELECT_EXPIRY_BEFORE).bind(id.to_string());
        let before: Option<Option<String>> =
            query.fetch_optional(&self.pool).await.map_err(unavailable)?;
        let to_time = |local| self.time_zone().first_instant(local);
        Ok(before.map(|before| before.as_deref().and_then(from_text).map(to_time)))
    }

    async fn expire(&self, now: SystemTime) -> Result<u64, StoreError> {
        let call = async {
            self.file.require()?;
            let reached = to_text("expires_at", self.time_zone().reached(now))?;
            let mut query = sqlx::query(self.statements.expire.clone()).bind(reached);
            if self.schema.has_details {
                query = query.bind(to_text("revoked_at", now)?);
            }
            Ok(query.execute(&self.pool).await.map_err(unavailable)?.rows_affected())
        };
        self.calls.measure(Operation::Expire, call).await
    }

    async fn record_usage(&self, batch: &[Usage]) -> Result<(), StoreError> {
        let call = async {
            self.file.require()?;
            let update = match self.schema.has_details {
                true => {
                    "UPDATE api_keys SET last_used_at = max(coalesce(last_used_at, ''), $2), \
                 hash_format = CASE $3 WHEN 'hmac-sha256' THEN $3 ELSE coalesce(hash_format, $3) END WHERE id = $1"
                }
                false => {
                    "UPDATE api_keys SET last_used_at = $2 \
                 WHERE id = $1 AND coalesce(last_used_at, '') < $2"
                }
            };
            let mut transaction =
                self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(unavailable)?;
            for Usage { id, at, format } in batch {
                let at = self.local_text("last_used_at", *at)?;
                let mut query = sqlx::query(update).bind(id.to_string()).bind(at);
                if self.schema.has_details {
                    query = query.bind(format.as_str());
                }
                query.execute(&mut *transaction).await.map_err(unavailable)?;
            }
            transaction.commit().await.map_err(unavailable)
        };
        self.calls.measure(Operation::RecordUsage, call).await
    }

    async fn replace_hash(&self, change: &HashChange) -> Result<bool, StoreError> {
        let call = async {
            self.file.require()?;
            let query = sqlx::query(self.statements.replace_hash.clone())
                .bind(change.id.to_string())
                .bind(change.expected.to_hex())
                .bind(change.replacement.to_hex());
            match query.execute(&self.pool).await.map_err(unavailable) {
                Ok(changed) => Ok(changed.rows_affected() == 1),
                Err(StoreError::Conflict) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.calls.measure(Operation::ReplaceHash, call).await
    }

    async fn count_by_format(&self) -> Result<FormatCounts, StoreError> {
        let call = async {
            self.file.require()?;
            let query = sqlx::query_as(self.statements.count_by_format.clone());
            Ok(counts(query.fetch_one(&self.pool).await.map_err(unavailable)?))
        };
        self.calls.measure(Operation::CountByFormat, call).await
    }
}
